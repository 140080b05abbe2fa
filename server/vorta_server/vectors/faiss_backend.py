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
import sqlite3
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
from vorta_server.vectors.checks import check_collection, check_ids, check_limit, check_name, check_upsert, read_vectors
from vorta_server.vectors.collection import SEGMENTS, VectorCollection, text_fields_of
from vorta_server.vectors.columns import Columns
from vorta_server.vectors.faiss_config import FaissConfig
from vorta_server.vectors.filtering import CompiledFilter, compile_filter
from vorta_server.vectors.index import BuildStopped, set_threads
from vorta_server.vectors.operation import Result, Ticket
from vorta_server.vectors.searching import (
    PreparedSearch,
    complete_columns,
    filter_views,
    prepare_search,
    run_searches,
    settle_views,
)
from vorta_server.vectors.segment import Segment
from vorta_server.vectors.segment_files import sync
from vorta_server.vectors.snapshots import SnapshotStore
from vorta_server.vectors.store import DATABASE, ReadStore, create_store, store_error
from vorta_server.vectors.threads import Completions, JobThread, QueuedWrite, WriterThread
from vorta_server.vectors.writes import Change, Delete, Upsert

__all__ = ["FaissBackend"]

logger = logging.getLogger(__name__)

_LOCK = "LOCK"
_CATALOG = "catalog.sqlite"
_COLLECTIONS = "collections"
_SNAPSHOTS = "snapshots"
_CLOSE_POLL_S = 0.05
_PIN_POLL_S = 0.001
_PIN_WAIT_S = 10.0

Write = op.UpsertPoints | op.DeletePoints


class _Open:
    """A collection that is open, and what is under way for it.

    Attributes:
        num_writing: Writes that the writer has.
        lane: Writes that wait because a deletion by filter before them must first see all that came before it.
        loads: Reads that wait for columns of a segment, by the segment and the fields.
        is_retired: It is no longer known by its name; its files go when nothing needs them.
        is_writer_closed, is_store_closed: What of it has been closed since.
        pinned_sequence: Of the last write that reads of the database see.
    """

    def __init__(self, collection: VectorCollection) -> None:
        self.collection = collection
        self.num_writing = 0
        self.lane: deque[Ticket] = deque()
        self.loads: dict[tuple[int, tuple[str, ...]], list[Ticket]] = {}
        self.is_retired = False
        self.is_writer_closed = False
        self.is_store_closed = False
        self.pinned_sequence = -1


_Batches = dict[tuple[_Open, Any], list[tuple[Ticket, PreparedSearch]]]
"""Searches that are computed together."""


class FaissBackend:
    """The store of one folder.

    Args:
        data_dir: The folder; made when absent.
        config: Limits.
        wake: Called from any thread when `step` has something to do; None where the worker looks at `has_work`.

    Raises:
        FailedPrecondition: Another process has the folder (STORE_LOCKED), or the catalog is damaged (STORE_CORRUPT). A
            collection whose database is damaged is refused when it is asked for; the others serve.
    """

    def __init__(
        self, data_dir: Path, config: FaissConfig | None = None, *, wake: Callable[[], None] | None = None
    ) -> None:
        self._config = config = config or FaissConfig()
        self._folder = data_dir
        data_dir.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(data_dir)
        self._completions = Completions(wake)
        self._open: dict[str, _Open] = {}
        self._broken: dict[str, VortaError] = {}
        self._retired: set[_Open] = set()
        self._reads: deque[Ticket] = deque()
        self._pending: set[Ticket] = set()
        self._queued_bytes = 0
        self._queued_writes = 0
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
        for name in self._catalog.folders:
            self._open_collection(name)
        for entry in self._open.values():
            self._build(entry)

    # The worker's side

    @property
    def has_work(self) -> bool:
        """Whether reads wait, or something that a thread handed back."""
        return bool(self._reads) or bool(self._completions)

    @property
    def num_pending(self) -> int:
        """Operations without an answer."""
        return len(self._pending)

    def submit(self, ticket: Ticket) -> None:
        """Takes an operation: writes go to the disk's thread, everything else waits for `step`."""
        operation = ticket.operation
        self._pending.add(ticket)
        try:
            self._check_room(ticket)
            if isinstance(operation, op.UpsertPoints | op.DeletePoints):
                self._submit_write(ticket, operation)
            else:
                self._reads.append(ticket)
        except Exception as error:
            self._fail(ticket, error)

    def step(self) -> None:
        """Takes what threads handed back, then does the reads that wait; searches alike as one batch."""
        self._completions.run()
        pinned = self._pin({entry for ticket in self._reads if (entry := self._needing_store(ticket)) is not None})
        reads, self._reads = self._reads, deque()
        batches: _Batches = {}
        try:
            for ticket in reads:
                if ticket not in self._pending:
                    continue
                if not self._is_wanted(ticket):
                    continue
                if isinstance(ticket.operation, op.Search):
                    self._prepare(ticket, ticket.operation, batches)
                    continue
                if isinstance(ticket.operation, op.DeleteCollection | op.CreateCollection | op.SwapAlias):
                    self._run(batches)  # what came before sees what was before
                try:
                    self._answer(ticket)
                except Exception as error:
                    self._fail(ticket, error)
            self._run(batches)
        finally:
            for entry in pinned:
                if not entry.is_store_closed:
                    entry.collection.store.unpin()

    def _needing_store(self, ticket: Ticket) -> _Open | None:
        """The collection whose database an operation reads; None for operations that memory answers."""
        operation = ticket.operation
        if isinstance(operation, op.Search):
            is_filtered = operation.filter is not None or operation.texts or operation.ids or operation.group_by
            if not (is_filtered or operation.with_payload or operation.with_vector):
                return None
        elif not isinstance(operation, op.GetPoints | op.ScrollPoints | op.CountPoints):
            return None
        return self._open.get(self._catalog.resolve(operation.collection))

    def _pin(self, entries: set[_Open]) -> set[_Open]:
        """Has reads of these databases see exactly the writes that memory has seen.

        The writer is ahead of memory by what it has committed and not handed back yet: a point that was replaced there
        would be found here without its payload. Such writes are waited for; they are on their way.
        """
        give_up_s = time.monotonic() + _PIN_WAIT_S
        left = set(entries)
        while left:
            for entry in list(left):
                collection = entry.collection
                try:
                    if not entry.is_retired:
                        entry.pinned_sequence = collection.store.pin()
                    if entry.is_retired or entry.pinned_sequence == collection.sequence:
                        left.discard(entry)
                except sqlite3.Error:
                    left.discard(entry)  # whoever reads gets the error
            if left:
                if time.monotonic() > give_up_s:
                    logger.error("%d collections: the database is ahead of memory", len(left))
                    break
                self._completions.wait(_PIN_POLL_S)
                self._completions.run()
                # What was pinned already may be behind memory now.
                left |= {e for e in entries if not e.is_retired and e.pinned_sequence != e.collection.sequence}
        return entries

    def _is_wanted(self, ticket: Ticket) -> bool:
        """Whether somebody waits for the ticket, and in time; it is answered or forgotten otherwise."""
        if ticket.is_abandoned:
            self._pending.discard(ticket)
            return False
        if ticket.deadline_s is not None and ticket.deadline_s <= time.monotonic():
            self._fail(ticket, DeadlineExceeded("The deadline passed before the operation began."))
            return False
        return True

    def _run(self, batches: _Batches) -> None:
        """Computes the searches that were collected."""
        for (entry, _), batch in batches.items():
            self._search(entry.collection, batch)
        batches.clear()

    def close(self) -> None:
        """Finishes accepted writes, stops threads, saves what makes the next start faster. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        for entry in [*self._open.values(), *self._retired]:
            if entry.collection.build is not None:
                entry.collection.build.is_stopped = True
        while self._queued_writes or any(entry.lane for entry in self._open.values()):
            self._completions.wait(_CLOSE_POLL_S)
            self._completions.run()
        self._writer.close()
        self._reader.close()
        self._builder.close()
        self._completions.run()
        for ticket in list(self._pending):
            self._fail(ticket, _draining())
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

    def _check_room(self, ticket: Ticket) -> None:
        if self._is_closed:
            raise _draining()
        if ticket.deadline_s is not None and ticket.deadline_s <= time.monotonic():
            raise DeadlineExceeded("The deadline had passed when the operation came.")
        config = self._config
        if isinstance(ticket.operation, op.UpsertPoints | op.DeletePoints):
            limit, count = config.max_queued_writes, self._queued_writes
            count += sum(len(entry.lane) for entry in self._open.values())
            is_full = count >= limit or self._queued_bytes > config.max_queued_bytes
            what = "writes wait for the disk"
        else:
            limit, count = config.max_queued_reads, len(self._reads)
            is_full, what = count >= limit, "operations wait"
        if is_full:
            raise ResourceExhausted(f"{count} {what}, the store's limit.", metadata={"limit": limit}, retry_delay_s=0.5)

    def _finish(self, ticket: Ticket, result: Result) -> None:
        if ticket in self._pending:
            self._pending.discard(ticket)
            ticket.finish(result)

    def _fail(self, ticket: Ticket, error: BaseException) -> None:
        if not isinstance(error, VortaError):
            name = getattr(ticket.operation, "collection", "")
            converted = store_error(error, name if isinstance(name, str) else name.name, self._folder / DATABASE)
            if isinstance(converted, Internal):
                logger.error("a vector operation failed", exc_info=error)
            error = converted
        if ticket in self._pending:
            self._pending.discard(ticket)
            ticket.fail(error)

    # Collections

    def _get(self, name: str) -> _Open:
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
            self._open[name] = _Open(VectorCollection(folder, self._config))
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

    def _info(self, entry: _Open) -> op.CollectionInfo:
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

    def _retire(self, entry: _Open) -> None:
        """Lets go of a collection that has no name any more, once nothing uses its files."""
        entry.is_retired = True
        self._retired.add(entry)
        collection = entry.collection
        if collection.build is not None:
            collection.build.is_stopped = True
        for tickets in (*entry.loads.values(), entry.lane):
            for ticket in tickets:
                self._fail(ticket, _no_collection(collection.definition.name))
        entry.loads.clear()
        entry.lane.clear()

        def closed(_: Change | Exception | None) -> None:
            entry.is_writer_closed = True
            self._drop_retired(entry)

        self._writer.submit(QueuedWrite(collection.database, collection.reader, 0, None, closed))

    def _drop_retired(self, entry: _Open) -> None:
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
        self._in_reader(ticket, lambda: self._snapshots.finish(folder, own, collection.database), self._finish)

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
            self._finish(ticket, self._info(entry))

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
                self._fail(ticket, error)

        self._reader.submit(job, done)

    # Writes

    def _submit_write(self, ticket: Ticket, operation: Write) -> None:
        entry = self._get(operation.collection)
        if isinstance(operation, op.UpsertPoints):
            check_upsert(operation, self._config)
        elif operation.filter is not None:
            if operation.ids:
                raise InvalidArgument("ids and filter exclude each other.", reason="CONFLICTING_FIELDS", field="filter")
            self._compile(entry.collection, operation.filter)
        elif not operation.ids:
            raise InvalidArgument("One of ids and filter is required.", reason="MISSING_FIELD", field="ids")
        else:
            check_ids(operation.ids, "ids", self._config)
        needs_all = isinstance(operation, op.DeletePoints) and operation.filter is not None
        if entry.lane or (needs_all and entry.num_writing):
            if not operation.wait:
                self._finish(ticket, op.Written(count=0, sequence=0))
            entry.lane.append(ticket)
        else:
            self._begin_write(entry, ticket, operation)

    def _begin_write(self, entry: _Open, ticket: Ticket, operation: Write) -> None:
        """Gives a write to the writer's thread, or keeps a deletion by filter until it can be decided."""
        if ticket in self._pending and not self._is_wanted(ticket):
            return
        collection = entry.collection
        write: Upsert | Delete
        if isinstance(operation, op.UpsertPoints):
            write = self._upsert(collection, operation)
        elif operation.filter is None:
            write = Delete(ids=list(dict.fromkeys(operation.ids)))
        else:
            compiled = self._compile(collection, operation.filter)
            if not self._has_columns(entry, ticket, compiled):
                if ticket not in entry.lane:
                    entry.lane.appendleft(ticket)  # later writes come after it
                return
            write = Delete(rows=self._rows_of(collection, compiled))
        count = len(write.ids) if isinstance(write, Upsert) else 0
        if not operation.wait:
            self._finish(ticket, op.Written(count=count, sequence=0))
        num_bytes = write.num_bytes
        self._queued_writes += 1
        self._queued_bytes += num_bytes
        entry.num_writing += 1

        def then(outcome: Change | Exception | None) -> None:
            self._queued_writes -= 1
            self._queued_bytes -= num_bytes
            entry.num_writing -= 1
            if isinstance(outcome, Change):
                if not entry.is_retired:
                    collection.apply(write, outcome)
                num_changed = count if isinstance(write, Upsert) else len(outcome.dead_rows)
                self._finish(ticket, op.Written(count=num_changed, sequence=outcome.sequence))
            else:
                if not operation.wait:
                    logger.error("a write to %s that nobody waited for failed: %s", operation.collection, outcome)
                if ticket in self._pending:
                    self._fail(ticket, outcome or Internal("The writer gave no answer."))
            if not entry.is_retired:
                self._go_on(entry)
                self._build(entry)

        self._writer.submit(
            QueuedWrite(collection.database, collection.reader, len(collection.text_fields), write, then)
        )

    def _go_on(self, entry: _Open) -> None:
        """Begins writes of the lane that can begin."""
        while entry.lane:
            ticket = entry.lane[0]
            operation = ticket.operation
            assert isinstance(operation, op.UpsertPoints | op.DeletePoints)
            if isinstance(operation, op.DeletePoints) and operation.filter is not None and entry.num_writing:
                return
            num_waiting = len(entry.lane)
            try:
                entry.lane.popleft()
                self._begin_write(entry, ticket, operation)
            except Exception as error:
                if ticket in self._pending:
                    self._fail(ticket, error)
                else:
                    logger.error("a write that nobody waited for failed: %s", error)
            if len(entry.lane) == num_waiting:  # it waits for columns
                return

    def _upsert(self, collection: VectorCollection, operation: op.UpsertPoints) -> Upsert:
        """The checked points. Raises InvalidArgument naming the point and field."""
        read_vectors(operation.vectors, collection.definition, "vectors", count=len(operation.ids))
        seen: set[tuple[str, str]] = set()
        texts: list[list[str]] | None = [] if collection.text_fields else None
        for index, payload in enumerate(operation.payloads):
            parsed = collection.reader.read(payload, f"payloads[{index}]", seen) if payload else {}
            if texts is not None:
                texts.append(collection.reader.texts(parsed))
        new_fields = sorted((path, kind) for path, kind in seen if kind not in collection.kinds.get(path, ()))
        if new_fields and len(collection.kinds.keys() | {path for path, _ in new_fields}) > self._config.max_fields:
            raise InvalidArgument(
                f"{collection.definition.name} would have more than {self._config.max_fields} payload fields.",
                field="payloads",
            )
        if texts is not None and not operation.payloads:
            texts = [[""] * len(collection.text_fields)] * len(operation.ids)
        return Upsert(operation.ids, operation.vectors, operation.payloads, texts, new_fields)

    # Reads

    def _answer(self, ticket: Ticket) -> None:
        """Answers what is no search and no write."""
        match ticket.operation:
            case op.CreateCollection() as operation:
                self._finish(ticket, self._create(operation.collection))
            case op.GetCollection() as operation:
                self._finish(ticket, self._info(self._get(operation.collection)))
            case op.ListCollections():
                infos = [self._info(self._open[name]) for name in sorted(self._open)]
                self._finish(ticket, op.Collections(collections=infos))
            case op.DeleteCollection() as operation:
                self._finish(ticket, self._delete(operation.collection))
            case op.SwapAlias() as operation:
                self._finish(ticket, self._swap_alias(operation.alias, operation.collection))
            case op.DeleteAlias() as operation:
                self._finish(ticket, self._delete_alias(operation.alias))
            case op.ListAliases():
                aliases = [op.AliasInfo(alias=a, collection=c) for a, c in sorted(self._catalog.aliases.items())]
                self._finish(ticket, op.Aliases(aliases=aliases))
            case op.CreateSnapshot() as operation:
                self._create_snapshot(ticket, operation.collection)
            case op.ListSnapshots() as operation:
                self._finish(ticket, self._list_snapshots(operation.collection))
            case op.DeleteSnapshot() as operation:
                self._snapshots.delete(self._catalog.resolve(operation.collection), operation.snapshot)
                self._finish(ticket, op.Done())
            case op.RestoreSnapshot() as operation:
                self._restore(ticket, operation)
            case op.GetPoints() as operation:
                self._finish(ticket, self._get_points(self._get(operation.collection).collection, operation))
            case op.ScrollPoints() as operation:
                self._scroll(ticket, operation)
            case op.CountPoints() as operation:
                self._count(ticket, operation)
            case _:
                raise Internal(f"{type(ticket.operation).__name__} is not known here")

    def _get_points(self, collection: VectorCollection, operation: op.GetPoints) -> op.Points:
        if not operation.ids:
            raise InvalidArgument("ids must not be empty.", reason="MISSING_FIELD", field="ids")
        check_ids(operation.ids, "ids", self._config)
        rows = collection.store.rows_of(operation.ids)
        found = [(point_id, rows[point_id]) for point_id in operation.ids if point_id in rows]
        return op.Points(points=_points(collection, found, operation.with_payload, operation.with_vector))

    def _scroll(self, ticket: Ticket, operation: op.ScrollPoints) -> None:
        check_limit(operation.limit, self._config)
        entry = self._get(operation.collection)
        collection = entry.collection
        compiled = None if operation.filter is None else self._compile(collection, operation.filter)
        if compiled is not None and not self._has_columns(entry, ticket, compiled):
            return
        allowed = None if compiled is None else set(self._rows_of(collection, compiled))
        found: list[tuple[str, int]] = []
        after, has_more = operation.after, False
        while len(found) <= operation.limit:
            piece = collection.store.ids_after(after, operation.limit + 1)
            found += [item for item in piece if allowed is None or item[1] in allowed]
            if len(piece) <= operation.limit:
                break
            after = piece[-1][0]
        has_more = len(found) > operation.limit
        found = found[: operation.limit]
        points = _points(collection, found, operation.with_payload, operation.with_vector)
        self._finish(ticket, op.Page(points=points, next_after=found[-1][0] if has_more else ""))

    def _count(self, ticket: Ticket, operation: op.CountPoints) -> None:
        entry = self._get(operation.collection)
        if operation.filter is None:
            self._finish(ticket, op.Counted(count=entry.collection.num_points))
            return
        compiled = self._compile(entry.collection, operation.filter)
        if self._has_columns(entry, ticket, compiled):
            views = filter_views(entry.collection, compiled) or []
            count = sum(view.count for view in views)
            settle_views(entry.collection, compiled)
            self._finish(ticket, op.Counted(count=count))

    def _compile(self, collection: VectorCollection, filter_: op.Filter) -> CompiledFilter:
        return compile_filter(filter_, collection.kinds, collection.text_fields, self._config)

    def _rows_of(self, collection: VectorCollection, compiled: CompiledFilter) -> list[int]:
        views = filter_views(collection, compiled) or []
        rows: list[int] = []
        for segment, view in zip(collection.segments, views, strict=True):
            rows += segment.rows[view.positions].tolist()
        settle_views(collection, compiled)
        return rows

    def _has_columns(self, entry: _Open, ticket: Ticket, compiled: CompiledFilter) -> bool:
        """Whether the payload fields that a filter needs are in memory.

        Few rows are read at once. Many are read by the reader's thread, and the ticket begins again afterwards.
        """
        collection = entry.collection
        is_waiting = False
        for segment in collection.segments:
            paths = segment.columns.missing(compiled.paths, segment.num_rows)
            if paths and segment.num_rows - segment.columns.start_of(paths) > self._config.inline_column_rows:
                self._load_columns(entry, segment, tuple(paths), ticket)
                is_waiting = True
        if not is_waiting:
            complete_columns(collection, compiled)
        return not is_waiting

    def _load_columns(self, entry: _Open, segment: Segment, paths: tuple[str, ...], ticket: Ticket) -> None:
        key = (segment.uid, paths)
        if key in entry.loads:
            entry.loads[key].append(ticket)
            return
        entry.loads[key] = [ticket]
        collection, rows = entry.collection, segment.rows

        def read() -> Columns:
            columns = Columns()
            store = ReadStore(collection.database, self._config)
            try:
                payloads = store.payloads_between(int(rows[0]), int(rows[-1]))
                columns.extend(paths, collection.types, rows, payloads)
            finally:
                store.close()
            return columns

        def done(result: Columns | Exception) -> None:
            tickets = entry.loads.pop(key, [])
            if isinstance(result, Columns):
                segment.columns.install({path: result[path] for path in paths})
            for waiting in dict.fromkeys(tickets):
                if isinstance(result, Exception):
                    self._fail(waiting, result)
                    if waiting in entry.lane:
                        entry.lane.remove(waiting)
                elif not isinstance(waiting.operation, op.DeletePoints):
                    self._reads.append(waiting)
            if not entry.is_retired:
                self._go_on(entry)

        self._reader.submit(read, done)

    # Searches

    def _prepare(self, ticket: Ticket, search: op.Search, batches: _Batches) -> None:
        try:
            entry = self._get(search.collection)
            prepared = prepare_search(entry.collection, search)
            if prepared.compiled is not None and not self._has_columns(entry, ticket, prepared.compiled):
                return
        except Exception as error:
            self._fail(ticket, error)
            return
        batches.setdefault((entry, prepared.key), []).append((ticket, prepared))

    def _search(self, collection: VectorCollection, batch: list[tuple[Ticket, PreparedSearch]]) -> None:
        try:
            results = run_searches(collection, [prepared for _, prepared in batch])
        except Exception as error:
            for ticket, _ in batch:
                self._fail(ticket, error)
            return
        for (ticket, _), result in zip(batch, results, strict=True):
            self._finish(ticket, result)

    # Indexes

    def _build(self, entry: _Open) -> None:
        """Begins the next build of a collection, if it wants one."""
        if self._is_closed:
            return
        build = entry.collection.start_build()
        if build is not None:
            self._builder.submit(lambda: run_build(build), lambda made: self._built(entry, build, made))

    def _built(self, entry: _Open, build: Build, made: Segment | Exception | None) -> None:
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


def _points(
    collection: VectorCollection, found: list[tuple[str, int]], with_payload: bool, with_vector: bool
) -> list[op.Point]:
    rows = [row for _, row in found]
    payloads = collection.store.payloads_of(rows) if with_payload else {}
    vectors = collection.store.vectors_of(rows) if with_vector else {}
    return [
        op.Point(id=point_id, payload=payloads.get(row, ""), vector=vectors.get(row, b"")) for point_id, row in found
    ]


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
