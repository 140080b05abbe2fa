"""The one family of errors: raised in the server, carried on the wire, and raised again by the clients.

    VortaError
    ├── InvalidArgument        a field is missing, malformed or out of range
    ├── NotFound               no such model, request, collection, …
    ├── AlreadyExists
    ├── FailedPrecondition     the thing exists but is in the wrong state or of the wrong kind
    ├── OutOfRange             the events asked for are gone
    ├── ResourceExhausted      a queue, a buffer or a budget is full
    ├── Unauthenticated
    ├── PermissionDenied
    ├── Unimplemented
    ├── Cancelled
    ├── DeadlineExceeded
    ├── Unavailable            the server, model or connection is not there now; try again
    └── Internal

On the wire an error is a `google.rpc.Status` with one `ErrorInfo` (domain "vorta.dev", a reason of
`vorta.v1.ErrorReason` without its prefix, metadata), a `BadRequest` naming the field when there is one, and a
`RetryInfo` when the call may be sent again. This module knows neither grpc nor protobuf; `vorta.wire` converts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

__all__ = [
    "DOMAIN",
    "AlreadyExists",
    "Cancelled",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "ResourceExhausted",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "VortaError",
    "error_class",
]

DOMAIN = "vorta.dev"


class VortaError(Exception):
    """Base of the family.

    Attributes:
        message: What happened, for a person.
        reason: A name of `vorta.v1.ErrorReason` without its prefix.
        metadata: The variable parts of the message; `field` names the offending field or setting.
        retry_delay_s: Seconds after which the same call may succeed; None when trying again does not help.
    """

    code: ClassVar[int] = 2
    """The google.rpc.Code (equal to the gRPC status code) of this class."""

    default_reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, object] | None = None,
        field: str | None = None,
        retry_delay_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata: dict[str, str] = {key: str(value) for key, value in (metadata or {}).items()}
        if field is not None:
            self.metadata["field"] = field
        self.retry_delay_s = retry_delay_s

    @property
    def field(self) -> str | None:
        """The field or setting at fault, where there is one."""
        return self.metadata.get("field")

    @property
    def is_retryable(self) -> bool:
        """Whether the same call may succeed when sent again."""
        return self.retry_delay_s is not None

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.reason, self.metadata, self.retry_delay_s))


def _rebuild(
    cls: type[VortaError], message: str, reason: str, metadata: dict[str, str], retry_delay_s: float | None
) -> VortaError:
    return cls(message, reason=reason, metadata=metadata, retry_delay_s=retry_delay_s)


class InvalidArgument(VortaError):
    """A field is missing, malformed or out of range; sending the same again cannot succeed."""

    code = 3
    default_reason = "INVALID_FIELD"


class NotFound(VortaError):
    """What the call names does not exist, or not for this caller."""

    code = 5
    default_reason = "MODEL_NOT_FOUND"


class AlreadyExists(VortaError):
    """What the call would create exists."""

    code = 6
    default_reason = "REQUEST_ALREADY_EXISTS"


class FailedPrecondition(VortaError):
    """The thing exists but is in the wrong state or of the wrong kind."""

    code = 9
    default_reason = "MODEL_KIND_MISMATCH"


class OutOfRange(VortaError):
    """The part asked for is no longer, or not yet, there."""

    code = 11
    default_reason = "RESUME_GONE"


class ResourceExhausted(VortaError):
    """A queue, a buffer or a budget is full."""

    code = 8
    default_reason = "QUEUE_FULL"


class Unauthenticated(VortaError):
    """No API key, or an unknown one."""

    code = 16
    default_reason = "UNAUTHENTICATED"


class PermissionDenied(VortaError):
    """The API key may not do this."""

    code = 7
    default_reason = "PERMISSION_DENIED"


class Unimplemented(VortaError):
    """The server does not know this."""

    code = 12
    default_reason = "UNIMPLEMENTED"


class Cancelled(VortaError):
    """The caller cancelled."""

    code = 1
    default_reason = "CANCELLED"


class DeadlineExceeded(VortaError):
    """The call's deadline passed, or could not be met."""

    code = 4
    default_reason = "DEADLINE_EXCEEDED"


class Unavailable(VortaError):
    """The server, the model or the connection is not there now."""

    code = 14
    default_reason = "MODEL_NOT_READY"


class Internal(VortaError):
    """A failure of the server's own."""

    code = 13
    default_reason = "INTERNAL"


_BY_CODE: dict[int, type[VortaError]] = {cls.code: cls for cls in VortaError.__subclasses__()}


def error_class(code: int) -> type[VortaError]:
    """The class of a google.rpc.Code; `VortaError` itself for a code that has none (UNKNOWN, DATA_LOSS, ABORTED)."""
    return _BY_CODE.get(code, VortaError)
