"""Names of status codes."""

from __future__ import annotations

from vorta.errors import VortaError

__all__ = ["code_name"]

_NAMES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)


def code_name(error: VortaError | None) -> str:
    """The google.rpc.Code's name of an outcome; OK for none."""
    return "OK" if error is None else _NAMES[error.code]
