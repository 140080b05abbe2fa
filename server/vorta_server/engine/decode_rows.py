"""The decode batch as arrays: which rows end at a token, found for all rows at once, and tokens that nobody has asked
for yet.

Made anew when the batch's composition changes; between two such steps a token costs each row a few array elements.
"""

from __future__ import annotations

from collections.abc import Sequence as Sequenced

import numpy as np
from numpy.typing import NDArray

from vorta_server.engine.draws import DrawColumns
from vorta_server.engine.row_state import RowState
from vorta_server.engine.sequence import Sequence

__all__ = ["DecodeRows"]


_MAX_KEPT_STEPS = 64


class DecodeRows:
    """One row for each decoding sequence.

    Args:
        sequences: In the order of their rows.
        is_end: bool [vocab_size], true at the model's end-of-sequence tokens.

    Attributes:
        states: The sampler's state of each row; one list object as long as this object lives.
        watched: Rows whose every token must be looked at by itself, for stop strings or log probabilities.
    """

    __slots__ = (
        "_columns",
        "_constrained",
        "_is_end",
        "_kept",
        "_kept_s",
        "_left",
        "_listens",
        "_num_accepted",
        "_num_kept",
        "_num_to_limit",
        "_own_ends",
        "sequences",
        "states",
        "watched",
    )

    def __init__(self, sequences: Sequenced[Sequence], is_end: NDArray[np.bool_]) -> None:
        self.sequences = sequences
        self.states: list[RowState] = [sequence.row for sequence in sequences]
        self._is_end = is_end
        self._left = np.array(
            [sequence.max_output - sequence.num_output - sequence.num_pending for sequence in sequences], np.int64
        )
        self._num_accepted = 0
        self._num_to_limit = int(self._left.min()) if len(sequences) else 0
        self._kept: NDArray[np.int64] | None = None
        self._kept_s = 0.0
        self._num_kept = 0
        sampling = [sequence.request.request.sampling for sequence in sequences]
        listens = np.array([not params.ignore_eos for params in sampling], np.bool_)
        self._listens: NDArray[np.bool_] | None = listens if listens.any() else None
        self._own_ends = [
            (row, frozenset(params.stop_token_ids)) for row, params in enumerate(sampling) if params.stop_token_ids
        ]
        self._columns: DrawColumns | None = None
        self._constrained = [(row, state) for row, state in enumerate(self.states) if state.mask is not None]
        self.watched = frozenset(
            row
            for row, (sequence, params) in enumerate(zip(sequences, sampling, strict=True))
            if sequence.stop is not None or params.logprobs is not None
        )

    @property
    def columns(self) -> DrawColumns:
        """The rows' sampling parameters, for a runner that samples."""
        if self._columns is None:
            self._columns = DrawColumns(self.sequences)
        return self._columns

    def accept(self, token_ids: NDArray[np.int64]) -> list[int]:
        """Counts one token [num_rows] for every row. Returns the rows that end with it or are watched, ascending."""
        self._num_accepted += 1
        ends = None
        if self._listens is not None:
            hits = self._is_end[token_ids]
            hits &= self._listens
            if hits.any():
                ends = hits
        if self._num_accepted >= self._num_to_limit:
            at_limit = self._left <= self._num_accepted
            ends = at_limit if ends is None else ends | at_limit
        ended: list[int] = [] if ends is None else np.flatnonzero(ends).tolist()
        if not (self._own_ends or self.watched or self._constrained):
            return ended
        rows = set(ended) | self.watched
        rows |= {row for row, state in self._constrained if state.is_complete}
        rows |= {row for row, own in self._own_ends if int(token_ids[row]) in own}
        return sorted(rows)

    def keep(self, token_ids: NDArray[np.int64], now_s: float) -> None:
        """Keeps one token [num_rows] for every row, none of which it ends; `hand_over` gives them to the sequences."""
        if self._kept is None:
            self._kept = np.empty((_MAX_KEPT_STEPS, len(self.states)), np.int64)
        elif self._num_kept == _MAX_KEPT_STEPS:
            self.hand_over()
        self._kept[self._num_kept] = token_ids
        self._num_kept += 1
        self._kept_s = now_s

    def hand_over(self) -> None:
        """Appends the tokens that were kept to their sequences."""
        count = self._num_kept
        if not count:
            return
        assert self._kept is not None
        self._num_kept = 0
        for sequence, token_ids in zip(self.sequences, self._kept[:count].T, strict=True):
            start = sequence.num_tokens
            sequence.num_tokens = start + count
            sequence.tokens[start : start + count] = token_ids
            sequence.request.last_token_s = self._kept_s
