"""Keeping a call's deadline where what answers it does not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from vorta.errors import DeadlineExceeded
from vorta_server.front.call import CallContext

__all__ = ["DEADLINE_SLACK_S", "unary_deadline"]

# A worker ends a request at its deadline; one that does not answer is not waited for longer than this.
DEADLINE_SLACK_S = 0.25


@asynccontextmanager
async def unary_deadline(call: CallContext) -> AsyncIterator[None]:
    """Raises DeadlineExceeded when its body outlasts the call's deadline: the worker did not keep it."""
    due_s = None
    if call.deadline_s is not None:
        due_s = max(0.0, call.deadline_s - time.monotonic()) + DEADLINE_SLACK_S
    try:
        async with asyncio.timeout(due_s):
            yield
    except TimeoutError:
        raise DeadlineExceeded("the call's deadline passed and the worker did not answer") from None
