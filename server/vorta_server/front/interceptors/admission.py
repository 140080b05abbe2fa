"""Bounds the calls in flight, and takes none while the server drains."""

from __future__ import annotations

import asyncio

from vorta.errors import ResourceExhausted, Unavailable, VortaError
from vorta_server.front.call import CallContext
from vorta_server.front.method import Method

__all__ = ["AdmissionInterceptor"]


class AdmissionInterceptor:
    """Counts calls in flight. Unlimited methods pass uncounted, so that health answers and requests can be cancelled
    while the server drains or is full.
    """

    def __init__(self, *, max_concurrent_requests: int) -> None:
        self._max_concurrent_requests = max_concurrent_requests
        self._num_in_flight = 0
        self._is_draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_in_flight(self) -> int:
        """Calls that have begun and not ended."""
        return self._num_in_flight

    @property
    def is_draining(self) -> bool:
        """Whether new calls are refused."""
        return self._is_draining

    def drain(self) -> None:
        """Refuses new calls from now on."""
        self._is_draining = True

    async def wait_idle(self) -> None:
        """Returns when no call is in flight."""
        await self._idle.wait()

    async def enter(self, method: Method, call: CallContext) -> None:
        """Raises Unavailable while draining, ResourceExhausted when too many calls are in flight."""
        if method.is_unlimited:
            return
        if self._is_draining:
            raise Unavailable("the server is shutting down", reason="DRAINING", retry_delay_s=1.0)
        if self._num_in_flight >= self._max_concurrent_requests:
            raise ResourceExhausted(
                f"{self._num_in_flight} requests are in flight, the server's limit",
                metadata={"limit": self._max_concurrent_requests},
                retry_delay_s=1.0,
            )
        self._num_in_flight += 1
        self._idle.clear()

    def leave(self, method: Method, call: CallContext, error: VortaError | None) -> None:
        """Counts the call out."""
        if method.is_unlimited:
            return
        self._num_in_flight -= 1
        if self._num_in_flight == 0:
            self._idle.set()
