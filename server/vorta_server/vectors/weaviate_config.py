"""Where a Weaviate is and how much of it may be used at once. Needs no weaviate package."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from vorta.errors import FailedPrecondition

__all__ = ["WeaviateConfig", "parse_weaviate_url"]

_DEFAULT_HTTP_PORT = 8080
_DEFAULT_GRPC_PORT = 50051
_CONSISTENCY = ("ONE", "QUORUM", "ALL")
_STORAGES = ("", "filesystem", "s3", "gcs", "azure")


@dataclass(frozen=True, kw_only=True)
class WeaviateConfig:
    """A Weaviate, and the bounds of its use.

    Attributes:
        host: Of Weaviate's REST interface.
        http_port: Of the same.
        grpc_host: Of Weaviate's gRPC interface; empty for `host`.
        grpc_port: Of the same.
        is_secure: Whether both speak TLS.
        api_key: Sent as a bearer token; empty for none.
        connect_timeout_s: Longest time to connect.
        query_timeout_s: Longest time of a read where the operation has no earlier deadline.
        write_timeout_s: Longest time of a write where the operation has no earlier deadline.
        num_threads: Calls to Weaviate at once.
        max_queue: Operations that wait beyond those; one more is refused.
        definition_ttl_s: How long a collection's definition is believed. Changes by this process are seen at once,
            those by others after this time at most.
        consistency: ONE, QUORUM or ALL: replicas that must agree on a read or a write.
        backup_storage: Weaviate's storage for snapshots: filesystem, s3, gcs or azure, which its own settings must
            have; empty for no snapshots.
        batch_bytes: Most bytes of vectors and payloads sent in one message.
    """

    host: str
    http_port: int = _DEFAULT_HTTP_PORT
    grpc_host: str = ""
    grpc_port: int = _DEFAULT_GRPC_PORT
    is_secure: bool = False
    api_key: str = ""
    connect_timeout_s: float = 5.0
    query_timeout_s: float = 30.0
    write_timeout_s: float = 90.0
    num_threads: int = 8
    max_queue: int = 1024
    definition_ttl_s: float = 1.0
    consistency: str = "QUORUM"
    backup_storage: str = ""
    batch_bytes: int = 8 << 20

    def __post_init__(self) -> None:
        if not self.host:
            raise _bad("host", "must not be empty")
        for name in ("http_port", "grpc_port"):
            if not 1 <= getattr(self, name) <= 65_535:
                raise _bad(name, "must be 1 to 65535")
        if self.grpc_host in ("", self.host) and self.grpc_port == self.http_port:
            raise _bad("grpc_port", "must not be http_port on the same host")
        for name in ("connect_timeout_s", "query_timeout_s", "write_timeout_s"):
            if not getattr(self, name) > 0:
                raise _bad(name, "must be above 0")
        if self.num_threads < 1 or self.max_queue < 0 or self.batch_bytes < 1 or self.definition_ttl_s < 0:
            raise _bad("num_threads", "num_threads and batch_bytes must be at least 1, the others not negative")
        if self.consistency not in _CONSISTENCY:
            raise _bad("consistency", f"must be one of {', '.join(_CONSISTENCY)}")
        if self.backup_storage not in _STORAGES:
            raise _bad("backups", f"must be one of {', '.join(_STORAGES[1:])}")


def parse_weaviate_url(url: str, *, api_key: str = "") -> WeaviateConfig:
    """The configuration that a URL stands for.

        weaviate://host[:http_port][/grpc_port][?option=value&…]
        weaviates://…                                               the same over TLS

    The ports default to 8080 (REST) and 50051 (gRPC). Options: `grpc_host`, `threads`, `queue`, `consistency`,
    `backups`, `connect_timeout_s`, `query_timeout_s`, `write_timeout_s`, `definition_ttl_s`. Keys are no part of URLs,
    because URLs end up in logs.

    Raises:
        FailedPrecondition: SETTINGS_INVALID, naming the part that is wrong.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _bad("url", str(error)) from None
    if parts.scheme not in ("weaviate", "weaviates"):
        raise _bad("url", "must begin with weaviate:// or weaviates://")
    if parts.username is not None or parts.password is not None:
        raise _bad("url", "must not hold a user or a password; give the API key by itself")
    if not parts.hostname:
        raise _bad("url", "names no host")
    path = parts.path.strip("/")
    values: dict[str, str | int | float] = {}
    if path:
        values["grpc_port"] = _number("grpc_port", path, int)
    for option, text in parse_qsl(parts.query, keep_blank_values=True):
        if option not in _OPTIONS:
            raise _bad("url", f"unknown option {option!r}; there are {', '.join(sorted(_OPTIONS))}")
        name, kind = _OPTIONS[option]
        values[name] = text if kind is str else _number(option, text, kind)
    return WeaviateConfig(
        host=unquote(parts.hostname),
        http_port=_DEFAULT_HTTP_PORT if port is None else port,
        is_secure=parts.scheme == "weaviates",
        api_key=api_key,
        **values,  # type: ignore[arg-type]  # checked by _OPTIONS
    )


_OPTIONS: dict[str, tuple[str, type[str] | type[int] | type[float]]] = {
    "grpc_host": ("grpc_host", str),
    "consistency": ("consistency", str),
    "backups": ("backup_storage", str),
    "threads": ("num_threads", int),
    "queue": ("max_queue", int),
    "connect_timeout_s": ("connect_timeout_s", float),
    "query_timeout_s": ("query_timeout_s", float),
    "write_timeout_s": ("write_timeout_s", float),
    "definition_ttl_s": ("definition_ttl_s", float),
}


def _number(name: str, text: str, kind: type[int] | type[float] | type[str]) -> int | float | str:
    try:
        return kind(text)
    except ValueError:
        raise _bad("url", f"{name} is not a number: {text!r}") from None


def _bad(field: str, message: str) -> FailedPrecondition:
    return FailedPrecondition(f"Weaviate: {field} {message}.", reason="SETTINGS_INVALID", field=field)
