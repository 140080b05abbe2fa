"""Calls over one channel, and over the connection beside it, against real servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc
import pytest
from google.protobuf import wrappers_pb2

from tests.gateway.balancer.replicas import ECHO, WAIT_S, Replica, call_of, text, until, value_of
from vorta_gateway.channel import ChannelConfig, ChannelUpstream, NotSentError, make_channel
from vorta_gateway.fast import FastUpstream
from vorta_gateway.status import StatusError
from vorta_gateway.upstream import Upstream


@pytest.fixture
async def replica() -> AsyncIterator[Replica]:
    replica = await Replica("a").start()
    yield replica
    replica.gate.set()
    await replica.kill()


async def upstream_of(kind: str, replica: Replica, config: ChannelConfig | None = None) -> Upstream:
    config = config or ChannelConfig()
    channel = make_channel(replica.address, config)
    if kind == "channel":
        return ChannelUpstream(channel)
    fast = FastUpstream(replica.address, channel, config)
    assert await fast.connect()
    return fast


@pytest.fixture(params=["channel", "fast"])
async def upstream(request: pytest.FixtureRequest, replica: Replica) -> AsyncIterator[Upstream]:
    upstream = await upstream_of(request.param, replica)
    yield upstream
    await upstream.close()


async def asked(*values: str) -> AsyncIterator[bytes]:
    for value in values:
        yield text(value)


async def test_unary_passes_bytes_and_metadata_both_ways(replica: Replica, upstream: Upstream) -> None:
    call = call_of(ECHO + "Get", timeout_s=WAIT_S, x_one="1", some_bin=b"\x00\x01")
    assert value_of(await upstream.unary(call, text("hi"))) == "a:hi"
    assert replica.calls[0][1].items() >= {"x-one": "1", "some-bin": b"\x00\x01"}.items()
    assert dict(call.header) == {"x-replica": "a", "x-raw-bin": b"\x00\xff"}
    assert call.trailers == (("x-end", "a"),)


async def test_messages_are_serialized(upstream: Upstream) -> None:
    assert value_of(await upstream.unary(call_of(ECHO + "Get"), wrappers_pb2.StringValue(value="hi"))) == "a:hi"


async def test_every_kind_of_stream(upstream: Upstream) -> None:
    call = call_of(ECHO + "List")
    assert [value_of(reply) async for reply in upstream.stream(call, text("x,y"))] == ["a:x", "a:y"]
    assert call.trailers == (("x-end", "a"),)
    collected = upstream.stream(call_of(ECHO + "Collect"), asked("x", "y"))
    assert [value_of(reply) async for reply in collected] == ["a:x+y"]
    talked = upstream.stream(call_of(ECHO + "Talk"), asked("x", "y"))
    assert [value_of(reply) async for reply in talked] == ["a:x", "a:y"]


async def test_header_is_there_with_the_first_reply(upstream: Upstream) -> None:
    call = call_of(ECHO + "List")
    async with aclosing(upstream.stream(call, text("x,y"))) as replies:
        async for _ in replies:
            assert dict(call.header)["x-replica"] == "a"
            break


@pytest.mark.parametrize("name", ["Get", "List"])
async def test_errors_keep_code_message_details_and_trailers(replica: Replica, upstream: Upstream, name: str) -> None:
    trailers: tuple[tuple[str, str | bytes], ...] = (("grpc-status-details-bin", b"\x08\x05"), ("x-more", "1"))
    replica.fail_with = (grpc.StatusCode.NOT_FOUND, "nothing é", trailers)
    call = call_of(ECHO + name)
    with pytest.raises(StatusError) as raised:
        await (upstream.unary(call, text("x")) if name == "Get" else anext(upstream.stream(call, text("x"))))
    error = raised.value
    assert (error.code, error.message, error.details, error.http) == (5, "nothing é", b"\x08\x05", 404)
    assert error.trailers == (("x-more", "1"),)


async def test_a_refused_connection_was_certainly_not_sent(replica: Replica, upstream: Upstream) -> None:
    await replica.kill()
    with pytest.raises(NotSentError) as raised:
        await upstream.unary(call_of(ECHO + "Put", timeout_s=WAIT_S), text("x"))
    assert raised.value.code == 14
    with pytest.raises(NotSentError):
        _ = [reply async for reply in upstream.stream(call_of(ECHO + "List", timeout_s=WAIT_S), text("x"))]


async def test_a_peer_with_gRPCs_own_words_has_seen_the_call(replica: Replica, upstream: Upstream) -> None:
    replica.fail_with = (grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses; behind me", ())
    with pytest.raises(StatusError) as raised:
        await upstream.unary(call_of(ECHO + "Put"), text("x"))
    assert raised.value.code == 14
    assert not isinstance(raised.value, NotSentError)


async def test_a_cut_connection_is_unavailable(replica: Replica, upstream: Upstream) -> None:
    replica.gate.clear()
    call = asyncio.create_task(upstream.unary(call_of(ECHO + "Get"), text("x")))
    await until(lambda: replica.num_open == 1)
    await replica.kill()
    with pytest.raises(StatusError) as raised:
        await asyncio.wait_for(call, WAIT_S)
    assert raised.value.code == 14
    assert not isinstance(raised.value, NotSentError)


async def test_the_deadline_ends_a_call(replica: Replica, upstream: Upstream) -> None:
    replica.gate.clear()
    with pytest.raises(StatusError) as raised:
        await upstream.unary(call_of(ECHO + "Get", timeout_s=0.05), text("x"))
    assert raised.value.code == 4
    with pytest.raises(StatusError) as raised:
        await upstream.unary(call_of(ECHO + "Get", timeout_s=-1), text("x"))
    assert raised.value.code == 4


async def test_cancelling_the_task_cancels_the_call(replica: Replica, upstream: Upstream) -> None:
    replica.gate.clear()
    call = asyncio.create_task(upstream.unary(call_of(ECHO + "Get"), text("x")))
    await until(lambda: replica.num_open == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: replica.num_open == 0)


async def test_closing_a_stream_cancels_the_call(replica: Replica, upstream: Upstream) -> None:
    replica.gate.clear()
    async with aclosing(upstream.stream(call_of(ECHO + "List"), text("x,y"))) as replies:
        assert value_of(await anext(replies)) == "a:x"
        assert replica.num_open == 1
    await until(lambda: replica.num_open == 0)


async def test_what_goes_wrong_with_the_requests_is_raised(replica: Replica, upstream: Upstream) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield text("x")
        raise StatusError(3, "malformed")

    for name in ("Collect", "Talk"):
        with pytest.raises(StatusError, match="malformed") as raised:
            _ = [reply async for reply in upstream.stream(call_of(ECHO + name), broken())]
        assert raised.value.code == 3
    await until(lambda: replica.num_open == 0)


async def test_closing_the_channel_ends_calls_with_unavailable(replica: Replica, upstream: Upstream) -> None:
    replica.gate.clear()
    call = asyncio.create_task(upstream.unary(call_of(ECHO + "Get"), text("x")))
    await until(lambda: replica.num_open == 1)
    await upstream.close()
    with pytest.raises(StatusError) as raised:
        await asyncio.wait_for(call, WAIT_S)
    assert raised.value.code == 14


@pytest.mark.parametrize("kind", ["channel", "fast"])
@pytest.mark.parametrize("size", [96, 200], ids=["reply", "request"])
async def test_messages_are_bounded(kind: str, size: int, replica: Replica) -> None:
    upstream = await upstream_of(kind, replica, ChannelConfig(max_message_bytes=99))
    try:
        with pytest.raises(StatusError, match="larger than max") as raised:
            await upstream.unary(call_of(ECHO + "Get"), text("x" * size))
        assert raised.value.code == 8
        if size < 99:
            with pytest.raises(StatusError, match="larger than max") as raised:
                _ = [reply async for reply in upstream.stream(call_of(ECHO + "List"), text("x" * size))]
            assert raised.value.code == 8
        assert value_of(await upstream.unary(call_of(ECHO + "Get"), text("y"))) == "a:y"
    finally:
        await upstream.close()
