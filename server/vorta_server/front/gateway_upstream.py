"""The gateway's calls, answered in this process: through the same chain as gRPC's, without a second hop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from contextlib import aclosing

from google.protobuf.message import Message

from vorta.errors import Cancelled, DeadlineExceeded, Unimplemented, VortaError
from vorta_gateway.status import StatusError
from vorta_gateway.upstream import UpstreamCall
from vorta_server.front.call import STUCK_WRITE_S, CallContext, open_call
from vorta_server.front.chain import InterceptorChain
from vorta_server.front.deadline import DEADLINE_SLACK_S
from vorta_server.front.method import Method

__all__ = ["FrontUpstream"]


class FrontUpstream:
    """An `Upstream` of bound methods.

    Args:
        services: Methods by service name.
        chain: What every call passes.
    """

    def __init__(self, services: Mapping[str, Sequence[Method]], chain: InterceptorChain) -> None:
        self._methods = {method.path: method for methods in services.values() for method in methods}
        self._chain = chain

    async def unary(self, call: UpstreamCall, request: Message | bytes) -> Message | bytes:
        """See `Upstream`."""
        method, context = self._open(call)
        task = asyncio.current_task()
        assert task is not None
        context.on_interrupt = task.cancel
        try:
            if context.deadline_s is None:
                return await self._chain.unary(method, request, context)
            async with asyncio.timeout(context.deadline_s - time.monotonic() + 2 * DEADLINE_SLACK_S):
                return await self._chain.unary(method, request, context)
        except VortaError as error:
            raise _status(error, context) from None
        except TimeoutError:
            raise _status(DeadlineExceeded("the call's deadline passed"), context) from None
        except asyncio.CancelledError:
            if context.interruption is None:
                raise
            task.uncancel()
            raise _status(context.interruption, context) from None

    async def stream(
        self, call: UpstreamCall, requests: Message | bytes | AsyncIterable[Message | bytes]
    ) -> AsyncGenerator[Message | bytes, None]:
        """See `Upstream`."""
        method, context = self._open(call)
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        timers: list[asyncio.TimerHandle] = []
        is_read = False

        def interrupt() -> None:
            # While the reader is being written to, what was written comes first; one that never reads is cut off.
            if is_read:
                timers.append(loop.call_later(STUCK_WRITE_S, task.cancel))
            else:
                task.cancel()

        context.on_interrupt = interrupt
        failed: list[Exception] = []
        asked = requests if isinstance(requests, Message | bytes) else _noting(requests, failed)
        if context.deadline_s is not None:
            late = DeadlineExceeded("the call's deadline passed")
            due_s = context.deadline_s - time.monotonic() + 2 * DEADLINE_SLACK_S
            timers.append(loop.call_later(max(0.0, due_s), context.interrupt, late))
        try:
            async with aclosing(self._chain.stream(method, asked, context)) as responses:  # type: ignore[type-var]
                async for response in responses:
                    is_read = True
                    yield response
                    is_read = False
                    if context.interruption is not None:
                        raise context.interruption
        except VortaError as error:
            if failed:
                raise failed[0] from None
            raise _status(error, context) from None
        except asyncio.CancelledError:
            if context.interruption is None or is_read:
                raise
            task.uncancel()
            raise _status(context.interruption, context) from None
        finally:
            context.on_interrupt = None
            for timer in timers:
                timer.cancel()

    async def close(self) -> None:
        """Nothing is held."""

    def _open(self, call: UpstreamCall) -> tuple[Method, CallContext]:
        method = self._methods.get(call.method.path)
        if method is None:
            raise StatusError.of(Unimplemented(f"there is no method {call.method.path}"))
        context = open_call(method.path, call.metadata, call.deadline_s)
        call.header = (("x-request-id", context.request_id),)
        return method, context


async def _noting(
    requests: AsyncIterable[Message | bytes], failed: list[Exception]
) -> AsyncGenerator[Message | bytes, None]:
    """Keeps what the requests' iteration raises; the chain sees that the call cannot go on."""
    try:
        async for request in requests:
            yield request
    except Exception as error:
        failed.append(error)
        raise Cancelled("the requests broke off") from None


def _status(error: VortaError, context: CallContext) -> StatusError:
    return StatusError.of(error, trailers=(("x-request-id", context.request_id),))
