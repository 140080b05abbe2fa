"""What the embedding engine asks of a model: token ids in, hidden states or scores out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Encoder", "EncoderInfo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderInfo:
    """What a loaded encoder is.

    Attributes:
        kind: "embedding" (hidden states) or "rerank" (scores).
        hidden_size: Numbers of a hidden state, H.
        num_labels: Scores of an input of a "rerank" model; 0 for "embedding".
        max_model_len: Most tokens of an input, special tokens included.
        vocab_size: Token ids are below it.
        pad_token_id: The id that stands where there is no token; 0 where the model names none.
        pooling: How the model's authors make one vector of an input: "mean", "cls" or "last".
        normalize: Whether they scale it to length 1.
        prompts: Texts that they put before an input, by name ("query", "document").
        default_prompt: Name of the one that is used when none is asked for; empty for none.
        is_packed: Whether inputs of different lengths cost nothing beside each other (there is no padding).
        has_token_types: Whether the model tells the two texts of a pair apart by token types.
        uses_sigmoid: Whether a score is the logistic function of the logit by default.
        lane_tokens: Tokens of a batch beside others (see `Encoder.num_lanes`) beyond which each costs more, not less.
    """

    kind: str
    hidden_size: int
    num_labels: int = 0
    max_model_len: int
    vocab_size: int
    pad_token_id: int = 0
    pooling: str = "mean"
    normalize: bool = True
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt: str = ""
    is_packed: bool = False
    has_token_types: bool = False
    uses_sigmoid: bool = False
    lane_tokens: int = 512


class Encoder(Protocol):
    """A loaded model. Not thread-safe but for what `num_lanes` says."""

    @property
    def info(self) -> EncoderInfo:
        """The model's sizes and its authors' defaults."""
        ...

    @property
    def num_lanes(self) -> int:
        """Batches that are computed fastest side by side, each by a `run` of its own thread; 1: one after the other."""
        ...

    def run(
        self,
        sequences: Sequence[NDArray[np.int32]],
        token_types: Sequence[NDArray[np.int32]] | None = None,
        *,
        beside_others: bool = False,
    ) -> NDArray[np.float32]:
        """Computes a batch.

        Args:
            sequences: Token ids [S] of each input, 1 to `info.max_model_len` of them.
            token_types: Beside them, for pairs; None where all are 0. Ignored by models without token types.
            beside_others: Take one lane's share of the cores; with it as many threads may call as there are lanes. The
                result is the same.

        Returns:
            Embedding: the hidden states of all tokens, in the order of the sequences, [T, H] with T the sum of their
            lengths. Rerank: the logits [B, num_labels]. The array is the caller's.

        Raises:
            ValueError: An input is empty, too long or holds an id outside the vocabulary.
            vorta.errors.Internal: The computation failed.
        """
        ...

    def close(self) -> None:
        """Drops the weights. Idempotent."""
        ...
