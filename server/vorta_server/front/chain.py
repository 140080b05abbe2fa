"""The interceptor chain that every call passes, on every wire.

Interceptors act once per call, never per message, so a streamed token costs nothing here. The chain is also where
exceptions become errors of the family: whatever a handler raises, the wire sees a `VortaError`, or the
`CancelledError` of a caller that went away.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Protocol

from google.protobuf.message import Message

from vorta.errors import Cancelled, DeadlineExceeded, Internal, ResourceExhausted, VortaError
from vorta_server.front.call import CallContext
from vorta_server.front.method import Method

__all__ = ["Interceptor", "InterceptorChain"]

logger = logging.getLogger(__name__)


class Interceptor(Protocol):
    """Sees each call's begin and end."""

    async def enter(self, method: Method, call: CallContext) -> None:
        """Before the handler. Raises a VortaError to refuse the call; later interceptors then do not see it."""
        ...

    def leave(self, method: Method, call: CallContext, error: VortaError | None) -> None:
        """After the handler, in reverse order, for each interceptor whose `enter` returned. Must not raise."""
        ...


class InterceptorChain:
    """Runs methods between interceptors, the first one outermost.

    Args:
        interceptors: Outermost first.
        max_request_bytes: Larger requests are refused (MESSAGE_TOO_LARGE).
    """

    def __init__(self, interceptors: Sequence[Interceptor], *, max_request_bytes: int = 16 * 1024 * 1024) -> None:
        self._interceptors = tuple(interceptors)
        self._max_request_bytes = max_request_bytes

    async def unary(self, method: Method, request: bytes | Message, call: CallContext) -> Message:
        """Answers a unary call. Raises VortaError, or CancelledError when the caller went away."""
        entered: list[Interceptor] = []
        error: VortaError | None = None
        try:
            for interceptor in self._interceptors:
                await interceptor.enter(method, call)
                entered.append(interceptor)
            message = self._parse(method, request)
            response: Message = await method.function(message, call)
            return response
        except BaseException as exc:
            error = _as_error(exc, call)
            if isinstance(exc, Exception) and exc is not error:
                raise error from exc
            raise
        finally:
            for interceptor in reversed(entered):
                interceptor.leave(method, call, error)

    async def stream(
        self, method: Method, request: bytes | Message | AsyncIterable[bytes | Message], call: CallContext
    ) -> AsyncIterator[Message]:
        """Answers a streaming call. Raises like `unary`. Close it when leaving early (`contextlib.aclosing`).

        Args:
            request: The request, or all of them where the client streams.
        """
        entered: list[Interceptor] = []
        error: VortaError | None = None
        try:
            for interceptor in self._interceptors:
                await interceptor.enter(method, call)
                entered.append(interceptor)
            if isinstance(request, bytes | Message):
                asked: Message | AsyncIterator[Message] = self._parse(method, request)
            else:
                asked = self._parse_all(method, request)
            async with aclosing(method.function(asked, call)) as responses:
                async for response in responses:
                    yield response
        except BaseException as exc:
            error = _as_error(exc, call)
            if isinstance(exc, Exception) and exc is not error:
                raise error from exc
            raise
        finally:
            for interceptor in reversed(entered):
                interceptor.leave(method, call, error)

    async def _parse_all(self, method: Method, requests: AsyncIterable[bytes | Message]) -> AsyncIterator[Message]:
        async for request in requests:
            yield self._parse(method, request)

    def _parse(self, method: Method, request: bytes | Message) -> Message:
        size_bytes = len(request) if isinstance(request, bytes) else request.ByteSize()
        if size_bytes > self._max_request_bytes:
            raise ResourceExhausted(
                f"the request has {size_bytes} bytes, more than the {self._max_request_bytes} that are taken",
                reason="MESSAGE_TOO_LARGE",
                metadata={"size_bytes": size_bytes, "max_bytes": self._max_request_bytes},
            )
        return method.parse(request) if isinstance(request, bytes) else request


def _as_error(exc: BaseException, call: CallContext) -> VortaError:
    """The error that the wire shows for an exception; unknown ones tell the request id and nothing else."""
    if isinstance(exc, VortaError):
        return exc
    if isinstance(exc, asyncio.CancelledError | GeneratorExit):
        if call.interruption is not None:
            return call.interruption
        if call.deadline_s is not None and time.monotonic() >= call.deadline_s:
            return DeadlineExceeded("the call's deadline passed")
        return Cancelled("the caller went away")
    logger.error("request %s: %s failed", call.request_id, call.method, exc_info=exc)
    return Internal(
        f"internal error; the server's log tells more under request id {call.request_id}",
        metadata={"request_id": call.request_id},
    )
