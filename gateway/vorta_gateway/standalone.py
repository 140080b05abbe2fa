"""The gateway as a process of its own, before any gRPC server that tells of its services."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass

import vorta
from vorta.errors import Unavailable
from vorta_gateway.app import Gateway, GatewayConfig, Page
from vorta_gateway.balancer import BalancedUpstream
from vorta_gateway.http import HttpReply, HttpRequest
from vorta_gateway.pages import describing_pages, vorta_pages, vorta_sockets
from vorta_gateway.reflection import reflected_services
from vorta_gateway.rest.routes import RouteOptions
from vorta_gateway.server import HttpServer
from vorta_gateway.status import StatusError

__all__ = ["StandaloneConfig", "serve"]

logger = logging.getLogger(__name__)

_START_TIMEOUT_S = 10.0
_OWN_SERVICE = "vorta.v1.InferenceService"


@dataclass(frozen=True, slots=True, kw_only=True)
class StandaloneConfig:
    """What `vorta gateway` was told; see its help."""

    upstream: str
    host: str = "127.0.0.1"
    port: int = 8080
    cors_origins: tuple[str, ...] = ("http://localhost:*", "http://127.0.0.1:*")
    max_body_bytes: int = 16 * 1024 * 1024
    camel_case: bool = False
    always_print: bool = False
    method_override: bool = False


async def serve(config: StandaloneConfig) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        VortaError: The upstream does not answer or has no reflection, or the port is taken.
        TemplateError: One of the upstream's rules is wrong.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    async with AsyncExitStack() as stack:
        upstream = BalancedUpstream(config.upstream)
        stack.push_async_callback(upstream.close)
        await upstream.start()
        await upstream.wait_serving(_START_TIMEOUT_S)
        try:
            services = await reflected_services(upstream.channel())
        except StatusError as error:
            raise Unavailable(f"the upstream does not answer: {error.message}") from None
        pages = describing_pages(services, title="Vorta gateway", version=vorta.__version__)
        is_vorta = any(service.full_name == _OWN_SERVICE for service in services)
        if is_vorta:
            pages |= vorta_pages(upstream, max_body_bytes=config.max_body_bytes)
        pages["/healthz"] = Page(answer=_answer_health)
        options = RouteOptions(camel_case=config.camel_case, always_print=config.always_print)
        gateway = Gateway(
            services,
            upstream,
            GatewayConfig(
                max_body_bytes=config.max_body_bytes,
                cors_origins=config.cors_origins,
                method_override=config.method_override,
                routes={"": options},
            ),
            pages=pages,
            web_sockets=vorta_sockets(upstream) if is_vorta else {},
        )
        server = HttpServer(gateway, host=config.host, port=config.port)
        await server.start()
        stack.push_async_callback(server.stop)
        # What is here by now stays, and collections are for cycles, of which requests leave few.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        logger.info(
            "serving %d routes of %s on http://%s:%d", len(gateway.routes), config.upstream, config.host, server.port
        )
        await stop.wait()


async def _answer_health(request: HttpRequest, reply: HttpReply) -> None:
    await reply.send(200, b"ok\n", "text/plain; charset=utf-8")
