"""Errors of the family as gRPC statuses, and engine failures as errors of the family."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import grpc

from vorta import errors
from vorta.wire import DETAILS_KEY, status_details, status_message
from vorta_server.engine.request import Finished, FinishReason

__all__ = ["abort", "error_from_finished"]

_STATUS_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


async def abort(context: grpc.aio.ServicerContext[bytes, bytes], error: errors.VortaError, request_id: str) -> NoReturn:
    """Ends a gRPC call with the error's status and its google.rpc details.

    Raises CancelledError when the client has gone meanwhile, and what gRPC ends handlers with otherwise.
    """
    try:
        await context.abort(
            _STATUS_CODES[error.code],
            status_message(error),
            trailing_metadata=(("x-request-id", request_id), (DETAILS_KEY, status_details(error))),
        )
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from None


def error_from_finished(finished: Finished) -> errors.VortaError | None:
    """The status of a request that ended in the caller's sight with nothing else: a unary call, or a stream that
    never started. None when it ended well.
    """
    if finished.failure is not None:
        return finished.failure.error()
    match finished.finish_reason:
        case FinishReason.CANCELLED:
            return errors.Cancelled("the request was cancelled")
        case FinishReason.DEADLINE:
            return errors.DeadlineExceeded("the call's deadline passed before the request was finished")
        case FinishReason.DRAINING:
            return errors.Unavailable(
                "the server shut down before the request was finished", reason="DRAINING", retry_delay_s=1.0
            )
        case FinishReason.ERROR:
            return errors.Internal("the worker failed without saying why")
    return None
