"""The fake runner: a deterministic language model without weights, for tests and for measuring everything else.

The next token is a function of the whole history in the slot, so a slot that was moved, shared or filled wrongly
shows in the output. `next_token` computes the same from the history alone. Time on the device can be simulated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vorta_server.engine.runner import LogitsWanted, RunnerInfo, StepBatch, StepResult

__all__ = ["FakeRunner", "FakeRunnerConfig", "next_token"]

_MODULUS = 2_147_483_647
_MULTIPLIER = 48_271


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeRunnerConfig:
    """What to pretend.

    Attributes:
        vocab_size, max_model_len, num_slots: The model's sizes.
        alphabet: The tokens that it may say: [low, high). All if high is 0.
        eos_token_id, eos_every: With eos_every > 0, one history in that many continues with eos_token_id.
        samples: Be a `SamplingRunner`; it takes the largest logit, whatever the temperature.
        step_s, row_s, prefill_token_s: Simulated device time of a step, of each decode row, of each prefill token.
    """

    vocab_size: int = 256
    max_model_len: int = 4096
    num_slots: int = 65
    alphabet: tuple[int, int] = (0, 0)
    eos_token_id: int = 0
    eos_every: int = 0
    samples: bool = False
    step_s: float = 0.0
    row_s: float = 0.0
    prefill_token_s: float = 0.0


def _digest(history: Iterable[int], start: int = 1) -> int:
    value = start
    for token in history:
        value = (value * _MULTIPLIER + int(token) + 1) % _MODULUS
    return value


def _choose(config: FakeRunnerConfig, digest: int) -> int:
    if config.eos_every and digest % config.eos_every == 0:
        return config.eos_token_id
    low, high = config.alphabet if config.alphabet[1] else (0, config.vocab_size)
    return low + (digest * 7919 % _MODULUS) % (high - low)


def next_token(config: FakeRunnerConfig, history: Iterable[int]) -> int:
    """The greedy continuation of a history."""
    return _choose(config, _digest(history))


@dataclass(slots=True, kw_only=True)
class FakeRunner:
    """A `ModelRunner` that keeps each slot's tokens instead of K and V."""

    config: FakeRunnerConfig
    steps: int = 0
    copied_tokens: int = 0
    discarded: list[int] = field(default_factory=list)
    _slots: NDArray[np.int64] = field(init=False)
    _digests: NDArray[np.int64] = field(init=False)
    _last_token_ids: NDArray[np.int64] = field(init=False)
    _num_in_flight: int = 0

    def __post_init__(self) -> None:
        self._slots = np.full((self.config.num_slots, self.config.max_model_len), -1, np.int64)
        self._digests = np.zeros((self.config.num_slots, self.config.max_model_len + 1), np.int64)
        self._digests[:, 0] = 1
        self._last_token_ids = np.zeros(0, np.int64)

    @property
    def info(self) -> RunnerInfo:
        """The pretended model's sizes."""
        config = self.config
        return RunnerInfo(
            vocab_size=config.vocab_size,
            max_model_len=config.max_model_len,
            num_slots=config.num_slots,
            kv_bytes_per_token=8,
            samples=config.samples,
        )

    def run(self, batch: StepBatch) -> StepResult:
        """Writes the tokens into their slots and answers with logits that favour the continuation."""
        self.steps += 1
        slots = [*range(len(batch.decode_token_ids)), *(chunk.slot for chunk in batch.prefills)]
        if len(set(slots)) != len(slots):
            raise ValueError(f"a slot is twice in the step: {slots}")
        started = time.perf_counter()
        prefill_logits: list[NDArray[np.float32] | None] = []
        for chunk in batch.prefills:
            positions = [
                self._write(chunk.slot, chunk.num_past + i, int(token)) for i, token in enumerate(chunk.token_ids)
            ]
            wanted = {LogitsWanted.NONE: [], LogitsWanted.LAST: positions[-1:], LogitsWanted.ALL: positions}
            digests = wanted[chunk.logits]
            prefill_logits.append(self._logits(digests) if digests else None)
        if batch.prefills:
            _wait(started + self.config.prefill_token_s * sum(len(c.token_ids) for c in batch.prefills))
        prefill_s = time.perf_counter() - started
        started = time.perf_counter()
        rows = len(batch.decode_token_ids)
        digests = [
            self._write(row, int(batch.decode_lengths[row]), int(batch.decode_token_ids[row])) for row in range(rows)
        ]
        logits = self._logits(digests) if rows else None
        if rows:
            _wait(started + self.config.step_s + self.config.row_s * rows)
        return StepResult(
            prefill_logits=prefill_logits,
            decode_logits=logits,
            prefill_s=prefill_s,
            decode_s=time.perf_counter() - started,
        )

    def launch(self, batch: StepBatch) -> Callable[[], StepResult]:
        """Computes the step at once, and tells its result when it is asked for."""
        assert batch.draws is not None
        if self._num_in_flight > 1:
            raise RuntimeError("two steps are in flight already")
        sources = batch.draws.sources
        pending = self._last_token_ids[sources] if len(self._last_token_ids) else batch.decode_token_ids
        batch.decode_token_ids = np.where(sources >= 0, pending, batch.decode_token_ids)
        batch.decode_lengths = batch.decode_lengths.copy()
        result = self.run(batch)
        outputs = [] if result.decode_logits is None else [result.decode_logits]
        for index, chunk in enumerate(batch.prefills):
            logits = result.prefill_logits[index]
            if chunk.is_last:
                assert logits is not None
                outputs.append(logits[-1:])
            if chunk.logits is LogitsWanted.LAST:
                result.prefill_logits[index] = None
        logits = np.concatenate(outputs) if outputs else np.zeros((0, self.config.vocab_size), np.float32)
        if len(logits) != len(batch.draws.temperature):
            raise ValueError(f"{len(batch.draws.temperature)} columns for {len(logits)} outputs")
        is_bad = ~np.isfinite(logits).all(axis=1)
        self._last_token_ids = result.token_ids = np.where(is_bad, -1, logits.argmax(axis=1))
        result.host_logits = logits[batch.draws.on_host]
        result.decode_logits = None
        self._num_in_flight += 1

        def land() -> StepResult:
            self._num_in_flight -= 1
            return result

        return land

    def copy_slot(self, source: int, target: int, num_tokens: int) -> None:
        """Copies tokens; the rest of the target becomes garbage, as on a device."""
        if source == target:
            raise ValueError("source and target slot are the same")
        self.copied_tokens += num_tokens
        self._slots[target, :num_tokens] = self._slots[source, :num_tokens]
        self._digests[target, : num_tokens + 1] = self._digests[source, : num_tokens + 1]

    def move_slot(self, source: int, target: int, num_tokens: int) -> None:
        """Copies tokens and loses the source's content."""
        self.copy_slot(source, target, num_tokens)
        self._slots[source] = -1
        self._digests[source, 1:] = 0

    def discard_slot(self, slot: int) -> None:
        """Loses the slot's content."""
        self.discarded.append(slot)
        self._slots[slot] = -1
        self._digests[slot, 1:] = 0

    def close(self) -> None:
        """Does nothing: there is no device."""

    def _write(self, slot: int, position: int, token: int) -> int:
        self._slots[slot, position] = token
        digest = _digest([token], int(self._digests[slot, position]))
        self._digests[slot, position + 1] = digest
        return digest

    def _logits(self, digests: list[int]) -> NDArray[np.float32]:
        logits = np.zeros((len(digests), self.config.vocab_size), np.float32)
        for row, digest in enumerate(digests):
            logits[row, _choose(self.config, digest)] = 12.0
        return logits


def _wait(until_s: float) -> None:
    remaining = until_s - time.perf_counter()
    if remaining > 0:
        time.sleep(remaining)
