"""An upstream that makes the calls of one request over a connection of its own, and all else over a gRPC channel.

The channel is the one that knows: whenever the connection is not there, cannot take a call, or certainly has not sent
it, the call goes over the channel, with its rules for what is not connected. So the connection never has to wait.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing
from urllib.request import getproxies, proxy_bypass
from weakref import WeakSet

import grpc
from google.protobuf.message import Message

from vorta_gateway.channel import ChannelConfig, ChannelUpstream, NotSentError, remaining_s, serialized
from vorta_gateway.exchange import Exchange, encoded_headers
from vorta_gateway.http2 import MAX_HEADER_BYTES, Connection
from vorta_gateway.upstream import UpstreamCall

__all__ = ["FastUpstream"]

logger = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 20.0
_INITIAL_BACKOFF_S = 0.2
_NAME = re.compile(r"[0-9a-z_.-]+")

# What a request says by itself, or may not say in HTTP/2.
_RESERVED = frozenset({"te", "content-type", "content-length", "host", "connection", "keep-alive", "upgrade"})


class FastUpstream:
    """An `Upstream` behind a channel without TLS, which it closes.

    Args:
        address: "host:port", the channel's.
        channel: See `make_channel`.
        config: The channel's.
    """

    def __init__(self, address: str, channel: grpc.aio.Channel, config: ChannelConfig) -> None:
        self._channel = ChannelUpstream(channel)
        self._address = address
        self._config = config
        self._prefixes: dict[str, bytes] = {}
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._leaving: WeakSet[Connection] = WeakSet()
        # gRPC's channel goes through a proxy where the environment names one; nothing goes past it.
        is_proxied = bool(getproxies().keys() & {"grpc", "https", "http"})
        self._is_off = is_proxied and not proxy_bypass(address)
        self._backoff_s = _INITIAL_BACKOFF_S
        self._retry_s = -math.inf  # the loop's time before which no connection is tried

    async def connect(self) -> bool:
        """Waits until there is a connection, or an attempt to make one has failed. Returns whether there is one."""
        if self._usable() is None and self._connecting is not None:
            await asyncio.wait([self._connecting])
        return self._usable() is not None

    async def unary(self, call: UpstreamCall, request: Message | bytes) -> bytes:
        """See `Upstream`. Raises NotSentError where that is certain."""
        exchange = self._begin(call, request, is_unary=True)
        if exchange is not None:
            try:
                reply = await exchange.unary()
                call.trailers = exchange.trailers
                return reply
            except NotSentError:
                pass
            finally:
                call.header = exchange.header
        return await self._channel.unary(call, request)

    async def stream(
        self, call: UpstreamCall, requests: Message | bytes | AsyncIterable[Message | bytes]
    ) -> AsyncGenerator[bytes, None]:
        """See `Upstream`. Raises NotSentError where that is certain."""
        exchange = self._begin(call, requests, is_unary=False) if isinstance(requests, Message | bytes) else None
        if exchange is not None:
            try:
                reply = await exchange.next()
                call.header = exchange.header
                while reply is not None:
                    yield reply
                    reply = await exchange.next()
                call.trailers = exchange.trailers
                return
            except NotSentError:
                if exchange.has_header:
                    raise
            finally:
                exchange.cancel()
        async with aclosing(self._channel.stream(call, requests)) as replies:
            async for reply in replies:
                yield reply

    async def close(self) -> None:
        """Closes connection and channel. Calls that are open end with UNAVAILABLE."""
        self._is_off = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        for connection in (self._connection, *self._leaving):
            if connection is not None:
                connection.abort("the channel was closed")
        await self._channel.close()

    def _begin(self, call: UpstreamCall, request: Message | bytes, *, is_unary: bool) -> Exchange | None:
        """The call, begun on the connection; None where it is one for the channel."""
        connection = self._usable()
        if connection is None or call.method.is_client_streaming:
            return None
        timeout_s = remaining_s(call)
        message = serialized(request)
        headers = self._headers(call, timeout_s)
        if headers is None or len(message) > self._config.max_message_bytes:
            return None
        return connection.call(headers, message, is_unary=is_unary, timeout_s=timeout_s)

    def _headers(self, call: UpstreamCall, timeout_s: float | None) -> bytes | None:
        path = call.method.path
        headers = self._prefixes.get(path)
        if headers is None:
            fixed = {
                ":method": "POST",
                ":scheme": "http",
                ":path": path,
                ":authority": self._address,
                "te": "trailers",
                "content-type": "application/grpc",
                "grpc-accept-encoding": "identity",
                "user-agent": "vorta-gateway",
            }
            headers = encoded_headers(fixed)
            assert headers is not None
            self._prefixes[path] = headers
        metadata = {name: value for name, value in call.metadata.items() if name != "user-agent"}
        if metadata:
            if any(name in _RESERVED or not _NAME.fullmatch(name) for name in metadata):
                return None
            more = encoded_headers(metadata)
            if more is None:
                return None
            headers += more
        if timeout_s is not None:
            headers += encoded_headers({"grpc-timeout": _timeout(timeout_s)}) or b""
        return headers if len(headers) <= MAX_HEADER_BYTES else None

    def _usable(self) -> Connection | None:
        connection = self._connection
        if connection is not None and not connection.is_spent():
            return connection if connection.has_room() else None
        if connection is not None:
            connection.leave()
            self._leaving.add(connection)
            self._connection = None
        if self._connecting is None and not self._is_off:
            loop = asyncio.get_running_loop()
            if loop.time() >= self._retry_s:
                self._connecting = loop.create_task(self._connect())
        return None

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        host, _, port = self._address.rpartition(":")
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                self._connection = await Connection.connect(host.strip("[]"), int(port), self._config)
            self._backoff_s = _INITIAL_BACKOFF_S
        except (OSError, ValueError) as error:
            logger.debug("no connection to %s: %s", self._address, error)
            self._backoff_s = min(self._backoff_s * 2, self._config.max_reconnect_backoff_s)
        finally:
            self._connecting = None
            self._retry_s = loop.time() + self._backoff_s


def _timeout(seconds: float) -> str:
    """As `grpc-timeout` has it, with its eight digits at most; rounded up, so that this side gives up first."""
    if seconds < 90:
        return f"{math.ceil(seconds * 1e6)}u"
    return f"{math.ceil(seconds * 1e3)}m" if seconds < 90_000 else f"{min(math.ceil(seconds), 99_999_999)}S"
