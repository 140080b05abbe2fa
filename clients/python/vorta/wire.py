"""Errors on the wire: `vorta.errors` to and from google.rpc.Status.

A server puts `status_details(error)` into the trailing metadata under `DETAILS_KEY`, beside the status code and
`status_message(error)`; a client gets the same error back from `error_from_rpc`. This module knows grpc and
protobuf, and nothing of any service.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from vorta.errors import DOMAIN, Unavailable, VortaError, error_class

__all__ = [
    "CONNECTION_RETRY_DELAY_S",
    "DETAILS_KEY",
    "error_from_reason",
    "error_from_rpc",
    "error_from_status",
    "is_connection_failure",
    "status_details",
    "status_message",
]

DETAILS_KEY = "grpc-status-details-bin"
"""The trailing metadata key of a serialized google.rpc.Status."""

CONNECTION_RETRY_DELAY_S = 0.1
"""What a broken or refused connection suggests waiting before the next attempt, in seconds."""

_CONNECTION_FAILED = "CONNECTION_FAILED"
_UNSPECIFIED = "UNSPECIFIED"

# gRPC drops a response whose trailers pass 8 KiB, base64 and percent encoding included. These keep the largest
# error below that: 800 bytes of message (up to 2,400 encoded) and about 3.6 kB of details (4.8 kB encoded).
_MAX_MESSAGE_BYTES = 800
_MAX_DESCRIPTION_BYTES = 200
_MAX_KEY_BYTES = 64
_MAX_VALUE_BYTES = 256
_MAX_METADATA_ENTRIES = 8

_MAX_DELAY_S = 86_400.0

# The status texts with which gRPC reports a connection that was cut under a running call, when it does not say
# UNAVAILABLE.
_CUT_CONNECTION = {
    grpc.StatusCode.UNKNOWN: ("Stream removed",),
    grpc.StatusCode.INTERNAL: ("RST_STREAM", "GOAWAY"),
    grpc.StatusCode.CANCELLED: ("RST_STREAM",),
}

# The code that errors.proto states for each reason; a test holds the two together.
_CODES = {
    reason: code
    for code, reasons in {
        grpc.StatusCode.INVALID_ARGUMENT: (
            "INVALID_FIELD",
            "MISSING_FIELD",
            "CONFLICTING_FIELDS",
            "CONTEXT_LENGTH_EXCEEDED",
            "MALFORMED_MESSAGE",
            "DIMENSION_MISMATCH",
            "FILTER_FIELD_UNKNOWN",
            "FIELD_TYPE_MISMATCH",
            "INPUT_TOO_LONG",
        ),
        grpc.StatusCode.NOT_FOUND: (
            "MODEL_NOT_FOUND",
            "REQUEST_NOT_FOUND",
            "COLLECTION_NOT_FOUND",
            "ALIAS_NOT_FOUND",
            "POINT_NOT_FOUND",
            "SNAPSHOT_NOT_FOUND",
        ),
        grpc.StatusCode.ALREADY_EXISTS: ("REQUEST_ALREADY_EXISTS", "ALREADY_LOADED", "COLLECTION_ALREADY_EXISTS"),
        grpc.StatusCode.FAILED_PRECONDITION: (
            "MODEL_KIND_MISMATCH",
            "CHECKPOINT_INVALID",
            "SETTINGS_INVALID",
            "SNAPSHOT_INVALID",
            "STORE_CORRUPT",
            "STORE_LOCKED",
            "DEVICE_MISSING",
            "TARGET_MISMATCH",
        ),
        grpc.StatusCode.RESOURCE_EXHAUSTED: ("MESSAGE_TOO_LARGE", "QUEUE_FULL", "SLOW_READER", "DISK_FULL"),
        grpc.StatusCode.UNAVAILABLE: ("MODEL_NOT_READY", "DRAINING", "WORKER_DIED", _CONNECTION_FAILED),
        grpc.StatusCode.DEADLINE_EXCEEDED: ("DEADLINE_EXCEEDED",),
        grpc.StatusCode.CANCELLED: ("CANCELLED",),
        grpc.StatusCode.OUT_OF_RANGE: ("RESUME_GONE",),
        grpc.StatusCode.UNAUTHENTICATED: ("UNAUTHENTICATED",),
        grpc.StatusCode.PERMISSION_DENIED: ("PERMISSION_DENIED",),
        grpc.StatusCode.UNIMPLEMENTED: ("UNIMPLEMENTED", "VECTORS_DISABLED"),
        grpc.StatusCode.INTERNAL: ("INTERNAL",),
    }.items()
    for reason in reasons
}


def status_message(error: VortaError) -> str:
    """The error's message as a status carries it: valid UTF-8 of at most 800 bytes."""
    return _clip(error.message, _MAX_MESSAGE_BYTES)


def status_details(error: VortaError) -> bytes:
    """The error as a serialized google.rpc.Status, for the trailing metadata under `DETAILS_KEY`.

    Holds one ErrorInfo, a BadRequest when the error names a field, and a RetryInfo when it has a retry delay.
    Over-long texts are clipped so that the trailers stay within gRPC's 8 KiB; never raises.
    """
    status = status_pb2.Status(code=error.code, message=status_message(error))
    metadata = list(error.metadata.items())
    # The field goes first, so that it is never among the entries left out.
    metadata.sort(key=lambda entry: entry[0] != "field")
    info = error_details_pb2.ErrorInfo(
        reason=_clip(error.reason, _MAX_KEY_BYTES),
        domain=DOMAIN,
        metadata={
            _clip(key, _MAX_KEY_BYTES): _clip(value, _MAX_VALUE_BYTES)
            for key, value in metadata[:_MAX_METADATA_ENTRIES]
        },
    )
    status.details.add().Pack(info)
    if error.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_clip(error.field, _MAX_VALUE_BYTES),
            description=_clip(error.message, _MAX_DESCRIPTION_BYTES),
        )
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_delay_s is not None:
        delay = error_details_pb2.RetryInfo(retry_delay=_duration(error.retry_delay_s))
        status.details.add().Pack(delay)
    return bytes(status.SerializeToString())


def error_from_status(code: int, message: str, details: bytes | None) -> VortaError:
    """The error that a status stands for.

    Args:
        code: A google.rpc.Code, other than OK.
        message: The status message; when it is empty, the message inside `details` is taken.
        details: The serialized google.rpc.Status, or None. Malformed details count as none.

    A status without an ErrorInfo of ours gets the class of its code, and as reason the class's own where that
    follows from the code, else "UNSPECIFIED".
    """
    cls = error_class(code)
    status = _parse(details)
    reason, metadata = "", {}
    field: str | None = None
    retry_delay_s: float | None = None
    for detail in status.details:
        try:
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                info = error_details_pb2.ErrorInfo.FromString(detail.value)
                if info.domain == DOMAIN and not reason:
                    reason, metadata = info.reason, dict(info.metadata)
            elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
                request = error_details_pb2.BadRequest.FromString(detail.value)
                if request.field_violations and field is None:
                    field = request.field_violations[0].field
            elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                delay = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
                retry_delay_s = max(0.0, (delay.seconds * 10**9 + delay.nanos) / 1e9)  # one rounding
        except DecodeError:
            continue
    if field and "field" not in metadata:
        metadata["field"] = field
    return cls(
        message or status.message or f"the call failed with status {code}",
        reason=reason or _reason_of(cls),
        metadata=metadata,
        retry_delay_s=retry_delay_s,
    )


def error_from_rpc(exc: grpc.RpcError) -> VortaError:
    """The error that a failed call stands for; `exc` comes from a sync or an asyncio call.

    A connection that was refused, lost or cut is an `Unavailable` with reason CONNECTION_FAILED and a retry delay.
    """
    call: Any = exc  # grpc.RpcError declares no method; each raised one is also a grpc.Call
    code = call.code() if hasattr(call, "code") else None
    if not isinstance(code, grpc.StatusCode):
        return error_class(2)(str(exc) or "the call failed without a status", reason=_UNSPECIFIED)
    message = call.details() or ""
    details = _find_details(call.trailing_metadata())
    error = error_from_status(code.value[0], message, details)
    if details is None and _is_connection_status(code, message):
        return Unavailable(
            f"no connection to the server: {message or code.name}",
            reason=_CONNECTION_FAILED,
            retry_delay_s=CONNECTION_RETRY_DELAY_S,
        )
    if details is None and code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in message:
        error.reason = "MESSAGE_TOO_LARGE"  # gRPC itself refused it, on either side
    return error


def error_from_reason(reason: str, message: str, *, retryable: bool) -> VortaError:
    """The error that the RequestError of a stream's end stands for; its class follows from the reason."""
    code = _CODES.get(reason, grpc.StatusCode.INTERNAL)
    return error_class(code.value[0])(
        message or "the request failed",
        reason=reason or _UNSPECIFIED,
        retry_delay_s=CONNECTION_RETRY_DELAY_S if retryable else None,
    )


def is_connection_failure(error: VortaError) -> bool:
    """Whether the connection failed, rather than the server answering with an error."""
    return error.reason == _CONNECTION_FAILED


def _is_connection_status(code: grpc.StatusCode, message: str) -> bool:
    if code is grpc.StatusCode.UNAVAILABLE:
        return True
    return any(text in message for text in _CUT_CONNECTION.get(code, ()))


def _find_details(metadata: Iterable[tuple[str, str | bytes]] | None) -> bytes | None:
    for key, value in metadata or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            return value
    return None


def _parse(details: bytes | None) -> status_pb2.Status:
    if details:
        try:
            return status_pb2.Status.FromString(details)
        except DecodeError:
            pass  # a proxy's or a foreign server's details: the code and message still stand
    return status_pb2.Status()


def _reason_of(cls: type[VortaError]) -> str:
    """The class's reason where the code alone implies it; MODEL_NOT_FOUND, say, would be a guess."""
    name = next((code.name for code in grpc.StatusCode if code.value[0] == cls.code), "")
    return name if name == cls.default_reason else _UNSPECIFIED


def _duration(seconds: float) -> duration_pb2.Duration:
    bounded = min(max(seconds, 0.0), _MAX_DELAY_S) if math.isfinite(seconds) else _MAX_DELAY_S
    nanos = round(bounded * 1e9)
    return duration_pb2.Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)


def _clip(text: str, max_bytes: int) -> str:
    data = text.encode("utf-8", "replace")
    if len(data) <= max_bytes:
        return data.decode()
    return data[: max_bytes - 3].decode("utf-8", "ignore") + "…"
