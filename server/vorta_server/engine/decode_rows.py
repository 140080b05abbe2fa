"""The decode batch as arrays: which rows end at a token, found for all rows at once.

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
        "_left",
        "_listens",
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
        sampling = [sequence.request.request.sampling for sequence in sequences]
        self._listens = np.array([not params.ignore_eos for params in sampling], np.bool_)
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
        self._left -= 1
        ends = self._is_end[token_ids]
        ends &= self._listens
        ends |= self._left <= 0
        if not (self._own_ends or self.watched or self._constrained):
            return np.flatnonzero(ends).tolist() if ends.any() else []
        rows = set(np.flatnonzero(ends).tolist()) | self.watched
        rows |= {row for row, state in self._constrained if state.is_complete}
        rows |= {row for row, own in self._own_ends if int(token_ids[row]) in own}
        return sorted(rows)
