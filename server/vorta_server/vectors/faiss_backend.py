"""The embedded vector store: a `VectorBackend` over SQLite and FAISS in one folder.

    LOCK                 held while the store is open
    catalog.sqlite       names, folders and aliases
    collections/<folder>/data.sqlite, segments/
    snapshots/           see `snapshots`

Threads: the worker's owns everything in memory and searches; the writer commits, many writes together; the builder
makes indexes; the reader does what takes long and touches no memory of the worker's (columns of large segments,
snapshots). Each hands its results back to the worker's thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vorta.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    VortaError,
)
from vorta_server.vectors import operation as op
from vorta_server.vectors.building import Build, run_build
from vorta_server.vectors.catalog import Catalog
from vorta_server.vectors.checks import check_collection, check_name
from vorta_server.vectors.collection import SEGMENTS, VectorCollection, text_fields_of
from vorta_server.vectors.faiss_config import FaissConfig
from vorta_server.vectors.faiss_open import OpenCollection, Tickets
from vorta_server.vectors.faiss_reads import Batches, FaissReads
from vorta_server.vectors.faiss_writes import FaissWrites
from vorta_server.vectors.gpu import open_gpu
from vorta_server.vectors.index import BuildStopped, set_threads
from vorta_server.vectors.operation import Ticket
from vorta_server.vectors.segment import Segment
from vorta_server.vectors.segment_files import sync
from vorta_server.vectors.snapshots import SnapshotStore
from vorta_server.vectors.store import DATABASE, create_store, store_error
from vorta_server.vectors.threads import Completions, JobThread, QueuedWrite, WriterThread
from vorta_server.vectors.writes import Change

__all__ = ["FaissBackend"]

logger = logging.getLogger(__name__)

_LOCK = "LOCK"
_CATALOG = "catalog.sqlite"
_COLLECTIONS = "collections"
_SNAPSHOTS = "snapshots"
_CLOSE_POLL_S = 0.05


class FaissBackend:
    """The store of one folder.

    Args:
        data_dir: The folder; made when absent.
        config: Limits.
        wake: Called from any thread when `step` has something to do; None where the worker looks at `has_work`.

    Raises:
        FailedPrecondition: Another process has the folder (STORE_LOCKED), the catalog is damaged (STORE_CORRUPT), or
            there is no GPU that is asked for (DEVICE_MISSING). A collection whose database is damaged is refused when
            it is asked for; the others serve.
    """

    def __init__(
        self, data_dir: Path, config: FaissConfig | None = None, *, wake: Callable[[], None] | None = None
    ) -> None:
        self._config = config = config or FaissConfig()
        self._gpu = open_gpu(config.device)
        self._folder = data_dir
        data_dir.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(data_dir)
        self._completions = Completions(wake)
        self._open: dict[str, OpenCollection] = {}
        self._broken: dict[str, VortaError] = {}
        self._retired: set[OpenCollection] = set()
        self._waiting: deque[Ticket] = deque()
        self._tickets = Tickets(data_dir / DATABASE)
        self._is_closed = False
        try:
            self._catalog = Catalog(data_dir / _CATALOG)
        except BaseException:
            os.close(self._lock)
            raise
        self._snapshots = SnapshotStore(data_dir / _SNAPSHOTS, config)
        (data_dir / _COLLECTIONS).mkdir(exist_ok=True)
        self._clean()
        self._writer = WriterThread(config, self._completions)
        self._builder = JobThread("vectors-builder", self._completions, lambda: set_threads(config.build_threads))
        self._reader = JobThread("vectors-reader", self._completions)
        self._reads = FaissReads(
            config,
            self._tickets,
            get=self._get,
            find=lambda name: self._open.get(self._catalog.resolve(name)),
            completions=self._completions,
            reader=self._reader,
            again=self._take_again,
            go_on=lambda entry: self._writes.go_on(entry),
        )
        self._writes = FaissWrites(
            config, self._tickets, get=self._get, writer=self._writer, reads=self._reads, build=self._build
        )
        for name in self._catalog.folders:
            self._open_collection(name)
        for entry in self._open.values():
            self._build(entry)

    # The worker's side

    @property
    def has_work(self) -> bool:
        """Whether reads wait, or something that a thread handed back."""
        return bool(self._waiting) or bool(self._completions)

    @property
    def num_pending(self) -> int:
        """Operations without an answer."""
        return len(self._tickets)

    def submit(self, ticket: Ticket) -> None:
        """Takes an operation: writes go to the disk's thread, everything else waits for `step`."""
        operation = ticket.operation
        self._tickets.add(ticket)
        try:
            self._check_room(ticket)
            if isinstance(operation, op.UpsertPoints | op.DeletePoints):
                self._writes.submit(ticket, operation)
            else:
                self._waiting.append(ticket)
        except Exception as error:
            self._tickets.fail(ticket, error)

    def step(self) -> None:
        """Takes what threads handed back, then does the reads that wait; searches alike as one batch."""
        self._completions.run()
        reads = self._reads
        pinned = reads.pin({entry for ticket in self._waiting if (entry := reads.needing_store(ticket)) is not None})
        waiting, self._waiting = self._waiting, deque()
        batches = Batches()
        try:
            for ticket in waiting:
                if ticket not in self._tickets or not self._tickets.is_wanted(ticket):
                    continue
                if isinstance(ticket.operation, op.Search):
                    reads.prepare(ticket, ticket.operation, batches)
                    continue
                if isinstance(ticket.operation, op.DeleteCollection | op.CreateCollection | op.SwapAlias):
                    reads.run(batches)  # what came before sees what was before
                try:
                    self._answer(ticket)
                except Exception as error:
                    self._tickets.fail(ticket, error)
            reads.run(batches)
        finally:
            for entry in pinned:
                if not entry.is_store_closed:
                    entry.collection.store.unpin()

    def close(self) -> None:
        """Finishes accepted writes, stops threads, saves what makes the next start faster. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        for entry in [*self._open.values(), *self._retired]:
            if entry.collection.build is not None:
                entry.collection.build.is_stopped = True
        while self._writes.num_queued or any(entry.lane for entry in self._open.values()):
            self._completions.wait(_CLOSE_POLL_S)
            self._completions.run()
        self._writer.close()
        self._reader.close()
        self._builder.close()
        self._completions.run()
        self._tickets.fail_all(_draining())
        for entry in self._open.values():
            with contextlib.suppress(OSError):
                entry.collection.save_loose()
            entry.collection.close()
        for entry in list(self._retired):
            entry.is_writer_closed = True
            entry.collection.build = None
            self._drop_retired(entry)
        self._catalog.close()
        os.close(self._lock)

    def _take_again(self, ticket: Ticket) -> None:
        self._waiting.append(ticket)

    def _check_room(self, ticket: Ticket) -> None:
        if self._is_closed:
            raise _draining()
        if ticket.deadline_s is not None and ticket.deadline_s <= time.monotonic():
            raise DeadlineExceeded("The deadline had passed when the operation came.")
        config = self._config
        if isinstance(ticket.operation, op.UpsertPoints | op.DeletePoints):
            limit, count = config.max_queued_writes, self._writes.num_queued
            count += sum(len(entry.lane) for entry in self._open.values())
            is_full = count >= limit or self._writes.queued_bytes > config.max_queued_bytes
            what = "writes wait for the disk"
        else:
            limit, count = config.max_queued_reads, len(self._waiting)
            is_full, what = count >= limit, "operations wait"
        if is_full:
            raise ResourceExhausted(f"{count} {what}, the store's limit.", metadata={"limit": limit}, retry_delay_s=0.5)

    # Collections

    def _get(self, name: str) -> OpenCollection:
        """The open collection of a name or alias. Raises NotFound, or why it cannot be opened."""
        if not name:
            raise InvalidArgument("collection is required.", reason="MISSING_FIELD", field="collection")
        own = self._catalog.resolve(name)
        if own in self._broken:
            raise self._broken[own]
        entry = self._open.get(own)
        if entry is None:
            raise _no_collection(name)
        return entry

    def _open_collection(self, name: str) -> None:
        folder = self._folder / _COLLECTIONS / self._catalog.folders[name]
        try:
            self._open[name] = OpenCollection(VectorCollection(folder, self._config, self._gpu))
            self._broken.pop(name, None)
        except Exception as error:
            converted = store_error(error, name, folder / DATABASE)
            logger.error("collection %s cannot be opened: %s", name, converted.message)
            self._broken[name] = converted

    def _clean(self) -> None:
        """Deletes folders that no collection has: of deleted ones, and of those that were not finished."""
        known = set(self._catalog.folders.values())
        for path in (self._folder / _COLLECTIONS).iterdir():
            if path.name not in known:
                shutil.rmtree(path, ignore_errors=True)
        self._snapshots.clean()

    def _new_folder(self, name: str) -> Path:
        return self._folder / _COLLECTIONS / f"{name}-{os.urandom(4).hex()}"

    def _create(self, definition: op.Collection) -> op.CollectionInfo:
        check_collection(definition)
        self._check_free(definition.name)
        folder = self._new_folder(definition.name)
        try:
            (folder / SEGMENTS).mkdir(parents=True)
            create_store(folder / DATABASE, definition, text_fields_of(definition))
            for path in (folder, folder.parent):
                sync(path)
            self._catalog.put(definition.name, folder.name)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._open_collection(definition.name)
        return self._info(self._get(definition.name))

    def _check_free(self, name: str) -> None:
        for kind, names in (("collection", self._catalog.folders), ("alias", self._catalog.aliases)):
            if name in names:
                raise AlreadyExists(
                    f"There is a {kind} {name} already.",
                    reason="COLLECTION_ALREADY_EXISTS",
                    metadata={"field": "collection", "collection": name},
                )

    def _info(self, entry: OpenCollection) -> op.CollectionInfo:
        collection = entry.collection
        name = collection.definition.name
        return op.CollectionInfo(
            collection=collection.shown_definition(),
            stats=collection.stats(),
            aliases=sorted(alias for alias, target in self._catalog.aliases.items() if target == name),
            created_s=collection.created_s,
        )

    def _delete(self, name: str) -> op.Done:
        if name in self._catalog.aliases:
            raise InvalidArgument(f"{name} is an alias; name the collection itself.", field="collection")
        if name not in self._catalog.folders:
            raise _no_collection(name)
        folder = self._folder / _COLLECTIONS / self._catalog.folders[name]
        self._catalog.remove(name)
        self._broken.pop(name, None)
        entry = self._open.pop(name, None)
        if entry is None:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            self._retire(entry)
        return op.Done()

    def _retire(self, entry: OpenCollection) -> None:
        """Lets go of a collection that has no name any more, once nothing uses its files."""
        entry.is_retired = True
        self._retired.add(entry)
        collection = entry.collection
        if collection.build is not None:
            collection.build.is_stopped = True
        for tickets in (*entry.loads.values(), entry.lane):
            for ticket in tickets:
                self._tickets.fail(ticket, _no_collection(collection.definition.name))
        entry.loads.clear()
        entry.lane.clear()

        def closed(_: Change | Exception | None) -> None:
            entry.is_writer_closed = True
            self._drop_retired(entry)

        self._writer.submit(QueuedWrite(collection.database, collection.reader, 0, None, closed))

    def _drop_retired(self, entry: OpenCollection) -> None:
        if entry.is_writer_closed and entry.collection.build is None and entry in self._retired:
            self._retired.discard(entry)
            entry.is_store_closed = True
            entry.collection.close()
            shutil.rmtree(entry.collection.folder, ignore_errors=True)

    def _swap_alias(self, alias: str, target: str) -> op.AliasInfo:
        check_name(alias, "alias")
        if target not in self._catalog.folders:
            raise _no_collection(target)
        if alias in self._catalog.folders:
            raise AlreadyExists(
                f"{alias} is a collection.", reason="COLLECTION_ALREADY_EXISTS", metadata={"field": "alias"}
            )
        previous = self._catalog.aliases.get(alias, "")
        self._catalog.put_alias(alias, target)
        return op.AliasInfo(alias=alias, collection=target, previous=previous)

    def _delete_alias(self, alias: str) -> op.Done:
        if alias not in self._catalog.aliases:
            raise NotFound(
                f"There is no alias {alias[:64]!r}.", reason="ALIAS_NOT_FOUND", metadata={"alias": alias[:64]}
            )
        self._catalog.remove_alias(alias)
        return op.Done()

    # Snapshots

    def _create_snapshot(self, ticket: Ticket, name: str) -> None:
        collection = self._get(name).collection
        own = collection.definition.name
        # Linked now: later on a merge may delete them. The database is copied by the reader's thread, and is newer.
        sealed = [collection.folder / SEGMENTS / s.name for s in collection.segments if s.name is not None]
        folder = self._snapshots.begin(own, sealed)
        self._in_reader(ticket, lambda: self._snapshots.finish(folder, own, collection.database), self._tickets.finish)

    def _list_snapshots(self, name: str) -> op.Snapshots:
        own = self._catalog.resolve(name) if name else ""
        if own and own not in self._catalog.folders and not self._snapshots.has(own):
            raise _no_collection(name)
        return op.Snapshots(snapshots=self._snapshots.list(own))

    def _restore(self, ticket: Ticket, operation: op.RestoreSnapshot) -> None:
        source = self._catalog.resolve(operation.collection)
        target = operation.target or source
        check_name(target, "target")
        self._check_target(target, operation.replace)
        folder = self._new_folder(target)

        def restored(ticket: Ticket, _: None) -> None:
            try:
                self._check_target(target, operation.replace)  # again: others may have been faster
                self._catalog.put(target, folder.name)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            old = self._open.pop(target, None)
            self._open_collection(target)
            if old is not None:
                self._retire(old)
            entry = self._get(target)
            self._build(entry)
            self._tickets.finish(ticket, self._info(entry))

        self._in_reader(ticket, lambda: self._snapshots.restore(source, operation.snapshot, target, folder), restored)

    def _check_target(self, target: str, replace: bool) -> None:
        if target in self._catalog.aliases:
            raise InvalidArgument(f"{target} is an alias; name the collection itself.", field="target")
        if not replace:
            self._check_free(target)

    def _in_reader(self, ticket: Ticket, job: Callable[[], Any], then: Callable[[Ticket, Any], None]) -> None:
        """Runs a job on the reader's thread and goes on here; what either raises answers the ticket."""

        def done(result: Any) -> None:
            try:
                if isinstance(result, Exception):
                    raise result
                then(ticket, result)
            except Exception as error:
                self._tickets.fail(ticket, error)

        self._reader.submit(job, done)

    # Answers

    def _answer(self, ticket: Ticket) -> None:
        """Answers what is no search and no write."""
        match ticket.operation:
            case op.CreateCollection() as operation:
                self._tickets.finish(ticket, self._create(operation.collection))
            case op.GetCollection() as operation:
                self._tickets.finish(ticket, self._info(self._get(operation.collection)))
            case op.ListCollections():
                infos = [self._info(self._open[name]) for name in sorted(self._open)]
                self._tickets.finish(ticket, op.Collections(collections=infos))
            case op.DeleteCollection() as operation:
                self._tickets.finish(ticket, self._delete(operation.collection))
            case op.SwapAlias() as operation:
                self._tickets.finish(ticket, self._swap_alias(operation.alias, operation.collection))
            case op.DeleteAlias() as operation:
                self._tickets.finish(ticket, self._delete_alias(operation.alias))
            case op.ListAliases():
                aliases = [op.AliasInfo(alias=a, collection=c) for a, c in sorted(self._catalog.aliases.items())]
                self._tickets.finish(ticket, op.Aliases(aliases=aliases))
            case op.CreateSnapshot() as operation:
                self._create_snapshot(ticket, operation.collection)
            case op.ListSnapshots() as operation:
                self._tickets.finish(ticket, self._list_snapshots(operation.collection))
            case op.DeleteSnapshot() as operation:
                self._snapshots.delete(self._catalog.resolve(operation.collection), operation.snapshot)
                self._tickets.finish(ticket, op.Done())
            case op.RestoreSnapshot() as operation:
                self._restore(ticket, operation)
            case op.GetPoints() as operation:
                self._tickets.finish(ticket, self._reads.get_points(operation))
            case op.ScrollPoints() as operation:
                self._reads.scroll(ticket, operation)
            case op.CountPoints() as operation:
                self._reads.count(ticket, operation)
            case _:
                raise Internal(f"{type(ticket.operation).__name__} is not known here")

    # Indexes

    def _build(self, entry: OpenCollection) -> None:
        """Begins the next build of a collection, if it wants one."""
        if self._is_closed:
            return
        build = entry.collection.start_build()
        if build is not None:
            self._builder.submit(lambda: run_build(build), lambda made: self._built(entry, build, made))

    def _built(self, entry: OpenCollection, build: Build, made: Segment | Exception | None) -> None:
        collection = entry.collection
        if isinstance(made, Exception):
            collection.build = None
            if not isinstance(made, BuildStopped):
                logger.error("an index of %s could not be built: %s", collection.definition.name, made, exc_info=made)
        elif entry.is_retired or self._is_closed:
            collection.build = None
        else:
            for folder in collection.install(build, made):
                shutil.rmtree(folder, ignore_errors=True)
            self._build(entry)
        if entry.is_retired:
            self._drop_retired(entry)


def _locked(folder: Path) -> int:
    """Holds the folder for this process; the kernel lets go when it ends. Raises FailedPrecondition."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise FailedPrecondition(
            f"Another process has the vector store in {folder} open.",
            reason="STORE_LOCKED",
            metadata={"path": str(folder)},
        ) from None
    return descriptor


def _no_collection(name: str) -> NotFound:
    return NotFound(
        f"There is no collection {name[:64]!r}.",
        reason="COLLECTION_NOT_FOUND",
        metadata={"collection": name[:64]},
    )


def _draining() -> Unavailable:
    return Unavailable("The server is shutting down.", reason="DRAINING", retry_delay_s=0.5)
