"""/metrics, /healthz and /readyz, which Prometheus and Kubernetes ask."""

from __future__ import annotations

from collections.abc import Callable

from vorta_gateway.app import Page
from vorta_gateway.http import HttpReply, HttpRequest
from vorta_server.front.health import HealthService
from vorta_server.observability.metrics import CONTENT_TYPE, Metrics

__all__ = ["probe_pages"]

_TEXT = "text/plain; charset=utf-8"


def probe_pages(metrics: Metrics, health: HealthService) -> dict[str, Page]:
    """The pages by path. They are not in the access log, and answer while the server drains."""
    return {
        "/metrics": _page(lambda: (200, CONTENT_TYPE, metrics.render())),
        "/healthz": _page(lambda: (200, _TEXT, b"ok\n")),
        "/readyz": _page(lambda: (200, _TEXT, b"ready\n") if health.is_ready else (503, _TEXT, b"not ready\n")),
    }


def _page(make: Callable[[], tuple[int, str, bytes]]) -> Page:
    async def answer(request: HttpRequest, reply: HttpReply) -> None:
        status, content_type, body = make()
        await reply.send(status, body, content_type)

    return Page(answer=answer)
