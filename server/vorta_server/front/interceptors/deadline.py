"""Refuses calls whose deadline has passed before any work is done."""

from __future__ import annotations

import time

from vorta.errors import DeadlineExceeded, VortaError
from vorta_server.front.call import CallContext
from vorta_server.front.method import Method

__all__ = ["DeadlineInterceptor"]


class DeadlineInterceptor:
    """Ends calls that arrive too late with DEADLINE_EXCEEDED."""

    async def enter(self, method: Method, call: CallContext) -> None:
        """Raises DeadlineExceeded when nothing of the deadline is left."""
        if call.deadline_s is not None and call.deadline_s <= time.monotonic():
            raise DeadlineExceeded("the call's deadline had passed when it arrived")

    def leave(self, method: Method, call: CallContext, error: VortaError | None) -> None:
        """Nothing to do: handlers keep the deadline themselves."""
