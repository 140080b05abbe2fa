"""An upstream over replicas, and what is asked of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from tests.gateway.balancer.replicas import ECHO, WAIT_S, Replica, call_of, text, until, value_of
from vorta.errors import DOMAIN
from vorta.v1 import common_pb2, inference_pb2
from vorta.wire import DETAILS_KEY
from vorta_gateway.balancer import (
    BalancedUpstream,
    BalancerConfig,
    HealthConfig,
    OutlierConfig,
)
from vorta_gateway.balancer.endpoint import Health
from vorta_gateway.channel import ChannelConfig, make_channel
from vorta_gateway.fast import FastUpstream

HEALTH = HealthConfig(initial_backoff_s=0.01, max_backoff_s=0.05)
CHANNEL = ChannelConfig(max_reconnect_backoff_s=0.1)
NEVER_EJECT = OutlierConfig(consecutive_failures=0)


way = "channel"
"""Over what calls go: the channel alone, or the connection beside it (`fast`)."""


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
        connect=(lambda address: make_channel(address, balancer.channel)) if way == "channel" else None,
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


def states(upstream: BalancedUpstream) -> list[str]:
    return [one.state for one in upstream.stats().endpoints]


def in_flight(upstream: BalancedUpstream) -> int:
    return sum(one.in_flight for one in upstream.stats().endpoints)


async def get(upstream: BalancedUpstream, value: str = "x", name: str = "Get") -> str:
    return value_of(await upstream.unary(call_of(ECHO + name, timeout_s=WAIT_S), text(value)))


async def collected(stream: AsyncGenerator[Any, None]) -> list[str]:
    async with aclosing(stream) as replies:
        return [value_of(reply) async for reply in replies]


def chat(*contents: str, name: str = "StreamChat", **fields: Any) -> Any:
    roles = ("user", "assistant")
    messages = [common_pb2.ChatMessage(role=roles[i % 2], content=one) for i, one in enumerate(contents)]
    make: Any = inference_pb2.StreamChatRequest if name == "StreamChat" else inference_pb2.ChatRequest
    return make(model="m", messages=messages, **fields)


def unavailable(*, retry_delay_s: float | None = None, reason: str = "") -> Any:
    """A failure for `Replica.fail_with`."""
    status = status_pb2.Status(code=14)
    if reason:
        status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN))
    if retry_delay_s is not None:
        delay = duration_pb2.Duration(nanos=int(retry_delay_s % 1 * 1e9), seconds=int(retry_delay_s))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return grpc.StatusCode.UNAVAILABLE, "not now", ((DETAILS_KEY, status.SerializeToString()),)
