"""What a `SamplingRunner` is told of a step's outputs: their sampling parameters by column, and whose tokens the host
chooses, because they need more than the columns say (penalties, biases, minimum lengths, log probabilities)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vorta_server.engine.row_state import RowState
from vorta_server.engine.runner import Draws

__all__ = ["DrawColumns"]


class DrawColumns:
    """The columns of some rows; made anew when the composition changes.

    Attributes:
        on_host: Rows whose tokens the host chooses, ascending.
    """

    def __init__(self, rows: Sequence[RowState]) -> None:
        self._rows = rows
        self._temperature = np.array([0.0 if row.is_greedy else row.sampling.temperature for row in rows], np.float32)
        self._top_k = np.array([row.sampling.top_k for row in rows], np.int32)
        self._top_p = np.array([row.sampling.top_p for row in rows], np.float32)
        self._min_p = np.array([row.sampling.min_p for row in rows], np.float32)
        self.on_host = [index for index, row in enumerate(rows) if needs_host(row)]
        chosen = set(self.on_host)
        self._sampled = [index for index, row in enumerate(rows) if not row.is_greedy and index not in chosen]
        self._uniforms = np.zeros(len(rows), np.float32)

    def draw(self, others: DrawColumns, sources: NDArray[np.int32]) -> Draws:
        """These rows' next draw, the others' behind it.

        Args:
            others: The rows of prefill chunks.
            sources: Of these rows, as in `Draws`.
        """
        columns = (self, others) if others._rows else (self,)
        for part in columns:
            for index in part._sampled:
                # The largest float32 below one, as rounding may reach it.
                part._uniforms[index] = min(part._rows[index].draw(), _BELOW_ONE)
        offset = len(self._rows)
        return Draws(
            temperature=np.concatenate([part._temperature for part in columns]),
            top_k=np.concatenate([part._top_k for part in columns]),
            top_p=np.concatenate([part._top_p for part in columns]),
            min_p=np.concatenate([part._min_p for part in columns]),
            uniforms=np.concatenate([part._uniforms for part in columns]),
            on_host=np.array([*self.on_host, *(offset + index for index in others.on_host)], np.int64),
            sources=sources,
        )


_BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


def needs_host(row: RowState) -> bool:
    """Whether the columns do not say all of how the row's tokens are chosen."""
    return row.is_adjusted or row.min_tokens > 0 or row.sampling.logprobs is not None
