"""The host of a generation worker: one model's engine behind a socket.

One thread does everything but the tokenization of long prompts and the compilation of formats: it reads messages
between two steps, so that a cancel frees its KV memory before the next step, and a request's first token leaves in the
step that made it.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from vorta.errors import DeadlineExceeded, FailedPrecondition, Internal, ResourceExhausted, Unavailable, VortaError
from vorta_server.engine.constraint import Grammar
from vorta_server.engine.engine import Engine
from vorta_server.engine.request import Delta, Event, Failure, Finished, FinishReason, GenerationRequest
from vorta_server.workers.memory import rss_bytes
from vorta_server.workers.pacing import WritePacer
from vorta_server.workers.protocol import (
    Cancel,
    Detokenize,
    DetokenizeReply,
    Drain,
    FrontMessage,
    Hello,
    ModelCard,
    OutputFormat,
    Prompt,
    Stats,
    Step,
    Submit,
    Tokenize,
    TokenizeReply,
    ToolSpec,
)
from vorta_server.workers.transport import Connection, WorkerTransport

__all__ = ["FormatCompiler", "PromptCodec", "WorkerHost"]

logger = logging.getLogger(__name__)

_INLINE_TEXT_BYTES = 8192
"""Prompts up to this size are tokenized between two steps; longer ones in a thread, which takes the GIL seldom."""

_MESSAGE_BYTES = 64
"""What a message counts for beside its text: rendering costs too."""

_TOO_MANY_CALLS = Failure.of(ResourceExhausted("too many texts wait for tokenization", retry_delay_s=1.0))

_STATS_INTERVAL_S = 0.25
_MAX_FAILURES = 3
"""Failed steps in a row that end the worker: its supervisor starts another."""

_IDLE_S = 1.0


class PromptCodec(Protocol):
    """Text and conversations to token ids and back. Methods are called from two threads, never changing anything."""

    def encode(self, prompt: Prompt) -> list[int]:
        """The prompt's token ids. Raises a VortaError naming the field at fault."""
        ...

    def decode(self, token_ids: list[int], skip_special_tokens: bool) -> str:
        """The tokens' text."""
        ...

    def token_text(self, token_id: int) -> str:
        """One token's text."""
        ...


class FormatCompiler(Protocol):
    """Formats to grammars. Methods are called from two threads."""

    def find(self, output_format: OutputFormat, tools: Sequence[ToolSpec]) -> Grammar | None:
        """The grammar if it was compiled before, at once."""
        ...

    def compile(self, output_format: OutputFormat, tools: Sequence[ToolSpec]) -> Grammar:
        """The grammar, which may take seconds. Raises a VortaError naming the field at fault."""
        ...

    def close(self) -> None:
        """Ends what `compile` started. Idempotent."""
        ...


_Prepared = tuple[list[int], Grammar | None]
"""A request's tokens, and the grammar of its format."""


@dataclass(slots=True)
class _Outbox:
    """Events that wait for one front; deltas of a sequence are merged."""

    events: list[Event] = field(default_factory=list)
    open_deltas: dict[tuple[str, int], Delta] = field(default_factory=dict)
    is_urgent: bool = False

    def add(self, event: Event, *, is_first: bool) -> None:
        if isinstance(event, Delta):
            key = (event.request_id, event.sequence_index)
            open_delta = self.open_deltas.get(key)
            if open_delta is not None and open_delta.finish_reason is None:
                open_delta.text += event.text
                open_delta.token_ids += event.token_ids
                if event.logprobs is not None:
                    open_delta.logprobs = (open_delta.logprobs or []) + event.logprobs
                open_delta.finish_reason = event.finish_reason
            else:
                self.open_deltas[key] = event
                self.events.append(event)
            self.is_urgent |= is_first
            return
        self.events.append(event)
        if isinstance(event, Finished):
            for key in [key for key in self.open_deltas if key[0] == event.request_id]:
                del self.open_deltas[key]
        self.is_urgent = True


class WorkerHost:
    """Joins an engine and a transport.

    Args:
        engine: Computes.
        codec: Tokenizes.
        card: Announced to every front.
        transport: The socket.
        formats: Compiles output formats; without it requests that have one are refused.
        pacer: Says how long deltas may wait for others; without it they go every few milliseconds.
        max_pending_prompts: Long prompts that may wait for tokenization.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        codec: PromptCodec,
        card: ModelCard,
        transport: WorkerTransport,
        formats: FormatCompiler | None = None,
        pacer: WritePacer | None = None,
        max_pending_prompts: int = 256,
    ) -> None:
        self._engine = engine
        self._codec = codec
        self._card = card
        self._transport = transport
        self._formats = formats
        self._pacer = pacer or WritePacer(interval_per_stream_s=0.0, max_interval_s=0.0, min_interval_s=0.004)
        self._max_pending_prompts = max_pending_prompts
        self._owners: dict[str, Connection] = {}
        self._started: set[str] = set()
        self._outboxes: dict[int, tuple[Connection, _Outbox]] = {}
        self._pending: dict[str, Future[_Prepared]] = {}
        self._encoded: deque[Callable[[], None]] = deque()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        self._format_executor = ThreadPoolExecutor(1, thread_name_prefix="formats")
        self._num_calls = 0
        self._next_flush_s = 0.0
        self._last_stats_s = 0.0
        self._last_stats: Stats | None = None
        self._cancel_to_free_s: list[float] = []
        self._drain_until_s: float | None = None
        self._is_stopping = False

    def run(self) -> None:
        """Serves until drained or stopped."""
        try:
            while not self._is_done():
                self._turn()
            self._finish_draining()
        finally:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._format_executor.shutdown(wait=False, cancel_futures=True)
            if self._formats is not None:
                self._formats.close()
            self._transport.close()

    def stop(self) -> None:
        """Ends `run` after the current step. Signal-safe."""
        self._is_stopping = True
        self._transport.wake()

    def _turn(self) -> None:
        opened, received, lost = self._transport.poll(self._wait_s())
        for connection in opened:
            self._transport.send(connection, Hello(os.getpid(), self._card))
            self._last_stats = None
        for connection, message in received:
            self._handle(connection, message)
        for connection in lost:
            self._abandon(connection)
        while self._encoded:
            self._encoded.popleft()()
        if self._engine.has_work:
            self._compute()
        self._flush()
        if self._engine.num_failures_in_row >= _MAX_FAILURES:
            raise RuntimeError(f"{_MAX_FAILURES} steps failed one after the other: another process may do better")
        self._report()

    def _compute(self) -> None:
        """A step, and more of them while they have nothing to say and nobody has anything to tell."""
        engine = self._engine
        until_s = min(self._next_flush_s, self._last_stats_s + _STATS_INTERVAL_S)
        while True:
            events = engine.step(hold=True)
            if events or self._outboxes or self._encoded or not engine.has_work:
                break
            if time.monotonic() >= until_s or self._transport.is_ready():
                break
        self._post(events)

    def _wait_s(self) -> float:
        if self._engine.has_work or self._encoded:
            return 0.0
        if self._outboxes:
            return max(0.0, self._next_flush_s - time.monotonic())
        if self._drain_until_s is not None:
            return 0.05
        return _IDLE_S

    def _is_done(self) -> bool:
        if self._is_stopping:
            return True
        if self._drain_until_s is None:
            return False
        return not (self._engine.num_requests or self._pending) or time.monotonic() >= self._drain_until_s

    def _finish_draining(self) -> None:
        self._post(self._engine.cancel_all(FinishReason.DRAINING))
        for request_id in list(self._pending):
            self._refuse(request_id, Unavailable("the server is shutting down", reason="DRAINING", retry_delay_s=1.0))
        self._flush(force=True)
        self._transport.drain(1.0)

    def _handle(self, connection: Connection, message: FrontMessage) -> None:
        match message:
            case Submit():
                self._submit(connection, message)
            case Cancel():
                self._cancel(connection, message)
            case Tokenize():
                self._tokenize(connection, message)
            case Detokenize():
                self._detokenize(connection, message)
            case Drain():
                self._drain_until_s = time.monotonic() + message.grace_s

    def _submit(self, connection: Connection, message: Submit) -> None:
        arrival_s = time.monotonic()
        request_id = message.request_id = connection.qualify(message.request_id)
        if request_id in self._owners:
            # The front breaks the protocol; an answer under this id would end its other request.
            logger.error("request id %s is in use, the second request is dropped", request_id)
            return
        self._owners[request_id] = connection
        if self._drain_until_s is not None:
            self._refuse(request_id, Unavailable("the server is shutting down", reason="DRAINING", retry_delay_s=1.0))
            return
        if self._is_quick(message):
            try:
                prepared = self._prepare(message)
            except Exception as error:
                self._refuse(request_id, error)
                return
            self._start(message, prepared, arrival_s)
            return
        if len(self._pending) >= self._max_pending_prompts:
            limit = ResourceExhausted("too many prompts wait for tokenization", retry_delay_s=1.0)
            self._refuse(request_id, limit)
            return

        def finished(future: Future[_Prepared]) -> None:
            def deliver() -> None:
                if self._pending.pop(request_id, None) is None:
                    return  # cancelled meanwhile
                problem = future.exception()
                if problem is not None:
                    self._refuse(request_id, problem)
                else:
                    self._start(message, future.result(), arrival_s)

            self._encoded.append(deliver)
            self._transport.wake()

        # A format that takes long must not hold other requests' prompts up.
        executor = self._executor if message.output_format is None else self._format_executor
        future = executor.submit(self._prepare, message)
        self._pending[request_id] = future
        future.add_done_callback(lambda done: None if done.cancelled() else finished(done))

    def _is_quick(self, message: Submit) -> bool:
        """Whether a request can be prepared between two steps."""
        if _text_bytes(message.prompt) > _INLINE_TEXT_BYTES:
            return False
        if message.output_format is None or self._formats is None:
            return True
        return self._formats.find(message.output_format, message.prompt.tools) is not None

    def _prepare(self, message: Submit) -> _Prepared:
        """Raises a VortaError naming the field at fault."""
        token_ids = self._codec.encode(message.prompt)
        if message.output_format is None:
            return token_ids, None
        if self._formats is None:
            raise FailedPrecondition("this model's output cannot be constrained to a format", field="response_format")
        return token_ids, self._formats.compile(message.output_format, message.prompt.tools)

    def _start(self, message: Submit, prepared: _Prepared, arrival_s: float) -> None:
        token_ids, grammar = prepared
        request = GenerationRequest(
            request_id=message.request_id,
            prompt_token_ids=token_ids,
            sampling=message.sampling,
            priority=message.priority,
            deadline_s=message.deadline_s,
            arrival_s=arrival_s,
            grammar=grammar,
        )
        try:
            started = self._engine.submit(request)
        except Exception as error:
            self._refuse(message.request_id, error)
            return
        self._post([started])

    def _cancel(self, connection: Connection, message: Cancel) -> None:
        request_id = connection.qualify(message.request_id)
        if self._owners.get(request_id) is not connection:
            return
        if request_id in self._pending:
            self._pending.pop(request_id).cancel()
            self._post([Finished(request_id=request_id, finish_reason=FinishReason.CANCELLED, sequences=[])])
            return
        events = self._engine.cancel(request_id)
        if events and message.sent_s and len(self._cancel_to_free_s) < 1024:
            self._cancel_to_free_s.append(time.monotonic() - message.sent_s)
        self._post(events)

    def _abandon(self, connection: Connection) -> None:
        """Ends the requests of a front that is gone; nobody reads their events."""
        for request_id in [key for key, owner in self._owners.items() if owner is connection]:
            pending = self._pending.pop(request_id, None)
            if pending is not None:
                pending.cancel()
            self._engine.cancel(request_id)
            self._owners.pop(request_id, None)
            self._started.discard(request_id)
        self._outboxes.pop(id(connection), None)

    def _tokenize(self, connection: Connection, message: Tokenize) -> None:
        def work() -> TokenizeReply:
            try:
                token_ids = self._codec.encode(message.prompt)
                tokens = [self._codec.token_text(token_id) for token_id in token_ids]
            except Exception as error:
                return TokenizeReply(call_id=message.call_id, failure=Failure.of(_as_vorta_error(error)))
            return TokenizeReply(call_id=message.call_id, token_ids=token_ids, tokens=tokens)

        if self._num_calls >= self._max_pending_prompts:
            self._transport.send(connection, TokenizeReply(call_id=message.call_id, failure=_TOO_MANY_CALLS))
            return
        self._in_thread(connection, work)

    def _detokenize(self, connection: Connection, message: Detokenize) -> None:
        def work() -> DetokenizeReply:
            try:
                text = self._codec.decode(message.token_ids, message.skip_special_tokens)
            except Exception as error:
                return DetokenizeReply(call_id=message.call_id, failure=Failure.of(_as_vorta_error(error)))
            return DetokenizeReply(call_id=message.call_id, text=text)

        if self._num_calls >= self._max_pending_prompts:
            self._transport.send(connection, DetokenizeReply(call_id=message.call_id, failure=_TOO_MANY_CALLS))
            return
        self._in_thread(connection, work)

    def _in_thread(self, connection: Connection, work: Callable[[], TokenizeReply | DetokenizeReply]) -> None:
        def done(future: Future[TokenizeReply | DetokenizeReply]) -> None:
            def deliver() -> None:
                self._num_calls -= 1
                self._transport.send(connection, future.result())

            if not future.cancelled():
                self._encoded.append(deliver)
                self._transport.wake()

        self._num_calls += 1
        self._executor.submit(work).add_done_callback(done)

    def _refuse(self, request_id: str, error: BaseException) -> None:
        """Ends a request that the engine never took."""
        self._pending.pop(request_id, None)
        problem = _as_vorta_error(error)
        reason = FinishReason.DEADLINE if isinstance(problem, DeadlineExceeded) else FinishReason.ERROR
        self._post([Finished(request_id=request_id, finish_reason=reason, sequences=[], failure=Failure.of(problem))])

    def _post(self, events: list[Event]) -> None:
        """Puts events into the boxes of their fronts."""
        for event in events:
            connection = self._owners.get(event.request_id)
            if connection is None:
                continue
            entry = self._outboxes.get(id(connection))
            if entry is None:
                entry = self._outboxes[id(connection)] = (connection, _Outbox())
            is_first = False
            if isinstance(event, Delta):
                is_first = event.request_id not in self._started
                if is_first:
                    self._started.add(event.request_id)
            elif isinstance(event, Finished):
                del self._owners[event.request_id]
                self._started.discard(event.request_id)
            event.request_id = connection.unqualify(event.request_id)
            entry[1].add(event, is_first=is_first)

    def _flush(self, *, force: bool = False) -> None:
        """Sends the boxes that hold something urgent, and everything when it is time."""
        now = time.monotonic()
        if force or now >= self._next_flush_s:
            self._post(self._engine.release())
            self._pacer.num_streams = self._engine.num_running
            self._next_flush_s = self._pacer.next_write_s(now)
            for connection, outbox in self._outboxes.values():
                self._transport.send(connection, Step(outbox.events))
            self._outboxes.clear()
        elif self._outboxes:
            for key, (connection, outbox) in list(self._outboxes.items()):
                if outbox.is_urgent:
                    self._transport.send(connection, Step(outbox.events))
                    del self._outboxes[key]

    def _report(self) -> None:
        now = time.monotonic()
        if now - self._last_stats_s < _STATS_INTERVAL_S and self._last_stats is not None:
            return
        engine, counters = self._engine, self._engine.counters
        stats = Stats(
            running=engine.num_running,
            waiting=engine.num_waiting + len(self._pending),
            kv_used_tokens=engine.kv_used_tokens,
            kv_capacity_tokens=engine.kv_capacity_tokens,
            step_count=counters.steps,
            preemption_count=engine.num_preemptions,
            prompt_token_count=counters.prompt_tokens,
            cached_prompt_token_count=counters.cached_prompt_tokens,
            generated_token_count=counters.generated_tokens,
            batch_size_sum=counters.batch_size_sum,
            step_s_sum=counters.step_s_sum,
            cancel_to_free_s=self._cancel_to_free_s,
            rss_bytes=rss_bytes(),
        )
        if stats == self._last_stats and now - self._last_stats_s < _IDLE_S:
            return
        for connection in self._transport.connections:
            self._transport.send(connection, stats)
        self._cancel_to_free_s = []
        self._last_stats, self._last_stats_s = stats, now


def _text_bytes(prompt: Prompt) -> int:
    """At most how much text the prompt has, by its characters at their longest in UTF-8."""
    characters = len(prompt.text or "")
    for message in prompt.messages or ():
        characters += len(message.content) + _MESSAGE_BYTES
        characters += sum(len(call.arguments) + len(call.name) for call in message.tool_calls)
    tools = sum(len(tool.description) + len(msgspec.json.encode(tool.parameters)) for tool in prompt.tools)
    return 4 * (characters + tools)


def _as_vorta_error(error: BaseException) -> VortaError:
    if isinstance(error, VortaError):
        return error
    logger.error("a request failed", exc_info=error)
    return Internal(f"the request failed: {type(error).__name__}")
