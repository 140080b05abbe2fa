"""One gRPC call over HTTP/2 as its two ends see it: header blocks, messages in their prefixes, a stream's window."""

from __future__ import annotations

import asyncio
import zlib
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Protocol
from urllib.parse import unquote

from vorta.wire import DETAILS_KEY
from vorta_gateway.channel import shown_metadata
from vorta_gateway.status import StatusError

__all__ = ["STREAM_WINDOW", "Block", "Exchange", "ProtocolError", "Wire", "encoded_headers"]

STREAM_WINDOW = 256 * 1024
"""Bytes of a reply that may be on their way: a reader that is slow holds back its own stream, not the connection."""

_CANCELLED, _UNKNOWN, _RESOURCE_EXHAUSTED, _INTERNAL = 1, 2, 8, 13

# gRPC's "HTTP to gRPC Status Code Mapping"; UNKNOWN for all others.
_OF_HTTP = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}


class ProtocolError(Exception):
    """The peer sent what no HTTP/2 connection may have."""


class Wire(Protocol):
    """The connection, as far as a call needs it."""

    loop: asyncio.AbstractEventLoop
    max_message_bytes: int

    def reset(self, exchange: Exchange) -> None:
        """Ends a call before its peer did."""
        ...

    def update_window(self, number: int, size: int) -> None:
        """Lets the peer send more on a stream, or on the connection (0)."""
        ...


class Block:
    """What one block of reply headers says. Shared by equal blocks."""

    __slots__ = ("code", "details", "http", "is_grpc", "message", "metadata")

    def __init__(self, headers: Iterable[tuple[str, str]]) -> None:
        self.http = 0
        self.is_grpc = False
        self.code: int | None = None
        self.message = ""
        self.details = b""
        metadata: list[tuple[str, str | bytes]] = []
        try:
            for name, value in headers:
                if name == ":status":
                    self.http = int(value)
                elif name == "content-type":
                    self.is_grpc = value.startswith("application/grpc")
                elif name == "grpc-status":
                    self.code = int(value)
                elif name == "grpc-message":
                    self.message = unquote(value)
                elif name.endswith("-bin"):
                    parts = [b64decode(part + "=" * (-len(part) % 4)) for part in value.split(",")]
                    metadata += [(name, part) for part in parts]
                    if name == DETAILS_KEY:
                        self.details = parts[0]
                else:
                    metadata.append((name, value))
        except ValueError:
            self.code, self.message = _INTERNAL, f"the reply's header {name} is malformed"
        self.metadata = shown_metadata(metadata)

    def status(self) -> StatusError | None:
        """The status that it ends a call with, None for OK."""
        if self.code is None:
            return StatusError(_INTERNAL, "the reply ended without a status")
        if self.code == 0:
            return None
        return StatusError(self.code, self.message, details=self.details, trailers=self.metadata)


class Exchange:
    """One call on a connection: a request that is sent, and replies.

    Attributes:
        header, trailers: The reply's metadata, as far as it has come.
    """

    __slots__ = (
        "_error",
        "_is_ended",
        "_is_unary",
        "_messages",
        "_partial",
        "_uncredited",
        "_unread",
        "_waiter",
        "_wire",
        "has_header",
        "header",
        "number",
        "timer",
        "trailers",
        "unsent",
        "window",
    )

    def __init__(self, wire: Wire, number: int, window: int, *, is_unary: bool) -> None:
        self.header: tuple[tuple[str, str | bytes], ...] = ()
        self.trailers: tuple[tuple[str, str | bytes], ...] = ()
        self.number = number
        self.window = window
        self.unsent: memoryview | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.has_header = False
        self._wire = wire
        self._is_unary = is_unary
        self._messages: deque[bytes] = deque()
        self._unread = 0  # bytes of them
        self._uncredited = 0  # bytes that came, and that the peer has not been told to send more for
        self._partial = bytearray()
        self._is_ended = False
        self._error: StatusError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def unary(self) -> bytes:
        """The reply of a call that has one. Raises StatusError."""
        try:
            if not self._is_ended:
                self._waiter = self._wire.loop.create_future()
                await self._waiter
        finally:
            self.cancel()
        if self._error is not None:
            raise self._error
        if not self._messages:
            raise StatusError(_INTERNAL, "the upstream said OK without a reply")
        return self._messages[0]

    async def next(self) -> bytes | None:
        """The next reply of a stream; None at its good end. Raises StatusError."""
        while not self._messages:
            if self._is_ended:
                if self._error is not None:
                    raise self._error
                return None
            self._waiter = self._wire.loop.create_future()
            await self._waiter
        message = self._messages.popleft()
        self._unread -= len(message)
        self._credit()
        return message

    def cancel(self) -> None:
        """Tells the peer that nobody waits any more; nothing where the call has ended."""
        if not self._is_ended:
            self._wire.reset(self)
            self.end(StatusError(_CANCELLED, "cancelled"))

    def fail(self, error: StatusError) -> None:
        """Ends the call on this side."""
        if not self._is_ended:
            self._wire.reset(self)
            self.end(error)

    def end(self, error: StatusError | None) -> None:
        """The call has ended."""
        if self._is_ended:
            return
        self._is_ended = True
        if error is None and self._partial:
            error = StatusError(_INTERNAL, "the reply's last message is cut short")
        self._error = error
        if self.timer is not None:
            self.timer.cancel()
        self._wake()

    def take_block(self, block: Block, *, is_last: bool) -> None:
        """Headers came."""
        if not self.has_header:
            if 100 <= block.http < 200 and not is_last:
                return
            if block.code is None and (block.http != 200 or not block.is_grpc):
                code = _OF_HTTP.get(block.http, _UNKNOWN)
                self.fail(StatusError(code, f"the upstream answered with HTTP {block.http}, not with gRPC"))
                return
            self.has_header = True
            if not is_last:
                self.header = block.metadata
                if block.code:
                    self.fail(StatusError(block.code, block.message))
                return
        elif not is_last:
            raise ProtocolError("headers amid a reply")
        self.trailers = block.metadata
        self.end(block.status())

    def take_data(self, data: bytes, size: int) -> None:
        """A part of the replies came, in a frame of so many bytes."""
        self._uncredited += size
        if not self._partial and len(data) >= 5 and data[0] == 0 and int.from_bytes(data[1:5], "big") == len(data) - 5:
            if len(data) - 5 > self._wire.max_message_bytes:
                self._refuse(len(data) - 5)
                return
            self._add(data[5:])
        else:
            self._partial += data
            self._split()
        if self._messages and not self._is_unary:
            self._wake()
        if not self._is_ended:
            self._credit()

    def _split(self) -> None:
        at = 0
        partial = self._partial
        while len(partial) - at >= 5 and not self._is_ended:
            size = int.from_bytes(partial[at + 1 : at + 5], "big")
            if size > self._wire.max_message_bytes:
                self._refuse(size)
            elif len(partial) - at - 5 < size:
                break
            else:
                message = bytes(memoryview(partial)[at + 5 : at + 5 + size])
                if partial[at] == 0:
                    self._add(message)
                else:
                    self._add_compressed(message)
                at += 5 + size
        del partial[:at]

    def _add(self, message: bytes) -> None:
        if self._is_unary and self._messages:
            self.fail(StatusError(_INTERNAL, "the upstream gave more than one reply"))
            return
        self._messages.append(message)
        self._unread += len(message)

    def _add_compressed(self, data: bytes) -> None:
        """Adds a message that is gzip or zlib: gRPC's servers may compress though only "identity" was accepted."""
        stream = zlib.decompressobj(47)
        try:
            message = stream.decompress(data, self._wire.max_message_bytes + 1)
        except zlib.error:
            self.fail(StatusError(_INTERNAL, "the reply is compressed in a way that is not known"))
            return
        if len(message) > self._wire.max_message_bytes:
            self._refuse(len(message))
        elif not stream.eof:
            self.fail(StatusError(_INTERNAL, "the reply's compressed message is cut short"))
        else:
            self._add(message)

    def _refuse(self, size: int) -> None:
        limit = self._wire.max_message_bytes
        self.fail(StatusError(_RESOURCE_EXHAUSTED, f"Received message larger than max ({size} vs. {limit})"))

    def _credit(self) -> None:
        """Lets the peer send more, but no more messages while enough of them wait to be read."""
        if self._uncredited >= STREAM_WINDOW // 2 and (self._unread < STREAM_WINDOW or self._is_unary):
            if not self._is_ended:
                self._wire.update_window(self.number, self._uncredited)
            self._uncredited = 0

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def encoded_headers(entries: Mapping[str, str | bytes]) -> bytes | None:
    """Request headers as a block, whose values are not put into the peer's table; None where gRPC allows no such.

    Names are in lower case; values of those that end in "-bin" are bytes.
    """
    parts = []
    for name, value in entries.items():
        if name.endswith("-bin"):
            if not isinstance(value, bytes):
                return None
            value = b64encode(value).rstrip(b"=").decode()
        if not isinstance(value, str) or not (value.isascii() and value.isprintable()) or value != value.strip(" "):
            return None
        parts.append(b"\x10" if name == "authorization" else b"\0")
        parts += (_encoded(name), _encoded(value))
    return b"".join(parts)


def _encoded(text: str) -> bytes:
    """A string as HPACK has it, not Huffman-coded."""
    data = text.encode("ascii")
    size = len(data)
    if size < 127:
        return bytes((size,)) + data
    size -= 127
    length = bytearray(b"\x7f")
    while size >= 128:
        length.append(size & 127 | 128)
        size >>= 7
    length.append(size)
    return bytes(length) + data
