"""The health of one endpoint, by grpc.health.v1's Watch."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf import wrappers_pb2
from google.protobuf.message import DecodeError

from vorta_gateway.balancer.config import HealthConfig
from vorta_gateway.balancer.endpoint import Health

__all__ = ["HealthWatch"]

_WATCH = "/grpc.health.v1.Health/Watch"
_SERVING = 1

# A server that does not tell strangers about its health says so in one of these.
_DOES_NOT_TELL = frozenset(
    {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
)


class HealthWatch:
    """Watches until it is cancelled.

    Args:
        channel: To the endpoint; not closed here.
        config: What to ask for, and how often to ask again.
        on_health: Told of the health, also when it stays the same.
    """

    def __init__(self, channel: grpc.aio.Channel, config: HealthConfig, on_health: Callable[[Health], None]) -> None:
        self._channel = channel
        self._config = config
        self._on_health = on_health
        # HealthCheckRequest and HealthCheckResponse have one field each, numbered and encoded as the wrappers' are:
        # a string, and an enum. So no generated code for them has to be brought along.
        self._watch: Any = channel.unary_stream(
            _WATCH,
            request_serializer=wrappers_pb2.StringValue.SerializeToString,
            response_deserializer=wrappers_pb2.Int32Value.FromString,
        )
        self._num_failures = 0

    async def run(self) -> None:
        """Watches; whatever ends a Watch, another begins."""
        while True:
            code = await self._follow_watch()
            if code in _DOES_NOT_TELL:
                await self._follow_connection()
            # When the Watch ended, the connection did, or does soon.
            self._on_health(Health.CONNECTING)
            await asyncio.sleep(self._backoff_s())
            self._num_failures += 1

    async def _follow_watch(self) -> grpc.StatusCode:
        rpc = self._watch(wrappers_pb2.StringValue(value=self._config.service), wait_for_ready=True)
        try:
            async for response in rpc:
                self._num_failures = 0
                self._on_health(Health.SERVING if response.value == _SERVING else Health.NOT_SERVING)
            code: grpc.StatusCode = await rpc.code()
            return code
        except grpc.aio.AioRpcError as error:
            return error.code()
        except DecodeError:
            return grpc.StatusCode.INTERNAL
        finally:
            rpc.cancel()

    async def _follow_connection(self) -> None:
        ready = grpc.ChannelConnectivity.READY
        while self._channel.get_state(try_to_connect=True) is ready:
            self._num_failures = 0
            self._on_health(Health.SERVING)
            await self._channel.wait_for_state_change(ready)

    def _backoff_s(self) -> float:
        if self._num_failures == 0:
            return 0.0  # it has just worked
        growth = 2.0 ** min(self._num_failures - 1, 32)
        return min(self._config.initial_backoff_s * growth, self._config.max_backoff_s) * random.uniform(0.5, 1)
