"""Bound methods as gRPC handlers: the only place where a call's bytes, context and status are gRPC's.

Handlers take the request's bytes, so that malformed ones are refused with an error of the family. The request id
goes back in the trailing metadata, where it costs no message of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.message import Message

from vorta.errors import VortaError
from vorta_server.front.call import STUCK_WRITE_S, CallContext, open_call
from vorta_server.front.chain import InterceptorChain
from vorta_server.front.errors import abort
from vorta_server.front.method import Method

__all__ = ["generic_handler"]

# A terminal event must leave before gRPC itself cuts the call at its deadline: a twentieth of the time left, at
# most this.
_DEADLINE_MARGIN_S = 0.05
_DEADLINE_MARGIN_SHARE = 0.05

_NO_DEADLINE_S = 365 * 24 * 3600.0

Context = grpc.aio.ServicerContext[bytes, bytes]


def generic_handler(service: str, methods: Iterable[Method], chain: InterceptorChain) -> grpc.GenericRpcHandler:
    """The gRPC handler of a service's methods."""
    handlers = {method.path.rsplit("/", 1)[1]: _handler(method, chain) for method in methods}
    return grpc.method_handlers_generic_handler(service, handlers)


def _handler(method: Method, chain: InterceptorChain) -> grpc.RpcMethodHandler[Any, Any]:
    serializer = method.response_type.SerializeToString

    async def unary(data: bytes, context: Context) -> Message:
        call = _open_call(method, context)
        try:
            response = await chain.unary(method, data, call)
        except VortaError as error:
            await abort(context, error, call.request_id)
        context.set_trailing_metadata((("x-request-id", call.request_id),))
        return response

    async def stream(data: bytes | AsyncIterator[bytes], context: Context) -> None:
        call = _open_call(method, context)
        task = asyncio.current_task()
        assert task is not None
        is_writing = False
        stuck: asyncio.TimerHandle | None = None

        def interrupt() -> None:
            # A status that is sent beside a waiting write can be lost, so the write gets time to end: the status goes
            # out behind it as soon as the reader reads. One that never reads again is cut off.
            nonlocal stuck
            if is_writing:
                stuck = asyncio.get_running_loop().call_later(STUCK_WRITE_S, task.cancel)
            else:
                task.cancel()

        call.on_interrupt = interrupt
        try:
            async with aclosing(chain.stream(method, data, call)) as responses:  # type: ignore[type-var]
                async for response in responses:
                    is_writing = True
                    await context.write(response)  # type: ignore[arg-type]
                    is_writing = False
                    if call.interruption is not None:
                        break
            call.on_interrupt = None
            if call.interruption is not None:
                await abort(context, call.interruption, call.request_id)
            context.set_trailing_metadata((("x-request-id", call.request_id),))
        except VortaError as error:
            call.on_interrupt = None
            await abort(context, error, call.request_id)
        except grpc.aio.InternalError:
            # The call was over in gRPC's core before its cancellation came here.
            raise asyncio.CancelledError from None
        except asyncio.CancelledError:
            if call.interruption is None or is_writing:
                raise
            task.uncancel()
            await abort(context, call.interruption, call.request_id)
        finally:
            if stuck is not None:
                stuck.cancel()

    if method.is_client_streaming:
        return grpc.stream_stream_rpc_method_handler(stream, None, serializer)
    if method.is_streaming:
        return grpc.unary_stream_rpc_method_handler(stream, None, serializer)
    return grpc.unary_unary_rpc_method_handler(unary, None, serializer)


def _open_call(method: Method, context: Context) -> CallContext:
    remaining_s = context.time_remaining()
    deadline_s = None
    if remaining_s is not None and remaining_s < _NO_DEADLINE_S:
        margin_s = min(_DEADLINE_MARGIN_S, max(0.0, remaining_s) * _DEADLINE_MARGIN_SHARE)
        deadline_s = time.monotonic() + remaining_s - margin_s
    return open_call(method.path, dict(context.invocation_metadata() or ()), deadline_s)
