"""The fake runner: a deterministic language model without weights, for tests and for measuring everything else.

The next token is a function of the whole history in the slot, so a slot that was moved, shared or filled wrongly
shows in the output. `next_token` computes the same from the history alone. Time on the device can be simulated.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
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
        step_s, row_s, prefill_token_s: Simulated device time of a step, of each decode row, of each prefill token.
    """

    vocab_size: int = 256
    max_model_len: int = 4096
    num_slots: int = 65
    alphabet: tuple[int, int] = (0, 0)
    eos_token_id: int = 0
    eos_every: int = 0
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

    def __post_init__(self) -> None:
        self._slots = np.full((self.config.num_slots, self.config.max_model_len), -1, np.int64)
        self._digests = np.zeros((self.config.num_slots, self.config.max_model_len + 1), np.int64)
        self._digests[:, 0] = 1

    @property
    def info(self) -> RunnerInfo:
        """The pretended model's sizes."""
        config = self.config
        return RunnerInfo(
            vocab_size=config.vocab_size,
            max_model_len=config.max_model_len,
            num_slots=config.num_slots,
            kv_bytes_per_token=8,
        )

    def run(self, batch: StepBatch) -> StepResult:
        """Writes the tokens into their slots and answers with logits that favour the continuation."""
        self.steps += 1
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

    def copy_slot(self, source: int, target: int, num_tokens: int) -> None:
        """Copies tokens; the rest of the target becomes garbage, as on a device."""
        if source == target:
            raise ValueError("source and target slot are the same")
        self.copied_tokens += num_tokens
        self._slots[target, :num_tokens] = self._slots[source, :num_tokens]
        self._digests[target, : num_tokens + 1] = self._digests[source, : num_tokens + 1]

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
