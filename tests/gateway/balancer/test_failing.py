"""Calls over several real servers of which some fail: what is sent again, and where."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc
import pytest

from tests.gateway.balancer.balanced import balanced, chat, collected, get, in_flight, states, unavailable
from tests.gateway.balancer.replicas import ECHO, INFERENCE, WAIT_S, Replica, call_of, text, until, value_of
from vorta.v1 import inference_pb2
from vorta_gateway.balancer import (
    OutlierConfig,
    RetryConfig,
)
from vorta_gateway.status import StatusError

pytestmark = pytest.mark.usefixtures("way")


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
