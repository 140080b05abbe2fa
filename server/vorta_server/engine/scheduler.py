"""The scheduler: which sequences compute what in the next step.

It decides; it computes nothing, and knows neither text nor sampling. A step holds one row for every decoding sequence
and prefill chunks within a token budget. Policy, in order:

1. Decoding sequences keep their memory; when it runs out, the sequence of the worst rank is preempted (its tokens are
   kept, its K and V recomputed later, from the prefix cache where that survived).
2. Sequences in prefill go on, then waiting ones are admitted by rank (priority, then arrival), as long as slots, memory
   and the budget allow. A waiting sequence of strictly better priority may preempt a running one.
3. While sequences decode, a step's prefill is cut to the tokens that take about `max_stall` decode steps, by the speeds
   measured so far, so that a long prompt does not hold the running streams up. Where a step is shorter than
   `unseen_step_s` anyway, prefill may fill it up to that: nobody would see the tokens earlier.

Decoding sequences fill the slots 0 to n - 1, which is what lets a runner use one contiguous batch.

With a runner that samples, the next step is scheduled while the tokens of the last one are pending: a row then names
the output that its token comes from, and a sequence whose last token is pending leaves the batch before it is known.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vorta_server.engine.kv import KvSlots
from vorta_server.engine.runner import LogitsWanted, PrefillChunk, StepBatch, StepResult
from vorta_server.engine.sequence import Sequence, SequenceState

DETERMINISTIC_CHUNK_TOKENS = 32
"""Prefill chunk of a deterministic sequence, whatever the load: sums are rounded by how a prompt is cut."""

__all__ = [
    "DETERMINISTIC_CHUNK_TOKENS",
    "LandFirst",
    "Scheduler",
    "SchedulerConfig",
    "SchedulerStep",
    "SpeedEstimate",
]


class LandFirst(Exception):
    """The next step needs memory that another sequence must give up, and a launched step still has tokens for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits of the scheduler.

    Attributes:
        max_running_requests: Most sequences that own a slot.
        max_batched_tokens: Most tokens of one step.
        min_prefill_tokens: Smallest prefill budget of a step, so that a prompt always gets on.
        max_stall: Prefill of a step may take this many times the decode part's time.
        unseen_step_s: A step may take so long whatever its decode part takes: tokens are not sent more often.
        prefix_cache: Whether prompts reuse the K and V of equal prefixes.
    """

    max_running_requests: int = 32
    max_batched_tokens: int = 512
    min_prefill_tokens: int = 16
    max_stall: float = 1.5
    unseen_step_s: float = 0.0
    prefix_cache: bool = True

    def __post_init__(self) -> None:
        for name, low in (("max_running_requests", 1), ("max_batched_tokens", 1), ("min_prefill_tokens", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if not self.max_stall > 0:
            raise ValueError(f"max_stall must be positive, got {self.max_stall}")


@dataclass(slots=True)
class SpeedEstimate:
    """Exponential averages of what prefill tokens and decode steps cost on this runner."""

    prefill_token_s: float | None = None
    decode_step_s: float | None = None

    def observe(self, step: SchedulerStep, result: StepResult) -> None:
        """Takes a step's measured times in."""
        num_prefill = sum(len(chunk.token_ids) for chunk in step.batch.prefills)
        if num_prefill and result.prefill_s > 0:
            self.prefill_token_s = _average(self.prefill_token_s, result.prefill_s / num_prefill)
        if step.decoding and result.decode_s > 0:
            self.observe_decode(result.decode_s)

    def observe_decode(self, decode_s: float) -> None:
        """Takes in what a step's decode rows took."""
        self.decode_step_s = _average(self.decode_step_s, decode_s)


def _average(old: float | None, new: float) -> float:
    return new if old is None else old + 0.2 * (new - old)


@dataclass(slots=True, kw_only=True)
class SchedulerStep:
    """A step to compute.

    Attributes:
        batch: For the runner.
        decoding: The sequence of each decode row.
        prefilling: The sequence of each chunk.
        is_new_composition: Whether `decoding` differs from the last step's.
        sources: int32 [num_rows]; of which output of the last launched step a row's token is, -1 where known.
    """

    batch: StepBatch
    decoding: list[Sequence]
    prefilling: list[Sequence]
    is_new_composition: bool
    sources: NDArray[np.int32]

    @property
    def ready(self) -> list[Sequence]:
        """The prefilled sequences that have all their tokens computed with this step."""
        return [sequence for sequence, chunk in zip(self.prefilling, self.batch.prefills, strict=True) if chunk.is_last]


@dataclass(slots=True, kw_only=True)
class Scheduler:
    """Owns the waiting queue and the running sequences. Engine thread only.

    Attributes:
        is_ahead: Whether the next step may be scheduled while the tokens of the last one are pending.
    """

    config: SchedulerConfig
    kv: KvSlots
    is_ahead: bool = False
    speed: SpeedEstimate = field(default_factory=SpeedEstimate)
    num_preemptions: int = 0
    _waiting: list[tuple[tuple[int, int], Sequence]] = field(default_factory=list)
    _num_waiting: int = 0
    _prefilling: list[Sequence] = field(default_factory=list)
    _decoding: list[Sequence] = field(default_factory=list)
    _is_dirty: bool = True
    _token_ids: NDArray[np.int64] = field(init=False)
    _lengths: NDArray[np.int64] = field(init=False)
    _reserved: NDArray[np.int64] = field(init=False)
    _sources: NDArray[np.int32] = field(init=False)
    _are_pending: bool = False  # whether the decode rows' tokens are those of a launched step
    _deterministic: bool = False
    _num_secured_steps: int = 0  # decode steps until a row needs more memory, while the batch stays as it is
    _repeated: StepBatch | None = None  # the rows' batch, for `repeat`, while they stay as they are
    _num_repeats: int = 0  # steps of `repeat` that the sequences do not know of yet

    def __post_init__(self) -> None:
        rows = self.config.max_running_requests
        self._token_ids = np.zeros(rows, np.int64)
        self._lengths = np.zeros(rows, np.int64)
        self._reserved = np.zeros(rows, np.int64)
        self._sources = np.full(rows, -1, np.int32)

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue."""
        return self._num_waiting

    @property
    def num_running(self) -> int:
        """Sequences that own a slot."""
        return len(self._decoding) + len(self._prefilling)

    @property
    def has_work(self) -> bool:
        """Whether a step would compute anything."""
        return bool(self._decoding or self._prefilling or self._num_waiting)

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence."""
        sequence.state = SequenceState.WAITING
        heapq.heappush(self._waiting, (sequence.rank, sequence))
        self._num_waiting += 1

    def finish(self, sequences: list[Sequence]) -> None:
        """Ends sequences, wherever they are, and frees their slots at once."""
        rows = sorted(
            (sequence for sequence in sequences if sequence.state is SequenceState.DECODING),
            key=lambda sequence: -sequence.slot,
        )
        for sequence in sequences:
            if sequence.state is SequenceState.WAITING:
                self._num_waiting -= 1
            elif sequence.state is SequenceState.PREFILLING:
                self._prefilling.remove(sequence)
                self._release(sequence)
            if sequence.state is not SequenceState.DECODING:
                sequence.state = SequenceState.FINISHED
        if len(self._waiting) > 2 * self._num_waiting + 64:
            self._waiting = [entry for entry in self._waiting if entry[1].state is SequenceState.WAITING]
            heapq.heapify(self._waiting)
        for sequence in rows:  # from the last row on, so that as few rows as possible move
            self._leave_decoding(sequence)
            sequence.state = SequenceState.FINISHED

    def schedule(self) -> SchedulerStep | None:
        """The next step; None when there is nothing to compute.

        Raises LandFirst when a sequence must be preempted while tokens are pending; call again when they are known.
        """
        if self._num_secured_steps > 0 and not (self._is_dirty or self._num_waiting or self._prefilling):
            return self._step([], [], is_new=False)
        self._retire()
        self._secure_decoding()
        chunks, prefilling = self._plan_prefill()
        if not chunks and not self._decoding:
            return None
        is_new = self._is_dirty
        if is_new:
            self._fill_rows()
        self._num_secured_steps = self._count_secured_steps()
        return self._step(chunks, prefilling, is_new=is_new)

    def repeat(self) -> StepBatch | None:
        """The next step where it is the last one's rows and nothing else; None where `schedule` must look.

        For runners whose steps land at once. The batch is the same object each time; `advance_repeated` books it.
        """
        if self._num_secured_steps <= 0 or self._is_dirty or self._num_waiting or self._prefilling:
            return None
        if self._repeated is None:
            self._repeated = self._step([], [], is_new=False).batch
        return self._repeated

    def advance_repeated(self, token_ids: NDArray[np.int64]) -> None:
        """Books a step of `repeat`, which chose these tokens [num_rows]. The sequences hear of it by `catch_up`."""
        batch = self._repeated
        assert batch is not None
        self._num_secured_steps -= 1
        self._num_repeats += 1
        batch.decode_lengths += 1
        batch.decode_token_ids[:] = token_ids

    def catch_up(self) -> None:
        """Tells the sequences of the steps of `repeat`. Due before anything else looks at them."""
        count = self._num_repeats
        if count:
            self._num_repeats = 0
            for sequence in self._decoding:
                sequence.num_computed += count

    def advance(self, step: SchedulerStep) -> None:
        """Books a launched step; the sequences that were ready now decode.

        The caller then appends one sampled token to each of them and to each decoding sequence, or finishes it.
        """
        rows = len(step.decoding)
        if rows:
            self._num_secured_steps -= 1
            self._lengths[:rows] += 1
            for sequence in step.decoding:
                sequence.num_computed += 1
        if self.is_ahead:
            self._are_pending = True
            for row, sequence in enumerate(step.decoding):
                sequence.num_pending += 1
                sequence.output = row
        ready = step.ready
        for sequence, chunk in zip(step.prefilling, step.batch.prefills, strict=True):
            sequence.num_computed += len(chunk.token_ids)
        for index, sequence in enumerate(ready):
            self._prefilling.remove(sequence)
            if self.is_ahead:
                sequence.num_pending, sequence.output = 1, rows + index
            if self.config.prefix_cache:
                self.kv.share(sequence.slot, sequence.tokens[: sequence.num_computed])
            self._join_decoding(sequence)

    def set_next_tokens(self, token_ids: NDArray[np.int64]) -> None:
        """Tells the token that each decode row feeds in the next step, [num_rows] as in the last step."""
        self._token_ids[: len(token_ids)] = token_ids

    def land(self, sequences: list[Sequence]) -> None:
        """Notes that each sequence's oldest pending token is known, or dropped. Nothing to note but of a step ahead."""
        for sequence in sequences:
            sequence.num_pending -= 1

    def all_landed(self) -> None:
        """Notes that no launched step has tokens pending."""
        self._are_pending = False

    def _step(self, chunks: list[PrefillChunk], prefilling: list[Sequence], *, is_new: bool) -> SchedulerStep:
        rows = len(self._decoding)
        batch = StepBatch(
            prefills=chunks,
            decode_token_ids=self._token_ids[:rows],
            decode_lengths=self._lengths[:rows],
            deterministic=self._deterministic or any(sequence.is_deterministic for sequence in prefilling),
        )
        sources = self._sources[:rows]
        if self.is_ahead:
            if not is_new:
                # The rows are those of the last step, and so are the outputs that have their tokens.
                sources[:] = np.arange(rows) if self._are_pending else -1
            sources = sources.copy()
        return SchedulerStep(
            batch=batch,
            decoding=self._decoding,
            prefilling=prefilling,
            is_new_composition=is_new,
            sources=sources,
        )

    def _retire(self) -> None:
        """Takes the sequences out of the batch whose last token is pending."""
        if not self._are_pending:
            return
        for sequence in reversed(self._decoding):
            if sequence.num_output + sequence.num_pending >= sequence.max_output:
                self._leave_decoding(sequence)
                sequence.state = SequenceState.LANDING

    def _count_secured_steps(self) -> int:
        """Steps that the decode rows can go as they are: none needs memory, none has its last token pending."""
        rows = len(self._decoding)
        if not rows:
            return 0
        secured = int((self._reserved[:rows] - self._lengths[:rows]).min())
        if self.is_ahead:
            secured = min(
                secured, *(entry.max_output - entry.num_output - entry.num_pending for entry in self._decoding)
            )
        return secured

    def _fill_rows(self) -> None:
        """Rebuilds the per-row arrays. The list is a new one, so that a step keeps the one it was given."""
        self._decoding = list(self._decoding)
        for row, sequence in enumerate(self._decoding):
            self._token_ids[row] = sequence.tokens[sequence.num_tokens - 1]
            self._sources[row] = sequence.output if sequence.num_pending else -1
            self._lengths[row] = sequence.num_computed
            self._reserved[row] = self.kv.reserved(sequence.slot)
        self._deterministic = any(sequence.is_deterministic for sequence in self._decoding)
        self._repeated = None
        self._is_dirty = False

    def _secure_decoding(self) -> None:
        """Gives every decoding sequence room for one more token, preempting the worst-ranked when memory is out."""
        for sequence in sorted(self._decoding, key=lambda entry: entry.rank):
            while sequence.state is SequenceState.DECODING:
                if self.kv.reserve(sequence.slot, sequence.num_computed + 1):
                    self._reserved[sequence.slot] = self.kv.reserved(sequence.slot)
                    break
                self._preempt(self._worst_running())

    def _plan_prefill(self) -> tuple[list[PrefillChunk], list[Sequence]]:
        budget = self._prefill_budget()
        chunks: list[PrefillChunk] = []
        chosen: list[Sequence] = []
        for sequence in sorted(self._prefilling, key=lambda entry: entry.rank):
            if budget <= 0:
                break
            if sequence.state is not SequenceState.PREFILLING:
                continue
            budget -= self._add_chunk(sequence, budget, chunks, chosen)
        while budget > 0:
            candidate = self._next_waiting()
            if candidate is None or not self._admit(candidate):
                break
            budget -= self._add_chunk(candidate, budget, chunks, chosen)
        # A later admission may have preempted an earlier choice, and that may have been admitted anew.
        latest = {id(sequence): i for i, sequence in enumerate(chosen)}
        kept = [
            i
            for i, sequence in enumerate(chosen)
            if sequence.state is SequenceState.PREFILLING and latest[id(sequence)] == i
        ]
        return [chunks[i] for i in kept], [chosen[i] for i in kept]

    def _add_chunk(self, sequence: Sequence, budget: int, chunks: list[PrefillChunk], chosen: list[Sequence]) -> int:
        start = sequence.num_computed
        end = min(start + budget, sequence.num_tokens)
        if sequence.is_deterministic:
            end = _deterministic_end(sequence)
            if end - start > budget and chunks:
                return 0  # its chunks have their size: it waits for a step with room
        is_last = end == sequence.num_tokens
        wanted = LogitsWanted.LAST if is_last else LogitsWanted.NONE
        if sequence.wants_prompt_logits:
            wanted = LogitsWanted.ALL
        chunks.append(
            PrefillChunk(
                slot=sequence.slot,
                token_ids=sequence.tokens[start:end],
                num_past=start,
                logits=wanted,
                is_last=is_last,
            )
        )
        chosen.append(sequence)
        return end - start

    def _prefill_budget(self) -> int:
        config, speed = self.config, self.speed
        budget = config.max_batched_tokens - len(self._decoding)
        if self._decoding and speed.prefill_token_s and speed.decode_step_s:
            prefill_s = max(config.max_stall * speed.decode_step_s, config.unseen_step_s - speed.decode_step_s)
            fitting = int(prefill_s / speed.prefill_token_s)
            budget = min(budget, fitting)
        return max(budget, config.min_prefill_tokens)

    def _next_waiting(self) -> Sequence | None:
        while self._waiting:
            sequence = self._waiting[0][1]
            if sequence.state is SequenceState.WAITING:
                return sequence
            heapq.heappop(self._waiting)
        return None

    def _admit(self, sequence: Sequence) -> bool:
        """Gives the best waiting sequence a slot and memory for all its tokens. False when it must wait."""
        while self.num_running >= self.config.max_running_requests:
            if not self._preempt_for(sequence):
                return False
        while not self._place(sequence):
            if not self._preempt_for(sequence):
                return False
        heapq.heappop(self._waiting)
        self._num_waiting -= 1
        sequence.state = SequenceState.PREFILLING
        self._prefilling.append(sequence)
        return True

    def _place(self, sequence: Sequence) -> bool:
        prompt = sequence.tokens[: sequence.num_tokens]
        wanted = sequence.num_tokens + 1
        match = None
        if self.config.prefix_cache and not sequence.wants_prompt_logits and not sequence.is_deterministic:
            match = self.kv.find_prefix(prompt)
        if match is not None and match.is_continuation and self.kv.take_over(match, num_tokens=wanted):
            sequence.slot, sequence.num_computed = match.slot, match.length
        elif (slot := self.kv.acquire(num_tokens=wanted, prefix=match)) is not None:
            sequence.slot, sequence.num_computed = slot, match.length if match is not None else 0
        elif match is not None and match.is_idle and self.kv.take_over(match, num_tokens=wanted):
            sequence.slot, sequence.num_computed = match.slot, match.length
        else:
            return False
        if sequence.index == 0 and not sequence.num_preempted:
            sequence.request.num_cached_prompt_tokens = sequence.num_computed
        return True

    def _preempt_for(self, sequence: Sequence) -> bool:
        """Preempts a running sequence of strictly worse priority. False when there is none."""
        if not self.num_running:
            return False
        victim = self._worst_running()
        if victim.rank[0] <= sequence.rank[0]:
            return False
        self._preempt(victim)
        return True

    def _worst_running(self) -> Sequence:
        return max((*self._decoding, *self._prefilling), key=lambda entry: entry.rank)

    def _preempt(self, sequence: Sequence) -> None:
        if self._are_pending:
            raise LandFirst
        self.num_preemptions += 1
        sequence.num_preempted += 1
        if sequence.state is SequenceState.DECODING:
            self._leave_decoding(sequence)
        else:
            self._prefilling.remove(sequence)
            self._release(sequence)
        sequence.num_computed = 0
        self.add(sequence)

    def _release(self, sequence: Sequence) -> None:
        self.kv.release(sequence.slot, sequence.tokens[: sequence.num_known], cache=self.config.prefix_cache)
        sequence.slot = -1

    def _leave_decoding(self, sequence: Sequence) -> None:
        """Frees a decode row and moves the last row into the gap."""
        row = sequence.slot
        last = self._decoding[-1]
        self._decoding = self._decoding[:-1]
        self._release(sequence)
        if last is not sequence:
            self.kv.move(last.slot, row, last.num_computed)
            last.slot = row
            self._decoding[row] = last
        self._is_dirty = True

    def _join_decoding(self, sequence: Sequence) -> None:
        """Moves a prefilled sequence to the first slot behind the decode rows."""
        row = len(self._decoding)
        if sequence.slot != row:
            owner = next((entry for entry in self._prefilling if entry.slot == row), None)
            if owner is not None:
                spare = self.kv.spare_slot(exclude=sequence.slot)
                self.kv.move(row, spare, owner.num_computed)
                owner.slot = spare
            self.kv.move(sequence.slot, row, sequence.num_computed)
            sequence.slot = row
        self._decoding = [*self._decoding, sequence]
        sequence.state = SequenceState.DECODING
        self._is_dirty = True


def _deterministic_end(sequence: Sequence) -> int:
    """Where the next chunk ends: fixed pieces of the prompt; after a preemption, then one generated token at a time."""
    start = sequence.num_computed
    if start >= sequence.num_prompt:
        return start + 1
    return min(start + DETERMINISTIC_CHUNK_TOKENS, sequence.num_prompt)
