"""The engine: requests in, events out, one step at a time.

It joins scheduler, runner, sampler and output. It is synchronous and single-threaded: a worker calls `submit`,
`cancel` and `step` from one thread. Every request that `submit` accepted ends in exactly one `Finished`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Sequenced
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from vorta.errors import (
    AlreadyExists,
    Internal,
    ResourceExhausted,
)
from vorta_server.engine.admission import Admission, check_deadline
from vorta_server.engine.decode_rows import DecodeRows
from vorta_server.engine.draws import DrawColumns, assign_states
from vorta_server.engine.flight import Flight
from vorta_server.engine.kv import KvSlots
from vorta_server.engine.output import OutputBuilder, Vocabulary
from vorta_server.engine.request import (
    Event,
    Failure,
    Finished,
    FinishReason,
    GenerationRequest,
    Started,
)
from vorta_server.engine.runner import ModelRunner, SamplingRunner, StepResult
from vorta_server.engine.sampler import DrawKernel, Sampler, SampleResult
from vorta_server.engine.scheduler import LandFirst, Scheduler, SchedulerConfig
from vorta_server.engine.sequence import RunningRequest, Sequence, SequenceState

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
        self._clock = clock
        info = runner.info
        if info.num_slots <= 2 * self._config.scheduler.max_running_requests:
            raise ValueError(
                f"the runner's {info.num_slots} slots must exceed twice max_running_requests "
                f"({self._config.scheduler.max_running_requests})"
            )
        self._admission = Admission(vocabulary, info, max_tokens_cap=self._config.max_tokens_cap)
        self._kv = self._new_slots()
        self._sampling_runner: SamplingRunner | None = cast(SamplingRunner, runner) if info.samples else None
        self._scheduler = Scheduler(config=self._config.scheduler, kv=self._kv, is_ahead=info.samples)
        self._sampler = Sampler(info.vocab_size, draw_kernel)
        self._output = OutputBuilder(vocabulary)
        self._requests: dict[str, RunningRequest] = {}
        self._is_end = np.zeros(info.vocab_size, np.bool_)
        self._is_end[[token_id for token_id in self._output.eos_token_ids if token_id < info.vocab_size]] = True
        self._rows = self._launched_rows = DecodeRows((), self._is_end)
        self._flight: Flight | None = None
        self._num_failures = 0
        self._next_deadline_s = float("inf")
        self.counters = EngineCounters()

    @property
    def has_work(self) -> bool:
        """Whether `step` would compute anything."""
        return self._scheduler.has_work or self._flight is not None

    @property
    def num_running(self) -> int:
        """Sequences that own KV memory."""
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue."""
        return self._scheduler.num_waiting

    @property
    def num_failures_in_row(self) -> int:
        """Steps that failed since the last one that did not. A GPU that faulted fails all until its process ends."""
        return self._num_failures

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
        running = self._admission.admit(request)
        # The estimate of an idle engine is not trusted: nothing would ever correct it.
        token_s = (self._scheduler.speed.prefill_token_s or 0.0) if self._requests else 0.0
        check_deadline(request, self._clock(), token_s)
        num_queued = sum(not entry.scheduled_s for entry in self._requests.values())
        if num_queued >= self._config.max_waiting_requests:
            raise ResourceExhausted(
                f"the queue holds {self._config.max_waiting_requests} requests already",
                metadata={"limit": self._config.max_waiting_requests},
                retry_delay_s=1.0,
            )
        # Its siblings follow when it has computed the prompt, so that they copy its KV.
        self._scheduler.add(self._admission.new_sequence(running, np.asarray(request.prompt_token_ids, np.int64)))
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
        self._catch_up()
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
        if not self.has_work:
            return events
        started = self._clock()
        try:
            if not (hold and self._repeat(events)):
                self._fly(events, hold)
            self._num_failures = 0
        except Exception as error:
            logger.exception("the step failed")
            self._num_failures += 1
            events += self._fail_all(error)
        self.counters.steps += 1
        self.counters.step_s_sum += self._clock() - started
        return events

    def _fly(self, events: list[Event], hold: bool) -> None:
        """Launches a step and lands one: the same, or with a runner that samples the one before it, so that the device
        computes while the host looks at tokens."""
        self._catch_up()
        if self._flight is not None and self._flight.needs_host:
            self._land(events, hold, is_last=True)
        try:
            launched = self._launch()
        except LandFirst:
            self._land(events, hold, is_last=True)
            launched = self._launch()
        self._land(events, hold, is_last=launched is None)
        self._flight = launched
        if self._sampling_runner is None:
            self._land(events, hold, is_last=True)

    def _repeat(self, events: list[Event]) -> bool:
        """Computes a step of the last one's rows where that is all there is to do; False where it is not.

        Almost every step is one of these, so what a token costs beside the model is what this does: rows learn of
        their tokens when somebody asks (`_catch_up`), unless one of them ends.
        """
        rows = self._rows
        if self._sampling_runner is not None or rows.watched or rows is not self._launched_rows:
            return False
        batch = self._scheduler.repeat()
        if batch is None:
            return False
        result = self._runner.run(batch)
        assert result.decode_logits is not None
        self._scheduler.speed.observe_decode(result.decode_s)
        sampled = self._sampler.sample(result.decode_logits, rows.states)
        self.counters.batch_size_sum += len(rows.states)
        self._scheduler.advance_repeated(sampled.token_ids)
        urgent = rows.accept(sampled.token_ids)
        if urgent or sampled.bad_rows:
            self._catch_up()
            self._take_rows(sampled, urgent, events, hold=True)
        else:
            self.counters.generated_tokens += len(rows.states)
            rows.keep(sampled.token_ids, self._clock())
        return True

    def _catch_up(self) -> None:
        """Tells the sequences of what `_repeat` did. Due before anything else looks at them."""
        self._scheduler.catch_up()
        self._rows.hand_over()

    def check_integrity(self) -> None:
        """Raises AssertionError when the books do not balance; for tests and idle time."""
        self._catch_up()
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
            shares_blocks=info.shares_blocks,
            copy_slot=self._runner.copy_slot,
            move_slot=self._runner.move_slot,
            discard_slot=self._runner.discard_slot,
        )

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

    def _launch(self) -> Flight | None:
        """Schedules the next step and starts it; None when there is nothing to compute.

        Raises LandFirst when the step in flight must land before.
        """
        plan = self._scheduler.schedule()
        if plan is None:
            return None
        if plan.prefilling:
            now = self._clock()
            for sequence in plan.prefilling:
                if sequence.request.scheduled_s is None:
                    sequence.request.scheduled_s = now
                    self.counters.cached_prompt_tokens += sequence.request.num_cached_prompt_tokens
        if plan.is_new_composition or len(self._launched_rows.sequences) != len(plan.decoding):
            self._launched_rows = DecodeRows(plan.decoding, self._is_end)
        self.counters.batch_size_sum += len(plan.decoding) + len(plan.prefilling)
        rows, ready = self._launched_rows, plan.ready
        result: Callable[[], StepResult]
        if self._sampling_runner is None:
            known = self._runner.run(plan.batch)

            def result() -> StepResult:
                return known

        else:
            resets = assign_states(plan.decoding, ready)
            plan.batch.draws = rows.columns.draw(DrawColumns(ready), plan.sources, resets)
            result = self._sampling_runner.launch(plan.batch)
        self._scheduler.advance(plan)
        return Flight(plan=plan, rows=rows, ready=ready, result=result)

    def _land(self, events: list[Event], hold: bool, *, is_last: bool) -> None:
        """Takes the result of the step in flight; `is_last` unless another one was launched behind it."""
        flight, self._flight = self._flight, None
        if flight is None:
            return
        plan, rows, ready = flight.plan, flight.rows, flight.ready
        result = flight.result()
        self._scheduler.speed.observe(plan, result)
        for sequence, chunk, logits in zip(plan.prefilling, plan.batch.prefills, result.prefill_logits, strict=True):
            if sequence.wants_prompt_logits and logits is not None and self._is_open(sequence.request):
                try:
                    self._output.score_prompt(sequence, logits, chunk.num_past)
                except Internal as error:  # logits that are no numbers
                    events += self._cut_short(sequence.request, FinishReason.ERROR, Failure.of(error))
        decoded, first = flight.choose(self._sampler, result)
        if plan.batch.draws is not None:
            self._scheduler.land([*plan.decoding, *ready])
            if is_last:
                self._scheduler.all_landed()
        if decoded is not None:
            if rows is not self._rows:
                events += self.release()  # what is held belongs to the rows as they were
                self._rows = rows
            self._scheduler.set_next_tokens(decoded.token_ids)
            self._take_rows(decoded, rows.accept(decoded.token_ids), events, hold=hold)
        if first is not None:
            self._take_first(ready, first, events)

    def _take_first(self, ready: list[Sequence], sampled: SampleResult, events: list[Event]) -> None:
        """Takes the first token of the sequences whose prefill ended, and queues the siblings of theirs."""
        self.counters.generated_tokens += len(ready)
        self._take(ready, sampled, range(len(ready)), self._clock(), events)
        for sequence in ready:
            sequence.wants_prompt_logits = False
            request = sequence.request
            if sequence.index == 0 and sequence.num_output == 1 and self._is_open(request):
                for _ in range(1, request.num_sequences):
                    self._scheduler.add(self._admission.new_sequence(request, sequence.tokens[: sequence.num_prompt]))

    def _take_rows(self, sampled: SampleResult, urgent: Sequenced[int], events: list[Event], *, hold: bool) -> None:
        """Takes the decode rows' tokens. Only `urgent` rows' tokens are looked at where the others may be held."""
        rows = self._rows
        now = self._clock()
        num_rows = len(rows.states)
        # A sequence may have ended when this step was on its way already.
        is_whole = self._sampling_runner is None or not any(
            sequence.state is SequenceState.FINISHED for sequence in rows.sequences
        )
        if not is_whole:
            urgent = [row for row in range(num_rows) if rows.sequences[row].state is not SequenceState.FINISHED]
        elif not hold or sampled.bad_rows:
            urgent = range(num_rows)
        self.counters.generated_tokens += num_rows if is_whole else len(urgent)
        if is_whole and len(urgent) < num_rows:
            for sequence, token_id in zip(rows.sequences, sampled.token_ids.tolist(), strict=True):
                sequence.append(token_id)
                sequence.request.last_token_s = now
            for index in urgent:
                rows.sequences[index].num_tokens -= 1  # it is taken below
        if urgent:
            self._take(rows.sequences, sampled, urgent, now, events)

    def _take(
        self,
        sequences: Sequenced[Sequence],
        sampled: SampleResult,
        indices: Sequenced[int],
        now: float,
        events: list[Event],
    ) -> None:
        """Turns the sampled tokens of some rows into events, and ends the sequences that end with them."""
        scores, bad_rows = sampled.scores, sampled.bad_rows
        finished: list[Sequence] = []
        for index in indices:
            sequence = sequences[index]
            request = sequence.request
            if sequence.state is SequenceState.FINISHED or not self._is_open(request):
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
        if finished:
            self._scheduler.finish(finished)
            for sequence in finished:
                if sequence.request.is_finished and self._is_open(sequence.request):
                    events.append(self._finished_event(sequence.request))

    def _cut_short(self, running: RunningRequest, reason: FinishReason, failure: Failure | None = None) -> list[Event]:
        self._catch_up()
        open_sequences = [sequence for sequence in running.sequences if sequence.index not in running.ends]
        events: list[Event] = self._held_by(running)
        self._scheduler.finish(open_sequences)
        running.end_all(reason)
        events.append(self._finished_event(running, reason=reason, failure=failure))
        return events

    def _held_by(self, running: RunningRequest) -> list[Event]:
        deltas = [self._output.release(sequence) for sequence in running.sequences]
        return [delta for delta in deltas if delta is not None]

    def _is_open(self, running: RunningRequest) -> bool:
        return self._requests.get(running.request.request_id) is running

    def _finished_event(
        self, running: RunningRequest, *, reason: FinishReason | None = None, failure: Failure | None = None
    ) -> Finished:
        del self._requests[running.request.request_id]
        return running.finished(self._clock(), reason=reason, failure=failure)

    def _fail_row(self, sequence: Sequence) -> list[Event]:
        """Ends the request of a row that has no possible token."""
        mask = sequence.row.mask
        error = mask.constraint.failure if mask is not None else None
        failure = Failure.of(error or Internal("the model's output is not a number"))
        return self._cut_short(sequence.request, FinishReason.ERROR, failure)

    def _fail_all(self, error: Exception) -> list[Event]:
        """Ends every request after a step failed, and starts over with empty slots."""
        self._catch_up()
        events: list[Event] = []
        for running in list(self._requests.values()):
            failure = Failure.of(
                Internal(
                    f"the step failed: {type(error).__name__}",
                    retry_delay_s=1.0,
                )
            )
            events += self._held_by(running)
            running.end_all(FinishReason.ERROR)
            events.append(self._finished_event(running, reason=FinishReason.ERROR, failure=failure))
        for slot in range(self._runner.info.num_slots):
            self._runner.discard_slot(slot)
        self._kv = self._new_slots()
        self._scheduler = Scheduler(
            config=self._config.scheduler,
            kv=self._kv,
            is_ahead=self._scheduler.is_ahead,
            speed=self._scheduler.speed,
            num_preemptions=self._scheduler.num_preemptions,
        )
        self._rows = self._launched_rows = DecodeRows((), self._is_end)
        self._flight = None
        return events
