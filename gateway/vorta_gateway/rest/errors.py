"""Statuses as JSON."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from vorta_gateway.http import HttpReply, reply_headers
from vorta_gateway.json.codec import Codec, dumps
from vorta_gateway.json.errors import JsonError
from vorta_gateway.status import StatusError

__all__ = ["error_headers", "send_error", "status_json"]

_CODEC = Codec()


def status_json(error: StatusError) -> dict[str, Any]:
    """A google.rpc.Status as JSON: code, message and details, all three always.

    A detail of a type that is not known here is kept as {"@type", "value": base64}.
    """
    details: list[Any] = []
    for detail in _status(error).details:
        try:
            details.append(_CODEC.value(detail))
        except JsonError:
            continue
    return {"code": error.code, "message": error.message, "details": details}


async def send_error(reply: HttpReply, error: StatusError) -> None:
    """Answers with an error, which must be the reply's first word."""
    await reply.send(error.http, dumps(status_json(error)), headers=error_headers(error))


def error_headers(error: StatusError) -> list[tuple[str, str]]:
    """What an error says in headers, whatever the shape of its body."""
    headers = [*error.headers.items(), *reply_headers(error.trailers)]
    if error.http == 401:
        headers.append(("www-authenticate", "Bearer"))
    delay_s = _retry_delay_s(error)
    if delay_s is not None:
        headers.append(("retry-after", str(max(1, round(delay_s)))))
    return headers


def _retry_delay_s(error: StatusError) -> float | None:
    """What the status says of trying again."""
    for detail in _status(error).details:
        if detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            info = error_details_pb2.RetryInfo()
            try:
                detail.Unpack(info)
            except DecodeError:
                continue
            return float(info.retry_delay.ToNanoseconds() / 1e9)
    return None


def _status(error: StatusError) -> status_pb2.Status:
    try:
        return status_pb2.Status.FromString(error.details)
    except DecodeError:
        return status_pb2.Status()
