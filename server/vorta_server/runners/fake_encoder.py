"""The fake encoder: deterministic vectors and scores without weights, for tests and for measuring everything else.

A token's hidden state is a random vector of itself and the two tokens before it, so texts that share runs of tokens are
alike, whatever batch they are computed in.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vorta_server.embedding.encoder import EncoderInfo

__all__ = ["FakeEncoder"]

_NUM_STATES = 4096


class FakeEncoder:
    """An `Encoder`.

    Args:
        kind: "embedding" or "rerank"; the score of a pair is the logit of the share of the query's tokens that the
            document has.
        hidden_size: Numbers of a vector.
        max_model_len: Most tokens of an input.
        vocab_size: Token ids are below it.
        token_s: Simulated time of each token.
        num_lanes: Batches at once.
    """

    def __init__(
        self,
        *,
        kind: str,
        hidden_size: int = 64,
        max_model_len: int = 512,
        vocab_size: int = 512,
        token_s: float = 0.0,
        num_lanes: int = 1,
    ) -> None:
        self._info = EncoderInfo(
            kind=kind,
            hidden_size=hidden_size,
            num_labels=1 if kind == "rerank" else 0,
            max_model_len=max_model_len,
            vocab_size=vocab_size,
            prompts={"query": "query: ", "document": ""} if kind == "embedding" else {},
            is_packed=True,
            has_token_types=kind == "rerank",
            uses_sigmoid=kind == "rerank",
        )
        self._states = np.random.default_rng(7).standard_normal((_NUM_STATES, hidden_size), np.float32)
        self._token_s = token_s
        self._num_lanes = num_lanes

    @property
    def info(self) -> EncoderInfo:
        """The model's sizes."""
        return self._info

    @property
    def num_lanes(self) -> int:
        """Batches at once."""
        return self._num_lanes

    def run(
        self,
        sequences: Sequence[NDArray[np.int32]],
        token_types: Sequence[NDArray[np.int32]] | None = None,
        *,
        beside_others: bool = False,
    ) -> NDArray[np.float32]:
        """Computes a batch. See `Encoder.run`."""
        if self._token_s:
            time.sleep(self._token_s * sum(map(len, sequences)))
        if self._info.kind == "embedding":
            return np.concatenate([self._states[self._digest(sequence)] for sequence in sequences])
        types = token_types or [np.zeros(len(sequence), np.int32) for sequence in sequences]
        return np.array([[_share(*pair)] for pair in zip(sequences, types, strict=True)], np.float32)

    def close(self) -> None:
        """There is nothing to free."""

    def _digest(self, sequence: NDArray[np.int32]) -> NDArray[np.int64]:
        padded = np.concatenate([np.zeros(2, np.int64), sequence.astype(np.int64) + 1])
        result: NDArray[np.int64] = (padded[2:] * 31 + padded[1:-1] * 1009 + padded[:-2] * 65_537) % _NUM_STATES
        return result


def _share(sequence: NDArray[np.int32], types: NDArray[np.int32]) -> float:
    query, document = set(sequence[types == 0].tolist()), set(sequence[types == 1].tolist())
    share = (len(query & document) + 0.5) / (len(query) + 1)
    return float(np.log(share / (1 - share)))
