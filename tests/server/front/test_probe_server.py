"""The small HTTP server."""

from __future__ import annotations

import asyncio

import pytest

from vorta.errors import FailedPrecondition
from vorta_server.front.probe_server import ProbeServer, text_reply


@pytest.fixture
async def server():
    probe = ProbeServer(host="127.0.0.1", port=0, routes={"/healthz": lambda: text_reply(200, "ok")})
    await probe.start()
    yield probe
    await probe.stop()


async def ask(server, data):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(data)
    reply = await reader.read()
    writer.close()
    await writer.wait_closed()
    return reply


@pytest.mark.parametrize(
    ("data", "status", "body"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"200", b"ok\n"),
        (b"GET /healthz?x=1 HTTP/1.0\r\n\r\n", b"200", b"ok\n"),
        (b"HEAD /healthz HTTP/1.1\r\n\r\n", b"200", b""),
        (b"GET /none HTTP/1.1\r\n\r\n", b"404", b"not found\n"),
        (b"POST /healthz HTTP/1.1\r\n\r\n", b"405", b"only GET is answered here\n"),
        (b"nonsense\r\n\r\n", b"400", b"bad request\n"),
    ],
)
async def test_replies(server, data, status, body):
    reply = await ask(server, data)
    head, _, got = reply.partition(b"\r\n\r\n")
    assert head.split(b" ")[1] == status
    assert got == body


async def test_an_endless_head_is_cut_off(server):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET / HTTP/1.1\r\n" + b"x" * 100_000)
    try:
        async with asyncio.timeout(10):
            assert await reader.read() == b""
    except ConnectionResetError:
        pass
    writer.close()


async def test_a_taken_port_is_named(server):
    second = ProbeServer(host="127.0.0.1", port=server.port, routes={})
    with pytest.raises(FailedPrecondition) as caught:
        await second.start()
    assert caught.value.field == "http.port"
