"""Snapshots as Weaviate's backups of one class. Imports the weaviate package.

What Weaviate's backups are not able to do is refused: restoring under another name, replacing a living collection
(which could not be undone if the backup turned out to be damaged) and deleting a finished backup.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from weaviate import WeaviateClient
from weaviate.backup.backup import BackupListReturn, BackupStatus, BackupStatusReturn, BackupStorage

from vorta.errors import AlreadyExists, FailedPrecondition, Internal, NotFound, Unimplemented
from vorta_server.vectors.operation import (
    CollectionInfo,
    CreateSnapshot,
    DeleteSnapshot,
    Done,
    GetCollection,
    ListSnapshots,
    RestoreSnapshot,
    SnapshotInfo,
    Snapshots,
)
from vorta_server.vectors.weaviate_catalog import Catalog
from vorta_server.vectors.weaviate_checks import check_name
from vorta_server.vectors.weaviate_client import remaining_s
from vorta_server.vectors.weaviate_schema import class_name, collection_name

__all__ = ["Backups"]

_ID = re.compile(r"vorta-(\d+)-(\d+)")
_POLL_S = (0.05, 1.0)


class Backups:
    """Makes, lists and restores backups in one of Weaviate's storages."""

    def __init__(self, catalog: Catalog, storage: str) -> None:
        """Takes the name of the storage: filesystem, s3, gcs or azure; empty for none."""
        self._catalog = catalog
        self._storage = storage

    def create(self, operation: CreateSnapshot) -> SnapshotInfo:
        """Backs a collection up, and waits. At the deadline the backup goes on, and is listed when it is done."""
        storage = self._backup_storage()
        known = self._catalog.resolve(operation.collection, max_age_s=0.0)
        name = known.collection.name
        num_points = self._catalog.number(known, None)
        now_ms = int(time.time() * 1000)
        # The name has all that a list of backups does not tell.
        snapshot = f"vorta-{now_ms}-{num_points}"
        client = self._catalog.connected()
        client.backup.create(snapshot, storage, include_collections=[class_name(name)])
        done = _wait(lambda: client.backup.get_create_status(snapshot, storage))
        if done.status is not BackupStatus.SUCCESS:
            raise Internal(f"Weaviate could not back {name} up: {done.error or done.status.value}")
        return SnapshotInfo(
            snapshot=snapshot,
            collection=name,
            created_s=now_ms / 1000,
            num_points=num_points,
            sequence=0,
            bytes=_bytes(done.size),
        )

    def list_all(self, operation: ListSnapshots) -> Snapshots:
        """Finished backups that this server made, newest first."""
        storage = self._backup_storage()
        if operation.collection:
            check_name(operation.collection, "collection")
        found = [info for item in _listed(self._catalog.connected(), storage) if (info := _info(item)) is not None]
        if operation.collection:
            found = [info for info in found if info.collection == operation.collection]
        return Snapshots(snapshots=sorted(found, key=lambda info: -info.created_s))

    def delete(self, operation: DeleteSnapshot) -> Done:
        """Refuses."""
        raise Unimplemented("Weaviate does not delete backups; delete the snapshot's files in its backup storage.")

    def restore(self, operation: RestoreSnapshot) -> CollectionInfo:
        """Brings a deleted collection back, under its own name."""
        storage = self._backup_storage()
        name = operation.collection
        if operation.target not in ("", name):
            raise Unimplemented("Weaviate restores snapshots under their own collection's name only.")
        if operation.snapshot not in [
            info.snapshot for info in self.list_all(ListSnapshots(collection=name)).snapshots
        ]:
            raise NotFound(
                f"There is no snapshot {operation.snapshot} of {name}.",
                reason="SNAPSHOT_NOT_FOUND",
                metadata={"collection": name, "snapshot": operation.snapshot},
            )
        client = self._catalog.connected()
        if client.collections.exists(class_name(name)):
            if operation.replace:
                raise Unimplemented("Weaviate replaces no collection by a snapshot; delete it first.")
            raise AlreadyExists(
                f"A collection {name} exists.", reason="COLLECTION_ALREADY_EXISTS", metadata={"collection": name}
            )
        client.backup.restore(operation.snapshot, storage, include_collections=[class_name(name)])
        done = _wait(lambda: client.backup.get_restore_status(operation.snapshot, storage))
        self._catalog.forget(name)
        if done.status is not BackupStatus.SUCCESS:
            raise FailedPrecondition(
                f"Weaviate could not restore {operation.snapshot}: {done.error or done.status.value}",
                reason="SNAPSHOT_INVALID",
                metadata={"snapshot": operation.snapshot},
            )
        return self._catalog.get_collection(GetCollection(collection=name))

    def _backup_storage(self) -> BackupStorage:
        if not self._storage:
            raise Unimplemented(
                "Snapshots need a backup storage of Weaviate (option `backups` of its URL), and none is set."
            )
        return BackupStorage(self._storage)


def _wait(status: Callable[[], BackupStatusReturn]) -> BackupStatusReturn:
    """Asks until it is over. The client's own waiting knows no deadline."""
    pause_s, longest_s = _POLL_S
    while True:
        found = status()
        if found.status in (BackupStatus.SUCCESS, BackupStatus.FAILED, BackupStatus.CANCELED):
            return found
        remaining_s()
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, longest_s)


def _listed(client: WeaviateClient, storage: BackupStorage) -> list[BackupListReturn]:
    return client.backup.list_backups(storage)


def _info(item: BackupListReturn) -> SnapshotInfo | None:
    found = _ID.fullmatch(item.backup_id)
    names = [name for text in item.collections if (name := collection_name(text)) is not None]
    if found is None or len(names) != 1 or item.status is not BackupStatus.SUCCESS:
        return None
    return SnapshotInfo(
        snapshot=item.backup_id,
        collection=names[0],
        created_s=int(found[1]) / 1000,
        num_points=int(found[2]),
        sequence=0,
        bytes=_bytes(item.size),
    )


def _bytes(size_gib: float) -> int:
    """Weaviate tells sizes in GiB."""
    return round(size_gib * (1 << 30))
