"""Counts calls by method and code, and measures them."""

from __future__ import annotations

import time

from vorta.errors import VortaError
from vorta_server.front.call import CallContext
from vorta_server.front.method import Method
from vorta_server.observability.code import code_name
from vorta_server.observability.metrics import Metrics

__all__ = ["RpcMetricsInterceptor"]


class RpcMetricsInterceptor:
    """Feeds the RPC metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def enter(self, method: Method, call: CallContext) -> None:
        """Nothing to do before the end."""

    def leave(self, method: Method, call: CallContext, error: VortaError | None) -> None:
        """Counts the call."""
        self._metrics.observe_rpc(method.path, code_name(error), time.monotonic() - call.start_s)
