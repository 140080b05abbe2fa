"""The gateway as an ASGI application: one place where a request's wire is told, and every error is answered."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from google.protobuf.descriptor import ServiceDescriptor

from vorta.errors import Internal, NotFound, VortaError
from vorta_gateway.cors import Cors
from vorta_gateway.grpc_web import GrpcWeb, is_grpc_web
from vorta_gateway.http import Disconnected, HttpReply, HttpRequest, Receive, Scope, Send, not_allowed
from vorta_gateway.rest.errors import send_error
from vorta_gateway.rest.router import MethodNotAllowed, NoRoute
from vorta_gateway.rest.routes import RouteOptions, make_routes
from vorta_gateway.rest.transcoder import Transcoder
from vorta_gateway.status import StatusError
from vorta_gateway.upstream import RpcMethod, Upstream

__all__ = ["Gateway", "GatewayConfig", "Page", "WebSocketPage"]

logger = logging.getLogger(__name__)

Answer = Callable[[HttpRequest, HttpReply], Awaitable[None]]
WebSocketPage = Callable[[Scope, Receive, Send], Awaitable[None]]
SendError = Callable[[HttpReply, StatusError], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What answers a fixed path, or all paths below one that ends in a slash ("/" itself is only that path).

    Attributes:
        methods: The HTTP methods that it takes. HEAD is answered as GET.
        answer: Answers a request; it may raise StatusError and VortaError while nothing has been sent.
        send_error: Answers with an error, in the page's own shape.
    """

    answer: Answer
    methods: tuple[str, ...] = ("GET",)
    send_error: SendError = send_error


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """Limits and choices.

    Attributes:
        max_body_bytes: Of a request's body, decompressed; of a message of one that streams.
        cors_origins: See `Cors`.
        method_override: Whether `X-HTTP-Method-Override` of a POST is obeyed.
        routes: Options of routes, by RPC path or service name; "" for all others.
    """

    max_body_bytes: int = 16 * 1024 * 1024
    cors_origins: tuple[str, ...] = ("http://localhost:*", "http://127.0.0.1:*")
    method_override: bool = False
    routes: Mapping[str, RouteOptions] = field(default_factory=dict)


class Gateway:
    """The application.

    Args:
        services: What the upstream answers; their options have the REST rules.
        upstream: Answers the RPCs.
        config: Limits and choices.
        pages: By path: what is not made from descriptors.
        web_sockets: By path.

    Attributes:
        routes: The REST routes.

    Raises:
        TemplateError: A rule is wrong, or two are the same route.
    """

    def __init__(
        self,
        services: Sequence[ServiceDescriptor],
        upstream: Upstream,
        config: GatewayConfig | None = None,
        *,
        pages: Mapping[str, Page] | None = None,
        web_sockets: Mapping[str, WebSocketPage] | None = None,
    ) -> None:
        self.config = config or GatewayConfig()
        self._router, self.routes = make_routes(services, self.config.routes)
        self._transcoder = Transcoder(upstream, max_body_bytes=self.config.max_body_bytes)
        self._grpc_web = GrpcWeb(rpc_methods(services), upstream, max_message_bytes=self.config.max_body_bytes)
        self._cors = Cors(self.config.cors_origins)
        self._pages = dict(pages or {})
        self._folders = sorted(
            (path for path in self._pages if path.endswith("/") and path != "/"), key=len, reverse=True
        )
        self._web_sockets = dict(web_sockets or {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one connection's scope, as ASGI 3 has it."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            page = self._web_sockets.get(scope["path"])
            if page is None:
                await receive()
                await send({"type": "websocket.close", "code": 4404, "reason": "there is nothing at this path"})
            else:
                await page(scope, receive, send)
        elif scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = HttpRequest(scope, receive)
        reply = HttpReply(send, is_head=request.method == "HEAD", headers=self._cors.headers(request))
        report: SendError = send_error
        try:
            if request.method == "OPTIONS" and self._cors.is_preflight(request):
                await self._cors.answer_preflight(request, reply)
                return
            if is_grpc_web(request.content_type):
                await self._grpc_web.answer(request, reply)
                return
            page = self._page(request.path)
            if page is not None:
                report = page.send_error
                if _as_get(request.method) not in page.methods:
                    raise not_allowed(sorted(page.methods))
                await page.answer(request, reply)
                return
            await self._rest(request, reply)
        except Disconnected:
            pass
        except StatusError as error:
            await self._fail(reply, report, error, request)
        except VortaError as error:
            await self._fail(reply, report, StatusError.of(error), request)
        except Exception:
            logger.exception("%s %s failed", request.method, request.path[:200])
            internal = StatusError.of(Internal("internal error; the gateway's log tells more"))
            await self._fail(reply, report, internal, request)

    async def _rest(self, request: HttpRequest, reply: HttpReply) -> None:
        method = _as_get(request.method)
        if self.config.method_override and method == "POST":
            method = request.headers.get("x-http-method-override", method).upper()
        try:
            match = self._router.match(method, request.path)
        except NoRoute:
            raise StatusError.of(NotFound("there is nothing at this path", reason="UNSPECIFIED")) from None
        except MethodNotAllowed as error:
            raise not_allowed(error.allowed) from None
        except ValueError as error:
            raise StatusError(3, f"the path cannot be read: {error}") from None
        await self._transcoder.answer(match, request, reply)

    def _page(self, path: str) -> Page | None:
        page = self._pages.get(path)
        if page is None:
            for folder in self._folders:
                if path.startswith(folder):
                    return self._pages[folder]
        return page

    async def _fail(self, reply: HttpReply, report: SendError, error: StatusError, request: HttpRequest) -> None:
        if reply.is_started:
            logger.warning("%s %s broke off: %s", request.method, request.path[:200], error.message)
            raise ConnectionAbortedError(error.message)  # the server cuts the connection: the client sees no good end
        await report(reply, error)


def rpc_methods(services: Iterable[ServiceDescriptor]) -> dict[str, RpcMethod]:
    """The services' RPCs by their path."""
    methods = (RpcMethod.of(rpc) for service in services for rpc in service.methods)
    return {method.path: method for method in methods}


def _as_get(method: str) -> str:
    return "GET" if method == "HEAD" else method
