"""A small HTTP server for /metrics, /healthz and /readyz.

Answers GET and HEAD, one request per connection, and nothing else: a gateway takes this port over where there is one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vorta.errors import FailedPrecondition

__all__ = ["ProbeReply", "ProbeServer", "text_reply"]

_MAX_HEAD_BYTES = 16 * 1024
_TIMEOUT_S = 10.0
_MAX_CONNECTIONS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReply:
    """Status, content type and body of a reply."""

    status: int
    content_type: str
    body: bytes


_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


class ProbeServer:
    """Serves the routes given.

    Args:
        host, port: Where to listen; port 0 for any free one.
        routes: Path to what answers it.
    """

    def __init__(self, *, host: str, port: int, routes: Mapping[str, Callable[[], ProbeReply]]) -> None:
        self._host = host
        self._requested_port = port
        self._routes = routes
        self._server: asyncio.Server | None = None
        self._num_connections = 0
        self.port = 0

    async def start(self) -> None:
        """Begins to listen; `port` then is the real one. Raises FailedPrecondition when the port is taken."""
        try:
            self._server = await asyncio.start_server(
                self._serve, self._host, self._requested_port, limit=_MAX_HEAD_BYTES, reuse_address=True
            )
        except OSError as error:
            raise FailedPrecondition(
                f"cannot listen on {self._host}:{self._requested_port}: {error.strerror or error}",
                reason="SETTINGS_INVALID",
                field="http.port",
            ) from None
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Closes the port. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._num_connections < _MAX_CONNECTIONS:
                self._num_connections += 1
                try:
                    async with asyncio.timeout(_TIMEOUT_S):
                        await self._answer(reader, writer)
                finally:
                    self._num_connections -= 1
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client went away, is too slow or sends too much: nobody is there to be told
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        parts = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        method = parts[0]
        if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
            reply = text_reply(400, "bad request")
        elif method not in ("GET", "HEAD"):
            reply = text_reply(405, "only GET is answered here")
        else:
            route = self._routes.get(parts[1].split("?", 1)[0])
            reply = route() if route is not None else text_reply(404, "not found")
        writer.write(
            f"HTTP/1.1 {reply.status} {_REASONS[reply.status]}\r\nContent-Type: {reply.content_type}\r\n"
            f"Content-Length: {len(reply.body)}\r\nConnection: close\r\n\r\n".encode()
            + (b"" if method == "HEAD" else reply.body)
        )
        await writer.drain()


def text_reply(status: int, text: str) -> ProbeReply:
    """A reply of one line of text."""
    return ProbeReply(status=status, content_type="text/plain; charset=utf-8", body=text.encode() + b"\n")
