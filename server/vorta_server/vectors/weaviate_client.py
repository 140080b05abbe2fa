"""The connection to Weaviate: its client with deadlines, without hidden waiting, and with errors of `vorta.errors`.

Imports the weaviate package: import this module only where that is installed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc
import httpx
from weaviate import WeaviateClient
from weaviate.classes.init import AdditionalConfig, Auth, Timeout
from weaviate.config import GrpcConfig
from weaviate.connect import ConnectionParams
from weaviate.connect.base import ProtocolParams
from weaviate.exceptions import (
    AuthenticationFailedError,
    UnexpectedStatusCodeError,
    WeaviateBaseError,
    WeaviateClosedClientError,
    WeaviateConnectionError,
    WeaviateStartUpError,
    WeaviateTimeoutError,
    WeaviateUnsupportedFeatureError,
)

from vorta.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
    VortaError,
)
from vorta_server.vectors.weaviate_config import WeaviateConfig

__all__ = ["call_deadline", "connect", "current_deadline_s", "remaining_s", "to_vorta_error"]

_RETRY_DELAY_S = 1.0
_local = threading.local()


@contextmanager
def call_deadline(deadline_s: float | None) -> Iterator[None]:
    """Calls of this thread end by `deadline_s` (`time.monotonic()`), besides their own timeouts."""
    before = current_deadline_s()
    _local.deadline_s = deadline_s
    try:
        yield
    finally:
        _local.deadline_s = before


def current_deadline_s() -> float | None:
    """This thread's deadline, `time.monotonic()`; None without one."""
    deadline_s: float | None = getattr(_local, "deadline_s", None)
    return deadline_s


def remaining_s() -> float | None:
    """Seconds left of this thread's deadline; None without one.

    Raises:
        DeadlineExceeded: None are left.
    """
    deadline_s = current_deadline_s()
    if deadline_s is None:
        return None
    left = deadline_s - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded("The deadline passed before Weaviate was asked.")
    return left


def connect(config: WeaviateConfig) -> WeaviateClient:
    """A connected client.

    Raises:
        Unavailable: Weaviate cannot be reached, or is not ready; retryable.
        FailedPrecondition: It is too old, or refuses the API key.
    """
    client = WeaviateClient(
        connection_params=_Params(
            http=ProtocolParams(host=_in_url(config.host), port=config.http_port, secure=config.is_secure),
            grpc=ProtocolParams(
                host=_in_url(config.grpc_host or config.host), port=config.grpc_port, secure=config.is_secure
            ),
        ),
        auth_client_secret=Auth.api_key(config.api_key) if config.api_key else None,
        additional_config=AdditionalConfig(
            timeout=Timeout(init=config.connect_timeout_s, query=config.query_timeout_s, insert=config.write_timeout_s),
            trust_env=False,
        ),
        # The checks would look up the newest client version on the internet.
        skip_init_checks=True,
    )
    try:
        client.connect()
    except Exception as error:
        client.close()
        raise to_vorta_error(error) from error
    return client


def _in_url(host: str) -> str:
    """IPv6 addresses stand in brackets where a port follows."""
    return f"[{host}]" if ":" in host else host


def to_vorta_error(error: Exception) -> VortaError:
    """What an exception of the client stands for."""
    if isinstance(error, VortaError):
        return error
    if isinstance(error, UnexpectedStatusCodeError):
        return _of_http_status(error)
    if isinstance(error, WeaviateTimeoutError | httpx.TimeoutException):
        return DeadlineExceeded(f"Weaviate did not answer in time: {_text(error)}")
    if isinstance(error, WeaviateStartUpError) and "is not supported" in str(error):
        return FailedPrecondition(_text(error), reason="SETTINGS_INVALID", field="weaviate")
    if isinstance(
        error, WeaviateConnectionError | WeaviateStartUpError | WeaviateClosedClientError | httpx.TransportError
    ):
        return _unavailable(_text(error))
    if isinstance(error, AuthenticationFailedError):
        return _refused(_text(error))
    if isinstance(error, WeaviateUnsupportedFeatureError):
        return Unimplemented(f"This Weaviate is too old: {_text(error)}")
    if isinstance(error, WeaviateBaseError):
        return Internal(f"Weaviate: {_text(error)}")
    return Internal(f"The Weaviate client failed: {type(error).__name__}: {error}")


def _of_http_status(error: UnexpectedStatusCodeError) -> VortaError:
    status, text = error.status_code, _text(error)
    if status in (401, 403):
        return _refused(text)
    if status == 404:
        return NotFound(f"Weaviate: {text}", reason="COLLECTION_NOT_FOUND")
    if status == 429:
        return ResourceExhausted(f"Weaviate: {text}", retry_delay_s=_RETRY_DELAY_S)
    if status in (400, 422):
        if "already exists" in text:
            return AlreadyExists(f"Weaviate: {text}", reason="COLLECTION_ALREADY_EXISTS")
        return InvalidArgument(f"Weaviate: {text}")
    if status in (408, 504):
        return DeadlineExceeded(f"Weaviate: {text}")
    return _unavailable(text) if status >= 500 else Internal(f"Weaviate: {text}")


def _of_grpc_status(code: grpc.StatusCode, details: str) -> VortaError:
    text = f"Weaviate: {details}"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(text)
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED):
        return _unavailable(details)
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return _refused(details)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return ResourceExhausted(text, retry_delay_s=_RETRY_DELAY_S)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return Unimplemented(text)
    # Weaviate answers most failures with UNKNOWN; only the text tells them apart.
    if code is grpc.StatusCode.NOT_FOUND or "could not find class" in details:
        return NotFound(text, reason="COLLECTION_NOT_FOUND")
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidArgument(text)
    return Internal(text)


def _unavailable(text: str) -> VortaError:
    return Unavailable(
        f"Weaviate cannot be reached: {text}",
        reason="CONNECTION_FAILED",
        metadata={"backend": "weaviate"},
        retry_delay_s=_RETRY_DELAY_S,
    )


def _refused(text: str) -> VortaError:
    # The key is the server's, not the caller's, who could do nothing about UNAUTHENTICATED.
    return FailedPrecondition(f"Weaviate refuses this server: {text}", reason="SETTINGS_INVALID", field="api_key")


def _text(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class _CallDetails(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: Any


class _Interceptor(grpc.UnaryUnaryClientInterceptor):
    """Gives calls the thread's deadline, and turns failures into our errors before the client sees them.

    The client would sleep up to a minute in retries of its own, deaf to deadlines, and drop the status code.
    """

    def intercept_unary_unary(
        self, continuation: Callable[[Any, Any], Any], client_call_details: Any, request: Any
    ) -> Any:
        timeout, left = client_call_details.timeout, remaining_s()
        if left is not None:
            timeout = left if timeout is None else min(timeout, left)
        call = continuation(
            _CallDetails(
                client_call_details.method,
                timeout,
                client_call_details.metadata,
                client_call_details.credentials,
                client_call_details.wait_for_ready,
                client_call_details.compression,
            ),
            request,
        )
        code = call.code()
        if code is not None and code is not grpc.StatusCode.OK:
            raise _of_grpc_status(code, call.details() or code.name)
        return call


class _Params(ConnectionParams):
    """Connection parameters whose channel is intercepted; the client offers no other place for that."""

    def _grpc_channel(
        self,
        proxies: dict[str, str],
        grpc_msg_size: int | None,
        is_async: bool,
        grpc_config: GrpcConfig | None = None,
    ) -> Any:
        channel: Any = super()._grpc_channel(proxies, grpc_msg_size, is_async, grpc_config)
        return grpc.intercept_channel(channel, _Interceptor())
