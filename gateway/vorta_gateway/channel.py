"""An upstream over one gRPC channel. Bytes go both ways as they are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message

from vorta.errors import DeadlineExceeded
from vorta.wire import DETAILS_KEY, error_from_rpc, is_connection_failure
from vorta_gateway.status import StatusError
from vorta_gateway.upstream import UpstreamCall

__all__ = [
    "ChannelConfig",
    "ChannelUpstream",
    "NotSentError",
    "make_channel",
    "remaining_s",
    "serialized",
    "shown_metadata",
]

Metadata = tuple[tuple[str, str | bytes], ...]

_UNAVAILABLE = 14

# What the reply's own protocol says, rather than the one who answered.
_NOT_METADATA = frozenset({"content-type", "user-agent", "date", "server"})

# How gRPC begins the status of a call that it had no connection for.
_NO_CONNECTION = ("failed to connect to all addresses", "DNS resolution failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelConfig:
    """How one channel behaves.

    Attributes:
        max_message_bytes: Of a message, either way.
        keepalive_s: Seconds of silence after which the peer is pinged, also while no call is open.
        keepalive_timeout_s: Seconds that it may take to answer before the connection counts as lost.
        max_reconnect_backoff_s: Most seconds between two attempts to connect.
    """

    max_message_bytes: int = 64 * 1024 * 1024
    keepalive_s: float = 30.0
    keepalive_timeout_s: float = 10.0
    max_reconnect_backoff_s: float = 5.0


class NotSentError(StatusError):
    """The call failed (UNAVAILABLE) before anything of it was sent: the peer has certainly not seen it."""


def make_channel(target: str, config: ChannelConfig | None = None) -> grpc.aio.Channel:
    """A channel without TLS, which notices silent peers and leaves retries to whoever knows what may be repeated."""
    config = config or ChannelConfig()
    max_backoff_ms = int(config.max_reconnect_backoff_s * 1000)
    return grpc.aio.insecure_channel(
        target,
        options=[
            ("grpc.max_receive_message_length", config.max_message_bytes),
            ("grpc.max_send_message_length", config.max_message_bytes),
            ("grpc.keepalive_time_ms", int(config.keepalive_s * 1000)),
            ("grpc.keepalive_timeout_ms", int(config.keepalive_timeout_s * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.initial_reconnect_backoff_ms", min(200, max_backoff_ms)),
            ("grpc.max_reconnect_backoff_ms", max_backoff_ms),
            ("grpc.enable_retries", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ],
    )


class ChannelUpstream:
    """An `Upstream` behind a channel, which it closes.

    Args:
        channel: See `make_channel`.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._unary: dict[str, Any] = {}
        self._stream: dict[str, Any] = {}

    async def unary(self, call: UpstreamCall, request: Message | bytes) -> bytes:
        """See `Upstream`. Raises NotSentError where that is certain."""
        path = call.method.path
        multicallable = self._unary.get(path)
        if multicallable is None:
            multicallable = self._unary[path] = self._channel.unary_unary(path)
        rpc = multicallable(serialized(request), **_options(call))
        try:
            response: bytes = await rpc
        except grpc.aio.AioRpcError as error:
            call.header = shown_metadata(error.initial_metadata())
            raise self._failure(error) from None
        except asyncio.CancelledError:
            _raise_if_closed()
            raise
        call.header = shown_metadata(await rpc.initial_metadata())
        call.trailers = shown_metadata(await rpc.trailing_metadata())
        return response

    async def stream(
        self, call: UpstreamCall, requests: Message | bytes | AsyncIterable[Message | bytes]
    ) -> AsyncGenerator[bytes, None]:
        """See `Upstream`. Raises NotSentError where that is certain."""
        path = call.method.path
        is_many = not isinstance(requests, Message | bytes)
        multicallable = self._stream.get(path)
        if multicallable is None:
            make: Any = self._channel.stream_stream if call.method.is_client_streaming else self._channel.unary_stream
            multicallable = self._stream[path] = make(path)
        asked = _Requests(requests) if is_many else None
        rpc = multicallable(aiter(asked) if asked is not None else serialized(requests), **_options(call))
        try:
            call.header = shown_metadata(await rpc.initial_metadata())
            async for response in rpc:
                yield response
            call.trailers = shown_metadata(await rpc.trailing_metadata())
            status = await rpc.code()
            if status is not grpc.StatusCode.OK:  # the requests broke off, and gRPC cancelled the call for it
                if asked is not None and asked.error is not None:
                    raise asked.error from None
                raise StatusError(status.value[0], await rpc.details() or "")
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from None
        except asyncio.CancelledError:
            if asked is not None and asked.error is not None:
                raise asked.error from None
            _raise_if_closed()
            raise
        finally:
            rpc.cancel()

    async def close(self) -> None:
        """Closes the channel. Calls that are open end with UNAVAILABLE."""
        await self._channel.close()

    def _failure(self, error: grpc.aio.AioRpcError) -> StatusError:
        trailers = error.trailing_metadata() or ()
        details = next((value for key, value in trailers if key == DETAILS_KEY and isinstance(value, bytes)), b"")
        message = error.details() or ""
        if not is_connection_failure(error_from_rpc(error)):
            return StatusError(error.code().value[0], message, details=details, trailers=shown_metadata(trailers))
        # A peer that answers with the same words (it may be a proxy) is one that the channel is connected to.
        if message.startswith(_NO_CONNECTION) and self._channel.get_state() is not grpc.ChannelConnectivity.READY:
            return NotSentError(_UNAVAILABLE, message)
        # A cut connection may show as UNKNOWN, INTERNAL or even CANCELLED, though nobody cancelled.
        return StatusError(_UNAVAILABLE, message, trailers=shown_metadata(trailers))


class _Requests:
    """The requests as bytes; keeps what went wrong with them, of which gRPC tells only that the call was cancelled."""

    def __init__(self, requests: Any) -> None:
        self._requests: AsyncIterable[Message | bytes] = requests
        self.error: Exception | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for request in self._requests:
                yield serialized(request)
        except Exception as error:
            self.error = error
            raise


def serialized(request: Any) -> bytes:
    """A request's bytes, whether it is a message or they already."""
    return request if isinstance(request, bytes) else request.SerializeToString()


def remaining_s(call: UpstreamCall) -> float | None:
    """The seconds that a call has left, None for no end of them. Raises StatusError (DEADLINE_EXCEEDED) for none."""
    if call.deadline_s is None:
        return None
    timeout_s = call.deadline_s - time.monotonic()
    if timeout_s <= 0:
        raise StatusError.of(DeadlineExceeded("the call's deadline had passed when it arrived"))
    return timeout_s


def _options(call: UpstreamCall) -> dict[str, Any]:
    metadata = tuple((key, value) for key, value in call.metadata.items() if key != "user-agent")
    return {"timeout": remaining_s(call), "metadata": metadata}


def shown_metadata(entries: Iterable[tuple[str, str | bytes]] | None) -> Metadata:
    """Reply metadata without what belongs to the protocols."""
    return tuple(
        (key, value)
        for key, value in entries or ()
        if key not in _NOT_METADATA and not key.startswith("grpc-") and key != DETAILS_KEY
    )


def _raise_if_closed() -> None:
    """Raises StatusError if a call was cancelled by its channel's end, not by the task that waits for it."""
    task = asyncio.current_task()
    if task is None or task.cancelling() == 0:
        raise StatusError(_UNAVAILABLE, "the channel was closed") from None
