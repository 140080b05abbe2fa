"""What the parts of the embedded store share: open collections, and tickets that wait for their answers."""

from __future__ import annotations

import logging
import time
from collections import deque
from pathlib import Path

from vorta.errors import DeadlineExceeded, Internal, VortaError
from vorta_server.vectors.collection import VectorCollection
from vorta_server.vectors.operation import Result, Ticket
from vorta_server.vectors.store import store_error

__all__ = ["OpenCollection", "Tickets"]

logger = logging.getLogger(__name__)


class OpenCollection:
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


class Tickets:
    """Operations without an answer; each gets one. Of the worker's thread.

    Args:
        database: What errors of the store are said to be about where they name no other.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._pending: set[Ticket] = set()

    def __len__(self) -> int:
        return len(self._pending)

    def __contains__(self, ticket: Ticket) -> bool:
        return ticket in self._pending

    def add(self, ticket: Ticket) -> None:
        """Takes an operation that has just come."""
        self._pending.add(ticket)

    def fail_all(self, error: VortaError) -> None:
        """Answers whatever has no answer."""
        for ticket in list(self._pending):
            self.fail(ticket, error)

    def is_wanted(self, ticket: Ticket) -> bool:
        """Whether somebody waits for the ticket, and in time; it is answered or forgotten otherwise."""
        if ticket.is_abandoned:
            self._pending.discard(ticket)
            return False
        if ticket.deadline_s is not None and ticket.deadline_s <= time.monotonic():
            self.fail(ticket, DeadlineExceeded("The deadline passed before the operation began."))
            return False
        return True

    def finish(self, ticket: Ticket, result: Result) -> None:
        """Answers a ticket that has no answer yet."""
        if ticket in self._pending:
            self._pending.discard(ticket)
            ticket.finish(result)

    def fail(self, ticket: Ticket, error: BaseException) -> None:
        """Answers a ticket that has no answer yet with an error, made one of the family's."""
        if not isinstance(error, VortaError):
            name = getattr(ticket.operation, "collection", "")
            converted = store_error(error, name if isinstance(name, str) else name.name, self._database)
            if isinstance(converted, Internal):
                logger.error("a vector operation failed", exc_info=error)
            error = converted
        if ticket in self._pending:
            self._pending.discard(ticket)
            ticket.fail(error)
