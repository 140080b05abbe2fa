"""The connection beside the channel, before real gRPC servers: windows, limits, ends and beginnings."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import pytest
import uvloop

from tests.gateway.balancer.replicas import ECHO, METHODS, WAIT_S, Replica, call_of, text, until, value_of
from vorta_gateway.channel import ChannelConfig, make_channel
from vorta_gateway.fast import FastUpstream
from vorta_gateway.status import StatusError
from vorta_gateway.upstream import UpstreamCall

CONFIG = ChannelConfig(max_reconnect_backoff_s=0.1)
UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


class Raw:
    """A server of Echo whose messages are any bytes; it tells who asked."""

    def __init__(self) -> None:
        self.agents: list[str] = []
        self.fast_peers: set[str] = set()
        self.metadata: dict[str, Any] = {}
        self.num_open = 0
        self.num_sent = 0
        self.remaining_s: float | None = None
        self.get: Callable[[bytes], Any] = self._same
        self.replies: list[bytes] = []
        self.port = 0
        self._server: grpc.aio.Server | None = None

    async def start(self, *options: tuple[str, Any]) -> Raw:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0), *UNLIMITED, *options])
        unary: Any = grpc.unary_unary_rpc_method_handler(self._unary)
        stream: Any = grpc.unary_stream_rpc_method_handler(self._stream)
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("test.Echo", {"Get": unary, "Put": unary, "List": stream})]
        )
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()
        return self

    async def stop(self, grace_s: float | None = None) -> None:
        if self._server is not None:
            await self._server.stop(grace_s)

    async def _same(self, request: bytes) -> bytes:
        return request

    def _learn(self, context: Any) -> None:
        self.metadata = dict(context.invocation_metadata())
        self.agents.append(self.metadata["user-agent"])
        if self.agents[-1] == "vorta-gateway":
            self.fast_peers.add(context.peer())
        self.remaining_s = context.time_remaining()

    async def _unary(self, request: bytes, context: Any) -> bytes:
        self._learn(context)
        self.num_open += 1
        try:
            reply: bytes = await self.get(request)
            return reply
        finally:
            self.num_open -= 1

    async def _stream(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        self._learn(context)
        self.num_open += 1
        try:
            for reply in self.replies:
                yield reply
                self.num_sent += 1
        finally:
            self.num_open -= 1

    def num_fast(self) -> int:
        return self.agents.count("vorta-gateway")


@asynccontextmanager
async def fast_to(raw: Raw, config: ChannelConfig = CONFIG) -> AsyncGenerator[FastUpstream, None]:
    address = f"127.0.0.1:{raw.port}"
    upstream = FastUpstream(address, make_channel(address, config), config)
    try:
        assert await upstream.connect()
        yield upstream
    finally:
        await upstream.close()


async def connected(upstream: FastUpstream) -> None:
    async with asyncio.timeout(WAIT_S):
        while not await upstream.connect():  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.02)


@pytest.fixture
async def raw() -> AsyncIterator[Raw]:
    raw = await Raw().start()
    yield raw
    await raw.stop()


def get(**given: Any) -> UpstreamCall:
    return call_of(ECHO + "Get", **given)


def slow(seconds: float) -> Callable[[bytes], Any]:
    async def answer(request: bytes) -> bytes:
        await asyncio.sleep(seconds)
        return request

    return answer


async def test_calls_of_one_request_take_the_connection(raw: Raw) -> None:
    async with fast_to(raw) as upstream:
        raw.replies = [b"1", b"", b"3"]
        assert await upstream.unary(get(), b"") == b""
        assert [one async for one in upstream.stream(call_of(ECHO + "List"), b"x")] == raw.replies
        assert raw.agents == ["vorta-gateway"] * 2
        metadata: dict[str, str | bytes] = {"x-a": "b" * 300, "user-agent": "mine", "some-bin": bytes(range(256))}
        await upstream.unary(UpstreamCall(method=METHODS[ECHO + "Get"], metadata=metadata), b"x")
        assert raw.metadata.items() >= {"x-a": "b" * 300, "some-bin": bytes(range(256))}.items()
        assert raw.num_fast() == 3


async def test_the_first_call_does_not_wait_for_the_connection(raw: Raw) -> None:
    address = f"127.0.0.1:{raw.port}"
    upstream = FastUpstream(address, make_channel(address, CONFIG), CONFIG)
    try:
        assert await upstream.unary(get(), b"x") == b"x"
        assert raw.num_fast() == 0
        assert await upstream.connect()
        assert await upstream.unary(get(), b"x") == b"x"
        assert raw.num_fast() == 1
    finally:
        await upstream.close()


async def test_what_the_connection_does_not_send_goes_over_the_channel(raw: Raw) -> None:
    method = METHODS[ECHO + "Get"]
    async with fast_to(raw) as upstream:
        for metadata in ({"te": "x"}, {"x-many": "y" * 7000, "x-more": "z" * 9999}, {"x-not-bytes-bin": "text"}):
            with contextlib.suppress(StatusError, TypeError):
                await upstream.unary(UpstreamCall(method=method, metadata=metadata), b"x")
        assert raw.num_fast() == 0
        assert await upstream.unary(get(), b"y") == b"y"
        assert raw.num_fast() == 1


async def test_large_messages_pass_the_windows_both_ways(raw: Raw) -> None:
    sizes = [0, 1, 16_379, 16_380, 65_530, 65_531, 300_000, 5_000_000, 20_000_000]
    messages = [random.Random(size).randbytes(size) for size in sizes]
    async with fast_to(raw) as upstream, asyncio.timeout(60):
        assert list(await asyncio.gather(*(upstream.unary(get(), one) for one in messages))) == messages
        raw.replies = messages
        assert [one async for one in upstream.stream(call_of(ECHO + "List"), b"")] == messages
        assert raw.num_fast() == len(messages) + 1


@pytest.mark.parametrize("algorithm", [1, 2], ids=["deflate", "gzip"])
async def test_compressed_replies_are_read(algorithm: int) -> None:
    raw = await Raw().start(("grpc.default_compression_algorithm", algorithm))
    raw.replies = [bytes(10_000), b"", random.Random(1).randbytes(40_000), bytes(60_001)]
    try:
        async with fast_to(raw, ChannelConfig(max_message_bytes=60_000)) as upstream:
            for _ in range(2):
                assert await upstream.unary(get(), bytes(60_000)) == bytes(60_000)
            replies = upstream.stream(call_of(ECHO + "List"), b"x")
            assert [await anext(replies) for _ in range(3)] == raw.replies[:3]
            with pytest.raises(StatusError, match="larger than max"):
                await anext(replies)
            assert raw.num_fast() == 3
    finally:
        await raw.stop()


async def test_a_slow_reader_holds_back_its_stream_only(raw: Raw) -> None:
    raw.replies = [bytes(10_000)] * 2000
    async with fast_to(raw) as upstream, asyncio.timeout(60):
        async with aclosing(upstream.stream(call_of(ECHO + "List"), b"")) as replies:
            assert len(await anext(replies)) == 10_000
            before = -1
            while before != raw.num_sent:  # until nothing more comes
                before = raw.num_sent
                await asyncio.sleep(0.3)
            assert raw.num_sent < 500
            assert await upstream.unary(get(), bytes(1_000_000)) == bytes(1_000_000)
            assert len([one async for one in replies]) == 1999
        assert raw.num_fast() == 2


async def test_thousands_of_calls_at_once(raw: Raw) -> None:
    async with fast_to(raw) as upstream, asyncio.timeout(60):
        for _ in range(3):  # gRPC's server refuses some of more than that
            requests = [b"%d" % number for number in range(1000)]
            assert await asyncio.gather(*(upstream.unary(get(), one) for one in requests)) == requests
        assert raw.num_fast() == 3000


async def test_more_calls_than_the_peer_takes_go_over_the_channel() -> None:
    raw = await Raw().start(("grpc.max_concurrent_streams", 10))
    try:
        raw.get = slow(0.1)
        async with fast_to(raw) as upstream, asyncio.timeout(60):
            await upstream._channel.unary(get(), b"x")
            requests = [b"%d" % number for number in range(20)]
            assert await asyncio.gather(*(upstream.unary(get(), one) for one in requests)) == requests
            assert raw.num_fast() == 10
            assert await upstream.unary(get(), b"x") == b"x"
            assert raw.num_fast() == 11
    finally:
        await raw.stop()


async def test_deadlines_reach_the_peer(raw: Raw) -> None:
    async with fast_to(raw) as upstream:
        for timeout_s in (5.0, 1000.0, 1e6):
            await upstream.unary(get(timeout_s=timeout_s), b"x")
            assert raw.remaining_s == pytest.approx(timeout_s, abs=4)
        raw.get = slow(WAIT_S)
        with pytest.raises(StatusError) as raised:
            await upstream.unary(get(timeout_s=0.05), b"x")
        assert raised.value.code == 4
        await until(lambda: raw.num_open == 0)
        assert raw.num_fast() == 4


async def test_a_deadline_or_an_end_stops_a_request_that_has_no_window(raw: Raw) -> None:
    async def refuse(_: bytes) -> bytes:
        raise AssertionError

    async with fast_to(raw) as upstream:
        with pytest.raises(StatusError) as raised:
            await upstream.unary(get(timeout_s=0.001), bytes(50_000_000))
        assert raised.value.code == 4
        raw.get = refuse
        with pytest.raises(StatusError) as raised:
            await upstream.unary(get(), bytes(1_000_000))
        assert raised.value.code == 2
        method = METHODS["/vorta.v1.InferenceService/Generate"]
        with pytest.raises(StatusError) as raised:  # refused before it is read
            await upstream.unary(UpstreamCall(method=method, metadata={}), bytes(1_000_000))
        assert raised.value.code == 12
        raw.get = slow(0)
        assert await upstream.unary(get(), bytes(1_000_000)) == bytes(1_000_000)


async def test_calls_outlive_connections_that_age() -> None:
    raw = await Raw().start(("grpc.max_connection_age_ms", 50), ("grpc.max_connection_age_grace_ms", 5000))
    raw.get = slow(0.02)
    try:
        async with fast_to(raw) as upstream, asyncio.timeout(60):

            async def ask() -> int:
                count = 0
                while len(raw.fast_peers) < 10:
                    try:
                        assert await upstream.unary(call_of(ECHO + "Put"), b"x") == b"x"
                        count += 1
                    except StatusError as error:
                        assert error.message.startswith("Stream removed")  # noqa: PT017 - the channel's, no other's
                return count

            assert sum(await asyncio.gather(*(ask() for _ in range(8)))) <= len(raw.agents)
    finally:
        await raw.stop()


async def test_a_server_that_stops_ends_its_calls_and_comes_back(raw: Raw) -> None:
    async with fast_to(raw) as upstream, asyncio.timeout(60):
        raw.get = slow(0.3)
        call = asyncio.create_task(upstream.unary(get(), b"open"))
        await until(lambda: raw.num_open == 1)
        await raw.stop(5)
        assert await call == b"open"
        with pytest.raises(StatusError) as raised:
            await upstream.unary(get(), b"x")
        assert raised.value.code == 14
        raw.get = slow(0)
        await raw.start()
        raw.agents.clear()
        while not raw.num_fast():
            try:
                assert await upstream.unary(get(), b"x") == b"x"
            except StatusError as error:
                assert error.code == 14  # noqa: PT017 - until it is connected again
            await asyncio.sleep(0.02)


async def test_a_server_killed_amid_a_stream() -> None:
    replica = await Replica("a").start()
    upstream = FastUpstream(replica.address, make_channel(replica.address, CONFIG), CONFIG)
    try:
        assert await upstream.connect()
        replica.gate.clear()
        async with aclosing(upstream.stream(call_of(ECHO + "List"), text("x,y"))) as replies:
            assert value_of(await anext(replies)) == "a:x"
            await replica.kill()
            with pytest.raises(StatusError) as raised:
                await anext(replies)
        assert raised.value.code == 14
    finally:
        replica.gate.set()
        await upstream.close()
        await replica.kill()


async def test_closing_ends_calls_on_connections_that_are_left(raw: Raw) -> None:
    async with fast_to(raw) as upstream:
        raw.get = slow(WAIT_S)
        call = asyncio.create_task(upstream.unary(get(), b"x"))
        await until(lambda: raw.num_open == 1)
        assert upstream._connection is not None
        upstream._connection.leave()
        assert not await upstream.connect() or raw.num_open == 1
        await upstream.close()
        with pytest.raises(StatusError) as raised:
            await asyncio.wait_for(call, WAIT_S)
        assert raised.value.code == 14


async def test_numbers_of_streams_run_out(raw: Raw) -> None:
    async with fast_to(raw) as upstream, asyncio.timeout(60):
        first = upstream._connection
        assert first is not None
        first._next_number = 2**31 - 3
        for _ in range(2):
            assert await upstream.unary(get(), b"x") == b"x"
        assert first.is_spent()
        await connected(upstream)
        assert upstream._connection is not first
        assert await upstream.unary(get(), b"x") == b"x"
        assert raw.num_fast() == 3


async def test_an_idle_connection_is_replaced(raw: Raw) -> None:
    async with fast_to(raw, ChannelConfig(keepalive_s=0.2)) as upstream, asyncio.timeout(60):
        first = upstream._connection
        await asyncio.sleep(0.3)
        assert await upstream.unary(get(), b"x") == b"x"
        assert raw.num_fast() == 0
        await connected(upstream)
        assert upstream._connection is not first


async def test_a_long_call_is_not_pinged_to_death(raw: Raw) -> None:
    raw.get = slow(4.5)  # gRPC's servers hang up at the third ping that they sent nothing before
    async with fast_to(raw, ChannelConfig(keepalive_s=0.1, keepalive_timeout_s=1.5)) as upstream:
        assert await upstream.unary(get(), b"x") == b"x"
        assert raw.num_fast() == 1


async def test_no_connection_goes_past_a_proxy(raw: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"127.0.0.1:{raw.port}"
    channel = make_channel(address, CONFIG)
    for name, value in (("http_proxy", "http://127.0.0.1:9"), ("no_proxy", ""), ("NO_PROXY", "")):
        monkeypatch.setenv(name, value)
    upstream = FastUpstream(address, channel, CONFIG)
    try:
        assert not await upstream.connect()
    finally:
        await upstream.close()


def test_calls_cancelled_at_any_time_leave_the_connection_whole() -> None:
    """On uvloop, which `vorta gateway` runs on."""
    source = random.Random(5)

    async def run() -> None:
        raw = await Raw().start()
        raw.get = slow(0.002)
        raw.replies = [bytes(source.randrange(40_000)) for _ in range(20)]
        async with fast_to(raw) as upstream, asyncio.timeout(60):

            async def unary() -> None:
                message = bytes(source.randrange(100_000))
                assert await upstream.unary(get(timeout_s=WAIT_S), message) == message

            async def stream() -> None:
                async with aclosing(upstream.stream(call_of(ECHO + "List"), b"x")) as replies:
                    assert [one async for one in replies] == raw.replies

            async def worker() -> None:
                for _ in range(30):
                    task = asyncio.create_task(source.choice((unary, stream))())
                    if source.random() < 0.5:
                        await asyncio.wait([task], timeout=source.random() * 0.01)
                        task.cancel()
                    done = await asyncio.gather(task, return_exceptions=True)
                    assert isinstance(done[0], asyncio.CancelledError | None), done

            await asyncio.gather(*(worker() for _ in range(16)))
            await until(lambda: raw.num_open == 0)
            await unary()
            assert upstream._connection is not None
            assert not upstream._connection._exchanges
            assert not upstream._connection._blocked
            assert raw.num_fast() == len(raw.agents)
        await raw.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
