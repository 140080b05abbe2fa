"""Every error of the family survives the wire, whatever text it carries."""

from __future__ import annotations

import math

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from vorta import errors, wire
from vorta.v1 import errors_pb2

CLASSES = [*errors.VortaError.__subclasses__()]
CLASSES = [cls for cls in CLASSES if cls.__module__ == "vorta.errors"]
REASONS = [name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.keys()]  # noqa: SIM118

texts = st.text(st.characters(codec="utf-8"), max_size=60)
metadata = st.dictionaries(st.text("abcdefghijklmnop_", min_size=1, max_size=30), texts, max_size=8)


class FakeCall(grpc.RpcError):
    """What a failed call raises, as far as wire.py looks."""

    def __init__(self, code: object, details: str | None, metadata: object) -> None:
        self._parts = (code, details, metadata)

    def code(self) -> object:
        return self._parts[0]

    def details(self) -> str | None:
        return self._parts[1]

    def trailing_metadata(self) -> object:
        return self._parts[2]


@given(
    cls=st.sampled_from(CLASSES),
    message=texts.filter(bool),
    reason=st.sampled_from(REASONS[1:]),
    metadata=metadata,
    delay_s=st.none() | st.integers(0, 3_600_000),
)
def test_round_trip(
    cls: type[errors.VortaError], message: str, reason: str, metadata: dict[str, str], delay_s: int | None
) -> None:
    sent = cls(
        message,
        reason=reason,
        metadata=metadata,
        retry_delay_s=None if delay_s is None else delay_s / 1000,
    )
    got = wire.error_from_status(cls.code, wire.status_message(sent), wire.status_details(sent))
    assert type(got) is cls
    assert (got.message, got.reason, got.metadata) == (sent.message, sent.reason, sent.metadata)
    assert got.retry_delay_s == sent.retry_delay_s
    assert got.field == sent.field


@given(
    message=st.text(max_size=4000),
    metadata=st.dictionaries(st.text(max_size=300), st.text(max_size=2000), max_size=40),
    delay_s=st.none() | st.floats(),
)
def test_any_error_fits_into_the_trailers(message: str, metadata: dict[str, str], delay_s: float | None) -> None:
    error = errors.Internal(message, metadata=metadata, field="prompt", retry_delay_s=delay_s)
    details = wire.status_details(error)
    percent_encoded = 3 * len(wire.status_message(error).encode())
    assert math.ceil(len(details) * 4 / 3) + percent_encoded < 8000
    got = wire.error_from_status(13, "", details)
    assert isinstance(got, errors.Internal)
    assert got.field == "prompt"
    assert (got.retry_delay_s is None) == (delay_s is None)


@given(st.integers(1, 16), texts, st.binary(max_size=200))
def test_any_bytes_are_an_error(code: int, message: str, details: bytes) -> None:
    got = wire.error_from_status(code, message, details)
    assert type(got) is errors.error_class(code)
    assert got.message


def test_details_hold_the_standard_messages() -> None:
    error = errors.InvalidArgument("top_p must be above 0", field="top_p", retry_delay_s=1.5)
    status = status_pb2.Status.FromString(wire.status_details(error))
    info, request, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    assert [any.Unpack(part) for any, part in zip(status.details, (info, request, retry), strict=True)]
    assert (status.code, status.message) == (3, "top_p must be above 0")
    assert (info.domain, info.reason, dict(info.metadata)) == (
        "vorta.dev",
        "INVALID_FIELD",
        {"field": "top_p"},
    )
    assert request.field_violations[0].field == "top_p"
    assert (retry.retry_delay.seconds, retry.retry_delay.nanos) == (1, 500_000_000)


def test_no_field_and_no_delay_leave_one_detail() -> None:
    status = status_pb2.Status.FromString(wire.status_details(errors.NotFound("no model x")))
    assert len(status.details) == 1


def test_foreign_error_info_is_not_ours() -> None:
    status = status_pb2.Status(code=5)
    status.details.add().Pack(error_details_pb2.ErrorInfo(domain="example.org", reason="GONE"))
    got = wire.error_from_status(5, "gone", status.SerializeToString())
    assert (type(got), got.reason) == (errors.NotFound, "UNSPECIFIED")


@pytest.mark.parametrize(
    ("code", "reason"), [(4, "DEADLINE_EXCEEDED"), (16, "UNAUTHENTICATED"), (8, "UNSPECIFIED"), (2, "UNSPECIFIED")]
)
def test_reason_without_details(code: int, reason: str) -> None:
    assert wire.error_from_status(code, "text", None).reason == reason


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses"),
        (grpc.StatusCode.UNAVAILABLE, None),
        (grpc.StatusCode.UNKNOWN, "Stream removed (Socket closed)"),
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2"),
    ],
)
def test_connection_failure_is_unavailable_and_retryable(code: grpc.StatusCode, message: str | None) -> None:
    got = wire.error_from_rpc(FakeCall(code, message, None))
    assert type(got) is errors.Unavailable
    assert wire.is_connection_failure(got)
    assert got.is_retryable


def test_server_error_is_not_a_connection_failure() -> None:
    sent = errors.Unavailable("model m is loading", metadata={"model": "m"}, retry_delay_s=2.0)
    got = wire.error_from_rpc(
        FakeCall(grpc.StatusCode.UNAVAILABLE, sent.message, ((wire.DETAILS_KEY, wire.status_details(sent)),))
    )
    assert (got.reason, got.metadata, got.retry_delay_s) == ("MODEL_NOT_READY", {"model": "m"}, 2.0)
    assert not wire.is_connection_failure(got)


def test_error_without_a_status() -> None:
    assert type(wire.error_from_rpc(grpc.RpcError("odd"))) is errors.VortaError
