"""The HTTP server under attack: slow, oversized, broken and abandoned requests leave it serving, and nothing behind."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncIterator

import pytest

from tests.gateway.items import ItemsUpstream, gateway
from vorta.errors import FailedPrecondition
from vorta_gateway import server as server_module
from vorta_gateway.server import HttpServer


class Site:
    """A running server of the test services."""

    def __init__(self) -> None:
        self.upstream = ItemsUpstream()
        self.server = HttpServer(gateway(self.upstream), host="127.0.0.1", port=0)

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.server.port)

    async def send(self, *parts: bytes, timeout_s: float = 10) -> bytes:
        """What comes back until the connection closes, or nothing more comes."""
        reader, writer = await self.open()
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
            return await _read(reader, timeout_s)
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def is_serving(self) -> bool:
        reply = await self.send(b"GET /v1/echo?name=x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        return reply.startswith(b"HTTP/1.1 200") and reply.endswith(b'{"name":"x"}')


async def _read(reader: asyncio.StreamReader, timeout_s: float) -> bytes:
    data = b""
    try:
        async with asyncio.timeout(timeout_s):
            while part := await reader.read(65536):
                data += part
    except (TimeoutError, ConnectionError):
        pass
    return data


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()
    await made.server.start()
    yield made
    await made.server.stop(1)


async def test_a_taken_port_is_told(site: Site) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        await HttpServer(gateway(), host="127.0.0.1", port=site.server.port).start()
    assert caught.value.field == "http.port"


async def test_requests_one_after_the_other_and_pipelined(site: Site) -> None:
    request = b"GET /v1/echo?name=%d HTTP/1.1\r\nhost: x\r\n\r\n"
    last = b"GET /v1/echo?name=9 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    reply = await site.send(b"".join(request % number for number in range(9)) + last)
    assert [reply.count(b'{"name":"%d"}' % number) for number in range(10)] == [1] * 10
    assert reply.index(b'{"name":"0"}') < reply.index(b'{"name":"9"}')


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"G\x00T / HTTP/1.1\r\n\r\n",
        b"POST /v1/items HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/items HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n{}",
        b"POST /v1/items HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}",
        b"POST /v1/items HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        b"POST /v1/items HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff1\r\n{}",
        b"GET /v1/echo HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
        b"GET /v1/echo HTTP/1.1\r\nhost: x\r\nbad\x00: header\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_broken_requests(site: Site, data: bytes) -> None:
    reply = await site.send(data, timeout_s=1)
    assert not reply.startswith((b"HTTP/1.1 200", b"HTTP/1.1 5"))
    assert await site.is_serving()


@pytest.mark.parametrize("target", [b"/v1/echo?name=%ff", b"/v1/\xff", b"/v1/echo?name=\xff", b"/%", b"//", b"/?"])
async def test_targets_that_are_not_utf8(site: Site, target: bytes) -> None:
    reply = await site.send(b"GET " + target + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert reply[9:12] in (b"400", b"404")
    assert await site.is_serving()


async def test_header_floods(site: Site) -> None:
    flood = b"GET /v1/echo HTTP/1.1\r\n" + b"x: y\r\n" * 50_000
    assert b"431" in await site.send(flood) or await site.is_serving()
    long = b"GET /v1/echo HTTP/1.1\r\nx: " + b"y" * 10_000_000
    assert b" 200 " not in await site.send(long)
    assert await site.is_serving()


async def test_slow_headers_are_cut(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_HEAD_TIMEOUT_S", 0.2)
    reply = await site.send(b"GET /v1/echo HTTP/1.1\r\n")
    assert reply.startswith(b"HTTP/1.1 408")
    reader, writer = await site.open()
    writer.write(b"GET /v1/echo HTTP/1.1\r\nhost: x\r\n\r\nGET /v1")  # the second one is slow
    data = await _read(reader, 10)
    writer.close()
    assert data.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 408" in data
    reader, writer = await site.open()
    writer.write(b"GET /v1/echo HTTP/1.1\r\nhost: x\r\n\r\n")
    await asyncio.sleep(0.5)  # between two requests a connection may rest
    writer.write(b"GET /v1/echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    data = await _read(reader, 10)
    writer.close()
    assert data.count(b"HTTP/1.1 200") == 2


async def test_bodies_that_break_off(site: Site) -> None:
    for _ in range(50):
        reader, writer = await site.open()
        writer.write(b"POST /v1/items HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        await writer.drain()
        writer.close()
        del reader
    assert await site.is_serving()
    assert all(call.method.path.endswith("Echo") for call in site.upstream.calls)


async def test_abandoned_streams_leave_nothing(site: Site) -> None:
    request = b"GET /v1/wait:stream HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n"
    for _ in range(10):
        writers = []
        for _ in range(100):
            reader, writer = await site.open()
            writer.write(request)
            writers.append(writer)
            await reader.readuntil(b"\r\n\r\n")
        assert site.upstream.num_open == 100
        for writer in writers:
            writer.close()
        for _ in range(500):
            if site.upstream.num_open == 0:
                break
            await asyncio.sleep(0.02)
        assert site.upstream.num_open == 0
    assert len(site.upstream.calls) == 1000
    gc.collect()
    assert await site.is_serving()
    assert len(asyncio.all_tasks()) < 20


async def test_random_bytes(site: Site) -> None:
    source = random.Random(7)
    base = b"POST /v1/items?code=1 HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 13\r\n\r\n"
    good = base + b'{"title":"x"}'
    for _ in range(150):
        data = bytearray(good)
        for _ in range(source.randint(1, 6)):
            data[source.randrange(len(data))] = source.randrange(256)
        reply = await site.send(bytes(data), timeout_s=0.03)
        assert not reply.startswith(b"HTTP/1.1 5"), bytes(data)
    assert await site.is_serving()


async def test_stopping_ends_streams(site: Site) -> None:
    reader, writer = await site.open()
    writer.write(b"GET /v1/wait:stream HTTP/1.1\r\nhost: x\r\naccept: text/event-stream\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    async with asyncio.timeout(20):
        await site.server.stop(1)
    await _read(reader, 10)
    writer.close()
    assert site.upstream.num_open == 0


class Transport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.pieces.append(data)

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed


async def test_a_head_goes_out_with_its_body_or_in_the_next_turn() -> None:
    loop = asyncio.get_running_loop()

    def joined(*pieces: bytes) -> tuple[Transport, server_module._Joined]:
        transport = Transport()
        made = server_module._Joined(transport, loop)  # type: ignore[arg-type]
        for piece in pieces:
            made.write(piece)
        return transport, made

    whole, _ = joined(b"head", b"body")
    parts, _ = joined(b"head", b"1", b"2")
    large, _ = joined(b"head", b"x" * 100_000)
    alone, later = joined(b"head")
    closed, closing = joined(b"head")
    closing.close()
    lost, _ = joined(b"head")
    lost.close()
    assert alone.pieces == []
    await asyncio.sleep(0)
    later.write(b"event")
    assert whole.pieces == [b"headbody"]
    assert parts.pieces == [b"head1", b"2"]
    assert large.pieces == [b"head", b"x" * 100_000]
    assert alone.pieces == [b"head", b"event"]
    assert (closed.pieces, closed.is_closing()) == ([b"head"], True)
    assert lost.pieces == []
