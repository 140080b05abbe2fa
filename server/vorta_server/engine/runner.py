"""The runner protocol: what the engine asks of a device. Owned by the engine, implemented in `vorta_server.runners`.

A runner owns the weights and `num_slots` KV slots of `max_model_len` tokens each. It knows nothing of requests.

A step has outputs: one for each decode row, in order, then one for each prefill chunk that ends its sequence's prompt.
A `ModelRunner` gives their logits. A `SamplingRunner` chooses their tokens too, and so computes a step while the tokens
of the step before it are still on their way to the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MAX_ENTRIES",
    "Draws",
    "LogitsWanted",
    "ModelRunner",
    "Penalties",
    "PrefillChunk",
    "RunnerInfo",
    "SamplingRunner",
    "StateReset",
    "StepBatch",
    "StepResult",
]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]


class LogitsWanted(IntEnum):
    """Which positions of a prefill chunk need logits."""

    NONE = 0
    LAST = 1
    ALL = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerInfo:
    """What the engine must know of a model.

    Attributes:
        vocab_size: Columns of the logits.
        max_model_len: Tokens that one slot holds.
        num_slots: KV slots; more than twice the sequences that run together, so that slots can be moved.
        kv_bytes_per_token: Bytes of K and V of one token over all layers.
        samples: It is a `SamplingRunner`.
        shares_blocks: What one slot copies from another is in memory once, in whole blocks of 64 tokens.
    """

    vocab_size: int
    max_model_len: int
    num_slots: int
    kv_bytes_per_token: int
    samples: bool = False
    shares_blocks: bool = False


@dataclass(slots=True, kw_only=True)
class PrefillChunk:
    """Consecutive prompt tokens of one sequence.

    Attributes:
        slot: The sequence's KV slot.
        token_ids: int64 [num_tokens], at least one.
        num_past: Tokens already in the slot; the chunk is written behind them.
        logits: Which positions need logits.
        is_last: It ends what its sequence must compute before its next token, so its last position is an output.
    """

    slot: int
    token_ids: IntArray
    num_past: int
    logits: LogitsWanted
    is_last: bool = False


MAX_ENTRIES = 256
"""Biases of an output, and banned tokens of one, that a `SamplingRunner` is given at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateReset:
    """What a row of a `SamplingRunner`'s counts begins with.

    Attributes:
        state: The row.
        prompt, generated: int64, the sequence's tokens so far.
    """

    state: int
    prompt: IntArray
    generated: IntArray


@dataclass(slots=True, kw_only=True)
class Penalties:
    """What a step's outputs pay for tokens that their sequences had; entries of outputs without are off.

    Attributes:
        states: int32 [num_outputs], the row of the runner's counts that is the output's, -1 for none. The runner counts
            the token that it chooses.
        repetition, presence, frequency: float32 [num_outputs]; 1, 0 and 0 are off.
        resets: Rows that begin with this step.
    """

    states: NDArray[np.int32]
    repetition: FloatArray
    presence: FloatArray
    frequency: FloatArray
    resets: list[StateReset]

    @classmethod
    def off(cls, num_outputs: int, resets: list[StateReset]) -> Penalties:
        """No output pays."""
        return cls(
            states=np.full(num_outputs, -1, np.int32),
            repetition=np.ones(num_outputs, np.float32),
            presence=np.zeros(num_outputs, np.float32),
            frequency=np.zeros(num_outputs, np.float32),
            resets=resets,
        )


@dataclass(slots=True, kw_only=True)
class Draws:
    """How a `SamplingRunner` chooses tokens; the columns have one entry for each output.

    Attributes:
        temperature: float32; 0 takes the largest logit.
        top_k: int32; 0 is off.
        top_p: float32; 1 is off.
        min_p: float32; 0 is off.
        uniforms: float32 in [0, 1), what picks from the tokens that are left.
        on_host: int64 [num_on_host], ascending: the outputs whose logits the engine wants, as it chooses by itself.
        sources: int32 [num_rows]; the output of the step launched before this one whose token the decode row takes, -1
            where the batch's own `decode_token_ids` has it.
        penalties: None where no output pays any.
        biases: By output: ids, at most MAX_ENTRIES, and what is added to their logits.
        banned: By output: ids that are impossible, at most MAX_ENTRIES.
    """

    temperature: FloatArray
    top_k: NDArray[np.int32]
    top_p: FloatArray
    min_p: FloatArray
    uniforms: FloatArray
    on_host: IntArray
    sources: NDArray[np.int32]
    penalties: Penalties | None = None
    biases: dict[int, tuple[IntArray, FloatArray]] = field(default_factory=dict)
    banned: dict[int, IntArray] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class StepBatch:
    """The work of one step. Prefill chunks and the decode batch belong to different slots.

    Attributes:
        prefills: Chunks, each of another slot.
        decode_token_ids: int64 [num_rows]; row i is the sequence in slot i, so decoding sequences fill slots 0 to
            num_rows - 1.
        decode_lengths: int64 [num_rows]; tokens already in each slot, the new one is written behind them.
        deterministic: Rows must not depend on what else is in the batch: one fixed numeric path.
        draws: For a `SamplingRunner`; None for others.
    """

    prefills: Sequence[PrefillChunk]
    decode_token_ids: IntArray
    decode_lengths: IntArray
    deterministic: bool = False
    draws: Draws | None = None


@dataclass(slots=True, kw_only=True)
class StepResult:
    """What a step computed. The arrays are the runner's and valid until the next `run`; callers may write to them.

    Attributes:
        prefill_logits: For each chunk float32 [1, vocab_size], [num_tokens, vocab_size] or None, as it asked.
        decode_logits: float32 [num_rows, vocab_size]; None without a decode batch, and from a `SamplingRunner`.
        prefill_s: Seconds spent on the chunks, 0 where that is not known.
        decode_s: Seconds spent on the decode batch, 0 where that is not known.
        token_ids: From a `SamplingRunner` int64 [num_outputs], -1 where the logits hold NaN or +inf.
        host_logits: From a `SamplingRunner` float32 [num_on_host, vocab_size]; a chunk that wants LAST has its logits
            here alone.
    """

    prefill_logits: list[FloatArray | None]
    decode_logits: FloatArray | None
    prefill_s: float
    decode_s: float
    token_ids: IntArray | None = None
    host_logits: FloatArray | None = None


class ModelRunner(Protocol):
    """Computes steps. One thread calls; `close` ends it."""

    @property
    def info(self) -> RunnerInfo:
        """The model's sizes."""
        ...

    def run(self, batch: StepBatch) -> StepResult:
        """Computes a step: writes K and V of the new tokens into their slots and returns the logits asked for."""
        ...

    def copy_slot(self, source: int, target: int, num_tokens: int) -> None:
        """Copies the first `num_tokens` tokens of KV from one slot to another. The slots differ."""
        ...

    def move_slot(self, source: int, target: int, num_tokens: int) -> None:
        """`copy_slot` whose source has no content afterwards."""
        ...

    def discard_slot(self, slot: int) -> None:
        """Gives the slot's memory back to the system. Its content is lost."""
        ...

    def close(self) -> None:
        """Frees the device. Idempotent."""
        ...


class SamplingRunner(ModelRunner, Protocol):
    """A runner that chooses tokens. Its steps, copies and discards take effect in the order of the calls."""

    def launch(self, batch: StepBatch) -> Callable[[], StepResult]:
        """Starts a step, whose batch has `draws`, and returns at once. The function waits for its result; it is called
        once for every step, in their order, with at most one step launched behind it."""
        ...
