"""Kept states of collections: a copy of the database, and the sealed segments as links to the same files.

    snapshots/<collection>/<snapshot>/manifest.json    what it is, with the hash of the database's copy
                                      data.sqlite
                                      segments/…       as `segment_files` describes; checked when they are loaded

Segments never change, so a link is as good as a copy and costs nothing. Rows in them that the copy of the database does
not have are dead when they are loaded.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from vorta.errors import FailedPrecondition, InvalidArgument, NotFound
from vorta_server.vectors.faiss_config import FaissConfig
from vorta_server.vectors.operation import Collection, SnapshotInfo
from vorta_server.vectors.segment_files import MANIFEST, FileEntry, damaged_files, entry_of, sync
from vorta_server.vectors.store import DATABASE, ReadStore

__all__ = ["SEGMENTS", "SnapshotStore"]

SEGMENTS = "segments"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_TEMPORARY = "tmp-"


class _Manifest(msgspec.Struct, frozen=True, kw_only=True):
    format: int = 1
    collection: str
    created_s: float
    num_points: int
    sequence: int
    files: dict[str, FileEntry]


class SnapshotStore:
    """The snapshots in a folder. Methods work on any thread; those of one snapshot not at once.

    Args:
        folder: Of all snapshots.
        config: Limits.
    """

    def __init__(self, folder: Path, config: FaissConfig) -> None:
        self._folder = folder
        self._config = config

    def begin(self, collection: str, segments: list[Path]) -> Path:
        """Makes a folder for a new snapshot with links to the collection's sealed segments. Call `finish` next."""
        parent = self._folder / collection
        parent.mkdir(parents=True, exist_ok=True)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        folder = parent / f"{_TEMPORARY}{stamp}-{os.urandom(3).hex()}"
        (folder / SEGMENTS).mkdir(parents=True)
        for segment in segments:
            _link(segment, folder / SEGMENTS / segment.name)
        return folder

    def finish(self, folder: Path, collection: str, database: Path) -> SnapshotInfo:
        """Copies the database as it is now, and makes the snapshot known. Nothing is left behind when that fails."""
        try:
            copy = folder / DATABASE
            source = ReadStore(database, self._config)
            try:
                source.copy_to(copy)
            finally:
                source.close()
            sync(copy)
            made = ReadStore(copy, self._config)
            try:
                sequence, num_points = made.meta().sequence, made.count_points()
            finally:
                made.close()
            manifest = _Manifest(
                collection=collection,
                created_s=time.time(),
                num_points=num_points,
                sequence=sequence,
                files={DATABASE: entry_of(copy)},
            )
            (folder / MANIFEST).write_bytes(msgspec.json.encode(manifest))
            for path in (folder / MANIFEST, folder / SEGMENTS, folder):
                sync(path)
            final = folder.with_name(folder.name.removeprefix(_TEMPORARY))
            folder.rename(final)
            sync(final.parent)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return _info(final, manifest)

    def list(self, collection: str) -> list[SnapshotInfo]:
        """Snapshots of a collection, or of all for an empty name; newest first. Damaged manifests are left out."""
        found = []
        for parent in sorted(self._folder.iterdir()) if self._folder.is_dir() else []:
            if collection in ("", parent.name) and parent.is_dir():
                for folder in parent.iterdir():
                    manifest = _read(folder)
                    if manifest is not None and not folder.name.startswith(_TEMPORARY):
                        found.append(_info(folder, manifest))
        return sorted(found, key=lambda info: (-info.created_s, info.snapshot))

    def has(self, collection: str) -> bool:
        """Whether there are snapshots of a collection."""
        return (self._folder / collection).is_dir()

    def delete(self, collection: str, snapshot: str) -> None:
        """Deletes a snapshot. Raises NotFound (SNAPSHOT_NOT_FOUND)."""
        folder = self._find(collection, snapshot)
        gone = folder.with_name(_TEMPORARY + folder.name)
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()

    def restore(self, collection: str, snapshot: str, target: str, folder: Path) -> None:
        """Makes the folder of a collection of what a snapshot holds, under the name `target`.

        Args:
            folder: Must not be there.

        Raises:
            NotFound: SNAPSHOT_NOT_FOUND.
            FailedPrecondition: SNAPSHOT_INVALID when it is damaged; nothing is left behind.
        """
        source = self._find(collection, snapshot)
        manifest = _read(source)
        damaged = MANIFEST if manifest is None else next(damaged_files(source, manifest.files), None)
        if damaged is not None:
            raise FailedPrecondition(
                f"Snapshot {snapshot} of {collection} is damaged ({damaged}).",
                reason="SNAPSHOT_INVALID",
                metadata={"snapshot": snapshot, "collection": collection},
            )
        try:
            (folder / SEGMENTS).mkdir(parents=True)
            shutil.copyfile(source / DATABASE, folder / DATABASE)
            _rename(folder / DATABASE, target)
            for segment in source.joinpath(SEGMENTS).iterdir():
                _link(segment, folder / SEGMENTS / segment.name)
            for path in (folder / DATABASE, folder / SEGMENTS, folder, folder.parent):
                sync(path)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def clean(self) -> None:
        """Deletes what was left by a process that ended in the middle."""
        for parent in self._folder.iterdir() if self._folder.is_dir() else []:
            for folder in parent.iterdir() if parent.is_dir() else []:
                if folder.name.startswith(_TEMPORARY):
                    shutil.rmtree(folder, ignore_errors=True)

    def _find(self, collection: str, snapshot: str) -> Path:
        for field, name in (("collection", collection), ("snapshot", snapshot)):
            if not _NAME.fullmatch(name):
                raise InvalidArgument(f"{field} {name[:64]!r} is no name.", field=field)
        folder = self._folder / collection / snapshot
        if not folder.is_dir():
            raise NotFound(
                f"{collection} has no snapshot {snapshot!r}.",
                reason="SNAPSHOT_NOT_FOUND",
                metadata={"collection": collection, "snapshot": snapshot},
            )
        return folder


def _info(folder: Path, manifest: _Manifest) -> SnapshotInfo:
    return SnapshotInfo(
        snapshot=folder.name,
        collection=manifest.collection,
        created_s=manifest.created_s,
        num_points=manifest.num_points,
        sequence=manifest.sequence,
        bytes=sum(path.stat().st_size for path in _files(folder)),
    )


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _read(folder: Path) -> _Manifest | None:
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=_Manifest)
    except (OSError, msgspec.MsgspecError):
        return None
    return manifest if manifest.format == 1 and set(manifest.files) == {DATABASE} else None


def _link(source: Path, target: Path) -> None:
    """Links the files of a segment, or copies them where there are no links between the two places."""
    target.mkdir()
    place: Callable[[Path, Path], object] = os.link
    for path in source.iterdir():
        try:
            place(path, target / path.name)
        except OSError:
            place = shutil.copyfile
            place(path, target / path.name)


def _rename(database: Path, name: str) -> None:
    """Gives the collection in a database that nobody else has open another name."""
    connection = sqlite3.connect(database, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        (text,) = connection.execute("SELECT value FROM meta WHERE key = 'definition'").fetchone()
        definition = msgspec.structs.replace(msgspec.json.decode(text, type=Collection), name=name)
        connection.execute(
            "UPDATE meta SET value = ? WHERE key = 'definition'", (msgspec.json.encode(definition).decode(),)
        )
    finally:
        connection.close()
