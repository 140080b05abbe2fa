"""HTTP requests and replies over ASGI, as far as the gateway's handlers need them."""

from __future__ import annotations

import asyncio
import re
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from types import TracebackType
from typing import Any
from urllib.parse import quote

from vorta.errors import InvalidArgument, ResourceExhausted, Unimplemented
from vorta_gateway.status import StatusError

__all__ = [
    "Disconnected",
    "HttpReply",
    "HttpRequest",
    "Receive",
    "Scope",
    "Send",
    "WhileConnected",
    "call_metadata",
    "deadline_of",
    "not_allowed",
    "reply_headers",
    "too_large",
    "unsupported",
]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

# Shorter calls end before anybody looks whether their client is still there.
_WATCH_DELAY_S = 0.05

_TIMEOUT = re.compile(r"(\d{1,8})([HMSmun])")
_TIMEOUT_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_SECONDS = re.compile(r"\d{1,9}(?:\.\d{1,9})?")

_FORWARDED = frozenset({"authorization", "x-request-id", "traceparent", "tracestate", "baggage", "user-agent"})
_PREFIX = "grpc-metadata-"

# Reply metadata that keeps its name as an HTTP header.
_ANSWERED = frozenset({"x-request-id"})


class Disconnected(Exception):
    """The client has gone; nobody is there to be answered."""


class HttpRequest:
    """A request.

    Attributes:
        method: Upper case.
        path: As it was sent, percent-encoded, without the query.
        query: As it was sent, without its question mark.
        headers: By name in lower case; the last one of a name.
    """

    __slots__ = ("_has_body", "_on_body", "_receive", "headers", "method", "path", "query")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        self._has_body = False
        self._on_body: Callable[[], None] | None = None
        self.method: str = scope["method"]
        raw = scope.get("raw_path")
        self.path: str = raw.split(b"?", 1)[0].decode("latin-1") if raw is not None else quote(scope["path"])
        self.query: bytes = scope.get("query_string", b"")
        self.headers: dict[str, str] = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }

    @property
    def content_type(self) -> str:
        """The media type of the body in lower case, without parameters; empty where there is none."""
        return self.headers.get("content-type", "").split(";", 1)[0].strip().lower()

    async def body(self, max_bytes: int) -> bytes:
        """The whole body, decompressed. Raises StatusError (413, 415) and Disconnected."""
        length = self.headers.get("content-length")
        if length is not None and length.isdigit() and int(length) > max_bytes:
            raise too_large(max_bytes)
        parts: list[bytes] = []
        size = 0
        has_more = True
        while has_more:
            part, has_more = await self._chunk()
            size += len(part)
            if size > max_bytes:
                raise too_large(max_bytes)
            parts.append(part)
        return self._decompressed(parts[0] if len(parts) == 1 else b"".join(parts), max_bytes)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes, as it was sent. Raises Disconnected."""
        has_more = True
        while has_more:
            part, has_more = await self._chunk()
            if part:
                yield part

    async def _chunk(self) -> tuple[bytes, bool]:
        """The next part of the body, and whether there are more."""
        message = await self._receive()
        if message["type"] != "http.request":
            raise Disconnected
        has_more = message.get("more_body", False)
        if not has_more:
            self._has_body = True
            if self._on_body is not None:
                self._on_body()
        return message.get("body", b""), has_more

    def after_body(self, function: Callable[[], None] | None) -> None:
        """Calls a function when the body has been read, at once if it has; None for none any more."""
        self._on_body = function
        if function is not None and self._has_body:
            function()

    async def disconnected(self) -> None:
        """Returns when the client has gone. For when the body has been read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def _decompressed(self, body: bytes, max_bytes: int) -> bytes:
        encoding = self.headers.get("content-encoding", "").strip().lower()
        if encoding in ("", "identity"):
            return body
        if encoding not in ("gzip", "x-gzip"):
            raise StatusError.of(
                InvalidArgument(f"bodies may be gzip, not {encoding[:40]!r}", field="content-encoding"), http=415
            )
        stream = zlib.decompressobj(31)
        try:
            data = stream.decompress(body, max_bytes + 1)
        except zlib.error:
            raise StatusError.of(InvalidArgument("the body is not gzip", field="content-encoding")) from None
        if len(data) > max_bytes:
            raise too_large(max_bytes)
        if not stream.eof:
            raise StatusError.of(InvalidArgument("the gzip body is cut short", field="content-encoding"))
        return data


def too_large(max_bytes: int) -> StatusError:
    """A body over the limit."""
    return StatusError.of(
        ResourceExhausted(
            f"the body has more than the {max_bytes} bytes that are taken",
            reason="MESSAGE_TOO_LARGE",
            metadata={"max_bytes": max_bytes},
        ),
        http=413,
    )


class HttpReply:
    """The reply to one request: whole by `send`, or by `start`, `write` and `end`.

    Attributes:
        is_started: Whether its head has been sent.
    """

    __slots__ = ("_headers", "_is_head", "_send", "is_started")

    def __init__(self, send: Send, *, is_head: bool = False, headers: Headers | None = None) -> None:
        self._send = send
        self._is_head = is_head
        self._headers = headers or []
        self.is_started = False

    async def send(
        self, status: int, body: bytes, content_type: str = "application/json", headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Sends a whole reply."""
        head = [
            *((name.encode("latin-1"), _header_value(value)) for name, value in headers),
            (b"content-type", content_type.encode("latin-1", "replace")),
            (b"content-length", b"%d" % len(body)),
            *self._headers,
        ]
        self.is_started = True
        await self._send({"type": "http.response.start", "status": status, "headers": head})
        await self._send({"type": "http.response.body", "body": b"" if self._is_head else body})

    async def start(self, status: int, content_type: str, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Sends the head of a reply whose length is not known."""
        head = [
            *((name.encode("latin-1"), _header_value(value)) for name, value in headers),
            (b"content-type", content_type.encode("latin-1", "replace")),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),  # nginx would hold a stream back
            *self._headers,
        ]
        self.is_started = True
        await self._send({"type": "http.response.start", "status": status, "headers": head})

    async def write(self, data: bytes) -> None:
        """Sends a part of the body; returns when the connection takes more."""
        if not self._is_head:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """Sends the last part of the body."""
        await self._send({"type": "http.response.body", "body": b"" if self._is_head else data})


def _header_value(value: str) -> bytes:
    return value.encode("latin-1", "replace").replace(b"\r", b" ").replace(b"\n", b" ")


class WhileConnected:
    """Cancels its body when the client goes away, and raises Disconnected then.

    A context manager. While the request's body is read, the reading finds out; from its end on, this does.
    """

    def __init__(self, request: HttpRequest) -> None:
        self._request = request
        self._task: asyncio.Task[Any] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._has_gone = False

    async def __aenter__(self) -> None:
        loop = asyncio.get_running_loop()  # which costs a system call, up to Python 3.11
        self._task = asyncio.current_task(loop)
        self._timer = loop.call_later(_WATCH_DELAY_S, self._request.after_body, self._start)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._timer is not None
        assert self._task is not None
        self._timer.cancel()
        self._request.after_body(None)
        if self._watch is not None:
            self._watch.cancel()
        if self._has_gone:
            self._task.uncancel()
            if isinstance(error, asyncio.CancelledError) or error is None:
                raise Disconnected from None

    def _start(self) -> None:
        self._watch = asyncio.get_running_loop().create_task(self._cancel_when_gone())

    async def _cancel_when_gone(self) -> None:
        await self._request.disconnected()
        self._has_gone = True
        assert self._task is not None
        self._task.cancel()


def call_metadata(request: HttpRequest) -> dict[str, str | bytes]:
    """The request's headers that go upstream: those that every call may have, and `Grpc-Metadata-*` without the prefix.

    A key in `x-api-key` goes as a bearer token where there is no `authorization`.
    """
    metadata: dict[str, str | bytes] = {}
    for name, value in request.headers.items():
        if name in _FORWARDED:
            metadata[name] = value
        elif name.startswith(_PREFIX) and not name.endswith("-bin"):
            key = name.removeprefix(_PREFIX)
            if key and not key.startswith("grpc-"):
                metadata[key] = value
    if "authorization" not in metadata and "x-api-key" in request.headers:
        metadata["authorization"] = f"Bearer {request.headers['x-api-key']}"
    return metadata


def reply_headers(*metadata: Iterable[tuple[str, str | bytes]]) -> list[tuple[str, str]]:
    """Reply metadata as HTTP headers."""
    headers: list[tuple[str, str]] = []
    for key, value in (item for items in metadata for item in items):
        if isinstance(value, str):
            headers.append((key if key in _ANSWERED else _PREFIX + key, value))
    return headers


def deadline_of(request: HttpRequest) -> float | None:
    """The deadline, in `time.monotonic()`, by `grpc-timeout` and `x-server-timeout` (seconds), the shorter one.

    Raises StatusError (400) when one is malformed.
    """
    grpc = request.headers.get("grpc-timeout")
    seconds = request.headers.get("x-server-timeout")
    if grpc is None and seconds is None:
        return None
    timeouts: list[float] = []
    if grpc is not None:
        match = _TIMEOUT.fullmatch(grpc)
        if match is None:
            raise StatusError.of(InvalidArgument(f"grpc-timeout: {grpc[:40]!r} is no timeout", field="grpc-timeout"))
        timeouts.append(int(match[1]) * _TIMEOUT_UNITS[match[2]])
    if seconds is not None:
        if not _SECONDS.fullmatch(seconds):
            raise StatusError.of(
                InvalidArgument(f"x-server-timeout: {seconds[:40]!r} is no time in seconds", field="x-server-timeout")
            )
        timeouts.append(float(seconds))
    return time.monotonic() + min(timeouts)


def unsupported(what: str) -> StatusError:
    """A media type that nothing here reads."""
    return StatusError.of(InvalidArgument(what, field="content-type"), http=415)


def not_allowed(allowed: list[str]) -> StatusError:
    """The method is none that the path takes."""
    listed = ", ".join(allowed)
    return StatusError.of(Unimplemented(f"the methods here are {listed}"), http=405, headers={"allow": listed})
