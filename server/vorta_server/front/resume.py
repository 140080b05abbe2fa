"""Logs of streams that outlive their connection, and the readers that continue them.

A resumable request writes every event into its log, and every connection, the first as any later one, reads the log
from the index it asks for. Unlike in a plain stream only neighbouring deltas are merged, so that an event's index
means that everything up to it was sent. Loop thread only.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

from vorta.errors import Cancelled, OutOfRange, VortaError
from vorta_server.engine.request import Delta, Event, Finished
from vorta_server.front.stream import event_bytes, merge_deltas, slow_reader
from vorta_server.workers.pacing import WritePacer

__all__ = ["LOG_BYTES", "LogReader", "ResumeBudget", "ResumeLog"]

_MAX_MERGED_BYTES = 256 * 1024

LOG_BYTES = 2048
"""About what a request occupies whose log is kept, beside its events."""


class ResumeBudget:
    """The memory that all logs share, and who gives way when it is full.

    First go the logs of ended requests that nobody reads, whole and the longest unread first; then the oldest events
    of running requests that nobody reads; then, of the log that grows, what its reader has read. What a reader has
    still to read stays: only the limit of its own request may overtake it.

    Args:
        max_bytes: Of all logs together.
        max_bytes_per_request: Of one log's events.
    """

    __slots__ = ("_ended", "_running", "max_bytes", "max_bytes_per_request", "used_bytes")

    def __init__(self, *, max_bytes: int, max_bytes_per_request: int) -> None:
        self.max_bytes = max_bytes
        self.max_bytes_per_request = max_bytes_per_request
        self.used_bytes = 0
        # Logs without a reader, in the order in which they became so.
        self._ended: dict[ResumeLog, None] = {}
        self._running: dict[ResumeLog, None] = {}

    def place(self, log: ResumeLog) -> None:
        """Takes note that a log began, ended, or gained or lost its reader."""
        self._ended.pop(log, None)
        self._running.pop(log, None)
        if not log.has_reader:
            (self._ended if log.is_ended else self._running)[log] = None

    def remove(self, log: ResumeLog) -> None:
        """Forgets a log."""
        self._ended.pop(log, None)
        self._running.pop(log, None)

    def shed(self, log: ResumeLog) -> None:
        """Makes room after `log` has grown, as far as that is possible."""
        while self.used_bytes > self.max_bytes and self._ended:
            next(iter(self._ended)).evict()
        if self.used_bytes > self.max_bytes:
            for other in (*self._running, log):
                while self.used_bytes > self.max_bytes:
                    if not other.drop_read():
                        break


class ResumeLog:
    """The events of one request, the oldest of which are dropped when the log or all logs are too large.

    Args:
        request_id: For messages.
        budget: Shared by all logs. The log is counted in it until `close`.
        pacer: Paces the readers.
        on_evict: Called after the log of an ended request was closed to make room.
    """

    def __init__(
        self,
        *,
        request_id: str,
        budget: ResumeBudget,
        pacer: WritePacer,
        on_evict: Callable[[], None] | None = None,
    ) -> None:
        self._request_id = request_id
        self._budget = budget
        self._pacer = pacer
        self._on_evict = on_evict
        self._events: deque[tuple[Event, int]] = deque()
        self._first_index = 0
        self._bytes = 0
        self._reader: LogReader | None = None
        self._is_closed = False
        self.is_ended = False
        budget.used_bytes += LOG_BYTES
        budget.place(self)

    @property
    def first_index(self) -> int:
        """Index of the oldest event kept."""
        return self._first_index

    @property
    def has_reader(self) -> bool:
        """Whether a connection reads it now."""
        return self._reader is not None

    @property
    def next_index(self) -> int:
        """Index of the next event to come."""
        return self._first_index + len(self._events)

    def put(self, event: Event) -> None:
        """Takes the request's next event."""
        if self._is_closed:
            return
        size = event_bytes(event)
        self._events.append((event, size))
        self._bytes += size
        budget = self._budget
        budget.used_bytes += size
        if type(event) is Finished:
            # However large the end is, its reader gets it and what is before it.
            self.is_ended = True
            budget.place(self)
            while self._bytes > budget.max_bytes_per_request and self.drop_read():
                pass
        else:
            while self._bytes > budget.max_bytes_per_request and len(self._events) > 1:
                self._drop_oldest()
        if budget.used_bytes > budget.max_bytes:
            budget.shed(self)
        if self._reader is not None:
            self._reader.notice()

    def read(self, next_index: int, *, on_overflow: Callable[[VortaError], None]) -> LogReader:
        """A reader from `next_index` on. It takes the place of the current one, whose connection is taken as dead.

        Raises:
            OutOfRange: The event is no longer there, or the stream ended before it (RESUME_GONE).
        """
        if (
            next_index < self._first_index
            or next_index > self.next_index
            or (self.is_ended and next_index >= self.next_index)
        ):
            raise OutOfRange(
                f"request {self._request_id} has the events {self._first_index} to {self.next_index - 1}, "
                f"not {next_index}",
                metadata={"request_id": self._request_id, "first_index": self._first_index},
            )
        if self._reader is not None:
            self._reader.displace()
        self._reader = LogReader(self, next_index, self._pacer, on_overflow)
        self._budget.place(self)
        return self._reader

    def release(self, reader: LogReader) -> bool:
        """A reader has gone. Returns whether the log now has no reader."""
        if self._reader is reader:
            self._reader = None
            if not self._is_closed:
                self._budget.place(self)
        return self._reader is None

    def event(self, index: int) -> tuple[Event, int] | None:
        """The event of this index and its bytes; None when it has not come yet."""
        offset = index - self._first_index
        return self._events[offset] if offset < len(self._events) else None

    def drop_read(self) -> bool:
        """Drops the oldest event, unless it is the last one or its reader has still to read it; whether it did."""
        if len(self._events) <= 1 or (self._reader is not None and self._first_index >= self._reader.next_index):
            return False
        self._drop_oldest()
        return True

    def evict(self) -> None:
        """Gives way to other logs."""
        self.close()
        if self._on_evict is not None:
            self._on_evict()

    def close(self) -> None:
        """Forgets everything. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._budget.remove(self)
        self._budget.used_bytes -= self._bytes + LOG_BYTES
        self._bytes = 0
        self._first_index = self.next_index
        self._events.clear()
        if self._reader is not None:
            self._reader.displace()
            self._reader = None

    def _drop_oldest(self) -> None:
        _, size = self._events.popleft()
        self._first_index += 1
        self._bytes -= size
        self._budget.used_bytes -= size
        if self._reader is not None:
            self._reader.lose_before(self._first_index, self._budget.max_bytes_per_request)


class LogReader:
    """One connection's place in a log. Same interface as `StreamBuffer` towards its reader."""

    def __init__(
        self,
        log: ResumeLog,
        next_index: int,
        pacer: WritePacer,
        on_overflow: Callable[[VortaError], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._log = log
        self._next_index = next_index
        self._pacer = pacer
        self._on_overflow = on_overflow
        self._next_write_s = 0.0
        self._error: VortaError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def next_index(self) -> int:
        """The first event that it has still to read."""
        return self._next_index

    async def next(self) -> tuple[int, Event]:
        """The next event to write, with the index of the last one merged.

        Raises:
            ResourceExhausted: The reader was so slow that its next event was dropped (SLOW_READER).
            Cancelled: Another connection continues this stream.
        """
        while True:
            if self._error is not None:
                raise self._error
            if self._log.event(self._next_index) is not None:
                pause_s = self._next_write_s - time.monotonic()
                if pause_s <= 0 or self._log.is_ended:
                    return self._take()
                await self._wait(pause_s)
            else:
                await self._wait(None)

    def notice(self) -> None:
        """The log has grown."""
        if self._waiter is None:
            return
        due_s = 0.0 if self._log.is_ended else self._next_write_s - time.monotonic()
        if due_s <= 0:
            self._wake()
        elif self._timer is None:
            self._timer = self._loop.call_later(due_s, self._wake)

    def displace(self) -> None:
        """Another connection takes over."""
        self._fail(Cancelled("the stream is continued by another connection"))

    def lose_before(self, first_index: int, limit_bytes: int) -> None:
        """The log has dropped what is before `first_index`."""
        if self._next_index < first_index:
            self._fail(slow_reader(limit_bytes))

    def _fail(self, error: VortaError) -> None:
        if self._error is None:
            self._error = error
            self._wake()
            self._on_overflow(error)

    async def _wait(self, timeout_s: float | None) -> None:
        self._waiter = self._loop.create_future()
        if timeout_s is not None:
            self._timer = self._loop.call_later(timeout_s, self._wake)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _take(self) -> tuple[int, Event]:
        entry = self._log.event(self._next_index)
        assert entry is not None
        event, size = entry
        index = self._next_index
        if type(event) is Delta:
            run = [event]
            while event.finish_reason is None and size < _MAX_MERGED_BYTES:
                entry = self._log.event(index + 1)
                if entry is None or type(entry[0]) is not Delta or entry[0].sequence_index != event.sequence_index:
                    break
                event = entry[0]
                size += entry[1]
                run.append(event)
                index += 1
            event = merge_deltas(run)
            self._next_write_s = self._pacer.next_write_s(time.monotonic())
        self._next_index = index + 1
        return index, event
