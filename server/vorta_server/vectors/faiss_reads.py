"""The reading half of the embedded store: points, pages, counts and searches, with the columns that filters need.

Everything but the reading of columns, which has a thread, is the worker's.
"""

from __future__ import annotations

import functools
import logging
import sqlite3
import time
from collections.abc import Callable
from typing import Any, TypeVar

from vorta.errors import InvalidArgument
from vorta_server.vectors import operation as op
from vorta_server.vectors.checks import check_ids, check_limit
from vorta_server.vectors.collection import VectorCollection
from vorta_server.vectors.columns import Columns
from vorta_server.vectors.faiss_config import FaissConfig
from vorta_server.vectors.faiss_open import OpenCollection, Tickets
from vorta_server.vectors.filtering import CompiledFilter, compile_filter
from vorta_server.vectors.operation import Ticket
from vorta_server.vectors.prepared import PreparedSearch, plain_key, prepare_search
from vorta_server.vectors.searching import (
    complete_columns,
    filter_views,
    run_plain_searches,
    run_searches,
    settle_views,
)
from vorta_server.vectors.segment import Segment
from vorta_server.vectors.store import ReadStore
from vorta_server.vectors.threads import Completions, JobThread

__all__ = ["Batches", "FaissReads"]

logger = logging.getLogger(__name__)

_PIN_POLL_S = 0.001
_PIN_WAIT_S = 10.0

S = TypeVar("S")


class Batches:
    """Searches that are computed together.

    Attributes:
        plain: Those that need nothing but to be computed; they are checked then.
        prepared: The others.
    """

    def __init__(self) -> None:
        self.plain: dict[tuple[OpenCollection, Any], list[tuple[Ticket, op.Search]]] = {}
        self.prepared: dict[tuple[OpenCollection, Any], list[tuple[Ticket, PreparedSearch]]] = {}

    def take(self) -> Batches:
        """What was collected; nothing is left."""
        taken = Batches()
        taken.plain, self.plain = self.plain, taken.plain
        taken.prepared, self.prepared = self.prepared, taken.prepared
        return taken


class FaissReads:
    """Reads of the open collections.

    Args:
        config: Limits.
        tickets: Gets the answers.
        get: The open collection of a name or alias; raises what says why there is none.
        find: The same, None where there is none.
        completions: What other threads hand back.
        reader: Reads columns of large segments.
        again: Takes a read that waited for columns and can begin now.
        go_on: Begins writes of a collection that waited for columns.
    """

    def __init__(
        self,
        config: FaissConfig,
        tickets: Tickets,
        *,
        get: Callable[[str], OpenCollection],
        find: Callable[[str], OpenCollection | None],
        completions: Completions,
        reader: JobThread,
        again: Callable[[Ticket], None],
        go_on: Callable[[OpenCollection], None],
    ) -> None:
        self._config = config
        self._tickets = tickets
        self._get = get
        self._find = find
        self._completions = completions
        self._reader = reader
        self._again = again
        self._go_on = go_on

    def needing_store(self, ticket: Ticket) -> OpenCollection | None:
        """The collection whose database an operation reads; None for operations that memory answers."""
        operation = ticket.operation
        if isinstance(operation, op.Search):
            is_filtered = operation.filter is not None or operation.texts or operation.ids or operation.group_by
            if not (is_filtered or operation.with_payload or operation.with_vector):
                return None
        elif not isinstance(operation, op.GetPoints | op.ScrollPoints | op.CountPoints):
            return None
        return self._find(operation.collection)

    def pin(self, entries: set[OpenCollection]) -> set[OpenCollection]:
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

    def get_points(self, operation: op.GetPoints) -> op.Points:
        """The points of these ids that there are, in the order of the ids."""
        if not operation.ids:
            raise InvalidArgument("ids must not be empty.", reason="MISSING_FIELD", field="ids")
        collection = self._get(operation.collection).collection
        check_ids(operation.ids, "ids", self._config)
        rows = collection.store.rows_of(operation.ids)
        found = [(point_id, rows[point_id]) for point_id in operation.ids if point_id in rows]
        return op.Points(points=_points(collection, found, operation.with_payload, operation.with_vector))

    def scroll(self, ticket: Ticket, operation: op.ScrollPoints) -> None:
        """Answers with a page of points in the order of their ids."""
        check_limit(operation.limit, self._config)
        entry = self._get(operation.collection)
        collection = entry.collection
        compiled = None if operation.filter is None else self.compile(collection, operation.filter)
        if compiled is not None and not self.has_columns(entry, ticket, compiled):
            return
        allowed = None if compiled is None else set(self.rows_of(collection, compiled))
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
        self._tickets.finish(ticket, op.Page(points=points, next_after=found[-1][0] if has_more else ""))

    def count(self, ticket: Ticket, operation: op.CountPoints) -> None:
        """Answers with the number of points that pass."""
        entry = self._get(operation.collection)
        if operation.filter is None:
            self._tickets.finish(ticket, op.Counted(count=entry.collection.num_points))
            return
        compiled = self.compile(entry.collection, operation.filter)
        if self.has_columns(entry, ticket, compiled):
            views = filter_views(entry.collection, compiled) or []
            count = sum(view.count for view in views)
            settle_views(entry.collection, compiled)
            self._tickets.finish(ticket, op.Counted(count=count))

    def prepare(self, ticket: Ticket, search: op.Search, batches: Batches) -> None:
        """Puts a search into the batch that it can be computed in."""
        try:
            entry = self._get(search.collection)
            key = plain_key(search)
            if key is not None:
                batches.plain.setdefault((entry, key), []).append((ticket, search))
                return
            prepared = prepare_search(entry.collection, search)
            if prepared.compiled is not None and not self.has_columns(entry, ticket, prepared.compiled):
                return
        except Exception as error:
            self._tickets.fail(ticket, error)
            return
        batches.prepared.setdefault((entry, prepared.key), []).append((ticket, prepared))

    def run(self, batches: Batches) -> None:
        """Computes the searches that were collected."""
        taken = batches.take()
        for (entry, _), plain in taken.plain.items():
            self._search(plain, functools.partial(run_plain_searches, entry.collection))
        for (entry, _), prepared in taken.prepared.items():
            self._search(prepared, functools.partial(run_searches, entry.collection))

    def _search(self, batch: list[tuple[Ticket, S]], run: Callable[[list[S]], list[op.SearchResults]]) -> None:
        try:
            results = run([search for _, search in batch])
        except InvalidArgument as error:
            if len(batch) == 1:
                self._tickets.fail(batch[0][0], error)
            else:  # of one of them
                for item in batch:
                    self._search([item], run)
        except Exception as error:
            for ticket, _ in batch:
                self._tickets.fail(ticket, error)
        else:
            for (ticket, _), result in zip(batch, results, strict=True):
                self._tickets.finish(ticket, result)

    def compile(self, collection: VectorCollection, filter_: op.Filter) -> CompiledFilter:
        """The filter for this collection. Raises InvalidArgument naming the condition at fault."""
        return compile_filter(filter_, collection.kinds, collection.text_fields, self._config)

    def rows_of(self, collection: VectorCollection, compiled: CompiledFilter) -> list[int]:
        """Rows that pass; the columns must be complete for it."""
        views = filter_views(collection, compiled) or []
        rows: list[int] = []
        for segment, view in zip(collection.segments, views, strict=True):
            rows += segment.rows[view.positions].tolist()
        settle_views(collection, compiled)
        return rows

    def has_columns(self, entry: OpenCollection, ticket: Ticket, compiled: CompiledFilter) -> bool:
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

    def _load_columns(self, entry: OpenCollection, segment: Segment, paths: tuple[str, ...], ticket: Ticket) -> None:
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
                    self._tickets.fail(waiting, result)
                    if waiting in entry.lane:
                        entry.lane.remove(waiting)
                elif not isinstance(waiting.operation, op.DeletePoints):
                    self._again(waiting)
            if not entry.is_retired:
                self._go_on(entry)

        self._reader.submit(read, done)


def _points(
    collection: VectorCollection, found: list[tuple[str, int]], with_payload: bool, with_vector: bool
) -> list[op.Point]:
    rows = [row for _, row in found]
    payloads = collection.store.payloads_of(rows) if with_payload else {}
    vectors = collection.store.vectors_of(rows) if with_vector else {}
    return [
        op.Point(id=point_id, payload=payloads.get(row, ""), vector=vectors.get(row, b"")) for point_id, row in found
    ]
