"""A client's connection: one call, a stream of answers, or an exchange of both; its asyncio twin is `_async_transport`.

Everything raises errors of `vorta.errors`. Shared by the client and the handles that it gives out.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import grpc

from vorta._call import closed_client
from vorta._channel import ChannelConfig, Deadline
from vorta._method import Method
from vorta.retry import Retrier
from vorta.wire import error_from_rpc


class Transport:
    """One channel and what is known of its health. Thread-safe."""

    def __init__(self, config: ChannelConfig) -> None:
        self.config = config
        self.retrier = Retrier(config.retry)
        self.channel = config.sync_channel()

    def call(self, method: Method, request: Any, timeout_s: float | None) -> Any:
        """One request, one response; an idempotent method's call is retried while the server is unavailable."""
        deadline = self.deadline(timeout_s)
        invoke = self.channel.unary_unary(method.path, method.serialize, method.deserialize)
        num_failures = 0
        while True:
            try:
                response = invoke(request, timeout=deadline.timeout_s, metadata=self.config.metadata)
            except ValueError:
                raise closed_client() from None
            except grpc.RpcError as exc:
                error = error_from_rpc(exc)
                num_failures += 1
                wait_s = (
                    self.retrier.wait_s(error, num_failures, deadline.remaining_s) if method.is_idempotent else None
                )
                if wait_s is None:
                    raise error from exc
                time.sleep(wait_s)
            else:
                self.retrier.count_success()
                return response

    def stream(self, method: Method, request: Any, timeout_s: float | None) -> Generator[Any, None, None]:
        """One request, its responses as they come. Closing the generator ends the call. Never retried."""
        deadline = self.deadline(timeout_s)
        invoke = self.channel.unary_stream(method.path, method.serialize, method.deserialize)
        try:
            rpc = invoke(request, timeout=deadline.timeout_s, metadata=self.config.metadata)
        except ValueError:
            raise closed_client() from None
        try:
            while (message := _next(rpc)) is not None:
                yield message
        finally:
            rpc.cancel()

    def exchange(
        self,
        method: Method,
        requests: Iterator[tuple[Any, int]],
        count_answered: Callable[[Any], int],
        max_in_flight: int,
        timeout_s: float | None,
    ) -> Generator[Any, None, None]:
        """Sends requests and yields the responses, while at most so much is unanswered. Never retried.

        Requests are made in the caller's thread, one when the response before it has been read: what making them
        raises reaches the caller, and a source that belongs to a thread (a cursor of a database) may be read.

        Args:
            requests: Each with its weight. The call is opened with the first; without one nothing is sent.
            count_answered: The weight that a response settles.
            max_in_flight: From this unanswered weight on, responses are awaited before the next request is made.
        """
        deadline = self.deadline(timeout_s)
        outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        rpc: Any = None
        in_flight = 0
        try:
            for request, weight in requests:
                outbox.put(request)
                in_flight += weight
                if rpc is None:
                    invoke = self.channel.stream_stream(method.path, method.serialize, method.deserialize)
                    try:
                        rpc = invoke(iter(outbox.get, None), timeout=deadline.timeout_s, metadata=self.config.metadata)
                    except ValueError:
                        raise closed_client() from None
                while in_flight >= max_in_flight or not rpc.is_active():
                    message = _next(rpc)
                    if message is None:  # the server ended the stream early; what that means is the caller's to say
                        return
                    in_flight -= count_answered(message)
                    yield message
            outbox.put(None)
            while rpc is not None and (message := _next(rpc)) is not None:
                yield message
        finally:
            if rpc is not None:
                rpc.cancel()
                outbox.put(None)  # releases gRPC's thread that waits for requests

    def deadline(self, timeout_s: float | None) -> Deadline:
        """The deadline of a call that begins now."""
        return Deadline(self.config.timeout_s if timeout_s is None else timeout_s)

    def close(self) -> None:
        """Closes the channel. Idempotent."""
        self.channel.close()


def _next(rpc: Any) -> Any:
    """The next response; None at the end."""
    try:
        return next(rpc)
    except StopIteration:
        return None
    except grpc.RpcError as exc:
        raise error_from_rpc(exc) from exc
