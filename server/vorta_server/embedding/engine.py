"""The engine of an encoder's worker: takes calls, batches their texts, pools, and answers each call once.

Knows no wire and no tokenizer: texts come as token ids, results go to a callback. One thread calls it; lanes compute.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vorta.errors import DeadlineExceeded, ResourceExhausted, VortaError
from vorta_server.embedding.batcher import BatchLimits, TokenBatcher
from vorta_server.embedding.encoder import Encoder
from vorta_server.embedding.pooling import pool

__all__ = ["EncodeJob", "EncoderCounters", "EncoderEngine"]

Float32Array = NDArray[np.float32]

# Weight of the newest batch in the measured speed.
_SPEED_WEIGHT = 0.2

# What waits, in tokens, is computed as one batch by all threads up to so many: a short text is answered soonest so.
_TOGETHER_TOKENS = 256

# A lane's batch has as many at least, if they wait: fewer cost more for each.
_LANE_TOKENS = 128

# A call is refused at once when the speed measured says that it would end this many times later than its deadline.
_HOPELESS = 1.5


@dataclass(slots=True, kw_only=True, eq=False)
class EncodeJob:
    """One call's texts.

    Attributes:
        sequences: Token ids of each text, int32 [S].
        token_types: Beside them, for pairs; None where all are 0.
        pooling: "mean", "cls", "last" or "token"; not used for scores.
        normalize: Scale vectors to length 1.
        dimensions: Numbers kept of each vector; 0 for all.
        deadline_s: `time.monotonic()` by which an answer is of use.
        deliver: Takes the vectors (float32 [texts, D], with "token" [tokens, D]) or scores (float32 [texts, labels]),
            or the error. Called once.
    """

    sequences: Sequence[NDArray[np.int32]]
    token_types: Sequence[NDArray[np.int32] | None] | None = None
    pooling: str = "mean"
    normalize: bool = True
    dimensions: int = 0
    deadline_s: float | None = None
    deliver: Callable[[Float32Array | VortaError], None]
    rows: list[Float32Array | None] = field(default_factory=list)
    num_left: int = 0
    is_over: bool = False


@dataclass(slots=True)
class EncoderCounters:
    """What has been done since the start."""

    batches: int = 0
    texts: int = 0
    tokens: int = 0
    batch_s_sum: float = 0.0


_Batch = list[tuple[EncodeJob, int]]


@dataclass(frozen=True, slots=True)
class _Computed:
    """A batch's rows in its order, its tokens, and the time that it took."""

    rows: list[Float32Array]
    num_tokens: int
    spent_s: float


class EncoderEngine:
    """Batches and computes.

    Where the encoder has lanes, each computes its own batch on its own thread. So no core waits for another in
    the middle of a batch, and whoever calls the engine reads and tokenizes meanwhile. When little waits and no lane is
    busy, all cores compute it together.

    Args:
        encoder: The model.
        limits: Of batches and of the queue.
        wake: Told by a lane's thread that `has_work` is to be looked at.
    """

    def __init__(self, encoder: Encoder, limits: BatchLimits, *, wake: Callable[[], None] = lambda: None) -> None:
        self._encoder = encoder
        self._batcher: TokenBatcher[tuple[EncodeJob, int]] = TokenBatcher(limits, is_packed=encoder.info.is_packed)
        self._num_lanes = encoder.num_lanes
        self._max_lane_tokens = min(limits.max_tokens, encoder.info.lane_tokens)
        self._lanes = ThreadPoolExecutor(self._num_lanes, thread_name_prefix="lane") if self._num_lanes > 1 else None
        self._running: dict[Future[_Computed], _Batch] = {}
        self._wake = wake
        self._jobs: set[EncodeJob] = set()
        self._is_scoring = encoder.info.kind == "rerank"
        self._token_s: float | None = None
        self.counters = EncoderCounters()

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do: texts wait that can be computed, or a lane is done."""
        if self._batcher.num_waiting and len(self._running) < self._num_lanes:
            return True
        return any(future.done() for future in self._running)

    @property
    def num_jobs(self) -> int:
        """Calls that have not been answered."""
        return len(self._jobs)

    @property
    def num_waiting(self) -> int:
        """Texts that wait."""
        return self._batcher.num_waiting

    def submit(self, job: EncodeJob) -> None:
        """Takes a call; it is refused through its callback when the queue is full or its deadline cannot be met."""
        lengths = [len(sequence) for sequence in job.sequences]
        if not self._batcher.has_room(lengths):
            job.deliver(
                ResourceExhausted(
                    f"{self._batcher.num_waiting} texts with {self._batcher.waiting_tokens} tokens wait already",
                    retry_delay_s=1.0,
                )
            )
            return
        if job.deadline_s is not None:
            left_s = job.deadline_s - time.monotonic()
            # Fair queueing lets a call pass what waits before it, so only its own tokens count for sure.
            need_s = sum(lengths) * (self._token_s or 0.0)
            if left_s <= 0 or need_s > _HOPELESS * left_s:
                job.deliver(
                    DeadlineExceeded(
                        "the deadline has passed"
                        if left_s <= 0
                        else f"{sum(lengths)} tokens take about {need_s:.2g} s, but {left_s:.2g} s are left"
                    )
                )
                return
        job.rows = [None] * len(lengths)
        job.num_left = len(lengths)
        self._jobs.add(job)
        self._batcher.add(job, [(job, index) for index in range(len(lengths))], lengths)

    def cancel(self, job: EncodeJob) -> None:
        """Forgets a call that nobody waits for; it is not answered. Idempotent."""
        job.is_over = True
        self._batcher.remove(job)
        self._jobs.discard(job)

    def fail_all(self, error: VortaError) -> None:
        """Answers every call with an error."""
        for job in list(self._jobs):
            self._fail(job, error)

    def step(self) -> None:
        """Answers the calls that lanes have completed and gives them more, or computes one batch here."""
        for future in [future for future in self._running if future.done()]:
            self._take(self._running.pop(future), future.result, self._num_lanes)
        self._expire()
        if self._lanes is None or (not self._running and self._is_little):
            batch = self._batcher.next()
            if batch:
                self._take(batch, lambda: self._compute(batch), 1)
            return
        while self._batcher.num_waiting and len(self._running) < self._num_lanes:
            # What is left for the lanes that have nothing to do, in equal parts.
            share = -(-self._batcher.waiting_tokens // (self._num_lanes - len(self._running)))
            batch = self._batcher.next(min(self._max_lane_tokens, max(share, _LANE_TOKENS)))
            future = self._lanes.submit(self._compute, batch, beside_others=True)
            self._running[future] = batch
            future.add_done_callback(lambda _: self._wake())

    def drain(self) -> None:
        """Computes all that waits."""
        while self._running or self._batcher.num_waiting:
            if not self.has_work:
                wait(self._running, return_when=FIRST_COMPLETED)
            self.step()

    def close(self) -> None:
        """Ends the lanes' threads; batches under way are waited for. Idempotent."""
        if self._lanes is not None:
            self._lanes.shutdown(cancel_futures=True)

    @property
    def _is_little(self) -> bool:
        return self._batcher.num_waiting <= 1 or self._batcher.waiting_tokens <= _TOGETHER_TOKENS

    def _compute(self, batch: _Batch, *, beside_others: bool = False) -> _Computed:
        """Computes a batch. On a lane's thread nothing of a job but what it asked for is read."""
        start_s = time.monotonic()
        sequences = [job.sequences[index] for job, index in batch]
        types = self._token_types(batch)
        if beside_others:
            output = self._encoder.run(sequences, types, beside_others=True)
        else:
            output = self._encoder.run(sequences, types)
        rows = self._split(batch, sequences, output)
        return _Computed(rows, sum(map(len, sequences)), time.monotonic() - start_s)

    def _take(self, batch: _Batch, result: Callable[[], _Computed], num_lanes: int) -> None:
        """Hands a batch's rows to its calls, or their error, and answers those that are complete."""
        try:
            computed = result()
        except Exception as error:
            for job in {job for job, _ in batch}:
                self._fail(job, error if isinstance(error, VortaError) else _failed(error))
            if not isinstance(error, VortaError):
                raise
            return
        counters = self.counters
        counters.batches += 1
        counters.texts += len(batch)
        counters.tokens += computed.num_tokens
        counters.batch_s_sum += computed.spent_s
        token_s = computed.spent_s / max(1, computed.num_tokens) / num_lanes
        self._token_s = (
            token_s if self._token_s is None else (1 - _SPEED_WEIGHT) * self._token_s + _SPEED_WEIGHT * token_s
        )
        for (job, index), row in zip(batch, computed.rows, strict=True):
            if job.is_over:
                continue
            job.rows[index] = row
            job.num_left -= 1
            if not job.num_left:
                job.is_over = True
                self._jobs.discard(job)
                job.deliver(np.concatenate([part for part in job.rows if part is not None]))

    def _token_types(self, batch: _Batch) -> list[NDArray[np.int32]] | None:
        if not self._encoder.info.has_token_types:
            return None
        found = [job.token_types[index] if job.token_types is not None else None for job, index in batch]
        if all(types is None for types in found):
            return None
        return [
            np.zeros(len(job.sequences[index]), np.int32) if types is None else types
            for (job, index), types in zip(batch, found, strict=True)
        ]

    def _split(self, batch: _Batch, sequences: list[NDArray[np.int32]], output: Float32Array) -> list[Float32Array]:
        """Each text's rows [1 or tokens, D] of the encoder's output, pooled as its call wants."""
        if self._is_scoring:
            return [output[index : index + 1] for index in range(len(batch))]
        lengths = np.array([len(sequence) for sequence in sequences], np.int64)
        options = {(job.pooling, job.normalize, job.dimensions) for job, _ in batch}
        rows: list[Float32Array | None] = [None] * len(batch)
        ends = np.cumsum(lengths)
        for pooling, normalize, dimensions in options:
            chosen = [
                index
                for index, (job, _) in enumerate(batch)
                if (job.pooling, job.normalize, job.dimensions) == (pooling, normalize, dimensions)
            ]
            hidden = output
            if len(chosen) < len(batch):
                hidden = np.concatenate([output[ends[index] - lengths[index] : ends[index]] for index in chosen])
            pooled = pool(hidden, lengths[chosen], pooling=pooling, normalize=normalize, dimensions=dimensions or None)
            start = 0
            for index in chosen:
                size = int(lengths[index]) if pooling == "token" else 1
                rows[index] = pooled[start : start + size]
                start += size
        return [row for row in rows if row is not None]

    def _expire(self) -> None:
        now_s = time.monotonic()
        for job in [job for job in self._jobs if job.deadline_s is not None and job.deadline_s <= now_s]:
            self._fail(job, DeadlineExceeded("the deadline passed before the texts were computed"))

    def _fail(self, job: EncodeJob, error: VortaError) -> None:
        if not job.is_over:
            self.cancel(job)
            job.deliver(error)


def _failed(error: Exception) -> VortaError:
    from vorta.errors import Internal

    return Internal(f"the model failed: {type(error).__name__}")
