"""Between a worker's events and a reader: merging, pacing and the bound on a slow reader.

Events are numbered as the worker sends them. Whatever is waiting when the reader comes back goes out merged, one
event per sequence, so a slow reader or a busy loop costs fewer messages rather than more memory. Pacing merges
on purpose where tokens come faster than messages are worth: see `WritePacer`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from vorta.errors import Cancelled, ResourceExhausted, VortaError
from vorta_server.engine.request import Delta, Event, Finished, TokenLogprob
from vorta_server.workers.pacing import WritePacer

__all__ = ["StreamBuffer", "event_bytes", "merge_deltas", "slow_reader"]

_EVENT_BYTES = 64
_LOGPROB_BYTES = 48


class StreamBuffer:
    """Events of one request on their way to its only reader.

    `put` is called by the worker's channel, `next` by the reader. When the unread events pass `max_bytes` they
    are dropped, `on_overflow` is called once, and `next` raises ResourceExhausted from then on.
    """

    __slots__ = (
        "_error",
        "_has_delta",
        "_is_ended",
        "_loop",
        "_max_bytes",
        "_next_index",
        "_next_write_s",
        "_on_overflow",
        "_pacer",
        "_pending",
        "_pending_bytes",
        "_ready",
        "_timer",
        "_waiter",
    )

    def __init__(self, *, max_bytes: int, pacer: WritePacer, on_overflow: Callable[[VortaError], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._max_bytes = max_bytes
        self._pacer = pacer
        self._on_overflow = on_overflow
        self._pending: list[tuple[int, Event]] = []
        self._ready: list[tuple[int, Event]] = []
        self._pending_bytes = 0
        self._next_index = 0
        self._next_write_s = 0.0
        self._has_delta = False
        self._is_ended = False
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._error: VortaError | None = None

    def put(self, event: Event) -> None:
        """Takes the request's next event."""
        index = self._next_index
        self._next_index = index + 1
        if self._error is not None:
            return
        self._pending.append((index, event))
        self._pending_bytes += event_bytes(event)
        if type(event) is Finished:
            self._is_ended = True
        elif self._pending_bytes > self._max_bytes:
            self._error = slow_reader(self._max_bytes)
            self._pending.clear()
            self._ready.clear()
            self._is_ended = True
            self._wake()
            self._on_overflow(self._error)
            return
        if self._waiter is not None:
            self._wake_when_due()

    async def next(self) -> tuple[int, Event]:
        """The next event to write, merged from all that wait, with the index of the last one merged.

        Raises ResourceExhausted (SLOW_READER) when the reader was too slow.
        """
        while True:
            if self._error is not None:
                raise self._error
            if self._ready:
                return self._ready.pop()
            if self._pending and self._due_in_s() <= 0:
                return self._take()
            self._waiter = self._loop.create_future()
            if self._pending:
                self._wake_when_due()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def close(self) -> None:
        """The reader has gone. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._pending.clear()
        self._ready.clear()
        self._error = Cancelled("the stream is closed")

    def _take(self) -> tuple[int, Event]:
        pending = self._pending
        self._pending = []
        self._pending_bytes = 0
        if self._has_delta:
            self._next_write_s = self._pacer.next_write_s(time.monotonic())
        elif type(pending[-1][1]) is Delta:
            self._has_delta = True
            self._next_write_s = self._pacer.next_write_s(time.monotonic())
        if len(pending) == 1:
            return pending[0]
        ready = _merge(pending)
        ready.reverse()
        self._ready = ready
        return ready.pop()

    def _due_in_s(self) -> float:
        """Seconds until the waiting events may go; the first ones and the end go at once."""
        if self._is_ended or not self._has_delta:
            return 0.0
        return self._next_write_s - time.monotonic()

    def _wake_when_due(self) -> None:
        due_in_s = self._due_in_s()
        if due_in_s <= 0:
            self._wake()
        elif self._timer is None:
            self._timer = self._loop.call_later(due_in_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._wake()

    def _wake(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


def _merge(pending: list[tuple[int, Event]]) -> list[tuple[int, Event]]:
    """At most one delta per sequence, in the order in which the sequences appear.

    With several sequences the merged deltas overlap in the worker's numbering; they get the numbers that end at
    the last one merged, so that numbers stay strictly increasing. (A resumable stream merges neighbours only:
    `resume` needs each number to mean that all before it was sent.)
    """
    merged: list[tuple[int, Event]] = []
    deltas: dict[int, list[Delta]] = {}
    last_index = pending[0][0]
    for index, event in pending:
        if type(event) is Delta:
            deltas.setdefault(event.sequence_index, []).append(event)
            last_index = index
        else:
            merged.append((index, event))
    first_index = last_index - len(deltas) + 1
    run: list[tuple[int, Event]] = [
        (first_index + offset, merge_deltas(group)) for offset, group in enumerate(deltas.values())
    ]
    # `Started` comes before every delta and `Finished` after all of them.
    started = [item for item in merged if type(item[1]) is not Finished]
    finished = [item for item in merged if type(item[1]) is Finished]
    return started + run + finished


def merge_deltas(deltas: list[Delta]) -> Delta:
    """Consecutive deltas of one sequence as one."""
    if len(deltas) == 1:
        return deltas[0]
    last = deltas[-1]
    token_ids = [token_id for delta in deltas for token_id in delta.token_ids]
    logprobs = [entry for delta in deltas for entry in delta.logprobs or ()]
    return Delta(
        request_id=last.request_id,
        sequence_index=last.sequence_index,
        text="".join([delta.text for delta in deltas]),
        token_ids=token_ids,
        logprobs=logprobs or None,
        finish_reason=last.finish_reason,
    )


def event_bytes(event: Event) -> int:
    """About what an event occupies while it waits."""
    if type(event) is Delta:
        size = _EVENT_BYTES + len(event.text) * 4 + len(event.token_ids) * 8
        if event.logprobs:
            size += _logprob_bytes(event.logprobs)
        return size
    if type(event) is Finished and event.prompt_logprobs:
        return _EVENT_BYTES + _logprob_bytes(event.prompt_logprobs)
    return _EVENT_BYTES


def _logprob_bytes(entries: list[TokenLogprob]) -> int:
    return sum([_LOGPROB_BYTES * (1 + len(entry.top)) for entry in entries])


def slow_reader(limit_bytes: int) -> ResourceExhausted:
    """The error of a reader that fell too far behind."""
    return ResourceExhausted(
        f"the stream's reader is more than {limit_bytes} bytes behind",
        reason="SLOW_READER",
        metadata={"limit_bytes": limit_bytes},
    )
