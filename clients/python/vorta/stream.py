"""A stream of events over threads' gRPC; its asyncio twin is `vorta.async_stream`."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import grpc

from vorta._call import CANCEL_TIMEOUT_S, StreamCall, closed_client
from vorta._method import INFERENCE
from vorta._progress import Step
from vorta.errors import VortaError
from vorta.result import Event, Finished, Generation, Started
from vorta.v1 import inference_pb2
from vorta.wire import error_from_rpc

__all__ = ["Stream"]


class Stream:
    """The events of one request, in order, each exactly once, over as many connections as it takes.

    Iterate over it; every event has a `.text`. The last event is `Finished`. After it, iterating raises
    DeadlineExceeded, Unavailable or the request's own error when the request did not run to its end. `close`, or the
    end of a `with` block, cancels a request that is still running; so does dropping the stream, in the background.

    One thread reads; `cancel` may be called from any thread.
    """

    def __init__(self, channel: grpc.Channel, call: StreamCall) -> None:
        self._channel = channel
        self._parts = call
        self._progress = call.progress
        self._closed = False
        self._rpc: Any = None
        self._open(self._progress.first_step)

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self._progress.request_id

    @property
    def started(self) -> Started | None:
        """The first event, once it has arrived."""
        return self._progress.started

    @property
    def finished(self) -> Finished | None:
        """The last event, once it has arrived."""
        return self._progress.finished

    @property
    def next_index(self) -> int:
        """Index of the next event: where `Client.resume` would go on."""
        return self._progress.next_index

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        while not self._closed:
            try:
                message = next(self._rpc)
            except StopIteration:
                self._closed = True
                self._progress.end()
            except grpc.RpcError as exc:
                if not self._closed:  # otherwise another thread closed the stream
                    self._recover(error_from_rpc(exc))
            else:
                event = self._progress.accept(message)
                if event is not None:
                    return event
        raise StopIteration

    def texts(self) -> Iterator[str]:
        """The new text of each event that has some."""
        return (event.text for event in self if event.text)

    def result(self) -> Generation:
        """Reads to the end and returns the whole, earlier events included."""
        for _ in self:
            pass
        return self._progress.generation()

    def cancel(self) -> None:
        """Asks the server to stop the request; the stream then ends with finish reason CANCELLED.

        Idempotent, thread-safe, and without effect on a request that has ended.
        """
        if self.finished is None:
            self._send_cancel()

    def close(self) -> None:
        """Ends the stream; a request that is still running is cancelled. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self.finished is None:
            self._send_cancel()
        if self._rpc is not None:
            self._rpc.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # A loop left by `break`, without `with`: the server need not wait for the end of the resume window.
        if getattr(self, "_closed", True) or self.finished is not None or sys.is_finalizing():
            return
        self._closed = True
        with contextlib.suppress(ValueError):  # the client is closed, and its calls with it
            invoke, request = self._cancel_call()
            future = invoke.future(request, timeout=CANCEL_TIMEOUT_S, metadata=self._parts.config.metadata)
            future.add_done_callback(_ignore)  # holds the call, which grpc would drop with its future

    def _open(self, step: Step) -> None:
        if step.wait_s > 0:
            time.sleep(step.wait_s)
        method, request = self._parts.rpc(step.move)
        invoke = self._channel.unary_stream(method.path, method.serialize, method.deserialize)
        try:
            self._rpc = invoke(request, timeout=self._parts.deadline.timeout_s, metadata=self._parts.config.metadata)
        except ValueError:
            self._closed = True
            raise closed_client() from None

    def _recover(self, error: VortaError) -> None:
        try:
            step = self._progress.fail(error)
        except VortaError:
            self._closed = True
            raise
        if step is None:
            self._closed = True
        else:
            self._open(step)

    def _send_cancel(self) -> None:
        try:
            invoke, request = self._cancel_call()
            invoke(request, timeout=CANCEL_TIMEOUT_S, metadata=self._parts.config.metadata)
        except (grpc.RpcError, ValueError):
            # The request has ended, or the server is out of reach and will end it by its resume window.
            return

    def _cancel_call(self) -> tuple[Any, Any]:
        method = INFERENCE["CancelGenerate"]
        request = inference_pb2.CancelGenerateRequest(request_id=self.request_id)
        return self._channel.unary_unary(method.path, method.serialize, method.deserialize), request


def _ignore(_future: Any) -> None:
    """Nobody waits for the outcome."""
