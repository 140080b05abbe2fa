"""gRPC calls with one request over one HTTP/2 connection without TLS: a small client for what a gateway does most.

It costs a third of the CPU time of grpc.aio's. Header blocks are decoded by `hpack`, whose dynamic table this side's
settings take away: then equal blocks mean equal headers, and those of most replies are equal to ones seen before. What
it does not do, such as streams of requests, TLS and proxies, is left to grpc.aio; see `fast.py`.
"""

from __future__ import annotations

import asyncio
import struct

from hpack import Decoder
from hpack.exceptions import HPACKError

from vorta_gateway.channel import ChannelConfig, NotSentError
from vorta_gateway.exchange import STREAM_WINDOW, Block, Exchange, ProtocolError
from vorta_gateway.status import StatusError

__all__ = ["MAX_HEADER_BYTES", "Connection"]

MAX_HEADER_BYTES = 16_384
"""Of a request's headers: every peer takes a frame of that size."""

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PUSH_PROMISE, _PING, _GOAWAY = 0, 1, 3, 4, 5, 6, 7
_WINDOW_UPDATE, _CONTINUATION = 8, 9
_END_STREAM = _ACK = 1
_END_HEADERS, _IS_PADDED, _HAS_PRIORITY = 4, 8, 32
_SET_TABLE_SIZE, _SET_PUSH, _SET_MAX_STREAMS, _SET_WINDOW, _SET_FRAME_BYTES = 1, 2, 3, 4, 5
_REFUSED_STREAM, _CANCEL, _ENHANCE_YOUR_CALM = 7, 8, 11

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_MAX_WINDOW = 2**31 - 1
_DEFAULT_WINDOW = 65_535
_FRAME_BYTES = 16_384
_MAX_BLOCK_BYTES = 64 * 1024
_MAX_CACHED_BLOCK_BYTES = 512
_MAX_CACHED_BLOCKS = 256

# gRPC's servers hang up at the third ping in five minutes that they sent nothing but answers to pings before.
_MAX_PINGS = 2
_PING_INTERVAL_S = 300.0

# A frame's head: 24 bits of length and 8 of type, 8 of flags, 32 of the stream's number.
_HEAD = struct.Struct(">LBL")
_SETTING = struct.Struct(">HL")

_DEADLINE_EXCEEDED, _RESOURCE_EXHAUSTED, _INTERNAL, _UNAVAILABLE = 4, 8, 13, 14


class Connection(asyncio.Protocol):
    """One connection, made by `connect`. It takes calls until its peer or its silence ends it, and is not made again.

    Attributes:
        heard_s: The loop's time at which anything came last.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, config: ChannelConfig) -> None:
        self.loop = loop
        self.max_message_bytes = config.max_message_bytes
        self._config = config
        self.heard_s = loop.time()
        self.ready: asyncio.Future[None] = loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._exchanges: dict[int, Exchange] = {}
        self._blocked: dict[int, Exchange] = {}  # those with something to send for which there was no window
        self._next_number = 1
        self._flushed_number = 1  # calls from it on have not been sent
        self._window = self._initial_window = _DEFAULT_WINDOW
        self._frame_bytes = _FRAME_BYTES
        self._max_exchanges = _MAX_WINDOW
        self._uncredited = 0
        self._out: list[bytes] = []
        self._buffer = b""
        self._block: tuple[int, int, bytes] | None = None  # stream, flags and beginning of one that goes on
        self._blocks: dict[bytes, Block] = {}
        self._decoder = Decoder()
        self._decoder.header_table_size = 0
        self._decoder.max_allowed_table_size = 0
        self._is_leaving = False
        self._is_pinging = False  # and has heard nothing since
        self._num_pings = 0  # since the peer sent anything but answers to them
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    async def connect(cls, host: str, port: int, config: ChannelConfig) -> Connection:
        """A connection whose peer speaks HTTP/2. Raises OSError."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: cls(loop, config), host, port)
        try:
            await connection.ready
        except BaseException:
            connection.abort("not connected")
            raise
        return connection

    def is_spent(self) -> bool:
        """Whether it takes no more calls: it ends, or was idle so long that it may be dead without anybody knowing."""
        if self._is_leaving:
            return True
        return not self._exchanges and self.loop.time() - self.heard_s >= self._config.keepalive_s

    def has_room(self) -> bool:
        """Whether the peer takes one more call now."""
        return len(self._exchanges) < self._max_exchanges

    def call(self, headers: bytes, message: bytes, *, is_unary: bool, timeout_s: float | None) -> Exchange:
        """Makes a call, if it is not spent and has room. Its end is the caller's to see to: let it end, or cancel it.

        Args:
            headers: See `encoded_headers`; no more than `MAX_HEADER_BYTES`.
            message: The request.
            is_unary: Whether there is to be one reply.
            timeout_s: Seconds until it fails with DEADLINE_EXCEEDED.
        """
        number = self._next_number
        self._next_number += 2
        if self._next_number > _MAX_WINDOW:
            self._is_leaving = True
        exchange = Exchange(self, number, self._initial_window, is_unary=is_unary)
        self._exchanges[number] = exchange
        head = _HEAD.pack(len(headers) << 8 | _HEADERS, _END_HEADERS, number)
        size = len(message) + 5
        if not self._blocked and size <= min(self._window, self._initial_window, self._frame_bytes):
            self._window -= size
            data_head = _HEAD.pack(size << 8 | _DATA, _END_STREAM, number)
            self._write(b"".join((head, headers, data_head, (size - 5).to_bytes(5, "big"), message)))
        else:
            self._write(head + headers)
            exchange.unsent = memoryview((size - 5).to_bytes(5, "big") + message)
            self._blocked[number] = exchange
            self._send_blocked()
        if timeout_s is not None:
            error = StatusError(_DEADLINE_EXCEEDED, "Deadline Exceeded")
            exchange.timer = self.loop.call_later(timeout_s, exchange.fail, error)
        return exchange

    def reset(self, exchange: Exchange) -> None:
        """Ends a call before its peer did."""
        if self._forget(exchange):
            self._write(_HEAD.pack(4 << 8 | _RST_STREAM, 0, exchange.number) + _CANCEL.to_bytes(4, "big"))
            self._close_if_left()

    def update_window(self, number: int, size: int) -> None:
        """Lets the peer send more on a stream, or on the connection (0)."""
        self._write(_HEAD.pack(4 << 8 | _WINDOW_UPDATE, 0, number) + size.to_bytes(4, "big"))

    def leave(self) -> None:
        """Takes no more calls, and closes when those that are open have ended."""
        self._is_leaving = True
        self._close_if_left()

    def abort(self, why: str) -> None:
        """Closes at once. Open calls end with UNAVAILABLE."""
        self._is_leaving = True
        if self._transport is not None:
            self._transport.abort()
        self._end_all(why)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        self._transport = transport
        settings = {_SET_TABLE_SIZE: 0, _SET_PUSH: 0, _SET_WINDOW: STREAM_WINDOW}
        data = b"".join(_SETTING.pack(key, value) for key, value in settings.items())
        self._write(_PREFACE + _HEAD.pack(len(data) << 8 | _SETTINGS, 0, 0) + data)
        self.update_window(0, _MAX_WINDOW - _DEFAULT_WINDOW)
        self._timer = self.loop.call_later(self._config.keepalive_s, self._look_for_silence)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._is_leaving = True
        self._end_all(f"the connection was lost: {exc}" if exc is not None else "the connection was closed by the peer")

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self.heard_s = self.loop.time()
        self._is_pinging = False
        try:
            self._read(self._buffer + data if self._buffer else data)
        except (ProtocolError, HPACKError, struct.error) as error:
            self.abort(f"the upstream broke HTTP/2: {error}")

    # What comes

    def _read(self, data: bytes) -> None:
        at, size = 0, len(data)
        while size - at >= 9:
            word, flags, number = _HEAD.unpack_from(data, at)
            end = at + 9 + (word >> 8)
            if word >> 8 > _FRAME_BYTES:
                raise ProtocolError("a frame is too large")
            if end > size:
                break
            kind = word & 255
            if kind != _PING:
                self._num_pings = 0
            payload = data[at + 9 : end]
            at = end
            if self._block is not None and kind != _CONTINUATION:
                raise ProtocolError("headers do not go on")
            if kind == _DATA:
                self._on_data(number, flags, payload)
            elif kind == _HEADERS:
                payload = _unpadded(payload, flags)
                self._on_block(number, flags, payload[5:] if flags & _HAS_PRIORITY else payload)
            elif kind == _CONTINUATION:
                if self._block is None or self._block[0] != number:
                    raise ProtocolError("headers go on that did not begin")
                _, begun_flags, begin = self._block
                self._block = None
                self._on_block(number, begun_flags | flags & _END_HEADERS, begin + payload)
            elif kind == _WINDOW_UPDATE:
                self._on_window(number, int.from_bytes(payload, "big") & _MAX_WINDOW)
            elif kind == _PING and not flags & _ACK:
                self._write(_HEAD.pack(len(payload) << 8 | _PING, _ACK, 0) + payload)
            elif kind == _SETTINGS and not flags & _ACK:
                self._on_settings(payload)
            elif kind == _RST_STREAM:
                self._on_reset(number, int.from_bytes(payload, "big"))
            elif kind == _GOAWAY:
                self._on_goaway(int.from_bytes(payload[:4], "big") & _MAX_WINDOW, payload[8:])
            elif kind == _PUSH_PROMISE:
                raise ProtocolError("a push was not asked for")
        self._buffer = data[at:]

    def _on_data(self, number: int, flags: int, payload: bytes) -> None:
        self._uncredited += len(payload)
        if self._uncredited >= _MAX_WINDOW // 2:
            self.update_window(0, self._uncredited)
            self._uncredited = 0
        exchange = self._exchanges.get(number)
        if exchange is None:
            return  # cancelled a moment ago
        if not exchange.has_header:
            raise ProtocolError("data before headers")
        exchange.take_data(_unpadded(payload, flags) if flags & _IS_PADDED else payload, len(payload))
        if flags & _END_STREAM:
            self._forget(exchange)
            exchange.end(StatusError(_INTERNAL, "the reply ended without a status"))
            self._close_if_left()

    def _on_block(self, number: int, flags: int, data: bytes) -> None:
        if not flags & _END_HEADERS:
            if len(data) > _MAX_BLOCK_BYTES:
                raise ProtocolError("headers are too large")
            self._block = (number, flags, data)
            return
        block = self._blocks.get(data)
        if block is None:
            block = Block((_text(name), _text(value)) for name, value in self._decoder.decode(data, raw=True))
            if len(data) <= _MAX_CACHED_BLOCK_BYTES:
                if len(self._blocks) >= _MAX_CACHED_BLOCKS:
                    self._blocks.clear()
                self._blocks[data] = block
        exchange = self._exchanges.get(number)
        if exchange is None:
            return
        is_last = bool(flags & _END_STREAM)
        if is_last and exchange.unsent is None:
            self._forget(exchange)
        exchange.take_block(block, is_last=is_last)
        if is_last:
            self.reset(exchange)  # where the request is not all sent, and will not be
            self._close_if_left()

    def _on_window(self, number: int, size: int) -> None:
        if number == 0:
            self._window += size
        else:
            exchange = self._exchanges.get(number)
            if exchange is None:
                return
            exchange.window += size
        if self._blocked:
            self._send_blocked()

    def _on_settings(self, payload: bytes) -> None:
        for key, value in _SETTING.iter_unpack(payload):
            if key == _SET_WINDOW:
                for exchange in self._exchanges.values():
                    exchange.window += value - self._initial_window
                self._initial_window = value
            elif key == _SET_FRAME_BYTES:
                self._frame_bytes = value
            elif key == _SET_MAX_STREAMS:
                self._max_exchanges = value
        self._write(_HEAD.pack(_SETTINGS, _ACK, 0))
        self._send_blocked()
        if not self.ready.done():
            self.ready.set_result(None)

    def _on_reset(self, number: int, code: int) -> None:
        exchange = self._exchanges.get(number)
        if exchange is None:
            return
        self._forget(exchange)
        message = f"the upstream ended the call with RST_STREAM {code}"
        if code == _REFUSED_STREAM:
            exchange.end(NotSentError(_UNAVAILABLE, message))
        else:
            exchange.end(StatusError(_RESOURCE_EXHAUSTED if code == _ENHANCE_YOUR_CALM else _UNAVAILABLE, message))
        self._close_if_left()

    def _on_goaway(self, last: int, why: bytes) -> None:
        self._is_leaving = True
        for exchange in [one for one in self._exchanges.values() if one.number > last]:
            self._forget(exchange)
            exchange.end(NotSentError(_UNAVAILABLE, f"GOAWAY {why[:100].decode('latin-1')}"))
        self._close_if_left()

    # What goes

    def _write(self, data: bytes) -> None:
        if not self._out:
            self.loop.call_soon(self._flush)  # what is written in one turn of the loop goes in one piece
        self._out.append(data)

    def _flush(self) -> None:
        if self._out and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(self._out) if len(self._out) > 1 else self._out[0])
            self._flushed_number = self._next_number
        self._out.clear()

    def _send_blocked(self) -> None:
        for exchange in list(self._blocked.values()):
            while exchange.unsent is not None:
                size = min(len(exchange.unsent), self._window, exchange.window, self._frame_bytes)
                if size <= 0:
                    break
                self._window -= size
                exchange.window -= size
                is_last = size == len(exchange.unsent)
                head = _HEAD.pack(size << 8 | _DATA, _END_STREAM if is_last else 0, exchange.number)
                self._write(head + bytes(exchange.unsent[:size]))
                exchange.unsent = None if is_last else exchange.unsent[size:]
            if exchange.unsent is None:
                self._blocked.pop(exchange.number, None)

    def _look_for_silence(self) -> None:
        """Pings when calls are open and nothing came for long, and gives up when that brings nothing."""
        if self._is_pinging:
            self.abort("the upstream is silent")
            return
        next_s = self._config.keepalive_s
        if self._exchanges:
            allowed_s = next_s if self._num_pings < _MAX_PINGS else max(next_s, _PING_INTERVAL_S)
            wait_s = self.heard_s + allowed_s - self.loop.time()
            next_s = min(next_s, wait_s)
            if wait_s <= 0:
                self._num_pings += 1
                self._is_pinging = True
                self._write(_HEAD.pack(8 << 8 | _PING, 0, 0) + bytes(8))
                next_s = self._config.keepalive_timeout_s
        self._timer = self.loop.call_later(max(next_s, 0.001), self._look_for_silence)

    # Ends

    def _forget(self, exchange: Exchange) -> bool:
        exchange.unsent = None
        self._blocked.pop(exchange.number, None)
        return self._exchanges.pop(exchange.number, None) is not None

    def _close_if_left(self) -> None:
        if self._is_leaving and not self._exchanges and self._transport is not None:
            self._flush()
            self._transport.close()

    def _end_all(self, why: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(why))
        exchanges, self._exchanges = list(self._exchanges.values()), {}
        self._blocked.clear()
        for exchange in exchanges:
            is_sent = exchange.number < self._flushed_number
            exchange.end((StatusError if is_sent else NotSentError)(_UNAVAILABLE, why))


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _unpadded(payload: bytes, flags: int) -> bytes:
    if not flags & _IS_PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ProtocolError("a frame is all padding")
    return payload[1 : len(payload) - payload[0]]
