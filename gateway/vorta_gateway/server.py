"""The gateway's HTTP server: uvicorn on a socket of our own, in a loop that is running already."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from vorta.errors import FailedPrecondition

__all__ = ["HttpServer"]

logging.getLogger("uvicorn.error").setLevel(logging.WARNING)

_BACKLOG = 2048
_KEEP_ALIVE_S = 75
_MAX_HEAD_BYTES = 64 * 1024
_HEAD_TIMEOUT_S = 20.0
_MAX_JOINED_BYTES = 64 * 1024
_HEAD_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_HEAD_TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class _Joined:
    """A connection as one reply's cycle writes to it: the head goes out with what follows it at once, in one piece.

    uvicorn writes them apart, and uvloop sends what is written at once: two system calls here, two wake-ups there.
    """

    __slots__ = ("_head", "_is_first", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._is_first = True
        self._head = b""

    def write(self, data: bytes) -> None:
        """Writes; the first piece not before the second one or the loop's next turn."""
        if self._is_first:
            self._is_first = False
            self._head = data
            self._loop.call_soon(self._flush)
        elif self._head and len(data) <= _MAX_JOINED_BYTES:
            head, self._head = self._head, b""
            self._transport.write(head + data)
        else:
            self._flush()
            self._transport.write(data)

    def close(self) -> None:
        """Closes the connection, when all is written."""
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether the connection is closed, or about to be."""
        return self._transport.is_closing()

    def _flush(self) -> None:
        head, self._head = self._head, b""
        if head and not self._transport.is_closing():
            self._transport.write(head)


class _Protocol(HttpToolsProtocol):
    """uvicorn's, with a bound on how large a request's head may be and how long it may take; replies are one piece."""

    _is_in_head = True
    _has_begun = False  # the head has, after the one before
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._head_bytes > _MAX_HEAD_BYTES:
            self._refuse(_HEAD_TOO_LARGE)
        elif self._has_begun and self._head_timer is None:  # one that comes in one piece needs no timer
            self._start_head_timer()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._has_begun = True

    def on_headers_complete(self) -> None:
        self._end_head()
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:  # it is not, where the connection becomes a WebSocket
            joined: Any = _Joined(self.transport, self.loop)
            self.cycle.transport = joined

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._is_in_head = True  # its timer starts with the next request's first byte
        self._head_bytes = 0

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(_HEAD_TIMEOUT_S, self._refuse, _HEAD_TOO_LATE)

    def _end_head(self) -> None:
        self._is_in_head = self._has_begun = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, reply: bytes) -> None:
        self._end_head()
        if not self.transport.is_closing():
            self.transport.write(reply)
            self.transport.close()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the application's."""
        yield


class HttpServer:
    """Serves an ASGI application.

    Args:
        app: The application.
        host, port: Where to listen; port 0 for any free one.
        max_connections: More are answered with 503.
    """

    def __init__(self, app: Callable[..., Any], *, host: str, port: int, max_connections: int = 4096) -> None:
        self._app = app
        self._host = host
        self._requested_port = port
        self._max_connections = max_connections
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self) -> None:
        """Begins to listen; `port` then is the real one. Raises FailedPrecondition when the port is taken."""
        try:
            listener = _listen(self._host, self._requested_port)
        except OSError as error:
            raise FailedPrecondition(
                f"cannot listen on {self._host}:{self._requested_port}: {error.strerror or error}",
                reason="SETTINGS_INVALID",
                field="http.port",
            ) from None
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            loop="none",
            http=_Protocol,
            ws="wsproto",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            limit_concurrency=self._max_connections,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=5,
            ws_max_size=1 << 24,
        )
        self._server = _Server(config)
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))
        # uvicorn has no event for it.
        while not self._server.started and not self._task.done():  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    async def stop(self, grace_s: float = 5.0) -> None:
        """Closes the port, lets what runs end for up to `grace_s`, and cuts the rest. Idempotent."""
        if self._server is None or self._task is None:
            return
        self._server.config.timeout_graceful_shutdown = max(1, round(grace_s))
        self._server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._server = None


def _listen(host: str, port: int) -> socket.socket:
    infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = infos[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
