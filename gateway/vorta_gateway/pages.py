"""What the gateway serves beside the routes that descriptors make."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.descriptor import ServiceDescriptor

from vorta_gateway import websocket
from vorta_gateway.app import Page, WebSocketPage
from vorta_gateway.console import console_pages
from vorta_gateway.docs import contract_comments, docs_pages
from vorta_gateway.json.codec import dumps
from vorta_gateway.ollama import Ollama
from vorta_gateway.openai.pages import openai_pages
from vorta_gateway.openapi import make_openapi
from vorta_gateway.rest.routes import make_routes
from vorta_gateway.upstream import Upstream

__all__ = ["describing_pages", "vorta_pages", "vorta_sockets"]


def describing_pages(services: Sequence[ServiceDescriptor], *, title: str, version: str) -> dict[str, Page]:
    """/openapi.json and /docs of services."""
    _, routes = make_routes(services)
    document = make_openapi(routes, title=title, version=version, comments=contract_comments())
    return docs_pages(dumps(document))


def vorta_pages(upstream: Upstream, *, max_body_bytes: int) -> dict[str, Page]:
    """What needs Vorta's own contract: the OpenAI and Ollama APIs, and the console."""
    return {
        **openai_pages(upstream, max_body_bytes=max_body_bytes),
        **Ollama(upstream, max_body_bytes=max_body_bytes).pages(),
        **console_pages(),
    }


def vorta_sockets(upstream: Upstream) -> dict[str, WebSocketPage]:
    """The WebSocket of Vorta's own contract, by its path."""
    return {websocket.PATH: websocket.StreamSocket(upstream)}
