"""The runner protocol: what the engine asks of a device. Owned by the engine, implemented in `vorta_server.runners`.

A runner owns the weights and `num_slots` KV slots of `max_model_len` tokens each. It knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["LogitsWanted", "ModelRunner", "PrefillChunk", "RunnerInfo", "StepBatch", "StepResult"]

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
    """

    vocab_size: int
    max_model_len: int
    num_slots: int
    kv_bytes_per_token: int


@dataclass(slots=True, kw_only=True)
class PrefillChunk:
    """Consecutive prompt tokens of one sequence.

    Attributes:
        slot: The sequence's KV slot.
        token_ids: int64 [num_tokens], at least one.
        num_past: Tokens already in the slot; the chunk is written behind them.
        logits: Which positions need logits.
    """

    slot: int
    token_ids: IntArray
    num_past: int
    logits: LogitsWanted


@dataclass(slots=True, kw_only=True)
class StepBatch:
    """The work of one step. Prefill chunks and the decode batch belong to different slots.

    Attributes:
        prefills: Chunks, each of another slot.
        decode_token_ids: int64 [num_rows]; row i is the sequence in slot i, so decoding sequences fill slots 0 to
            num_rows - 1.
        decode_lengths: int64 [num_rows]; tokens already in each slot, the new one is written behind them.
        deterministic: Rows must not depend on what else is in the batch: one fixed numeric path.
    """

    prefills: Sequence[PrefillChunk]
    decode_token_ids: IntArray
    decode_lengths: IntArray
    deterministic: bool = False


@dataclass(slots=True, kw_only=True)
class StepResult:
    """What a step computed. The arrays are the runner's and valid until the next `run`; callers may write to them.

    Attributes:
        prefill_logits: For each chunk float32 [1, vocab_size], [num_tokens, vocab_size] or None, as it asked.
        decode_logits: float32 [num_rows, vocab_size]; None without a decode batch.
        prefill_s: Seconds spent on the chunks.
        decode_s: Seconds spent on the decode batch.
    """

    prefill_logits: list[FloatArray | None]
    decode_logits: FloatArray | None
    prefill_s: float
    decode_s: float


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

    def discard_slot(self, slot: int) -> None:
        """Gives the slot's memory back to the system. Its content is lost."""
        ...

    def close(self) -> None:
        """Frees the device. Idempotent."""
        ...
