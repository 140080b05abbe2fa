"""Calls over several real servers that fail, drain, come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import grpc
import pytest

from tests.gateway.balancer.balanced import balanced, chat, config, get, in_flight, states, unavailable
from tests.gateway.balancer.replicas import ECHO, INFERENCE, WAIT_S, Replica, call_of, text, until, value_of
from vorta.errors import Unavailable
from vorta.v1 import inference_pb2
from vorta_gateway.balancer import (
    AffinityConfig,
    BalancedUpstream,
    DnsName,
    ResolverConfig,
)
from vorta_gateway.status import StatusError

pytestmark = pytest.mark.usefixtures("way")


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


# Draining, names


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
