"""The engine: requests in, events out, one step at a time.

It joins scheduler, runner, sampler and output. It is synchronous and single-threaded: a worker calls `submit`,
`cancel` and `step` from one thread. Every request that `submit` accepted ends in exactly one `Finished`.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from collections.abc import Sequence as Sequenced
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vorta.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ResourceExhausted,
)
from vorta_server.engine.decode_rows import DecodeRows
from vorta_server.engine.detokenizer import Detokenizer
from vorta_server.engine.kv import KvSlots
from vorta_server.engine.output import OutputBuilder, Vocabulary
from vorta_server.engine.request import (
    Event,
    Failure,
    Finished,
    FinishReason,
    GenerationRequest,
    SequenceEnd,
    Started,
)
from vorta_server.engine.row_state import RowState
from vorta_server.engine.runner import FloatArray, ModelRunner, StepResult
from vorta_server.engine.sampler import DrawKernel, Sampler, SampleResult
from vorta_server.engine.scheduler import Scheduler, SchedulerConfig, SchedulerStep
from vorta_server.engine.sequence import RunningRequest, Sequence, SequenceState
from vorta_server.engine.stop import StopMatcher

__all__ = ["Engine", "EngineConfig", "EngineCounters"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Limits of the engine.

    Attributes:
        scheduler: Limits of a step.
        max_waiting_requests: Requests that may queue before new ones are refused.
        kv_capacity_tokens: Tokens of KV memory over all slots.
        max_tokens_cap: Most tokens that one request may ask for, and its default where the context has more room.
    """

    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    max_waiting_requests: int = 256
    kv_capacity_tokens: int = 65_536
    max_tokens_cap: int = 1 << 20


@dataclass(slots=True, kw_only=True)
class EngineCounters:
    """What the engine did since it started."""

    steps: int = 0
    step_s_sum: float = 0.0
    batch_size_sum: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    generated_tokens: int = 0


class Engine:
    """Continuous batching over one runner.

    Args:
        runner: Computes the steps.
        vocabulary: Turns tokens to text.
        config: Limits.
        draw_kernel: For the sampler.
        clock: Seconds, `time.monotonic` but for tests.
    """

    def __init__(
        self,
        runner: ModelRunner,
        vocabulary: Vocabulary,
        config: EngineConfig | None = None,
        *,
        draw_kernel: DrawKernel | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config or EngineConfig()
        self._runner = runner
        self._vocabulary = vocabulary
        self._clock = clock
        info = runner.info
        if info.num_slots <= 2 * self._config.scheduler.max_running_requests:
            raise ValueError(
                f"the runner's {info.num_slots} slots must exceed twice max_running_requests "
                f"({self._config.scheduler.max_running_requests})"
            )
        self._max_model_len = info.max_model_len
        self._vocab_size = info.vocab_size
        self._kv = self._new_slots()
        self._scheduler = Scheduler(config=self._config.scheduler, kv=self._kv)
        self._sampler = Sampler(info.vocab_size, draw_kernel)
        self._output = OutputBuilder(vocabulary)
        self._requests: dict[str, RunningRequest] = {}
        self._order = 0
        self._is_end = np.zeros(info.vocab_size, np.bool_)
        self._is_end[[token_id for token_id in self._output.eos_token_ids if token_id < info.vocab_size]] = True
        self._rows = DecodeRows((), self._is_end)
        self._next_deadline_s = float("inf")
        self.counters = EngineCounters()

    @property
    def has_work(self) -> bool:
        """Whether `step` would compute anything."""
        return self._scheduler.has_work

    @property
    def num_running(self) -> int:
        """Sequences that own KV memory."""
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue."""
        return self._scheduler.num_waiting

    @property
    def num_requests(self) -> int:
        """Requests that have not finished."""
        return len(self._requests)

    @property
    def num_preemptions(self) -> int:
        """How often a sequence lost its KV memory to another."""
        return self._scheduler.num_preemptions

    @property
    def kv_used_tokens(self) -> int:
        """Tokens of KV memory that running sequences hold."""
        return self._kv.used_tokens

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens of KV memory over all slots."""
        return self._config.kv_capacity_tokens

    def submit(self, request: GenerationRequest) -> Started:
        """Queues a request.

        Raises:
            InvalidArgument: An empty prompt, a token id outside the vocabulary, or more tokens than the context.
            ResourceExhausted: The queue is full.
            AlreadyExists: A request of this id is running.
            DeadlineExceeded: The deadline passed, or the prompt alone would outlast it at the measured speed.
        """
        if request.request_id in self._requests:
            raise AlreadyExists("a request of this id is already running")
        sampling = request.sampling
        max_output = self._check(request)
        self._check_deadline(request)
        num_queued = sum(not entry.scheduled_s for entry in self._requests.values())
        if num_queued >= self._config.max_waiting_requests:
            raise ResourceExhausted(
                f"the queue holds {self._config.max_waiting_requests} requests already",
                metadata={"limit": self._config.max_waiting_requests},
                retry_delay_s=1.0,
            )
        seed = sampling.seed if sampling.seed is not None else secrets.randbits(63)
        running = RunningRequest(request=request, seed=seed, max_output=max_output)
        # Its siblings follow when it has computed the prompt, so that they copy its KV.
        self._scheduler.add(self._new_sequence(running, np.asarray(request.prompt_token_ids, np.int64)))
        self._requests[request.request_id] = running
        if request.deadline_s is not None:
            self._next_deadline_s = min(self._next_deadline_s, request.deadline_s)
        self.counters.prompt_tokens += len(request.prompt_token_ids)
        return Started(request.request_id, len(request.prompt_token_ids))

    def cancel(self, request_id: str, reason: FinishReason = FinishReason.CANCELLED) -> list[Event]:
        """Ends a request now and frees its KV memory. No events when the id is unknown."""
        running = self._requests.get(request_id)
        if running is None:
            return []
        return self._cut_short(running, reason)

    def cancel_all(self, reason: FinishReason) -> list[Event]:
        """Ends every request now."""
        return [event for running in list(self._requests.values()) for event in self._cut_short(running, reason)]

    def release(self) -> list[Event]:
        """The deltas that `step(hold=True)` kept back."""
        deltas = [self._output.release(sequence) for sequence in self._rows.sequences]
        return [delta for delta in deltas if delta is not None]

    def step(self, *, hold: bool = False) -> list[Event]:
        """Computes one step and returns its events, in order. Empty when there is nothing to compute.

        A failure of the runner ends every request with one retryable ERROR; the engine goes on with empty slots.

        Args:
            hold: Keep deltas back that nobody waits for, until `release` or until their sequence has something to say
                that cannot wait (its first token, its end). Their text is then made many tokens at a time.
        """
        events: list[Event] = []
        if self._clock() >= self._next_deadline_s:
            events += self._expire()
        plan = self._scheduler.schedule()
        if plan is None:
            return events
        started = self._clock()
        if plan.prefilling:
            for sequence in plan.prefilling:
                if sequence.request.scheduled_s is None:
                    sequence.request.scheduled_s = started
                    self.counters.cached_prompt_tokens += sequence.request.num_cached_prompt_tokens
        try:
            result = self._runner.run(plan.batch)
            self._scheduler.speed.observe(plan, result)
            self._process(plan, result, events, hold)
        except Exception as error:
            logger.exception("the step failed")
            events += self._fail_all(error)
        counters = self.counters
        counters.steps += 1
        counters.step_s_sum += self._clock() - started
        counters.batch_size_sum += len(plan.decoding) + len(plan.prefilling)
        return events

    def check_integrity(self) -> None:
        """Raises AssertionError when the books do not balance; for tests and idle time."""
        self._kv.check_integrity()
        if not self._requests:
            assert not self._scheduler.has_work
            assert self._kv.used_tokens == 0

    def _new_slots(self) -> KvSlots:
        info = self._runner.info
        return KvSlots(
            num_slots=info.num_slots,
            max_model_len=info.max_model_len,
            capacity_tokens=self._config.kv_capacity_tokens,
            copy_slot=self._runner.copy_slot,
            discard_slot=self._runner.discard_slot,
        )

    def _check(self, request: GenerationRequest) -> int:
        """Checks the prompt and returns the most tokens to generate."""
        prompt, sampling = request.prompt_token_ids, request.sampling
        field_name = "prompt_token_ids"
        if not prompt:
            raise InvalidArgument("the prompt is empty", reason="MISSING_FIELD", field="prompt")
        low, high = min(prompt), max(prompt)
        if low < 0 or high >= self._vocab_size:
            wrong = low if low < 0 else high
            index = prompt.index(wrong)
            raise InvalidArgument(
                f"{field_name}[{index}] is {wrong}; the vocabulary has {self._vocab_size} tokens",
                field=field_name,
            )
        for name, token_ids in (
            ("stop_token_ids", sampling.stop_token_ids),
            ("logit_bias", sampling.logit_bias),
        ):
            for token_id in token_ids:
                if not 0 <= token_id < self._vocab_size:
                    raise InvalidArgument(
                        f"{name} names token {token_id}; the vocabulary has {self._vocab_size} tokens",
                        field=name,
                    )
        room, asked, cap = self._max_model_len - len(prompt), sampling.max_tokens, self._config.max_tokens_cap
        if asked is not None and asked > cap:
            raise InvalidArgument(f"max_tokens is {asked}; this server allows {cap}", field="max_tokens")
        if room < (asked or 1):
            raise InvalidArgument(
                f"the prompt has {len(prompt)} tokens and max_tokens is {asked or 1}, together more than the model's "
                f"context of {self._max_model_len}",
                reason="CONTEXT_LENGTH_EXCEEDED",
                field="prompt" if room < 1 else "max_tokens",
                metadata={"prompt_tokens": len(prompt), "max_model_len": self._max_model_len},
            )
        return asked or min(room, cap)

    def _new_sequence(self, running: RunningRequest, prompt: NDArray[np.int64]) -> Sequence:
        """The request's next sequence."""
        sampling, max_output = running.request.sampling, running.max_output
        index = len(running.sequences)
        tokens = np.empty(len(prompt) + max_output, np.int64)
        tokens[: len(prompt)] = prompt
        self._order += 1
        sequence = Sequence(
            request=running,
            index=index,
            order=self._order,
            tokens=tokens,
            num_tokens=len(prompt),
            num_told=len(prompt),
            num_prompt=len(prompt),
            max_output=max_output,
            row=RowState(
                sampling,
                seed=running.seed,
                stream=index,
                prompt_token_ids=running.request.prompt_token_ids,
                vocab_size=self._vocab_size,
                eos_token_ids=self._vocabulary.eos_token_ids,
                constraint=None if running.request.grammar is None else running.request.grammar.start(),
            ),
            detokenizer=Detokenizer(
                self._vocabulary,
                prompt_tail=running.request.prompt_token_ids[-8:],
                skip_special_tokens=sampling.skip_special_tokens,
            ),
            stop=StopMatcher(sampling.stop, sampling.include_stop) if sampling.stop else None,
            wants_prompt_logits=index == 0 and sampling.prompt_logprobs is not None,
        )
        running.sequences.append(sequence)
        return sequence

    def _expire(self) -> list[Event]:
        """Ends the requests whose deadline passed."""
        now = self._clock()
        events: list[Event] = []
        self._next_deadline_s = float("inf")
        for running in list(self._requests.values()):
            deadline_s = running.request.deadline_s
            if deadline_s is None:
                continue
            if now >= deadline_s:
                events += self._cut_short(running, FinishReason.DEADLINE)
                continue
            self._next_deadline_s = min(self._next_deadline_s, deadline_s)
        return events

    def _check_deadline(self, request: GenerationRequest) -> None:
        if request.deadline_s is None:
            return
        token_s = self._scheduler.speed.prefill_token_s or 0.0
        left_s = request.deadline_s - self._clock()
        needed_s = token_s * len(request.prompt_token_ids)
        if left_s <= needed_s:
            raise DeadlineExceeded(
                f"the prompt needs about {needed_s:.3f} s and the deadline is {max(left_s, 0.0):.3f} s away"
            )

    def _process(self, plan: SchedulerStep, result: StepResult, events: list[Event], hold: bool) -> None:
        finished: list[Sequence] = []
        decoding = plan.decoding
        for sequence, logits in zip(plan.prefilling, result.prefill_logits, strict=True):
            if sequence.wants_prompt_logits and logits is not None:
                self._output.score_prompt(sequence, logits)
        ready = self._scheduler.advance(plan)
        if decoding:
            assert result.decode_logits is not None
            if plan.is_new_composition or len(self._rows.sequences) != len(decoding):
                events += self.release()  # what is held belongs to the rows as they were
                self._rows = DecodeRows(decoding, self._is_end)
            self._sample_rows(result.decode_logits, events, finished, hold)
        if ready:
            self._sample_first(plan, ready, result, events, finished)
        if finished:
            self._scheduler.finish(finished)
            for sequence in finished:
                if sequence.request.is_finished and self._is_open(sequence.request):
                    events.append(self._finished_event(sequence.request))

    def _sample_first(
        self,
        plan: SchedulerStep,
        ready: list[Sequence],
        result: StepResult,
        events: list[Event],
        finished: list[Sequence],
    ) -> None:
        """Samples the first token of the sequences whose prefill ended, and queues the siblings of theirs."""
        by_sequence = {
            id(sequence): logits for sequence, logits in zip(plan.prefilling, result.prefill_logits, strict=True)
        }
        last_rows = [by_sequence[id(sequence)] for sequence in ready]
        logits = np.concatenate([rows[-1:] for rows in last_rows if rows is not None])
        self._sample(ready, logits, events, finished)
        for sequence in ready:
            sequence.wants_prompt_logits = False
            request = sequence.request
            if sequence.index == 0 and sequence.num_output == 1 and self._is_open(request):
                for _ in range(1, request.num_sequences):
                    self._scheduler.add(self._new_sequence(request, sequence.tokens[: sequence.num_prompt]))

    def _sample_rows(self, logits: FloatArray, events: list[Event], finished: list[Sequence], hold: bool) -> None:
        """Samples the decode rows. Rows whose token neither ends them nor must be looked at only note it."""
        rows = self._rows
        sampled = self._sampler.sample(logits, rows.states)
        now = self._clock()
        self.counters.generated_tokens += len(rows.states)
        urgent: Sequenced[int] = rows.accept(sampled.token_ids)
        if not hold or sampled.bad_rows:
            urgent = range(len(rows.states))
        self._scheduler.set_next_tokens(sampled.token_ids)
        token_ids = sampled.token_ids.tolist()
        if len(urgent) < len(token_ids):
            for sequence, token_id in zip(rows.sequences, token_ids, strict=True):
                sequence.append(token_id)
                sequence.request.last_token_s = now
            for index in urgent:
                rows.sequences[index].num_tokens -= 1  # it is taken below
        if urgent:
            self._take(rows.sequences, sampled, urgent, now, events, finished)

    def _sample(
        self,
        sequences: list[Sequence],
        logits: FloatArray,
        events: list[Event],
        finished: list[Sequence],
    ) -> None:
        """Samples the first token of each sequence."""
        sampled = self._sampler.sample(logits, [sequence.row for sequence in sequences])
        self.counters.generated_tokens += len(sequences)
        self._take(sequences, sampled, range(len(sequences)), self._clock(), events, finished)

    def _take(
        self,
        sequences: Sequenced[Sequence],
        sampled: SampleResult,
        indices: Sequenced[int],
        now: float,
        events: list[Event],
        finished: list[Sequence],
    ) -> None:
        """Turns the sampled tokens of some rows into events."""
        scores, bad_rows = sampled.scores, sampled.bad_rows
        for index in indices:
            sequence = sequences[index]
            request = sequence.request
            if sequence.state is not SequenceState.DECODING or not self._is_open(request):
                continue  # a sibling's failure ended the request in this step
            if bad_rows and index in bad_rows:
                events += self._fail_row(sequence)
                continue
            if request.first_token_s is None:
                request.first_token_s = now
            request.last_token_s = now
            delta, end = self._output.take(sequence, int(sampled.token_ids[index]), scores[index] if scores else None)
            events.append(delta)
            if end is not None:
                request.ends[sequence.index] = end
                finished.append(sequence)

    def _cut_short(self, running: RunningRequest, reason: FinishReason, failure: Failure | None = None) -> list[Event]:
        open_sequences = [sequence for sequence in running.sequences if sequence.index not in running.ends]
        events: list[Event] = self._held_by(running)
        self._scheduler.finish(open_sequences)
        self._end_all(running, reason)
        events.append(self._finished_event(running, reason=reason, failure=failure))
        return events

    def _held_by(self, running: RunningRequest) -> list[Event]:
        deltas = [self._output.release(sequence) for sequence in running.sequences]
        return [delta for delta in deltas if delta is not None]

    def _is_open(self, running: RunningRequest) -> bool:
        return self._requests.get(running.request.request_id) is running

    def _end_all(self, running: RunningRequest, reason: FinishReason) -> None:
        """Books the end of the sequences that have none, also of siblings that never began."""
        for sequence in running.sequences:
            running.ends.setdefault(sequence.index, SequenceEnd(reason, None, sequence.num_output))
        for index in range(len(running.sequences), running.num_sequences):
            running.ends[index] = SequenceEnd(reason, None, 0)

    def _finished_event(
        self, running: RunningRequest, *, reason: FinishReason | None = None, failure: Failure | None = None
    ) -> Finished:
        request = running.request
        del self._requests[request.request_id]
        now = self._clock()
        scheduled = running.scheduled_s if running.scheduled_s is not None else now
        first = running.first_token_s if running.first_token_s is not None else now
        last = running.last_token_s if running.last_token_s is not None else first
        ends = [running.ends[index] for index in range(running.num_sequences)]
        return Finished(
            request_id=request.request_id,
            finish_reason=reason or ends[0].finish_reason,
            sequences=ends,
            prompt_tokens=len(request.prompt_token_ids),
            completion_tokens=sum(end.num_tokens for end in ends),
            cached_prompt_tokens=running.num_cached_prompt_tokens,
            queue_s=scheduled - request.arrival_s,
            prefill_s=max(0.0, first - scheduled),
            decode_s=max(0.0, last - first),
            ttft_s=first - request.arrival_s if running.first_token_s is not None else 0.0,
            total_s=now - request.arrival_s,
            prompt_logprobs=running.prompt_logprobs,
            failure=failure,
        )

    def _fail_row(self, sequence: Sequence) -> list[Event]:
        """Ends the request of a row that has no possible token."""
        mask = sequence.row.mask
        error = mask.constraint.failure if mask is not None else None
        failure = Failure.of(error or Internal("the model's output is not a number"))
        return self._cut_short(sequence.request, FinishReason.ERROR, failure)

    def _fail_all(self, error: Exception) -> list[Event]:
        """Ends every request after a step failed, and starts over with empty slots."""
        events: list[Event] = []
        for running in list(self._requests.values()):
            failure = Failure.of(
                Internal(
                    f"the step failed: {type(error).__name__}",
                    retry_delay_s=1.0,
                )
            )
            events += self._held_by(running)
            self._end_all(running, FinishReason.ERROR)
            events.append(self._finished_event(running, reason=FinishReason.ERROR, failure=failure))
        for slot in range(self._runner.info.num_slots):
            self._runner.discard_slot(slot)
        self._kv = self._new_slots()
        self._scheduler = Scheduler(
            config=self._config.scheduler,
            kv=self._kv,
            speed=self._scheduler.speed,
            num_preemptions=self._scheduler.num_preemptions,
        )
        self._rows = DecodeRows((), self._is_end)
        return events
