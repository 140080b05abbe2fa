"""An answer from a collection as a stream of events for asyncio; its twin for threads is `vorta.answer_stream`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from vorta._answer_progress import AnswerProgress
from vorta._async_transport import AsyncTransport
from vorta._call import CANCEL_TIMEOUT_S, closed_client
from vorta._method import INFERENCE
from vorta.answer_result import Answer, AnswerEvent, AnswerFinished
from vorta.errors import Cancelled
from vorta.result import Started
from vorta.v1 import inference_pb2
from vorta.vector_result import Hit
from vorta.wire import error_from_rpc

__all__ = ["AsyncAnswerStream"]


class AsyncAnswerStream:
    """As `vorta.AnswerStream`, with `async for` and `async with`. Interrupting its reader ends it. One task reads."""

    def __init__(
        self, transport: AsyncTransport, request: inference_pb2.StreamAnswerRequest, timeout_s: float | None
    ) -> None:
        self._transport = transport
        self._channel = transport.channel
        self._request = request
        self._progress = AnswerProgress(request.request_id)
        self._deadline = transport.deadline(timeout_s)
        self._closed = False
        self._rpc: Any = None
        self._messages: AsyncIterator[Any] | None = None

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

    def __aiter__(self) -> AsyncIterator[AnswerEvent]:
        return self

    async def __anext__(self) -> AnswerEvent:
        while not self._closed:
            try:
                message = await anext(self._open())
            except StopAsyncIteration:
                self._closed = True
                self._progress.end()
            except grpc.RpcError as exc:
                self._closed = True
                if self.finished is None:
                    raise error_from_rpc(exc) from exc
                self._progress.end()
            except asyncio.CancelledError:
                if self._closed:  # closed by another task
                    break
                self._closed = True
                if self._rpc is not None and self._rpc.cancelled() and not _is_being_cancelled():
                    raise Cancelled("the request was cancelled") from None
                raise
            else:
                event = self._progress.accept(message)
                if event is not None:
                    return event
        raise StopAsyncIteration

    async def texts(self) -> AsyncIterator[str]:
        """The new text of each event that has some."""
        async for event in self:
            if event.text:
                yield event.text

    async def result(self) -> Answer:
        """Reads to the end and returns the whole, earlier events included."""
        async for _ in self:
            pass
        return self._progress.answer()

    async def cancel(self) -> None:
        """Asks the server to stop the request; the stream then ends with finish reason CANCELLED.

        While the search still runs, or when the server is out of reach, it ends with the error Cancelled. Idempotent,
        and without effect on a request that has ended.
        """
        if self.finished is not None or self._closed or self._rpc is None:
            return
        method = INFERENCE["CancelGenerate"]
        request = inference_pb2.CancelGenerateRequest(request_id=self.request_id)
        invoke = self._channel.unary_unary(method.path, method.serialize, method.deserialize)
        try:
            await invoke(request, timeout=CANCEL_TIMEOUT_S, metadata=self._transport.config.metadata)
        except (grpc.RpcError, grpc.aio.UsageError):
            self._rpc.cancel()

    async def aclose(self) -> None:
        """Ends the stream; a request that is still running is cancelled. Idempotent."""
        if not self._closed:
            self._closed = True
            if self._rpc is not None:
                self._rpc.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _open(self) -> AsyncIterator[Any]:
        """The RPC's messages, after opening it where there is none."""
        if self._messages is not None:
            return self._messages
        method = INFERENCE["StreamAnswer"]
        invoke = self._channel.unary_stream(method.path, method.serialize, method.deserialize)
        try:
            self._rpc = invoke(
                self._request, timeout=self._deadline.timeout_s, metadata=self._transport.config.metadata
            )
        except grpc.aio.UsageError:
            self._closed = True
            raise closed_client() from None
        self._messages = aiter(self._rpc)
        return self._messages


def _is_being_cancelled() -> bool:
    """Whether somebody cancelled the running task, rather than its call."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
