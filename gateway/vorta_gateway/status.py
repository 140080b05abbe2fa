"""The one error of the gateway: a gRPC status, from an upstream or of the gateway's own."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from vorta.errors import VortaError
from vorta.wire import status_details, status_message

__all__ = ["StatusError", "http_status"]

# google/rpc/code.proto; 499 is nginx's "client closed request".
_HTTP = {
    0: 200,
    1: 499,
    2: 500,
    3: 400,
    4: 504,
    5: 404,
    6: 409,
    7: 403,
    8: 429,
    9: 400,
    10: 409,
    11: 400,
    12: 501,
    13: 500,
    14: 503,
    15: 500,
    16: 401,
}


def http_status(code: int) -> int:
    """The HTTP status of a google.rpc.Code; 500 for one that is none."""
    return _HTTP.get(code, HTTPStatus.INTERNAL_SERVER_ERROR)


class StatusError(Exception):
    """A call ended with a status other than OK.

    Attributes:
        code: A google.rpc.Code.
        message: For a person.
        details: A serialized google.rpc.Status, or empty.
        http: The HTTP status, where it does not follow from the code.
        headers: More headers of an HTTP reply, such as Allow.
        trailers: The upstream's trailing metadata, without the status itself.
    """

    def __init__(
        self,
        code: int,
        message: str,
        *,
        details: bytes = b"",
        http: int | None = None,
        headers: Mapping[str, str] | None = None,
        trailers: tuple[tuple[str, str | bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details
        self.http = http if http is not None else http_status(code)
        self.headers = dict(headers or {})
        self.trailers = trailers

    @classmethod
    def of(
        cls,
        error: VortaError,
        *,
        http: int | None = None,
        headers: Mapping[str, str] | None = None,
        trailers: tuple[tuple[str, str | bytes], ...] = (),
    ) -> StatusError:
        """An error of the family as a status."""
        return cls(
            error.code,
            status_message(error),
            details=status_details(error),
            http=http,
            headers=headers,
            trailers=trailers,
        )
