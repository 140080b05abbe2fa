"""How a client connects: address, credentials, channel options, metadata, deadlines."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import grpc
import grpc.aio

from vorta.errors import InvalidArgument
from vorta.retry import RetryPolicy

Option = tuple[str, int | str]
Tls = bool | bytes | grpc.ChannelCredentials

_MAX_RECEIVE_BYTES = 64 * 1024 * 1024

_OPTIONS: tuple[Option, ...] = (
    ("grpc.max_receive_message_length", _MAX_RECEIVE_BYTES),
    ("grpc.max_send_message_length", _MAX_RECEIVE_BYTES),
    # A dead peer is noticed within 40 s of a call's silence.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Reconnect at the pace of our own retries; gRPC's first second of refusing calls would use them up.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # A proxy named by the environment would be asked even for localhost.
    ("grpc.enable_http_proxy", 0),
    # Clients of different keys and tests must not share a connection that another one closes.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelConfig:
    """Everything that a client needs to connect. Raises InvalidArgument naming the argument at fault."""

    target: str
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float | None = None
    tls: Tls = False
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    options: Sequence[Option] = ()

    def __post_init__(self) -> None:
        if not self.target:
            raise InvalidArgument("target must not be empty", field="target")
        if self.api_key is not None and not (
            self.api_key and self.api_key.isascii() and self.api_key.isprintable() and " " not in self.api_key
        ):
            raise InvalidArgument("api_key must be visible ASCII characters", field="api_key")
        check_timeout(self.timeout_s)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call sends along."""
        return () if self.api_key is None else (("authorization", f"Bearer {self.api_key}"),)

    def sync_channel(self) -> grpc.Channel:
        """A new channel for threads."""
        options = (*_OPTIONS, *self.options)
        credentials = self._credentials()
        if credentials is None:
            return grpc.insecure_channel(self.target, options)
        return grpc.secure_channel(self.target, credentials, options)

    def async_channel(self) -> grpc.aio.Channel:
        """A new channel for the running event loop."""
        options = (*_OPTIONS, *self.options)
        credentials = self._credentials()
        if credentials is None:
            return grpc.aio.insecure_channel(self.target, options)
        return grpc.aio.secure_channel(self.target, credentials, options)

    def _credentials(self) -> grpc.ChannelCredentials | None:
        if isinstance(self.tls, bytes):
            return grpc.ssl_channel_credentials(root_certificates=self.tls)
        if isinstance(self.tls, grpc.ChannelCredentials):
            return self.tls
        return grpc.ssl_channel_credentials() if self.tls else None


class Deadline:
    """A point in time, or none."""

    def __init__(self, timeout_s: float | None) -> None:
        check_timeout(timeout_s)
        self._at_s = None if timeout_s is None else time.monotonic() + timeout_s

    @property
    def remaining_s(self) -> float:
        """Seconds left, at least 0; infinite without a deadline."""
        return math.inf if self._at_s is None else max(0.0, self._at_s - time.monotonic())

    @property
    def timeout_s(self) -> float | None:
        """Seconds left, as grpc takes them."""
        return None if self._at_s is None else self.remaining_s


def check_timeout(timeout_s: float | None) -> None:
    """Refuses a timeout that is not above 0."""
    if timeout_s is not None and not timeout_s > 0:
        raise InvalidArgument(f"timeout_s must be above 0, not {timeout_s}", field="timeout_s")


def parse_base_url(base_url: str) -> tuple[str, bool]:
    """The gRPC target and whether it wants TLS, of "http://host:port", "https://host" or "host:port".

    Raises InvalidArgument naming `base_url`.
    """
    text = base_url if "://" in base_url else f"http://{base_url}"
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError as exc:
        raise InvalidArgument(f"base_url {base_url!r}: {exc}", field="base_url") from None
    if url.scheme not in ("http", "https") or not host or url.path not in ("", "/") or url.query or url.fragment:
        raise InvalidArgument(
            f"base_url must look like http://host:port, https://host or host:port, not {base_url!r}",
            field="base_url",
        )
    is_secure = url.scheme == "https"
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{port or (443 if is_secure else 50051)}", is_secure
