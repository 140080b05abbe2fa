"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from vorta_gateway.http import HttpReply
from vorta_gateway.json.codec import dumps
from vorta_gateway.rest.errors import error_headers
from vorta_gateway.status import StatusError

__all__ = ["error_json", "send_openai_error"]

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {
    "MODEL_NOT_FOUND": "model_not_found",
    "CONTEXT_LENGTH_EXCEEDED": "context_length_exceeded",
    "UNAUTHENTICATED": "invalid_api_key",
}


def error_json(error: StatusError) -> dict[str, Any]:
    """The body of an error."""
    reason, param = _reason_and_field(error)
    kind = _TYPES.get(error.http, "server_error" if error.http >= 500 else "invalid_request_error")
    code = _CODES.get(reason, reason.lower() or None)
    return {"error": {"message": error.message, "type": kind, "param": param, "code": code}}


async def send_openai_error(reply: HttpReply, error: StatusError) -> None:
    """Answers with an error, which must be the reply's first word."""
    await reply.send(error.http, dumps(error_json(error)), headers=error_headers(error))


def _reason_and_field(error: StatusError) -> tuple[str, str | None]:
    try:
        status = status_pb2.Status.FromString(error.details)
        for detail in status.details:
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                info = error_details_pb2.ErrorInfo.FromString(detail.value)
                return info.reason, info.metadata.get("field")
    except DecodeError:
        pass
    return "", None
