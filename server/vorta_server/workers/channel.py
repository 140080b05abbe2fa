"""The front's end of one worker's socket.

Owns the requests in flight on one connection and hands every request exactly one `Finished`: the worker's own,
or, when the connection ends first, one with a retryable WORKER_DIED failure. Knows nothing of processes (see
`supervisor`) and nothing of grpc. Loop thread only.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

import msgspec

from vorta import errors
from vorta_server.engine.request import Event, Failure, Finished, FinishReason
from vorta_server.vectors.operation import Operation, Result
from vorta_server.workers.protocol import (
    CallMessage,
    CallReply,
    Cancel,
    CancelCall,
    Detokenize,
    DetokenizeReply,
    Drain,
    Embed,
    EmbedReply,
    FrameBuffer,
    FrontMessage,
    Hello,
    Prompt,
    Score,
    ScoreReply,
    Stats,
    Step,
    Submit,
    Tokenize,
    TokenizeReply,
    VectorCall,
    VectorReply,
    decode_worker_message,
    encode,
)

if TYPE_CHECKING:
    from vorta_server.workers.protocol import WorkerMessage

__all__ = ["WORKER_DIED_RETRY_DELAY_S", "EventSink", "WorkerChannel"]

logger = logging.getLogger(__name__)

EventSink = Callable[[Event], None]
"""Takes a request's events in order. Called on the loop's thread; must not block or raise."""

WORKER_DIED_RETRY_DELAY_S = 1.0

_WRITE_HIGH_WATER_BYTES = 64 * 1024 * 1024

_R = TypeVar("_R", TokenizeReply, DetokenizeReply, EmbedReply, ScoreReply, VectorReply)


class WorkerChannel(asyncio.Protocol):
    """One connection to a worker.

    Attributes:
        hello: Completed by the worker's greeting; fails with `Unavailable` when the connection ends before.
        on_lost: Called when the connection has ended, before the first request gets its end, so that nobody who got
            one is told that the worker still serves.
        closed: Completed when the connection has ended and every request got its end.
    """

    def __init__(
        self,
        *,
        on_stats: Callable[[Stats], None] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        loop = loop or asyncio.get_running_loop()
        self.hello: asyncio.Future[Hello] = loop.create_future()
        self.on_lost: Callable[[], None] | None = None
        self.closed: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._on_stats = on_stats
        self._transport: asyncio.Transport | None = None
        self._frames = FrameBuffer()
        self._sinks: dict[str, EventSink] = {}
        self._calls: dict[int, asyncio.Future[CallReply]] = {}
        self._call_ids = itertools.count(1)
        self._is_writing_paused = False

    @property
    def is_open(self) -> bool:
        """Whether requests can be submitted."""
        return self._transport is not None and not self.closed.done()

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._sinks)

    def submit(self, message: Submit, sink: EventSink) -> None:
        """Starts a request; `sink` then takes its events up to and including one `Finished`.

        Raises:
            Unavailable: The connection has ended.
            AlreadyExists: A request of this id is running on this connection.
            ResourceExhausted: The worker does not read.
        """
        if not self.is_open:
            raise _worker_gone("the model's worker is gone")
        if message.request_id in self._sinks:
            raise errors.AlreadyExists(
                f"request {message.request_id} is running", metadata={"request_id": message.request_id}
            )
        if self._is_writing_paused:
            raise errors.ResourceExhausted("the model's worker is behind", retry_delay_s=1.0)
        self._sinks[message.request_id] = sink
        self._send(message)

    def cancel(self, request_id: str) -> None:
        """Asks the worker to end a request early; its sink still gets one `Finished`. Idempotent."""
        if request_id in self._sinks and self.is_open:
            self._send(Cancel(request_id, time.monotonic()))

    async def tokenize(self, prompt: Prompt) -> TokenizeReply:
        """The tokens of a prompt. Raises the worker's failure, or `Unavailable` when it dies."""
        return await self._call(Tokenize(call_id=next(self._call_ids), prompt=prompt), TokenizeReply)

    async def detokenize(self, token_ids: list[int], *, skip_special_tokens: bool) -> DetokenizeReply:
        """The text of tokens. Raises the worker's failure, or `Unavailable` when it dies."""
        message = Detokenize(call_id=next(self._call_ids), token_ids=token_ids, skip_special_tokens=skip_special_tokens)
        return await self._call(message, DetokenizeReply)

    async def embed(self, message: Embed) -> EmbedReply:
        """Vectors of texts; `call_id` is set here. Raises the worker's failure, or `Unavailable` when it dies."""
        message.call_id = next(self._call_ids)
        return await self._call(message, EmbedReply)

    async def score(self, message: Score) -> ScoreReply:
        """Scores of documents; `call_id` is set here. Raises the worker's failure, or `Unavailable` when it dies."""
        message.call_id = next(self._call_ids)
        return await self._call(message, ScoreReply)

    async def vector(self, operation: Operation, *, deadline_s: float | None = None) -> Result:
        """An operation's result. Raises the worker's failure, or `Unavailable` when it dies."""
        message = VectorCall(call_id=next(self._call_ids), operation=operation, deadline_s=deadline_s)
        reply = await self._call(message, VectorReply)
        if reply.result is None:
            raise errors.Internal("the vector worker answered nothing")
        return reply.result

    def drain(self, grace_s: float) -> None:
        """Tells the worker to finish what runs within `grace_s` and then to exit."""
        if self.is_open:
            self._send(Drain(grace_s))

    def close(self) -> None:
        """Ends the connection at once; requests in flight end with WORKER_DIED. Idempotent."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Takes the transport."""
        # uvloop's transports are not of asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_WATER_BYTES)

    def data_received(self, data: bytes) -> None:
        """Routes the worker's messages. A frame that cannot be read ends the connection."""
        # Only reading is guarded: what a sink raises is no fault of the worker's message.
        try:
            bodies = self._frames.feed(data)
        except ValueError as error:
            self._refuse_data(error)
            return
        for body in bodies:
            try:
                message = decode_worker_message(body)
            except (ValueError, msgspec.DecodeError) as error:
                self._refuse_data(error)
                return
            self._route(message)

    def pause_writing(self) -> None:
        """The worker does not read as fast as requests come in."""
        self._is_writing_paused = True

    def resume_writing(self) -> None:
        """The worker reads again."""
        self._is_writing_paused = False

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends every request and call that the worker left open."""
        error = _worker_gone("the model's worker ended before the request was finished")
        failure = Failure(error.code, error.reason, error.message, {}, error.retry_delay_s)
        sinks, self._sinks = self._sinks, {}
        calls, self._calls = self._calls, {}
        if not self.closed.done():
            self.closed.set_result(None)
        if self.on_lost is not None:
            self.on_lost()
        for request_id, sink in sinks.items():
            sink(Finished(request_id=request_id, finish_reason=FinishReason.ERROR, sequences=[], failure=failure))
        for future in calls.values():
            if not future.done():
                future.set_exception(_worker_gone(error.message))
        if not self.hello.done():
            self.hello.set_exception(_worker_gone("the worker ended before it was ready"))
            self.hello.exception()  # marks it as seen: whoever waits gets it, and nobody has to wait

    def _refuse_data(self, error: Exception) -> None:
        logger.error("unreadable message from a worker; closing its connection", exc_info=error)
        self.close()

    def _route(self, message: WorkerMessage) -> None:
        if type(message) is Step:
            sinks = self._sinks
            for event in message.events:
                take = sinks.pop if type(event) is Finished else sinks.get
                sink = take(event.request_id, None)
                if sink is not None:
                    sink(event)
        elif type(message) is Stats:
            if self._on_stats is not None:
                self._on_stats(message)
        elif isinstance(message, Hello):
            if not self.hello.done():
                self.hello.set_result(message)
        elif not isinstance(message, Step | Stats):
            future = self._calls.pop(message.call_id, None)
            if future is not None and not future.done():
                future.set_result(message)

    async def _call(self, message: Tokenize | Detokenize | CallMessage, reply_type: type[_R]) -> _R:
        if not self.is_open:
            raise _worker_gone("the model's worker is gone")
        if self._is_writing_paused:
            raise errors.ResourceExhausted("the model's worker is behind", retry_delay_s=1.0)
        future: asyncio.Future[CallReply] = self._loop.create_future()
        call_id = message.call_id
        self._calls[call_id] = future
        try:
            self._send(message)
            reply = await future
        except asyncio.CancelledError:
            if self.is_open and not isinstance(message, Tokenize | Detokenize):
                self._send(CancelCall(call_id))
            raise
        finally:
            self._calls.pop(call_id, None)
        if reply.failure is not None:
            raise reply.failure.error()
        if not isinstance(reply, reply_type):
            raise errors.Internal("the worker answered another question")
        return reply

    def _send(self, message: FrontMessage) -> None:
        assert self._transport is not None
        self._transport.write(encode(message))


def _worker_gone(message: str) -> errors.Unavailable:
    return errors.Unavailable(message, reason="WORKER_DIED", retry_delay_s=WORKER_DIED_RETRY_DELAY_S)
