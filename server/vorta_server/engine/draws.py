"""What a `SamplingRunner` is told of a step's outputs: their sampling parameters by column, and whose tokens the host
chooses, because the host must see their logits (log probabilities) or their tokens first (constraints), or they have
more biases than columns are made for."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Sequenced

import numpy as np
from numpy.typing import NDArray

from vorta_server.engine.row_state import RowState
from vorta_server.engine.runner import MAX_ENTRIES, Draws, Penalties, StateReset
from vorta_server.engine.sequence import Sequence

__all__ = ["DrawColumns", "assign_states"]

_BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))
"""The largest float32 below one, which rounding may reach."""


def assign_states(decoding: Sequenced[Sequence], ready: Sequenced[Sequence]) -> list[StateReset]:
    """Gives the penalised ones of the sequences that will now decode a row of the runner's counts: the lowest that no
    other has. What the rows begin with is returned: the tokens so far."""
    used = {sequence.draw_state for sequence in decoding}
    resets = []
    for sequence in ready:
        if not _counts(sequence.row):
            continue
        state = next(index for index in range(len(used) + 1) if index not in used)
        used.add(state)
        sequence.draw_state = state
        prompt, generated = np.split(sequence.tokens[: sequence.num_tokens], [sequence.num_prompt])
        resets.append(StateReset(state=state, prompt=prompt.copy(), generated=generated.copy()))
    return resets


class DrawColumns:
    """The columns of some sequences; made anew when the composition changes."""

    def __init__(self, sequences: Sequenced[Sequence]) -> None:
        self._sequences = sequences
        rows = [sequence.row for sequence in sequences]
        self._rows = rows
        self._temperature = np.array([0.0 if row.is_greedy else row.sampling.temperature for row in rows], np.float32)
        self._top_k = np.array([row.sampling.top_k for row in rows], np.int32)
        self._top_p = np.array([row.sampling.top_p for row in rows], np.float32)
        self._min_p = np.array([row.sampling.min_p for row in rows], np.float32)
        self._uniforms = np.zeros(len(rows), np.float32)
        self._on_host = [index for index, row in enumerate(rows) if _needs_host(row)]
        chosen = set(self._on_host)
        self._sampled = [index for index, row in enumerate(rows) if not row.is_greedy and index not in chosen]
        self._counted = [index for index, row in enumerate(rows) if _counts(row)]
        self._biased = [index for index, row in enumerate(rows) if len(row.bias_ids) and index not in chosen]
        self._late = [index for index, row in enumerate(rows) if row.min_tokens and index not in chosen]

    def draw(self, others: DrawColumns, sources: NDArray[np.int32], resets: list[StateReset]) -> Draws:
        """These sequences' next draw, the others' behind it.

        Args:
            others: The sequences whose prompts end.
            sources: Of these sequences, as in `Draws`.
            resets: Of `assign_states`.
        """
        parts = (self, others) if others._rows else (self,)
        for part in parts:
            for index in part._sampled:
                part._uniforms[index] = min(part._rows[index].draw(), _BELOW_ONE)
        offset = len(self._rows)
        num_outputs = offset + len(others._rows)
        places = ((0, self), (offset, others))
        return Draws(
            temperature=np.concatenate([part._temperature for part in parts]),
            top_k=np.concatenate([part._top_k for part in parts]),
            top_p=np.concatenate([part._top_p for part in parts]),
            min_p=np.concatenate([part._min_p for part in parts]),
            uniforms=np.concatenate([part._uniforms for part in parts]),
            on_host=np.array([start + index for start, part in places for index in part._on_host], np.int64),
            sources=sources,
            penalties=self._penalties(places, num_outputs, resets),
            biases={start + i: _biases(part._rows[i]) for start, part in places for i in part._biased},
            banned={start + i: ids for start, part in places for i, ids in part._banned()},
        )

    def _banned(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """The ends of those sequences that must go on behind the token that this draw chooses."""
        for index in self._late:
            sequence = self._sequences[index]
            if sequence.num_output + sequence.num_pending < sequence.row.min_tokens:
                yield index, sequence.row.masked_ids

    @staticmethod
    def _penalties(
        places: Sequenced[tuple[int, DrawColumns]], num_outputs: int, resets: list[StateReset]
    ) -> Penalties | None:
        counted = [(start + index, part._sequences[index]) for start, part in places for index in part._counted]
        if not counted:
            return None
        penalties = Penalties.off(num_outputs, resets)
        for output, sequence in counted:
            sampling = sequence.row.sampling
            penalties.states[output] = sequence.draw_state
            penalties.repetition[output] = sampling.repetition_penalty
            penalties.presence[output] = sampling.presence_penalty
            penalties.frequency[output] = sampling.frequency_penalty
        return penalties


def _needs_host(row: RowState) -> bool:
    has_too_many = max(len(row.bias_ids), len(row.masked_ids) if row.min_tokens else 0) > MAX_ENTRIES
    return row.mask is not None or row.sampling.logprobs is not None or has_too_many


def _counts(row: RowState) -> bool:
    return row.is_penalised and not _needs_host(row)


def _biases(row: RowState) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    return row.bias_ids, row.bias_values
