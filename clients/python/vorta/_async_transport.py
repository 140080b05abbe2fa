"""An asyncio client's connection; its twin for threads is `_transport`, which says more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

from vorta._call import closed_client
from vorta._channel import ChannelConfig, Deadline
from vorta._method import Method
from vorta.retry import Retrier
from vorta.wire import error_from_rpc


class AsyncTransport:
    """One channel and what is known of its health, for one event loop. Connects on its first call."""

    def __init__(self, config: ChannelConfig) -> None:
        self.config = config
        self.retrier = Retrier(config.retry)
        self._channel: grpc.aio.Channel | None = None
        self._is_closed = False

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel, opened where need be. Raises Cancelled after `close`."""
        if self._is_closed:
            raise closed_client()
        if self._channel is None:
            self._channel = self.config.async_channel()
        return self._channel

    async def call(self, method: Method, request: Any, timeout_s: float | None) -> Any:
        """One request, one response; an idempotent method's call is retried while the server is unavailable."""
        deadline = self.deadline(timeout_s)
        invoke = self.channel.unary_unary(method.path, method.serialize, method.deserialize)
        num_failures = 0
        while True:
            try:
                response = await invoke(request, timeout=deadline.timeout_s, metadata=self.config.metadata)
            except grpc.aio.UsageError:
                raise closed_client() from None
            except grpc.RpcError as exc:
                error = error_from_rpc(exc)
                num_failures += 1
                wait_s = (
                    self.retrier.wait_s(error, num_failures, deadline.remaining_s) if method.is_idempotent else None
                )
                if wait_s is None:
                    raise error from exc
                await asyncio.sleep(wait_s)
            else:
                self.retrier.count_success()
                return response

    async def stream(self, method: Method, request: Any, timeout_s: float | None) -> AsyncGenerator[Any, None]:
        """One request, its responses as they come. Closing the generator ends the call. Never retried."""
        deadline = self.deadline(timeout_s)
        invoke = self.channel.unary_stream(method.path, method.serialize, method.deserialize)
        try:
            rpc = invoke(request, timeout=deadline.timeout_s, metadata=self.config.metadata)
        except grpc.aio.UsageError:
            raise closed_client() from None
        try:
            messages = aiter(rpc)
            while (message := await _next(messages)) is not None:
                yield message
        finally:
            rpc.cancel()

    async def exchange(
        self,
        method: Method,
        requests: AsyncIterator[tuple[Any, int]],
        count_answered: Callable[[Any], int],
        max_in_flight: int,
        timeout_s: float | None,
    ) -> AsyncGenerator[Any, None]:
        """Sends requests and yields the responses, while at most so much is unanswered; see `Transport.exchange`."""
        deadline = self.deadline(timeout_s)
        # Fed through a queue: were requests written here, a server that waits for its responses to be read before it
        # reads on would wait for this task, and this task for it.
        outbox: asyncio.Queue[Any] = asyncio.Queue()
        rpc: Any = None
        messages: Any = None
        in_flight = 0
        try:
            async for request, weight in requests:
                outbox.put_nowait(request)
                in_flight += weight
                if rpc is None:
                    invoke = self.channel.stream_stream(method.path, method.serialize, method.deserialize)
                    try:
                        rpc = invoke(_feed(outbox), timeout=deadline.timeout_s, metadata=self.config.metadata)
                    except grpc.aio.UsageError:
                        raise closed_client() from None
                    messages = aiter(rpc)
                while in_flight >= max_in_flight or rpc.done():
                    message = await _next(messages)
                    if message is None:  # the server ended the stream early; what that means is the caller's to say
                        return
                    in_flight -= count_answered(message)
                    yield message
            outbox.put_nowait(None)
            while rpc is not None and (message := await _next(messages)) is not None:
                yield message
        finally:
            if rpc is not None:
                rpc.cancel()

    def deadline(self, timeout_s: float | None) -> Deadline:
        """The deadline of a call that begins now."""
        return Deadline(self.config.timeout_s if timeout_s is None else timeout_s)

    async def close(self) -> None:
        """Closes the channel. Idempotent."""
        self._is_closed = True
        if self._channel is not None:
            await self._channel.close()


async def _feed(outbox: asyncio.Queue[Any]) -> AsyncIterator[Any]:
    while (request := await outbox.get()) is not None:
        yield request


async def _next(messages: AsyncIterator[Any]) -> Any:
    """The next response; None at the end."""
    try:
        return await anext(messages)
    except StopAsyncIteration:
        return None
    except grpc.RpcError as exc:
        raise error_from_rpc(exc) from exc
