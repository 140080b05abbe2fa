"""The writing half of the embedded store: what is checked, what waits for what, and what the writer's answer changes.

A deletion by filter sees every write that came before it: it waits in its collection's lane until they are done, and
what comes after it waits behind it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from vorta.errors import Internal, InvalidArgument
from vorta_server.vectors import operation as op
from vorta_server.vectors.checks import check_ids, check_upsert, read_vectors
from vorta_server.vectors.collection import VectorCollection
from vorta_server.vectors.faiss_config import FaissConfig
from vorta_server.vectors.faiss_open import OpenCollection, Tickets
from vorta_server.vectors.faiss_reads import FaissReads
from vorta_server.vectors.operation import Ticket
from vorta_server.vectors.threads import QueuedWrite, WriterThread
from vorta_server.vectors.writes import Change, Delete, Upsert

__all__ = ["FaissWrites"]

logger = logging.getLogger(__name__)

Write = op.UpsertPoints | op.DeletePoints


class FaissWrites:
    """Writes to the open collections. Of the worker's thread.

    Args:
        config: Limits.
        tickets: Gets the answers.
        get: The open collection of a name or alias; raises what says why there is none.
        writer: Commits.
        reads: Finds what a deletion by filter deletes.
        build: Begins the next index of a collection, if it wants one.

    Attributes:
        num_queued, queued_bytes: Writes that the writer has.
    """

    def __init__(
        self,
        config: FaissConfig,
        tickets: Tickets,
        *,
        get: Callable[[str], OpenCollection],
        writer: WriterThread,
        reads: FaissReads,
        build: Callable[[OpenCollection], None],
    ) -> None:
        self.num_queued = 0
        self.queued_bytes = 0
        self._config = config
        self._tickets = tickets
        self._get = get
        self._writer = writer
        self._reads = reads
        self._build = build

    def submit(self, ticket: Ticket, operation: Write) -> None:
        """Takes a write. Raises InvalidArgument naming what is wrong with it."""
        entry = self._get(operation.collection)
        if isinstance(operation, op.UpsertPoints):
            check_upsert(operation, self._config)
        elif operation.filter is not None:
            if operation.ids:
                raise InvalidArgument("ids and filter exclude each other.", reason="CONFLICTING_FIELDS", field="filter")
            self._reads.compile(entry.collection, operation.filter)
        elif not operation.ids:
            raise InvalidArgument("One of ids and filter is required.", reason="MISSING_FIELD", field="ids")
        else:
            check_ids(operation.ids, "ids", self._config)
        needs_all = isinstance(operation, op.DeletePoints) and operation.filter is not None
        if entry.lane or (needs_all and entry.num_writing):
            if not operation.wait:
                self._tickets.finish(ticket, op.Written(count=0, sequence=0))
            entry.lane.append(ticket)
        else:
            self._begin(entry, ticket, operation)

    def _begin(self, entry: OpenCollection, ticket: Ticket, operation: Write) -> None:
        """Gives a write to the writer's thread, or keeps a deletion by filter until it can be decided."""
        if ticket in self._tickets and not self._tickets.is_wanted(ticket):
            return
        collection = entry.collection
        write: Upsert | Delete
        if isinstance(operation, op.UpsertPoints):
            write = self._upsert(collection, operation)
        elif operation.filter is None:
            write = Delete(ids=list(dict.fromkeys(operation.ids)))
        else:
            compiled = self._reads.compile(collection, operation.filter)
            if not self._reads.has_columns(entry, ticket, compiled):
                if ticket not in entry.lane:
                    entry.lane.appendleft(ticket)  # later writes come after it
                return
            write = Delete(rows=self._reads.rows_of(collection, compiled))
        count = len(write.ids) if isinstance(write, Upsert) else 0
        if not operation.wait:
            self._tickets.finish(ticket, op.Written(count=count, sequence=0))
        num_bytes = write.num_bytes
        self.num_queued += 1
        self.queued_bytes += num_bytes
        entry.num_writing += 1

        def then(outcome: Change | Exception | None) -> None:
            self.num_queued -= 1
            self.queued_bytes -= num_bytes
            entry.num_writing -= 1
            if isinstance(outcome, Change):
                if not entry.is_retired:
                    collection.apply(write, outcome)
                num_changed = count if isinstance(write, Upsert) else len(outcome.dead_rows)
                self._tickets.finish(ticket, op.Written(count=num_changed, sequence=outcome.sequence))
            else:
                if not operation.wait:
                    logger.error("a write to %s that nobody waited for failed: %s", operation.collection, outcome)
                if ticket in self._tickets:
                    self._tickets.fail(ticket, outcome or Internal("The writer gave no answer."))
            if not entry.is_retired:
                self.go_on(entry)
                self._build(entry)

        self._writer.submit(
            QueuedWrite(collection.database, collection.reader, len(collection.text_fields), write, then)
        )

    def go_on(self, entry: OpenCollection) -> None:
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
                self._begin(entry, ticket, operation)
            except Exception as error:
                if ticket in self._tickets:
                    self._tickets.fail(ticket, error)
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
