"""A caller's stream of requests, for more than one attempt."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

from google.protobuf.message import Message

__all__ = ["ReplayableRequests"]

_END: Any = object()


class ReplayableRequests:
    """Requests that every iteration gives from the first one on, until `forget`. Close it.

    What was taken from the caller is kept up to a bound, as gRPC buffers what it may have to send again. One iteration
    at a time; one that ends early takes nothing from the next.

    Args:
        requests: The caller's, which can be taken once.
        max_bytes: Of requests that are kept; with more they cannot be given again.

    Attributes:
        is_replayable: Whether another iteration gives all of them.
        error: What went wrong with the caller's, None for nothing yet.
    """

    def __init__(self, requests: AsyncIterable[Message | bytes], max_bytes: int) -> None:
        self._requests = aiter(requests)
        self._max_bytes = max_bytes
        self._kept: deque[Message | bytes] = deque()
        self._num_forgotten = 0
        self._pulling: asyncio.Task[None] | None = None
        self.is_replayable = True
        self.error: Exception | None = None

    def forget(self) -> None:
        """There will be no other iteration: what was given is not kept any longer."""
        self.is_replayable = False

    async def close(self) -> None:
        """Takes nothing more from the caller."""
        if self._pulling is not None:
            self._pulling.cancel()
            await asyncio.gather(self._pulling, return_exceptions=True)

    async def __aiter__(self) -> AsyncIterator[Message | bytes]:
        position = 0
        while True:
            while position >= self._num_forgotten + len(self._kept):
                await self._pull()
            request = self._kept[position - self._num_forgotten]
            position += 1
            if request is _END:
                return
            if not self.is_replayable:
                while self._num_forgotten < position:
                    self._kept.popleft()
                    self._num_forgotten += 1
            yield request

    async def _pull(self) -> None:
        if not self.is_replayable and self._pulling is None:
            await self._pull_one()
            return
        # In a task of its own: an attempt that is cancelled while it waits must not end the caller's iterator.
        if self._pulling is None:
            self._pulling = asyncio.create_task(self._pull_one())
        await asyncio.shield(self._pulling)

    async def _pull_one(self) -> None:
        try:
            request = await anext(self._requests, _END)
        except Exception as error:
            self.error = error
            raise
        self._kept.append(request)
        self._pulling = None
        if request is not _END:
            self._max_bytes -= len(request) if isinstance(request, bytes) else request.ByteSize()
            if self._max_bytes < 0:
                self.is_replayable = False
