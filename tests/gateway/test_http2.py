"""The HTTP/2 client before a peer that says, frame by frame, what it is told to."""

from __future__ import annotations

import asyncio
import random
import struct
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hpack import Decoder, Encoder

from tests.gateway.balancer.replicas import WAIT_S
from vorta_gateway.channel import ChannelConfig, NotSentError
from vorta_gateway.exchange import Exchange, encoded_headers
from vorta_gateway.http2 import Connection
from vorta_gateway.status import StatusError

DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, HAS_PRIORITY = 1, 4, 8, 32
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

OK_HEAD = ((":status", "200"), ("content-type", "application/grpc"))


ODD_VALUES = {b"a": "é".encode(), b"b": "é!".encode("latin-1")}


def frame(kind: int, flags: int = 0, number: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">LBL", len(payload) << 8 | kind, flags, number) + payload


def block(*headers: tuple[str, str]) -> bytes:
    encoder = Encoder()
    encoder.header_table_size = 0
    return encoder.encode(headers)


def prefixed(*messages: bytes, flag: int = 0) -> bytes:
    return b"".join(bytes((flag,)) + len(one).to_bytes(4, "big") + one for one in messages)


def head(number: int = 1, *more: tuple[str, str]) -> bytes:
    return frame(HEADERS, END_HEADERS, number, block(*OK_HEAD, *more))


def tail(number: int = 1, code: int = 0, *more: tuple[str, str]) -> bytes:
    return frame(HEADERS, END_HEADERS | END_STREAM, number, block(("grpc-status", str(code)), *more))


def whole(number: int = 1, *messages: bytes) -> bytes:
    return head(number) + frame(DATA, 0, number, prefixed(*messages)) + tail(number)


class Peer:
    """One connection's other side.

    Attributes:
        frames: What came: (type, flags, stream, payload), without the first settings and window.
    """

    def __init__(self) -> None:
        self.frames: list[tuple[int, int, int, bytes]] = []
        self.came = asyncio.Event()
        self.connection: Connection
        self.is_closed = asyncio.Event()
        self._writer: asyncio.StreamWriter
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, settings: bytes = b"", **config: Any) -> Peer:
        self._settings = settings
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        async with asyncio.timeout(WAIT_S):
            self.connection = await Connection.connect("127.0.0.1", port, ChannelConfig(**config))
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        try:
            assert await reader.readexactly(len(PREFACE)) == PREFACE
            self.say(frame(SETTINGS, payload=self._settings))
            while True:
                word, flags, number = struct.unpack(">LBL", await reader.readexactly(9))
                got = (word & 255, flags, number, await reader.readexactly(word >> 8))
                if not (number == 0 and got[0] in (SETTINGS, WINDOW)):
                    self.frames.append(got)
                    self.came.set()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.is_closed.set()
            writer.close()

    def say(self, data: bytes) -> None:
        self._writer.write(data)

    def hang_up(self) -> None:
        self._writer.transport.abort()

    async def expect(self, kind: int, number: int | None = None) -> tuple[int, int, int, bytes]:
        """Waits for a frame and takes those up to it."""
        async with asyncio.timeout(WAIT_S):
            while True:
                while self.frames:
                    got = self.frames.pop(0)
                    if got[0] == kind and number in (None, got[2]):
                        return got
                self.came.clear()
                await self.came.wait()

    async def stop(self) -> None:
        self.connection.abort("the test has ended")
        self._server.close()
        async with asyncio.timeout(WAIT_S):
            await self.is_closed.wait()

    def call(self, message: bytes = b"x", *, is_unary: bool = True, timeout_s: float | None = None) -> Exchange:
        return self.connection.call(b"\x83\x86", message, is_unary=is_unary, timeout_s=timeout_s)


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    peer = await Peer().start()
    yield peer
    await peer.stop()


async def unary(exchange: Exchange) -> bytes:
    async with asyncio.timeout(WAIT_S):
        return await exchange.unary()


async def every(exchange: Exchange) -> list[bytes]:
    replies = []
    async with asyncio.timeout(WAIT_S):
        while (reply := await exchange.next()) is not None:
            replies.append(reply)
    return replies


async def failure(exchange: Exchange) -> StatusError:
    with pytest.raises(StatusError) as raised:
        await every(exchange)
    return raised.value


async def test_a_call_is_two_frames(peer: Peer) -> None:
    exchange = peer.call(b"hello")
    assert await peer.expect(HEADERS) == (HEADERS, END_HEADERS, 1, b"\x83\x86")
    assert await peer.expect(DATA) == (DATA, END_STREAM, 1, prefixed(b"hello"))
    peer.say(whole(1, b"bye"))
    assert await unary(exchange) == b"bye"


@pytest.mark.parametrize("seed", range(20))
async def test_replies_are_the_same_however_they_are_cut(peer: Peer, seed: int) -> None:
    source = random.Random(seed)
    sent: dict[int, list[bytes]] = {}
    exchanges = {}
    pieces: dict[int, list[bytes]] = {}
    for number in (1, 3, 5):
        exchanges[number] = peer.call(is_unary=False)
        sent[number] = [source.randbytes(source.choice((0, 1, 5, 300, 20_000))) for _ in range(source.randrange(8))]
        body, pieces[number] = prefixed(*sent[number]), [head(number)]
        while body:
            size = source.randrange(16_000)
            part, body = body[:size], body[size:]
            is_padded = source.random() < 0.3
            payload = b"\x07" + part + bytes(7) if is_padded else part
            pieces[number].append(frame(DATA, PADDED if is_padded else 0, number, payload))
        trailer = block(("grpc-status", "0"), ("x-end", "y" * source.randrange(600)))
        cut = source.randrange(len(trailer) + 1)
        pieces[number] += [
            frame(HEADERS, END_STREAM, number, trailer[:cut])
            + frame(CONTINUATION, 0, number)
            + frame(CONTINUATION, END_HEADERS, number, trailer[cut:])
        ]
    stream = b""
    while pieces:
        number = source.choice(list(pieces))
        stream += pieces[number].pop(0)
        if not pieces[number]:
            del pieces[number]
        if source.random() < 0.3:  # what nobody has to know
            stream += frame(PRIORITY, 0, 1, bytes(5)) + frame(99, 255, 7, b"?") + frame(PING, 0, 0, b"12345678")
    await peer.expect(DATA, 5)
    while stream:
        size = source.choice((1, 3, 9, 100, 50_000))
        peer.connection.data_received(stream[:size])
        stream = stream[size:]
    for number, exchange in exchanges.items():
        assert await every(exchange) == sent[number]
        assert exchange.trailers[0][0] == "x-end"


async def test_headers_with_padding_and_priority(peer: Peer) -> None:
    exchange = peer.call()
    payload = b"\x03" + bytes(5) + block(*OK_HEAD, ("x-a", "1")) + bytes(3)
    peer.say(frame(HEADERS, END_HEADERS | PADDED | HAS_PRIORITY, 1, payload))
    peer.say(frame(DATA, 0, 1, prefixed(b"y")) + tail())
    assert await unary(exchange) == b"y"
    assert exchange.header == (("x-a", "1"),)


async def test_informational_headers_come_before_the_real_ones(peer: Peer) -> None:
    exchange = peer.call()
    peer.say(frame(HEADERS, END_HEADERS, 1, block((":status", "103"), ("link", "x"))) + whole(1, b"y"))
    assert await unary(exchange) == b"y"
    assert exchange.header == ()


async def test_header_values_may_be_any_bytes(peer: Peer) -> None:
    exchange = peer.call()
    encoded = block(*OK_HEAD) + b"".join(b"\0\x03x-" + name + b"\x02" + value for name, value in ODD_VALUES.items())
    peer.say(frame(HEADERS, END_HEADERS, 1, encoded) + frame(DATA, 0, 1, prefixed(b"y")) + tail())
    assert await unary(exchange) == b"y"
    assert exchange.header == (("x-a", "é"), ("x-b", "é!"))


async def test_pings_and_settings_are_answered(peer: Peer) -> None:
    peer.say(frame(PING, 0, 0, b"abcdefgh"))
    assert await peer.expect(PING) == (PING, 1, 0, b"abcdefgh")


async def test_requests_keep_to_the_windows() -> None:
    settings = struct.pack(">HLHL", 4, 10, 5, 16_384)
    peer = await Peer().start(settings)
    exchange = peer.call(b"z" * 20)  # 25 with its prefix
    assert (await peer.expect(DATA))[3] == prefixed(b"z" * 20)[:10]
    peer.say(frame(WINDOW, 0, 1, (3).to_bytes(4, "big")))
    assert len((await peer.expect(DATA))[3]) == 3
    peer.say(frame(SETTINGS, payload=struct.pack(">HL", 4, 2)))  # the window is 8 less than nothing
    peer.say(frame(WINDOW, 0, 1, (9).to_bytes(4, "big")))
    assert len((await peer.expect(DATA))[3]) == 1
    peer.say(frame(SETTINGS, payload=struct.pack(">HL", 4, 1000)))
    assert (await peer.expect(DATA))[1:] == (END_STREAM, 1, b"z" * 11)
    peer.say(whole(1, b"y"))
    assert await unary(exchange) == b"y"
    await peer.stop()


async def test_a_reply_before_the_request_is_sent_ends_its_sending(peer: Peer) -> None:
    exchange = peer.call(bytes(100_000))
    await peer.expect(DATA)
    peer.say(frame(HEADERS, END_HEADERS | END_STREAM, 1, block(*OK_HEAD, ("grpc-status", "8"), ("grpc-message", "no"))))
    error = await failure(exchange)
    assert (error.code, error.message) == (8, "no")
    await peer.expect(RST, 1)
    peer.say(frame(WINDOW, 0, 0, (10**6).to_bytes(4, "big")) + frame(WINDOW, 0, 1, (10**6).to_bytes(4, "big")))
    other = peer.call(bytes(50_000))
    await peer.expect(DATA, 3)
    assert not [one for one in peer.frames if one[2] == 1]
    peer.say(whole(3, b"y"))
    assert await unary(other) == b"y"


async def test_cancelling_tells_the_peer_and_what_still_comes_is_nobodys(peer: Peer) -> None:
    exchange = peer.call()
    peer.say(head())
    exchange.cancel()
    assert (await peer.expect(RST, 1))[3] == (8).to_bytes(4, "big")
    other = peer.call()
    peer.say(frame(DATA, 0, 1, prefixed(b"late")) + tail() + whole(3, b"y"))
    assert await unary(other) == b"y"


@pytest.mark.parametrize(
    ("said", "code", "message"),
    [
        (frame(HEADERS, 5, 1, block(*OK_HEAD, ("grpc-status", "5"), ("grpc-message", "%C3%A9 %"))), 5, "é %"),
        (frame(HEADERS, 5, 1, block((":status", "503"), ("content-type", "text/html"))), 14, "HTTP 503"),
        (frame(HEADERS, 4, 1, block((":status", "404"))) + frame(DATA, 1, 1, b"<html>"), 12, "HTTP 404"),
        (frame(HEADERS, 4, 1, block((":status", "200"), ("content-type", "text/html"))), 2, "HTTP 200"),
        (frame(HEADERS, 4, 1, block(*OK_HEAD, ("x-bin", "a"))), 13, "malformed"),
        (head() + frame(HEADERS, 5, 1, block(("grpc-status", "none"))), 13, "malformed"),
        (head() + frame(HEADERS, 5, 1, block(("x-no", "status"))), 13, "without a status"),
        (head() + frame(DATA, 1, 1, prefixed(b"y")), 13, "without a status"),
        (head() + frame(DATA, 0, 1, prefixed(b"yes")[:-1]) + tail(), 13, "cut short"),
        (head() + frame(DATA, 0, 1, prefixed(b"y", flag=1)), 13, "compressed"),
        (head() + frame(DATA, 0, 1, prefixed(zlib.compress(b"y" * 99)[:-1], flag=1)), 13, "cut short"),
        (head() + tail(1, 16), 16, ""),
        (frame(RST, 0, 1, (8).to_bytes(4, "big")), 14, "RST_STREAM"),
        (head() + frame(RST, 0, 1, (11).to_bytes(4, "big")), 8, "RST_STREAM"),
    ],
)
async def test_ends_of_one_call_are_no_others(peer: Peer, said: bytes, code: int, message: str) -> None:
    exchange, other = peer.call(is_unary=False), peer.call()
    await peer.expect(DATA, 3)
    peer.say(said + whole(3, b"y"))
    error = await failure(exchange)
    assert error.code == code
    assert message in error.message
    assert not isinstance(error, NotSentError)
    assert await unary(other) == b"y"


@pytest.mark.parametrize("messages", [(), (b"1", b"2")])
async def test_a_unary_call_has_one_reply(peer: Peer, messages: tuple[bytes, ...]) -> None:
    exchange = peer.call()
    peer.say(whole(1, *messages))
    with pytest.raises(StatusError) as raised:
        await unary(exchange)
    assert raised.value.code == 13


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        frame(DATA, 0, 1, bytes(16_385)),
        frame(DATA, 0, 1, b"before headers"),
        frame(PUSH, 4, 1, bytes(8)),
        frame(CONTINUATION, 4, 1, b""),
        frame(HEADERS, 0, 1, b"") + frame(PING, 0, 0, bytes(8)),
        frame(HEADERS, 0, 1, b"") + frame(CONTINUATION, 4, 3, b""),
        frame(HEADERS, 0, 1, bytes(16_000)) + frame(CONTINUATION, 0, 1, bytes(16_000)) * 5,
        frame(HEADERS, 4, 1, b"\xbe"),  # of the table that there is none of
        frame(HEADERS, 4, 1, b"\x3f\xe1\x1f"),  # a table of 4096
        frame(HEADERS, 4, 1, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
        frame(HEADERS, 12, 1, b"\x05abc"),
        head() * 2,
        frame(SETTINGS, payload=b"abc"),
    ],
)
async def test_a_peer_that_breaks_the_protocol_is_left(peer: Peer, said: bytes) -> None:
    exchange = peer.call(is_unary=False)
    await peer.expect(DATA, 1)
    peer.say(said)
    error = await failure(exchange)
    assert error.code == 14
    assert "HTTP/2" in error.message
    assert not isinstance(error, NotSentError)
    assert peer.connection.is_spent()
    async with asyncio.timeout(WAIT_S):
        await peer.is_closed.wait()


async def test_equal_blocks_are_decoded_once_and_mean_the_same(peer: Peer) -> None:
    for number in range(1, 2001, 2):
        exchange = peer.call()
        peer.say(head(number, ("x-n", str(number % 600))) + frame(DATA, 0, number, prefixed(b"y")) + tail(number))
        assert await unary(exchange) == b"y"
        assert exchange.header == (("x-n", str(number % 600)),)


async def test_goaway_ends_what_was_not_taken_and_lets_the_rest_end(peer: Peer) -> None:
    first, second = peer.call(), peer.call()
    await peer.expect(DATA, 3)
    peer.say(frame(GOAWAY, 0, 0, struct.pack(">LL", 1, 0) + b"bye"))
    error = await failure(second)
    assert isinstance(error, NotSentError)
    assert peer.connection.is_spent()
    assert not peer.is_closed.is_set()
    peer.say(whole(1, b"y"))
    assert await unary(first) == b"y"
    async with asyncio.timeout(WAIT_S):
        await peer.is_closed.wait()


async def test_a_refused_stream_was_not_begun(peer: Peer) -> None:
    exchange = peer.call()
    peer.say(frame(RST, 0, 1, (7).to_bytes(4, "big")))
    assert isinstance(await failure(exchange), NotSentError)


async def test_a_lost_connection_tells_what_was_sent(peer: Peer) -> None:
    sent = peer.call()
    await peer.expect(DATA, 1)
    unsent = peer.call()
    peer.connection.connection_lost(None)  # before the loop's turn in which it would be written
    assert not isinstance(await failure(sent), NotSentError)
    assert isinstance(await failure(unsent), NotSentError)


async def test_a_cut_connection_is_unavailable(peer: Peer) -> None:
    exchange = peer.call()
    await peer.expect(DATA, 1)
    peer.hang_up()
    error = await failure(exchange)
    assert error.code == 14
    assert not isinstance(error, NotSentError)


async def test_a_silent_peer_is_pinged_and_left() -> None:
    peer = await Peer().start(keepalive_s=0.1, keepalive_timeout_s=1.0)
    exchange = peer.call()
    assert (await peer.expect(PING))[1] == 0
    peer.say(frame(PING, 1, 0, bytes(8)))
    assert (await peer.expect(PING))[1] == 0
    error = await failure(exchange)
    assert error.code == 14
    assert "silent" in error.message
    await peer.stop()


async def test_the_peers_limit_of_calls() -> None:
    peer = await Peer().start(struct.pack(">HL", 3, 1))
    exchange = peer.call()
    assert not peer.connection.has_room()
    peer.say(whole(1, b"y"))
    await unary(exchange)
    assert peer.connection.has_room()
    await peer.stop()


async def test_a_peer_without_HTTP_2_is_no_connection() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    with pytest.raises(OSError, match="HTTP/2"):
        async with asyncio.timeout(WAIT_S):
            await Connection.connect("127.0.0.1", server.sockets[0].getsockname()[1], ChannelConfig())
    server.close()


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 254, 255, 16_000, 100_000])
def test_request_headers_are_hpack(size: int) -> None:
    entries = {":path": "/a.B/C", "x-long": "v" * size, "authorization": "Bearer x", "x-bin": bytes(size % 300)}
    data = encoded_headers(entries)
    assert data is not None
    decoder = Decoder(max_header_list_size=1 << 20)
    first, second = decoder.decode(data), decoder.decode(data)
    assert [str(name) for name, _ in first] == list(entries)
    assert dict(first)["x-long"] == "v" * size  # type: ignore[call-overload]
    assert first == second
    assert [type(one).__name__ for one in first].count("NeverIndexedHeaderTuple") == 1


@pytest.mark.parametrize("value", ["é", "a\r\nb", "a\x00", " a", "a ", b"bytes"])
def test_values_that_no_header_may_have(value: str | bytes) -> None:
    assert encoded_headers({"x-a": value}) is None
    assert encoded_headers({"x-bin": "text"}) is None
