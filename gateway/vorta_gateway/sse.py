"""Server-sent events with pings: a comment goes out where nothing else has for a while, so that proxies wait on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from types import TracebackType

from vorta_gateway.http import HttpReply

__all__ = ["CONTENT_TYPE", "EventStream"]

CONTENT_TYPE = "text/event-stream"
_PING_S = 15.0
_PING = b": ping\n\n"


class EventStream:
    """Writes events to a reply. A context manager, which ends the pings.

    Args:
        reply: Not started.
        headers: The head's, asked for when it is sent.
        ping_s: Silence after which a comment is sent; the head is sent with the first one.
    """

    def __init__(
        self, reply: HttpReply, headers: Callable[[], Iterable[tuple[str, str]]] = tuple, *, ping_s: float = _PING_S
    ) -> None:
        self._reply = reply
        self._headers = headers
        self._ping_s = ping_s
        self._loop = asyncio.get_running_loop()
        self._last_s = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._ping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> EventStream:
        self._timer = self._loop.call_later(self._ping_s, self._on_timer)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._ping is not None:
            self._ping.cancel()

    @property
    def is_started(self) -> bool:
        """Whether the head has been sent."""
        return self._reply.is_started

    async def send(self, data: bytes, event: bytes = b"") -> None:
        """One event; `data` has no line breaks."""
        await self._start()
        self._last_s = self._loop.time()
        await self._reply.write((b"event: " + event + b"\n" if event else b"") + b"data: " + data + b"\n\n")

    async def end(self, data: bytes | None = None, event: bytes = b"") -> None:
        """The end, with a last event where there is one."""
        await self._start()
        last = b"" if data is None else (b"event: " + event + b"\n" if event else b"") + b"data: " + data + b"\n\n"
        await self._reply.end(last)

    async def _start(self) -> None:
        if not self._reply.is_started:
            await self._reply.start(200, CONTENT_TYPE, self._headers())

    def _on_timer(self) -> None:
        due_s = self._last_s + self._ping_s - self._loop.time()
        if due_s <= 0:
            if self._ping is None or self._ping.done():
                self._ping = self._loop.create_task(self._send_ping())
            due_s = self._ping_s
        self._timer = self._loop.call_later(due_s, self._on_timer)

    async def _send_ping(self) -> None:
        await self._start()
        self._last_s = self._loop.time()
        await self._reply.write(_PING)
