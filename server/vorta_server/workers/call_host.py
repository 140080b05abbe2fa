"""The host of a worker that answers calls: an encoder's, or the vector worker's. One message in, one reply out.

One thread runs the service, between reads of the socket: whatever came in together is submitted together before the
next step, so that it can be computed together. Services may answer on any thread.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from typing import Protocol

from vorta.errors import FailedPrecondition, Internal, ResourceExhausted, Unavailable, VortaError
from vorta_server.engine.request import Failure, Finished, FinishReason
from vorta_server.workers.protocol import (
    CallMessage,
    CallReply,
    Cancel,
    CancelCall,
    Detokenize,
    DetokenizeReply,
    Drain,
    Embed,
    FrontMessage,
    Hello,
    ModelCard,
    Score,
    Stats,
    Step,
    Submit,
    Tokenize,
    TokenizeReply,
    VectorCall,
    encode,
    failed_reply,
)
from vorta_server.workers.transport import Connection, WorkerTransport

__all__ = ["Call", "CallHost", "CallService"]

logger = logging.getLogger(__name__)

_STATS_INTERVAL_S = 0.25
_IDLE_S = 1.0

# Of one reply: what a front can pass on in one message.
_MAX_REPLY_BYTES = 64 * 1024 * 1024


class Call:
    """A call under way.

    Attributes:
        message: What is asked.
        connection: Who asks.
    """

    __slots__ = ("_host", "connection", "message")

    def __init__(self, message: CallMessage, connection: Connection, host: CallHost) -> None:
        self.message = message
        self.connection = connection
        self._host = host

    def reply(self, reply: CallReply) -> None:
        """Answers the call; only the first answer counts. Thread-safe."""
        self._host.deliver(self, reply)

    def fail(self, error: BaseException) -> None:
        """Answers the call with an error; one that is not of the family is logged. Thread-safe."""
        if not isinstance(error, VortaError):
            logger.error("a call failed", exc_info=error)
            error = Internal(f"the call failed: {type(error).__name__}")
        self.reply(failed_reply(self.message, Failure.of(error)))


class CallService(Protocol):
    """What answers the calls. Every method is called by the host's thread."""

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do now."""
        ...

    @property
    def num_pending(self) -> int:
        """Calls without an answer."""
        ...

    def submit(self, call: Call) -> None:
        """Takes a call: answers it, or keeps it for `step`. A bounded queue refuses (ResourceExhausted)."""
        ...

    def cancel(self, call: Call) -> None:
        """Nobody waits for this call; it need not be answered. Idempotent."""
        ...

    def step(self) -> None:
        """Does some of what waits."""
        ...

    def stats(self) -> Stats:
        """The service's load and counters."""
        ...

    def close(self) -> None:
        """Finishes what must be finished and frees what is held. Idempotent."""
        ...


class CallHost:
    """Joins a service and a transport.

    Args:
        service: Answers.
        card: Announced to every front.
        transport: The socket.
    """

    def __init__(self, *, service: CallService, card: ModelCard, transport: WorkerTransport) -> None:
        self._service = service
        self._card = card
        self._transport = transport
        self._calls: dict[tuple[int, int], Call] = {}
        self._replies: deque[tuple[Call, CallReply]] = deque()
        self._last_stats: Stats | None = None
        self._last_stats_s = 0.0
        self._drain_until_s: float | None = None
        self._is_stopping = False
        self._thread_id = 0

    def run(self) -> None:
        """Serves until drained or stopped."""
        self._thread_id = threading.get_ident()
        try:
            while not self._is_done():
                self._turn()
            self._service.close()
            for call in list(self._calls.values()):
                call.fail(_draining())
            self._send_replies()
            self._transport.drain(1.0)
        finally:
            self._service.close()
            self._transport.close()

    def stop(self) -> None:
        """Ends `run` after the current step. Signal-safe."""
        self._is_stopping = True
        self._transport.wake()

    def deliver(self, call: Call, reply: CallReply) -> None:
        """Sends a call's reply after the current step. Thread-safe."""
        self._replies.append((call, reply))
        if threading.get_ident() != self._thread_id:
            self._transport.wake()

    def _turn(self) -> None:
        opened, received, lost = self._transport.poll(self._wait_s())
        for connection in opened:
            self._transport.send(connection, Hello(os.getpid(), self._card))
            self._last_stats = None
        for connection, message in received:
            self._handle(connection, message)
        for connection in lost:
            for key in [key for key in self._calls if key[0] == connection.number]:
                self._service.cancel(self._calls.pop(key))
        if self._service.has_work:
            self._service.step()
        self._send_replies()
        self._report()

    def _wait_s(self) -> float:
        if self._replies or self._service.has_work:
            return 0.0
        return 0.05 if self._drain_until_s is not None else _IDLE_S

    def _is_done(self) -> bool:
        if self._is_stopping:
            return True
        return self._drain_until_s is not None and (not self._calls or time.monotonic() >= self._drain_until_s)

    def _handle(self, connection: Connection, message: FrontMessage) -> None:
        match message:
            case Embed() | Score() | VectorCall():
                self._begin(connection, message)
            case CancelCall():
                call = self._calls.pop((connection.number, message.call_id), None)
                if call is not None:
                    self._service.cancel(call)
            case Drain():
                self._drain_until_s = time.monotonic() + message.grace_s
            case Cancel():
                pass
            case _:
                self._refuse(connection, message)

    def _begin(self, connection: Connection, message: CallMessage) -> None:
        call = Call(message, connection, self)
        if self._drain_until_s is not None:
            self._transport.send(connection, failed_reply(message, Failure.of(_draining())))
            return
        self._calls[connection.number, message.call_id] = call
        try:
            self._service.submit(call)
        except Exception as error:
            call.fail(error)

    def _refuse(self, connection: Connection, message: Submit | Tokenize | Detokenize) -> None:
        """Answers what only a generation worker can."""
        card = self._card
        error = FailedPrecondition(
            f"{card.model} is for {card.kind}, not for generation", metadata={"model": card.model, "kind": card.kind}
        )
        failure = Failure.of(error)
        if isinstance(message, Submit):
            finished = Finished(
                request_id=message.request_id, finish_reason=FinishReason.ERROR, sequences=[], failure=failure
            )
            self._transport.send(connection, Step([finished]))
        elif isinstance(message, Tokenize):
            self._transport.send(connection, TokenizeReply(call_id=message.call_id, failure=failure))
        else:
            self._transport.send(connection, DetokenizeReply(call_id=message.call_id, failure=failure))

    def _send_replies(self) -> None:
        """Sends what was answered, to each front at once."""
        outgoing: dict[int, tuple[Connection, bytearray]] = {}
        while self._replies:
            call, reply = self._replies.popleft()
            connection = call.connection
            if self._calls.pop((connection.number, reply.call_id), None) is None:
                continue  # cancelled, or answered before
            frame = encode(reply)
            if len(frame) > _MAX_REPLY_BYTES:
                frame = encode(failed_reply(call.message, Failure.of(_too_large(len(frame)))))
            waiting = outgoing.get(connection.number)
            if waiting is None:
                outgoing[connection.number] = (connection, frame)
            else:
                waiting[1].extend(frame)
        for connection, frames in outgoing.values():
            self._transport.send_frames(connection, frames)

    def _report(self) -> None:
        now_s = time.monotonic()
        if now_s - self._last_stats_s < _STATS_INTERVAL_S and self._last_stats is not None:
            return
        stats = self._service.stats()
        if stats == self._last_stats and now_s - self._last_stats_s < _IDLE_S:
            return
        for connection in self._transport.connections:
            self._transport.send(connection, stats)
        self._last_stats, self._last_stats_s = stats, now_s


def _draining() -> Unavailable:
    return Unavailable("the server is shutting down", reason="DRAINING", retry_delay_s=1.0)


def _too_large(size_bytes: int) -> ResourceExhausted:
    return ResourceExhausted(
        f"the answer has {size_bytes} bytes, more than the {_MAX_REPLY_BYTES} that one takes; ask for less at once",
        reason="MESSAGE_TOO_LARGE",
        metadata={"size_bytes": size_bytes, "max_bytes": _MAX_REPLY_BYTES},
    )
