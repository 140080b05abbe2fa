"""The sampler's state of one sequence: its parameters as arrays, its counts for penalties, its random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vorta_server.engine.constraint import RowMask, TokenConstraint
from vorta_server.engine.request import SamplingParams

__all__ = ["GREEDY_TEMPERATURE", "RowState"]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]

GREEDY_TEMPERATURE = 1e-5
"""Below this temperature a row is greedy; vLLM uses the same bound."""

_UNIFORMS_PER_REFILL = 64


class RowState:
    """What the sampler keeps of one sequence.

    Args:
        sampling: The request's parameters.
        seed: Any integer; the row draws from Philox keyed by it, one number per sampled token.
        stream: Tells the rows of one seed apart: equal seeds of different streams share no numbers.
        prompt_token_ids: The prompt; only looked at when the repetition penalty is on.
        vocab_size: Ids at or above it in the bias or the stop list are ignored.
        eos_token_ids: End-of-sequence ids, masked until min_tokens unless the request ignores them.
        constraint: What limits the sequence's tokens, if anything does.

    Attributes:
        mask: Of the next token, where there is a constraint; it has the min_tokens mask in it.
        num_generated: Tokens so far; those of a batch of greedy rows with no wishes are not counted, as nobody asks.
    """

    __slots__ = (
        "_counted_ids",
        "_counts",
        "_generator",
        "_key",
        "_num_counted",
        "_penalty",
        "_positions",
        "_uniforms",
        "bias_ids",
        "bias_values",
        "is_adjusted",
        "is_greedy",
        "is_penalised",
        "mask",
        "masked_ids",
        "min_tokens",
        "num_generated",
        "sampling",
    )

    def __init__(
        self,
        sampling: SamplingParams,
        *,
        seed: int,
        prompt_token_ids: Sequence[int],
        vocab_size: int,
        eos_token_ids: Sequence[int],
        stream: int = 0,
        constraint: TokenConstraint | None = None,
    ) -> None:
        self.sampling = sampling
        self.num_generated = 0
        self.is_greedy = sampling.temperature < GREEDY_TEMPERATURE
        self._key = seed % (1 << 64) + (stream << 64)
        self._generator: np.random.Generator | None = None
        self._uniforms: list[float] = []
        bias = {i: v for i, v in sampling.logit_bias.items() if 0 <= i < vocab_size}
        self.bias_ids: IntArray = np.fromiter(bias.keys(), np.int64, len(bias))
        self.bias_values: FloatArray = np.fromiter(bias.values(), np.float32, len(bias))
        self.is_penalised = (
            sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0 or sampling.repetition_penalty != 1.0
        )
        self.is_adjusted = self.is_penalised or bool(bias) or constraint is not None
        self.min_tokens = sampling.min_tokens
        ends = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else set(eos_token_ids))
        self.masked_ids: IntArray = np.array(sorted(i for i in ends if 0 <= i < vocab_size), np.int64)
        if not self.masked_ids.size:
            self.min_tokens = 0
        self.mask: RowMask | None = None
        if constraint is not None:
            ignored = [i for i in eos_token_ids if 0 <= i < vocab_size] if sampling.ignore_eos else []
            self.mask = RowMask(
                constraint, vocab_size=vocab_size, late_ids=self.masked_ids, never_ids=np.array(ignored, np.int64)
            )
        self._positions: dict[int, int] = {}
        self._num_counted = 0
        self._counts: dict[int, int] = {}
        if self.is_penalised:
            # Ids in the order of their first appearance, with what frequency and presence subtract beside them.
            seen = dict.fromkeys(prompt_token_ids) if sampling.repetition_penalty != 1.0 else {}
            self._positions = {token_id: position for position, token_id in enumerate(seen)}
            self._num_counted = len(seen)
            self._counted_ids: IntArray = np.zeros(len(seen) + 64, np.int64)
            self._counted_ids[: len(seen)] = np.fromiter(seen, np.int64, len(seen))
            self._penalty: FloatArray = np.zeros(len(seen) + 64, np.float32)

    @property
    def is_early(self) -> bool:
        """Whether the next token comes before min_tokens."""
        return self.num_generated < self.min_tokens

    @property
    def is_complete(self) -> bool:
        """Whether a constraint allows nothing more."""
        return self.mask is not None and self.mask.constraint.is_complete

    def accept(self, token_id: int) -> None:
        """Counts a generated token. `Sampler.sample` calls it; call it only for tokens chosen elsewhere."""
        self.num_generated += 1
        if self.mask is not None:
            self.mask.accept(token_id)
        if not self.is_penalised:
            return
        sampling = self.sampling
        position = self._positions.get(token_id)
        if position is None:
            position = self._num_counted
            if position == len(self._counted_ids):
                self._counted_ids = np.concatenate([self._counted_ids, np.zeros_like(self._counted_ids)])
                self._penalty = np.concatenate([self._penalty, np.zeros_like(self._penalty)])
            self._positions[token_id] = position
            self._counted_ids[position] = token_id
            self._num_counted += 1
        count = self._counts[token_id] = self._counts.get(token_id, 0) + 1
        self._penalty[position] = sampling.presence_penalty + sampling.frequency_penalty * count

    def adjust(self, logits: FloatArray) -> None:
        """Applies bias and penalties to the row's logits [vocab_size], in place."""
        if self.bias_ids.size:
            logits[self.bias_ids] += self.bias_values
        if self._num_counted:
            ids = self._counted_ids[: self._num_counted]
            values = logits[ids]
            repetition = np.float32(self.sampling.repetition_penalty)
            if repetition != 1.0:
                values = np.where(values > 0, values / repetition, values * repetition)
            logits[ids] = values - self._penalty[: self._num_counted]

    def draw(self) -> float:
        """The next uniform number in [0, 1) of this row."""
        if not self._uniforms:
            if self._generator is None:
                self._generator = np.random.Generator(np.random.Philox(key=self._key))
            self._uniforms = self._generator.random(_UNIFORMS_PER_REFILL)[::-1].tolist()
        return self._uniforms.pop()
