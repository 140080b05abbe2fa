"""One line per call: who, what, how it ended and how long it took. Never what was said."""

from __future__ import annotations

import logging
import time

from vorta.errors import VortaError
from vorta_server.front.call import CallContext
from vorta_server.front.method import Method
from vorta_server.observability.code import code_name

__all__ = ["AccessLogInterceptor"]

logger = logging.getLogger(__name__)


class AccessLogInterceptor:
    """Writes the access log."""

    async def enter(self, method: Method, call: CallContext) -> None:
        """Nothing to do before the end."""

    def leave(self, method: Method, call: CallContext, error: VortaError | None) -> None:
        """Writes the line."""
        level = logging.DEBUG if method.is_probe else logging.INFO
        if not logger.isEnabledFor(level):
            return
        total_s = time.monotonic() - call.start_s
        report = call.report
        if report.model:
            logger.log(
                level,
                "%s %s id=%s model=%s finish=%s prompt=%d tokens=%d queue=%.1fms ttft=%.1fms total=%.1fms",
                method.path,
                code_name(error),
                call.request_id,
                report.model,
                report.finish_reason or "-",
                report.prompt_tokens,
                report.completion_tokens,
                report.queue_s * 1e3,
                report.ttft_s * 1e3,
                total_s * 1e3,
            )
        else:
            logger.log(level, "%s %s id=%s total=%.1fms", method.path, code_name(error), call.request_id, total_s * 1e3)
