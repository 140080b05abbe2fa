"""The gRPC server: services, health, reflection and channelz on one port."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc

from vorta.errors import FailedPrecondition
from vorta_server.front.chain import InterceptorChain
from vorta_server.front.grpc_adapter import generic_handler
from vorta_server.front.method import Method
from vorta_server.front.reflection import reflection_handlers

__all__ = ["GrpcConfig", "GrpcServer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcConfig:
    """How to listen.

    Attributes:
        host: Address or name to listen on.
        port: 0 for any free one.
        max_request_bytes: Largest request taken; the chain checks it.
        max_reply_bytes: Largest reply sent.
        min_ping_interval_s: Clients that ping more often are disconnected.
        keepalive_s: A silent client is pinged after this time, and taken as gone when it does not answer within
            `keepalive_timeout_s`; its requests are then cancelled.
        max_connection_age_s: Connections are asked to reconnect after this time, so that load spreads; calls in
            flight get `max_connection_age_grace_s`.
        reflection: Serve reflection v1 and v1alpha.
        channelz: Serve channelz.
    """

    host: str = "127.0.0.1"
    port: int = 50051
    max_request_bytes: int = 16 * 1024 * 1024
    max_reply_bytes: int = 64 * 1024 * 1024
    min_ping_interval_s: float = 10.0
    keepalive_s: float = 60.0
    keepalive_timeout_s: float = 20.0
    max_connection_age_s: float = 600.0
    max_connection_age_grace_s: float = 3600.0
    reflection: bool = True
    channelz: bool = True


class GrpcServer:
    """Serves bound methods.

    Args:
        config: How to listen.
        services: Methods by service name.
        chain: What every call passes.
    """

    def __init__(self, config: GrpcConfig, services: Mapping[str, Sequence[Method]], chain: InterceptorChain) -> None:
        self._config = config
        self._server = grpc.aio.server(options=_options(config))
        handlers = [generic_handler(name, methods, chain) for name, methods in services.items()]
        names = list(services)
        if config.channelz:
            from grpc_channelz.v1 import channelz

            channelz.add_channelz_servicer(self._server)
            names.append("grpc.channelz.v1.Channelz")
        if config.reflection:
            handlers += reflection_handlers(names)
        self._server.add_generic_rpc_handlers(handlers)
        self.port = 0

    async def start(self) -> None:
        """Begins to listen; `port` then is the real one. Raises FailedPrecondition when the port is taken."""
        address = f"{self._config.host}:{self._config.port}"
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError:
            self.port = 0
        if self.port == 0:
            raise FailedPrecondition(
                f"cannot listen on {address}: the port is taken or the address is not this machine's",
                reason="SETTINGS_INVALID",
                field="grpc.port",
            )
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Closes the port, waits for calls in flight up to `grace_s`, and cuts the rest."""
        await self._server.stop(grace_s)


def _options(config: GrpcConfig) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),
        # The chain refuses what is over the limit, with its size; this one only bounds what is read.
        ("grpc.max_receive_message_length", 2 * config.max_request_bytes),
        ("grpc.max_send_message_length", config.max_reply_bytes),
        ("grpc.http2.min_ping_interval_without_data_ms", int(config.min_ping_interval_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", int(config.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(config.keepalive_timeout_s * 1000)),
        ("grpc.max_connection_age_ms", int(config.max_connection_age_s * 1000)),
        ("grpc.max_connection_age_grace_ms", int(config.max_connection_age_grace_s * 1000)),
        ("grpc.enable_channelz", int(config.channelz)),
    ]
