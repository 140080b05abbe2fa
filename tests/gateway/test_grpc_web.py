"""gRPC-Web frames over ASGI: both modes, errors, compression, sizes, cancellation."""

from __future__ import annotations

import asyncio
import base64
import gzip
from typing import Any

import pytest
from google.rpc import status_pb2

from tests.gateway.items import ItemsUpstream, Reply, ask, gateway, items_pb2

BINARY = "application/grpc-web+proto"
TEXT = "application/grpc-web-text+proto"
PREFIX = "/vorta.test.Items/"


def frame(data: bytes, flag: int = 0) -> bytes:
    return bytes((flag,)) + len(data).to_bytes(4, "big") + data


def frames_of(body: bytes) -> list[tuple[int, bytes]]:
    frames = []
    while body:
        size = int.from_bytes(body[1:5], "big")
        assert len(body) >= 5 + size
        frames.append((body[0], body[5 : 5 + size]))
        body = body[5 + size :]
    return frames


def trailers_of(data: bytes) -> dict[str, str]:
    return dict(line.split(":", 1) for line in data.decode().split("\r\n") if line)  # type: ignore[misc]


async def call(
    method: str, request: Any, headers: dict[str, str] | None = None, app: Any = None, **options: Any
) -> Reply:
    body = request if isinstance(request, bytes) else frame(request.SerializeToString())
    return await ask(
        app or gateway(), "POST", PREFIX + method, body, {"content-type": BINARY, **(headers or {})}, **options
    )


def status_of(reply: Reply) -> tuple[int, str]:
    """The status, wherever it stands."""
    assert reply.status == 200
    if "grpc-status" in reply.headers:
        assert reply.body == b""
        return int(reply.headers["grpc-status"]), reply.headers["grpc-message"]
    flag, data = frames_of(reply.body)[-1]
    assert flag == 0x80
    trailers = trailers_of(data)
    return int(trailers["grpc-status"]), trailers["grpc-message"]


@pytest.mark.parametrize("as_bytes", [False, True])
async def test_unary(as_bytes: bool) -> None:
    request = items_pb2().Req(name="é", code=7)
    reply = await call("Echo", request, app=gateway(ItemsUpstream(as_bytes=as_bytes)))
    assert reply.headers["content-type"] == BINARY
    assert reply.headers["x-request-id"] == "id-1"
    data = request.SerializeToString()
    assert reply.body == frame(data) + frame(b"grpc-status:0\r\ngrpc-message:\r\n", 0x80)
    hidden = await call("Hidden", request)  # an RPC without a REST rule
    assert hidden.body == reply.body


@pytest.mark.parametrize("cut", [1, 3, 4, 1000])
async def test_text_mode(cut: int) -> None:
    request = items_pb2().Req(name="x" * 10)
    encoded = base64.b64encode(frame(request.SerializeToString()))
    chunks = [encoded[start : start + cut] for start in range(0, len(encoded), cut)]
    headers = {"content-type": TEXT, "accept": TEXT}
    reply = await ask(gateway(), "POST", PREFIX + "Echo", chunks, headers)
    assert reply.headers["content-type"] == TEXT
    assert frames_of(base64.b64decode(reply.body))[0] == (0, request.SerializeToString())
    stream = items_pb2().Req(code=3).SerializeToString()
    body = base64.b64encode(frame(stream)[:4]) + base64.b64encode(frame(stream)[4:])  # padding in the middle
    reply = await ask(gateway(), "POST", PREFIX + "List", body, headers)
    parts = [frames_of(base64.b64decode(chunk)) for chunk in reply.chunks]  # each flushed part is whole
    assert [flag for part in parts for flag, _ in part] == [0, 0, 0, 0x80]
    mixed = await ask(gateway(), "POST", PREFIX + "Echo", encoded, {"content-type": TEXT, "accept": BINARY})
    assert mixed.headers["content-type"] == BINARY


async def test_streams_come_as_they_are_made() -> None:
    reply = await call("List", items_pb2().Req(code=3))
    *messages, (flag, trailers) = frames_of(reply.body)
    assert [items_pb2().Item.FromString(data).id for _, data in messages] == ["0", "1", "2"]
    assert (flag, trailers_of(trailers)["grpc-status"]) == (0x80, "0")
    assert len(reply.chunks) == 4
    empty = await call("List", items_pb2().Req())
    assert status_of(empty) == (0, "")


async def test_streamed_requests() -> None:
    items = [items_pb2().Item(id=str(number)) for number in range(3)]
    body = b"".join(frame(item.SerializeToString()) for item in items)
    for size in (1, 5, 1000):
        chunks = [body[start : start + size] for start in range(0, len(body), size)]
        reply = await ask(gateway(), "POST", PREFIX + "Bulk", chunks, {"content-type": BINARY})
        assert items_pb2().Req.FromString(frames_of(reply.body)[0][1]).code == 3
    reply = await call("Chat", body)
    assert len(frames_of(reply.body)) == 4


@pytest.mark.parametrize("code", range(1, 17))
async def test_errors_before_a_message_are_headers(code: int) -> None:
    reply = await call("Fail", items_pb2().Req(code=code))
    assert status_of(reply) == (code, "boom %C3%A9")
    details = reply.headers["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(base64.b64decode(details + "=="))
    assert (status.code, status.message, len(status.details)) == (code, "boom é", 2)


async def test_later_errors_are_the_last_frame() -> None:
    reply = await call("FailStream", items_pb2().Req(code=2))
    assert len(frames_of(reply.body)) == 3
    assert status_of(reply) == (5, "late")
    assert "grpc-status-details-bin" in trailers_of(frames_of(reply.body)[-1][1])


async def test_metadata_goes_both_ways() -> None:
    upstream = ItemsUpstream()
    headers = {
        "authorization": "Bearer k",
        "x-custom": "v",
        "x-data-bin": base64.b64encode(b"\x00\xff").decode().rstrip("="),
        "origin": "http://localhost:1",
        "user-agent": "browser",
        "x-user-agent": "grpc-web",
        "cookie": "c",
        "grpc-timeout": "5S",
    }
    await call("Echo", items_pb2().Req(), headers, app=gateway(upstream))
    (sent,) = upstream.calls
    assert sent.metadata == {
        "authorization": "Bearer k",
        "x-custom": "v",
        "x-data-bin": b"\x00\xff",
        "user-agent": "browser",
    }
    assert sent.deadline_s is not None
    reply = await call("Echo", items_pb2().Req(), {"x-data-bin": "@@"})
    assert status_of(reply)[0] == 3
    reply = await call("Echo", items_pb2().Req(), {"grpc-timeout": "soon"})
    assert status_of(reply)[0] == 3


async def test_compressed_requests() -> None:
    data = items_pb2().Req(name="x").SerializeToString()
    compressed = frame(gzip.compress(data), 1)
    reply = await call("Echo", compressed, {"grpc-encoding": "gzip"})
    assert frames_of(reply.body)[0] == (0, data)
    reply = await call("Echo", frame(data), {"grpc-encoding": "gzip"})
    assert frames_of(reply.body)[0] == (0, data)
    assert status_of(await call("Echo", compressed))[0] == 13  # compressed, and nothing says how
    assert status_of(await call("Echo", frame(b"no gzip", 1), {"grpc-encoding": "gzip"}))[0] == 13
    assert status_of(await call("Echo", frame(data), {"grpc-encoding": "foo"}))[0] == 12
    bomb = frame(gzip.compress(bytes(10_000)), 1)
    app = gateway(max_body_bytes=1000)
    assert status_of(await call("Echo", bomb, {"grpc-encoding": "gzip"}, app))[0] == 8


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", 12),
        (frame(b"") + frame(b""), 12),
        (frame(b"")[:3], 3),
        (frame(b"\x0a\x02x"), 3),
        (frame(b"", 0x80), 3),
        (frame(b"", 0x02), 3),
        (b"\x00" + (2**31).to_bytes(4, "big"), 8),
    ],
)
async def test_broken_requests(body: bytes, code: int) -> None:
    assert status_of(await call("Echo", body))[0] == code


async def test_sizes() -> None:
    app = gateway(max_body_bytes=100)
    exact = items_pb2().Req(name="x" * 98)
    assert exact.ByteSize() == 100
    assert status_of(await call("Echo", exact, app=app))[0] == 0
    assert status_of(await call("Echo", items_pb2().Req(name="x" * 99), app=app))[0] == 8


async def test_what_is_not_there() -> None:
    assert status_of(await call("Nope", items_pb2().Req()))[0] == 12
    reply = await ask(gateway(), "GET", PREFIX + "Echo", b"", {"content-type": BINARY})
    assert status_of(reply)[0] == 12
    for kind in ("application/grpc-web+json", "application/grpc-web+foo", "application/grpc-webx"):
        reply = await ask(gateway(), "POST", PREFIX + "Echo", b"x", {"content-type": kind})
        assert reply.status == 415
    text = await ask(gateway(), "POST", PREFIX + "Echo", b"@@@@", {"content-type": TEXT})
    assert status_of(text)[0] == 3


async def test_preflight() -> None:
    headers = {
        "origin": "http://localhost:5173",
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,x-grpc-web,grpc-timeout,x-mine",
    }
    reply = await ask(gateway(), "OPTIONS", PREFIX + "Echo", headers=headers)
    assert reply.status == 204
    assert reply.headers["access-control-allow-origin"] == "http://localhost:5173"
    allowed = reply.headers["access-control-allow-headers"].lower()
    assert all(name in allowed for name in ("content-type", "x-grpc-web", "grpc-timeout", "authorization", "x-mine"))
    reply = await call("Echo", items_pb2().Req(), {"origin": "http://localhost:5173"})
    assert "Grpc-Status" in reply.headers["access-control-expose-headers"]


@pytest.mark.parametrize("method", ["Wait", "WaitStream"])
async def test_a_client_that_goes_cancels_its_call(method: str) -> None:
    upstream = ItemsUpstream()
    leave = 1 if method == "WaitStream" else 0
    async with asyncio.timeout(60):
        await call(method, items_pb2().Req(), app=gateway(upstream), leave_after_chunks=leave)
    assert upstream.num_open == 0
