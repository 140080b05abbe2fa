"""An answer from a collection as a stream of events; its asyncio twin is `vorta.async_answer_stream`."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import grpc

from vorta._answer_progress import AnswerProgress
from vorta._call import CANCEL_TIMEOUT_S, closed_client
from vorta._method import INFERENCE
from vorta._transport import Transport
from vorta.answer_result import Answer, AnswerEvent, AnswerFinished
from vorta.result import Started
from vorta.v1 import inference_pb2
from vorta.vector_result import Hit
from vorta.wire import error_from_rpc

__all__ = ["AnswerStream"]


class AnswerStream:
    """The events of one answer in order: hits, started, deltas, finished.

    Iterate over it; every event has a `.text`. The last event is `AnswerFinished`. After it, iterating raises
    DeadlineExceeded, Unavailable or the request's own error when the request did not run to its end. A stream that
    breaks off raises the call's error, one that ends without its last event Internal: it is not resumed. `close`, or
    the end of a `with` block, ends a request that is still running; so does dropping the stream.

    One thread reads; `cancel` may be called from any thread.
    """

    def __init__(
        self, transport: Transport, request: inference_pb2.StreamAnswerRequest, timeout_s: float | None
    ) -> None:
        self._transport = transport
        self._progress = AnswerProgress(request.request_id)
        self._closed = False
        method = INFERENCE["StreamAnswer"]
        deadline = transport.deadline(timeout_s)
        invoke = transport.channel.unary_stream(method.path, method.serialize, method.deserialize)
        try:
            self._rpc: Any = invoke(request, timeout=deadline.timeout_s, metadata=transport.config.metadata)
        except ValueError:
            self._closed = True
            raise closed_client() from None

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self._progress.request_id

    @property
    def hits(self) -> tuple[Hit, ...]:
        """What was found, once it has arrived; passage [1] is the first."""
        return self._progress.hits.hits if self._progress.hits else ()

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._progress.text

    @property
    def cited_ids(self) -> tuple[str, ...]:
        """Ids of the hits that the answer rests on, once it has ended."""
        return self._progress.finished.cited_ids if self._progress.finished else ()

    @property
    def started(self) -> Started | None:
        """The event of a worker's acceptance, once it has arrived."""
        return self._progress.started

    @property
    def finished(self) -> AnswerFinished | None:
        """The last event, once it has arrived."""
        return self._progress.finished

    def __iter__(self) -> Iterator[AnswerEvent]:
        return self

    def __next__(self) -> AnswerEvent:
        while not self._closed:
            try:
                message = next(self._rpc)
            except StopIteration:
                self._closed = True
                self._progress.end()
            except grpc.RpcError as exc:
                if not self._closed:  # otherwise another thread closed the stream
                    self._closed = True
                    if self.finished is None:
                        raise error_from_rpc(exc) from exc
                    self._progress.end()
            else:
                event = self._progress.accept(message)
                if event is not None:
                    return event
        raise StopIteration

    def texts(self) -> Iterator[str]:
        """The new text of each event that has some."""
        return (event.text for event in self if event.text)

    def result(self) -> Answer:
        """Reads to the end and returns the whole, earlier events included."""
        for _ in self:
            pass
        return self._progress.answer()

    def cancel(self) -> None:
        """Asks the server to stop the request; the stream then ends with finish reason CANCELLED.

        While the search still runs, or when the server is out of reach, it ends with the error Cancelled. Idempotent,
        thread-safe, and without effect on a request that has ended.
        """
        if self.finished is not None or self._closed:
            return
        method = INFERENCE["CancelGenerate"]
        request = inference_pb2.CancelGenerateRequest(request_id=self.request_id)
        try:
            invoke = self._transport.channel.unary_unary(method.path, method.serialize, method.deserialize)
            invoke(request, timeout=CANCEL_TIMEOUT_S, metadata=self._transport.config.metadata)
        except (grpc.RpcError, ValueError):
            self._rpc.cancel()

    def close(self) -> None:
        """Ends the stream; a request that is still running is cancelled. Idempotent."""
        if not self._closed:
            self._closed = True
            self._rpc.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
