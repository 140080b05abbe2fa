"""A stream of events over asyncio's gRPC; its twin for threads is `vorta.stream`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from vorta._call import CANCEL_TIMEOUT_S, StreamCall, closed_client
from vorta._method import INFERENCE
from vorta._progress import Step
from vorta.errors import VortaError
from vorta.result import Event, Finished, Generation, Started
from vorta.v1 import inference_pb2
from vorta.wire import error_from_rpc

__all__ = ["AsyncStream"]


class AsyncStream:
    """The events of one request, in order, each exactly once, over as many connections as it takes.

    As `vorta.Stream`, with `async for` and `async with`. A reader that is interrupted (`asyncio.timeout` around one
    event) loses nothing: the next read resumes the request, unless resuming is turned off. One task reads.
    """

    def __init__(self, channel: grpc.aio.Channel, call: StreamCall) -> None:
        self._channel = channel
        self._parts = call
        self._progress = call.progress
        self._closed = False
        self._rpc: Any = None
        self._messages: AsyncIterator[Any] | None = None
        self._step: Step = self._progress.first_step

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
        """Index of the next event: where `AsyncClient.resume` would go on."""
        return self._progress.next_index

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        while not self._closed:
            try:
                message = await anext(await self._open())
            except StopAsyncIteration:
                self._closed = True
                self._progress.end()
            except grpc.RpcError as exc:
                self._recover(error_from_rpc(exc))
            except asyncio.CancelledError:
                if self._closed:  # closed by another task
                    break
                self._interrupt()
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

    async def result(self) -> Generation:
        """Reads to the end and returns the whole, earlier events included."""
        async for _ in self:
            pass
        return self._progress.generation()

    async def cancel(self) -> None:
        """Asks the server to stop the request; the stream then ends with finish reason CANCELLED.

        Idempotent, and without effect on a request that has ended.
        """
        if self.finished is None:
            await self._send_cancel()

    async def aclose(self) -> None:
        """Ends the stream; a request that is still running is cancelled. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            if self.finished is None:
                await self._send_cancel()
        finally:
            if self._rpc is not None:
                self._rpc.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _open(self) -> AsyncIterator[Any]:
        """The running RPC's messages, after opening it where there is none."""
        if self._messages is not None:
            return self._messages
        step = self._step
        if step.wait_s > 0:
            await asyncio.sleep(step.wait_s)
        method, request = self._parts.rpc(step.move)
        invoke = self._channel.unary_stream(method.path, method.serialize, method.deserialize)
        try:
            self._rpc = invoke(request, timeout=self._parts.deadline.timeout_s, metadata=self._parts.config.metadata)
        except grpc.aio.UsageError:
            self._closed = True
            raise closed_client() from None
        self._messages = aiter(self._rpc)
        return self._messages

    def _recover(self, error: VortaError) -> None:
        self._messages = None
        try:
            step = self._progress.fail(error)
        except VortaError:
            self._closed = True
            raise
        if step is None:
            self._closed = True
        else:
            self._step = step

    def _interrupt(self) -> None:
        """The reading task was cancelled, and gRPC's call with it: the next read opens another."""
        if self._messages is None:
            return  # during the wait before an RPC: the same step is still to do
        self._messages = None
        if self._progress.is_resumable:
            self._step = self._progress.interrupt()
        else:
            self._closed = True

    async def _send_cancel(self) -> None:
        if self._rpc is None:
            return  # never sent
        method = INFERENCE["CancelGenerate"]
        request = inference_pb2.CancelGenerateRequest(request_id=self.request_id)
        invoke = self._channel.unary_unary(method.path, method.serialize, method.deserialize)
        try:
            await invoke(request, timeout=CANCEL_TIMEOUT_S, metadata=self._parts.config.metadata)
        except (grpc.RpcError, grpc.aio.UsageError):
            # The request has ended, or the server is out of reach and will end it by its resume window.
            return
