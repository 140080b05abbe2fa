"""Cross-origin requests: which pages may call, and what their browsers are told."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from vorta_gateway.http import HttpReply, HttpRequest

__all__ = ["Cors"]

_ALLOWED_HEADERS = ", ".join(
    (
        "Content-Type",
        "Authorization",
        "Grpc-Timeout",
        "X-Grpc-Web",
        "X-User-Agent",
        "X-Api-Key",
        "X-Request-Id",
        "X-Server-Timeout",
        "Traceparent",
        "Tracestate",
        "Last-Event-Id",
    )
)
_EXPOSED_HEADERS = "Grpc-Status, Grpc-Message, Grpc-Status-Details-Bin, X-Request-Id, Retry-After"
_MAX_AGE_S = 7200


class Cors:
    """Answers preflights and marks replies.

    Args:
        origins: Origins that may call; `*` stands for any text within one, and alone for every origin.
    """

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins = tuple(origins)

    def headers(self, request: HttpRequest) -> list[tuple[bytes, bytes]]:
        """What every reply to this request says. Empty where its origin is none or may not call."""
        origin = request.headers.get("origin")
        if origin is None or not self._allows(origin):
            return []
        return [
            (b"access-control-allow-origin", origin.encode("latin-1", "replace")),
            (b"access-control-expose-headers", _EXPOSED_HEADERS.encode()),
            (b"vary", b"Origin"),
        ]

    def is_preflight(self, request: HttpRequest) -> bool:
        """Whether a browser asks if it may ask."""
        return request.method == "OPTIONS" and "access-control-request-method" in request.headers

    async def answer_preflight(self, request: HttpRequest, reply: HttpReply) -> None:
        """Says what is allowed. Nothing is said to origins that may not call, which is a no."""
        headers: list[tuple[str, str]] = []
        if self.headers(request):
            asked = request.headers.get("access-control-request-headers", "")
            headers = [
                ("access-control-allow-methods", "GET, POST, PUT, PATCH, DELETE, HEAD"),
                ("access-control-allow-headers", _with_metadata(asked)),
                ("access-control-max-age", str(_MAX_AGE_S)),
            ]
        await reply.send(204, b"", "text/plain", headers)

    def _allows(self, origin: str) -> bool:
        return any(pattern == "*" or fnmatch.fnmatchcase(origin, pattern) for pattern in self._origins)


def _with_metadata(asked: str) -> str:
    """The headers that are allowed always, and those of the asked ones that carry metadata of a call."""
    more = [
        name.strip()
        for name in asked.split(",")[:64]
        if name.strip().lower().startswith(("grpc-metadata-", "x-")) and name.strip().isascii()
    ]
    return ", ".join((_ALLOWED_HEADERS, *more))
