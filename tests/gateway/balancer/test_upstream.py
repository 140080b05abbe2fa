"""Calls over several real servers that fail, drain, come and go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from tests.gateway.balancer.replicas import ECHO, INFERENCE, WAIT_S, Replica, call_of, text, until, value_of
from vorta.errors import DOMAIN, Unavailable
from vorta.v1 import common_pb2, inference_pb2
from vorta.wire import DETAILS_KEY
from vorta_gateway.balancer import (
    AffinityConfig,
    BalancedUpstream,
    BalancerConfig,
    DnsName,
    HealthConfig,
    OutlierConfig,
    ResolverConfig,
    RetryConfig,
)
from vorta_gateway.balancer.endpoint import Health
from vorta_gateway.channel import ChannelConfig, make_channel
from vorta_gateway.fast import FastUpstream
from vorta_gateway.status import StatusError

HEALTH = HealthConfig(initial_backoff_s=0.01, max_backoff_s=0.05)
CHANNEL = ChannelConfig(max_reconnect_backoff_s=0.1)
NEVER_EJECT = OutlierConfig(consecutive_failures=0)


_way = ""


@pytest.fixture(autouse=True, params=["channel", "fast"])
def way(request: pytest.FixtureRequest) -> str:
    """Over what calls go: the channel alone, or the connection beside it."""
    global _way
    _way = request.param
    return _way


def config(**changes: Any) -> BalancerConfig:
    given: dict[str, Any] = {"health": HEALTH, "channel": CHANNEL, "outlier": NEVER_EJECT} | changes
    return BalancerConfig(**given)


@asynccontextmanager
async def balanced(
    *replicas: Replica, num_serving: int | None = None, **changes: Any
) -> AsyncIterator[BalancedUpstream]:
    """An upstream over started replicas, when all of them serve."""
    balancer = config(**changes)
    upstream = BalancedUpstream(
        ",".join(replica.address for replica in replicas),
        balancer,
        connect=(lambda address: make_channel(address, balancer.channel)) if _way == "channel" else None,
    )
    await upstream.start()
    try:
        wanted = len(replicas) if num_serving is None else num_serving
        await until(lambda: states(upstream).count("SERVING") == wanted)
        for endpoint in upstream._cluster.endpoints:
            if isinstance(endpoint.upstream, FastUpstream) and endpoint.health is Health.SERVING:
                assert await endpoint.upstream.connect()
        yield upstream
    finally:
        await upstream.close()


@pytest.fixture
async def replicas() -> AsyncIterator[list[Replica]]:
    async with AsyncExitStack() as stack:
        made = [await Replica(name).start() for name in "abc"]
        for replica in made:
            stack.push_async_callback(replica.kill)
        yield made
        for replica in made:
            replica.gate.set()


def states(upstream: BalancedUpstream) -> list[str]:
    return [one.state for one in upstream.stats().endpoints]


def in_flight(upstream: BalancedUpstream) -> int:
    return sum(one.in_flight for one in upstream.stats().endpoints)


async def get(upstream: BalancedUpstream, value: str = "x", name: str = "Get") -> str:
    return value_of(await upstream.unary(call_of(ECHO + name, timeout_s=WAIT_S), text(value)))


async def collected(stream: AsyncGenerator[Any, None]) -> list[str]:
    async with aclosing(stream) as replies:
        return [value_of(reply) async for reply in replies]


def unavailable(*, retry_delay_s: float | None = None, reason: str = "") -> Any:
    """A failure for `Replica.fail_with`."""
    status = status_pb2.Status(code=14)
    if reason:
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN))
    if retry_delay_s is not None:
        delay = duration_pb2.Duration(nanos=int(retry_delay_s % 1 * 1e9), seconds=int(retry_delay_s))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return grpc.StatusCode.UNAVAILABLE, "not now", ((DETAILS_KEY, status.SerializeToString()),)


def chat(*contents: str, name: str = "StreamChat", **fields: Any) -> Any:
    roles = ("user", "assistant")
    messages = [common_pb2.ChatMessage(role=roles[i % 2], content=one) for i, one in enumerate(contents)]
    make: Any = inference_pb2.StreamChatRequest if name == "StreamChat" else inference_pb2.ChatRequest
    return make(model="m", messages=messages, **fields)


async def answering(upstream: BalancedUpstream, request: Any, name: str = "Chat") -> str:
    """Who answers a conversation."""
    reply = await upstream.unary(call_of(INFERENCE + name), request)
    assert isinstance(reply, bytes)
    return inference_pb2.ChatResponse.FromString(reply).text


# Spreading


async def test_calls_are_spread_and_pass_metadata(replicas: list[Replica]) -> None:
    async with balanced(*replicas) as upstream:
        assert sorted([(await get(upstream))[0] for _ in range(6)]) == list("aabbcc")
        call = call_of(ECHO + "Get", x_one="1")
        name = value_of(await upstream.unary(call, text("x")))[0]
        assert dict(call.header)["x-replica"] == name
        assert call.trailers == (("x-end", name),)
        call = call_of(ECHO + "List")
        replies = [value_of(reply) async for reply in upstream.stream(call, text("x,y"))]
        assert [reply[1:] for reply in replies] == [":x", ":y"]
        assert call.trailers == (("x-end", replies[0][0]),)


async def test_requests_of_a_stream_are_many(replicas: list[Replica]) -> None:
    async def asked() -> AsyncIterator[bytes]:
        for value in ("x", "y"):
            yield text(value)

    async with balanced(*replicas) as upstream:
        replies = [value_of(reply) async for reply in upstream.stream(call_of(ECHO + "Collect"), asked())]
        assert [reply[1:] for reply in replies] == [":x+y"]
        assert in_flight(upstream) == 0


async def test_busy_endpoints_are_left_alone(replicas: list[Replica]) -> None:
    a, b, _ = replicas
    async with balanced(a, b) as upstream:
        a.gate.clear()
        held = asyncio.create_task(get(upstream))
        await until(lambda: a.num_open == 1)
        assert {(await get(upstream))[0] for _ in range(4)} == {"b"}
        a.gate.set()
        assert (await asyncio.wait_for(held, WAIT_S))[0] == "a"


async def test_errors_pass_and_are_not_repeated(replicas: list[Replica]) -> None:
    for replica in replicas:
        replica.fail_with = (grpc.StatusCode.INVALID_ARGUMENT, "wrong", (("x-more", "1"),))
    async with balanced(*replicas) as upstream:
        with pytest.raises(StatusError, match="wrong") as raised:
            await get(upstream)
        assert raised.value.trailers == (("x-more", "1"),)
        assert sum(len(replica.calls) for replica in replicas) == 1


async def test_endpoints_without_health_serve_while_connected() -> None:
    replica = await Replica("a", has_health=False).start()
    try:
        async with balanced(replica) as upstream:
            assert (await get(upstream))[0] == "a"
            await replica.kill()
            await until(lambda: states(upstream) == ["CONNECTING"])
            await replica.start()
            await until(lambda: states(upstream) == ["SERVING"])
    finally:
        await replica.kill()


async def test_nothing_serves() -> None:
    replica = await Replica("a").start()
    await replica.set_serving(False)
    upstream = BalancedUpstream(replica.address, config())
    try:
        await upstream.start()
        assert not await upstream.wait_serving(0.01)
        await until(lambda: states(upstream) == ["NOT_SERVING"])
        with pytest.raises(StatusError) as raised:
            await get(upstream)
        assert raised.value.code == 14
        with pytest.raises(StatusError):
            upstream.channel()
        assert replica.calls == []
        await replica.set_serving(True)
        assert await upstream.wait_serving(WAIT_S)
        assert upstream.channel() is not None
    finally:
        await upstream.close()
        await replica.kill()


# Failing


async def test_killing_one_of_three_loses_no_idempotent_request(replicas: list[Replica]) -> None:
    async with balanced(*replicas, outlier=OutlierConfig()) as upstream:
        replies: list[str] = []

        async def load() -> None:
            while len(replies) < 600:
                replies.append(await get(upstream))

        loads = [asyncio.create_task(load()) for _ in range(12)]
        await until(lambda: len(replies) > 150)
        replicas[0].gate.clear()  # so that some are certain to run on it when it dies
        await until(lambda: replicas[0].num_open > 0)
        await replicas[0].kill()
        await asyncio.wait_for(asyncio.gather(*loads), WAIT_S)
        assert {reply[0] for reply in replies} == set("abc")
        assert upstream.stats().num_retries > 0
        assert in_flight(upstream) == 0
        replicas[0].gate.set()
        await replicas[0].start()
        await until(lambda: states(upstream) == ["SERVING"] * 3)
        assert "a" in {(await get(upstream))[0] for _ in range(6)}


async def test_what_may_have_run_is_repeated_only_if_idempotent(replicas: list[Replica]) -> None:
    for replica in replicas:
        replica.fail_with = unavailable()
    async with balanced(*replicas) as upstream:
        with pytest.raises(StatusError) as raised:
            await get(upstream, name="Put")
        assert raised.value.code == 14
        assert sum(replica.count("Put") for replica in replicas) == 1
        with pytest.raises(StatusError):
            await get(upstream)
        assert [replica.count("Get") for replica in replicas] == [1, 1, 1]


async def test_what_was_certainly_not_sent_is_repeated_always(replicas: list[Replica]) -> None:
    a, b, _ = replicas
    await a.kill()
    async with balanced(a, b, num_serving=0) as upstream:
        # Nothing is known of either yet.
        assert (await get(upstream, name="Put"))[0] == "b"
        first, second = upstream.stats().endpoints
        assert (first.num_picks, first.num_failures, second.num_picks) == (1, 1, 1)


@pytest.mark.parametrize("name", ["Collect", "Talk"])
async def test_many_requests_are_sent_again_from_the_first(replicas: list[Replica], name: str) -> None:
    a, b, _ = replicas
    await a.kill()
    is_told = asyncio.Event()

    async def asked() -> AsyncIterator[bytes]:
        yield text("x")
        await is_told.wait()
        yield text("y")

    async with balanced(a, b, num_serving=0) as upstream:
        call = asyncio.create_task(collected(upstream.stream(call_of(ECHO + name), asked())))
        await until(lambda: b.count(name) == 1)
        is_told.set()
        replies = await asyncio.wait_for(call, WAIT_S)
        assert replies == (["b:x+y"] if name == "Collect" else ["b:x", "b:y"])
        assert upstream.stats().endpoints[0].num_failures == 1
        assert in_flight(upstream) == 0


async def test_what_goes_wrong_with_the_requests_is_the_callers(replicas: list[Replica]) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield text("x")
        raise StatusError(14, "the caller's")

    async with balanced(*replicas) as upstream:
        with pytest.raises(StatusError, match="the caller's"):
            await collected(upstream.stream(call_of(ECHO + "Collect"), broken()))
        assert [one.num_picks for one in upstream.stats().endpoints] == [1, 0, 0]
        assert sum(one.num_failures for one in upstream.stats().endpoints) == 0


async def test_a_stream_that_was_refused_before_it_began_is_repeated(replicas: list[Replica]) -> None:
    a, b, _ = replicas
    a.fail_with = unavailable(reason="DRAINING")
    async with balanced(a, b) as upstream:
        for _ in range(2):
            stream = upstream.stream(call_of(INFERENCE + "StreamChat"), chat("hi"))
            events = [inference_pb2.StreamChatResponse.FromString(bytes(reply)) async for reply in stream]
            assert events[1].delta.text == "b"
        a.fail_with = unavailable(reason="WORKER_DIED")
        b.fail_with = a.fail_with
        num_calls = len(a.calls) + len(b.calls)
        with pytest.raises(StatusError):
            await anext(upstream.stream(call_of(INFERENCE + "StreamChat"), chat("hi")))
        assert len(a.calls) + len(b.calls) == num_calls + 1


async def test_a_stream_is_not_repeated_after_its_first_reply(replicas: list[Replica]) -> None:
    a, b, _ = replicas
    async with balanced(a, b) as upstream:
        a.gate.clear()
        async with aclosing(upstream.stream(call_of(ECHO + "List"), text("x,y"))) as replies:
            assert value_of(await anext(replies)) == "a:x"
            await a.kill()
            with pytest.raises(StatusError) as raised:
                await asyncio.wait_for(anext(replies), WAIT_S)
        assert raised.value.code == 14
        assert b.calls == []
        assert in_flight(upstream) == 0


async def test_a_stream_is_repeated_before_its_first_reply(replicas: list[Replica]) -> None:
    a, b, _ = replicas
    a.fail_with = unavailable()
    async with balanced(a, b) as upstream:
        replies = [value_of(reply) async for reply in upstream.stream(call_of(ECHO + "List"), text("x,y"))]
        assert replies == ["b:x", "b:y"]
        assert (len(a.calls), len(b.calls)) == (1, 1)


async def test_one_endpoint_is_tried_again_after_the_time_it_asks_for() -> None:
    replica = await Replica("a").start()
    try:
        async with balanced(replica, retry=RetryConfig(initial_backoff_s=0, max_backoff_s=0)) as upstream:
            replica.fail_with = unavailable(retry_delay_s=0.05)
            with pytest.raises(StatusError):
                await get(upstream)
            assert len(replica.calls) == 3
            replica.fail_with = unavailable(retry_delay_s=60)  # longer than anybody waits
            with pytest.raises(StatusError) as raised:
                await asyncio.wait_for(get(upstream), WAIT_S)
            assert raised.value.details
            assert len(replica.calls) == 4
            replica.fail_with = unavailable(retry_delay_s=5)  # longer than there is time
            with pytest.raises(StatusError):
                await upstream.unary(call_of(ECHO + "Get", timeout_s=4.9), text("x"))
            assert len(replica.calls) == 5
    finally:
        await replica.kill()


async def test_retries_keep_to_their_budget(replicas: list[Replica]) -> None:
    for replica in replicas:
        replica.fail_with = unavailable()
    async with balanced(*replicas, retry=RetryConfig(min_concurrency=0, budget_percent=10)) as upstream:
        with pytest.raises(StatusError):
            await get(upstream)
        assert sum(len(replica.calls) for replica in replicas) == 1
        assert upstream.stats().num_budget_refusals == 1
        # Twenty calls that fail at once may have two retries at once.
        await asyncio.gather(*(get(upstream) for _ in range(20)), return_exceptions=True)
        stats = upstream.stats()
        assert 0 < stats.num_retries < 40
        assert stats.num_budget_refusals > 1
        assert upstream._budget.active == 0


async def test_endpoints_that_fail_are_ejected_and_return(replicas: list[Replica]) -> None:
    a, b, c = replicas
    ahead_s = 0.0
    async with balanced(a, b, c, outlier=OutlierConfig(consecutive_failures=2, base_ejection_s=30)) as upstream:
        upstream._outliers._clock_s = lambda: time.monotonic() + ahead_s
        a.fail_with = unavailable()
        while "EJECTED" not in states(upstream):
            assert (await get(upstream))[0] in "bc"
        assert states(upstream) == ["EJECTED", "SERVING", "SERVING"]
        assert upstream.stats().endpoints[0].num_ejections == 1
        a.fail_with = None
        ahead_s = 30.0
        assert "EJECTED" not in states(upstream)
        assert "a" in {(await get(upstream))[0] for _ in range(4)}


async def test_a_model_that_is_not_ready_ejects_nobody(replicas: list[Replica]) -> None:
    for replica in replicas:
        replica.fail_with = unavailable(reason="MODEL_NOT_READY")
    async with balanced(*replicas, outlier=OutlierConfig(consecutive_failures=1)) as upstream:
        with pytest.raises(StatusError):
            await get(upstream)
        assert states(upstream) == ["SERVING"] * 3


# Draining


async def test_an_endpoint_that_drains_gets_nothing_new_and_ends_what_runs(replicas: list[Replica]) -> None:
    a, b, _ = replicas
    async with balanced(a, b) as upstream:
        a.gate.clear()
        async with aclosing(upstream.stream(call_of(ECHO + "List"), text("x,y"))) as replies:
            assert value_of(await anext(replies)) == "a:x"
            await a.set_serving(False)
            await until(lambda: states(upstream) == ["NOT_SERVING", "SERVING"])
            assert {(await get(upstream))[0] for _ in range(4)} == {"b"}
            a.gate.set()
            assert [value_of(reply) async for reply in replies] == ["a:y"]
        await a.set_serving(True)
        await until(lambda: states(upstream) == ["SERVING", "SERVING"])
        assert "a" in {(await get(upstream))[0] for _ in range(4)}


class ListResolver:
    """Answers with what it is told to."""

    def __init__(self, hosts: Sequence[str] | Exception) -> None:
        self.hosts = hosts
        self.num_asked = 0

    async def resolve(self, name: str) -> Sequence[str]:
        assert name == "vorta.test"
        self.num_asked += 1
        if isinstance(self.hosts, Exception):
            raise self.hosts
        return self.hosts


async def test_endpoints_follow_the_name(replicas: list[Replica]) -> None:
    by_host = {f"10.0.0.{number}": replica for number, replica in enumerate(replicas)}

    def connect(address: str) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(by_host[address.removesuffix(":50051")].address)

    resolver = ListResolver(["10.0.0.1", "10.0.0.0", "10.0.0.1"])
    upstream = BalancedUpstream(
        DnsName("vorta.test", 50051),
        config(resolver=ResolverConfig(interval_s=0.02, min_interval_s=0.01)),
        resolver=resolver,
        connect=connect,
    )

    def addresses() -> list[str]:
        return [one.address for one in upstream.stats().endpoints]

    await upstream.start()
    try:
        assert addresses() == ["10.0.0.0:50051", "10.0.0.1:50051"]
        await until(lambda: states(upstream) == ["SERVING"] * 2)
        a = replicas[0]
        a.gate.clear()
        async with aclosing(upstream.stream(call_of(ECHO + "List"), text("x,y"))) as replies:
            assert value_of(await anext(replies)) == "a:x"
            resolver.hosts = ["10.0.0.2", "10.0.0.1"]
            await until(lambda: addresses() == ["10.0.0.1:50051", "10.0.0.2:50051"])
            await until(lambda: states(upstream) == ["SERVING"] * 2)
            assert {(await get(upstream))[0] for _ in range(4)} == {"b", "c"}
            a.gate.set()
            assert [value_of(reply) async for reply in replies] == ["a:y"]
        await until(lambda: not upstream._cluster._leaving)
        # A resolver that fails, or knows nothing, takes nothing away.
        failures: list[Sequence[str] | Exception] = [OSError("no answer"), []]
        for hosts in failures:
            resolver.hosts = hosts
            num_asked = resolver.num_asked
            await until(lambda asked=num_asked: resolver.num_asked > asked + 1)
            assert len(addresses()) == 2
        resolver.hosts = ["10.0.0.0"]
        await until(lambda: addresses() == ["10.0.0.0:50051"] and states(upstream) == ["SERVING"])
        assert (await get(upstream))[0] == "a"
    finally:
        await upstream.close()


async def test_a_name_without_addresses_cannot_be_started_with() -> None:
    for hosts in (OSError("no such name"), []):
        upstream = BalancedUpstream("dns:///vorta.test:1", resolver=ListResolver(hosts))
        with pytest.raises(Unavailable, match=r"vorta\.test cannot be resolved"):
            await upstream.start()
        await upstream.close()


# Affinity


async def test_a_conversation_stays_where_it_began(replicas: list[Replica]) -> None:
    async with balanced(*replicas, affinity=AffinityConfig(block_characters=16)) as upstream:
        conversations = [[f"{number}, of all numbers, is where this conversation begins."] for number in range(6)]
        homes = [await answering(upstream, chat(*turns, name="Chat")) for turns in conversations]
        assert sorted(homes) == list("aabbcc")
        for _ in range(3):
            for home, turns in zip(homes, conversations, strict=True):
                turns += ["An answer that the model gave to that.", "Another question of the user's?"]
                assert await answering(upstream, chat(*turns, name="Chat")) == home
        assert sum(one.num_affinity_hits for one in upstream.stats().endpoints) == 18
        # Bytes go where messages go.
        assert await answering(upstream, chat(*conversations[0], name="Chat").SerializeToString()) == homes[0]


async def test_load_overrides_affinity(replicas: list[Replica]) -> None:
    a, b, _ = replicas
    affinity = AffinityConfig(block_characters=16, load_margin=300)
    async with balanced(a, b, affinity=affinity) as upstream:
        request = chat("The same long beginning of every one of these prompts.", name="Chat", max_tokens=200)
        a.gate.clear()
        held = [asyncio.create_task(answering(upstream, request)) for _ in range(2)]
        await until(lambda: a.num_open == 2)
        assert await answering(upstream, request) == "b"
        assert upstream.stats().num_affinity_overridden == 1
        a.gate.set()
        assert await asyncio.wait_for(asyncio.gather(*held), WAIT_S) == ["a", "a"]


# Requests by id


async def resume(upstream: BalancedUpstream, request_id: str) -> int:
    request = inference_pb2.ResumeGenerateRequest(request_id=request_id, next_index=3)
    stream = upstream.stream(call_of(INFERENCE + "ResumeGenerate"), request)
    return len([reply async for reply in stream])


@pytest.mark.parametrize("name", ["StreamGenerate", "StreamChat", "StreamAnswer"])
@pytest.mark.parametrize("given", ["field", "metadata", "none"])
async def test_resume_and_cancel_go_to_the_endpoint_that_has_the_request(
    replicas: list[Replica], name: str, given: str
) -> None:
    async with balanced(*replicas) as upstream:
        make: Any = getattr(inference_pb2, f"{name}Request")
        request = make(request_id="id-1" if given == "field" else "")
        metadata = {"x_request_id": "id-1"} if given == "metadata" else {}
        _ = [reply async for reply in upstream.stream(call_of(INFERENCE + name, **metadata), request)]
        [owner] = [replica for replica in replicas if replica.calls]
        [request_id] = owner.request_ids
        await owner.set_serving(False)  # it drains, and still has the request
        await until(lambda: "NOT_SERVING" in states(upstream))
        for _ in range(3):
            assert await resume(upstream, request_id) == 1
            cancel = inference_pb2.CancelGenerateRequest(request_id=request_id)
            await upstream.unary(call_of(INFERENCE + "CancelGenerate"), cancel)
        assert owner.count("ResumeGenerate") == owner.count("CancelGenerate") == 3
        assert sum(len(replica.calls) for replica in replicas) == 7


async def test_an_unknown_request_is_looked_for_everywhere(replicas: list[Replica]) -> None:
    async with balanced(*replicas) as upstream:
        replicas[2].request_ids.add("other-gateway's")
        assert await resume(upstream, "other-gateway's") == 1
        assert await resume(upstream, "other-gateway's") == 1
        assert [replica.count("ResumeGenerate") for replica in replicas] == [1, 1, 2]  # found once, then known
        with pytest.raises(StatusError) as raised:
            await resume(upstream, "nobody's")
        assert raised.value.code == 5
        assert [replica.count("ResumeGenerate") for replica in replicas] == [2, 2, 3]
        # One that cannot be asked may be the one.
        replicas[0].fail_with = unavailable()
        with pytest.raises(StatusError) as raised:
            await resume(upstream, "nobody's")
        assert raised.value.code == 14
        assert in_flight(upstream) == 0


async def test_only_the_latest_requests_are_remembered(replicas: list[Replica]) -> None:
    async with balanced(*replicas, max_request_ids=2) as upstream:
        for number in range(5):
            request = inference_pb2.GenerateRequest(prompt="p", request_id=str(number))
            await upstream.unary(call_of(INFERENCE + "Generate"), request)
        assert len(upstream._owners) == 2


# Hedging, cancelling, closing


async def test_a_slow_call_is_hedged_and_the_loser_cancelled(replicas: list[Replica]) -> None:
    a, b, _ = replicas
    async with balanced(a, b, retry=RetryConfig(hedge_after_s=0.02)) as upstream:
        a.gate.clear()
        call = call_of(ECHO + "Get")
        assert value_of(await upstream.unary(call, text("x"))) == "b:x"
        assert dict(call.header)["x-replica"] == "b"
        assert upstream.stats().num_hedges == 1
        assert in_flight(upstream) == 0
        await until(lambda: a.num_open == 0)
        a.gate.set()
        b.gate.clear()  # not idempotent: not hedged
        calls = [asyncio.create_task(get(upstream, name="Put")) for _ in range(2)]
        await until(lambda: b.num_open == 1)
        await asyncio.sleep(0.05)
        b.gate.set()
        await asyncio.wait_for(asyncio.gather(*calls), WAIT_S)
        assert upstream.stats().num_hedges == 1
        assert upstream._budget.active == 0


async def test_a_hedge_that_fails_does_not_fail_the_call(replicas: list[Replica]) -> None:
    a, b, _ = replicas
    async with balanced(a, b, retry=RetryConfig(hedge_after_s=0)) as upstream:
        a.gate.clear()
        b.fail_with = unavailable()
        call = asyncio.create_task(get(upstream))
        await until(lambda: b.count("Get") == 1 and a.num_open == 1)
        a.gate.set()
        assert (await asyncio.wait_for(call, WAIT_S))[0] == "a"
        a.fail_with = (grpc.StatusCode.NOT_FOUND, "nothing", ())
        with pytest.raises(StatusError) as raised:
            await get(upstream)
        assert raised.value.code == 5


@pytest.mark.parametrize("hedge_after_s", [None, 0.01])
async def test_cancelling_leaves_nothing_in_flight(replicas: list[Replica], hedge_after_s: float | None) -> None:
    for replica in replicas:
        replica.gate.clear()
    async with balanced(*replicas, retry=RetryConfig(hedge_after_s=hedge_after_s)) as upstream:

        async def read() -> None:
            async with aclosing(upstream.stream(call_of(ECHO + "List"), text("x,y"))) as replies:
                async for _ in replies:
                    pass

        calls = [asyncio.create_task(get(upstream)) for _ in range(6)]
        calls += [asyncio.create_task(read()) for _ in range(6)]
        await until(lambda: sum(replica.num_open for replica in replicas) >= 12)
        assert upstream.stats().num_open == 12
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        stats = upstream.stats()
        assert (stats.num_open, in_flight(upstream), upstream._budget.active) == (0, 0, 0)
        assert all(one.work == 0 for one in stats.endpoints)
        await until(lambda: sum(replica.num_open for replica in replicas) == 0)


async def test_closing_ends_calls_with_unavailable(replicas: list[Replica]) -> None:
    a = replicas[0]
    a.gate.clear()
    async with balanced(a) as upstream:
        call = asyncio.create_task(get(upstream, name="Put"))
        await until(lambda: a.num_open == 1)
        await upstream.close()
        with pytest.raises(StatusError) as raised:
            await asyncio.wait_for(call, WAIT_S)
        assert raised.value.code == 14
        await upstream.close()
