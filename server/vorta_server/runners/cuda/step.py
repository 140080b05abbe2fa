"""From the engine's step to the arrays that the device computes from: one int32 buffer, one transfer.

Tokens lie in this order: decode rows, padding up to their bucket, then the tokens of each prefill chunk. A decode
step's layout depends on its bucket and the width of its block table, so that a captured graph finds everything at the
same place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from vorta_kernels.reference.sample import SamplingColumns
from vorta_server.engine.runner import Draws, LogitsWanted, PrefillChunk, StepBatch
from vorta_server.runners.cuda.blocks import PADDING_BLOCK, BlockTables

__all__ = ["BUCKETS", "NARROWEST", "SPARE_STATE", "DeviceStep", "StepLayout", "bucket_for", "buckets_up_to", "fill"]

BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Decode rows that graphs are captured for; above the last, multiples of it."""

NARROWEST = 8
"""Columns of the narrowest block table; others are four times as wide, each with graphs of its own, so that attention
is divided by about the length that there is."""

SPARE_STATE = 0
"""The row of counts of outputs that pay no penalties; what is in it is never looked at."""

_WIDTHS = [NARROWEST << 2 * power for power in range(16)]

_ALIGNMENT_WORDS = 4

_COLUMNS = ("temperature", "top_k", "top_p", "min_p", "uniforms")
_PENALTIES = ("state_rows", "repetition", "presence", "frequency")
_BIASES = ("bias_ids", "bias_values")
_BANNED = ("banned_ids",)
_FLOATS = frozenset({"temperature", "top_p", "min_p", "uniforms", "repetition", "presence", "frequency", "bias_values"})
_OFF: dict[str, float] = {"top_p": 1, "repetition": 1, "state_rows": SPARE_STATE, "bias_ids": -1, "banned_ids": -1}
"""What columns have in padding, where it is not 0: nothing, and the largest logit wins."""


def buckets_up_to(num_rows: int) -> list[int]:
    """The buckets that hold up to so many rows, ascending."""
    chosen = [bucket for bucket in BUCKETS if bucket < num_rows]
    return [*chosen, bucket_for(num_rows)]


def bucket_for(num_rows: int) -> int:
    """The smallest bucket that holds the rows; 0 for none."""
    if num_rows == 0:
        return 0
    last = BUCKETS[-1]
    return next((bucket for bucket in BUCKETS if bucket >= num_rows), -(-num_rows // last) * last)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLayout:
    """Where a step's arrays lie in its buffer.

    Attributes:
        num_decodes: Decode rows, padding included.
        num_prefills: Prefill chunks.
        num_chunk_tokens: Tokens of all chunks together.
        num_ends: Chunks that have an output.
        num_scored: Positions whose logits are wanted beside the outputs'.
        max_blocks: Columns of the block table.
        has_penalties: Whether an output pays penalties.
        num_biases, num_banned: Most of an output's biases and banned tokens, up to a power of two.
    """

    num_decodes: int
    num_prefills: int = 0
    num_chunk_tokens: int = 0
    num_ends: int = 0
    num_scored: int = 0
    max_blocks: int
    has_penalties: bool = False
    num_biases: int = 0
    num_banned: int = 0

    @property
    def of_logits(self) -> StepLayout:
        """What of the layout computing the logits depends on. The rest lies behind it."""
        return replace(self, has_penalties=False, num_biases=0, num_banned=0)

    @classmethod
    def of(cls, batch: StepBatch, num_decodes: int, block_size: int, widest: int) -> StepLayout:
        """A batch's layout, its decode rows padded to `num_decodes`, its block table at most `widest` columns wide."""
        chunks = batch.prefills
        lengths = [chunk.num_past + len(chunk.token_ids) for chunk in chunks]
        if len(batch.decode_lengths):
            lengths.append(int(batch.decode_lengths.max()) + 1)
        needed = -(-max(lengths, default=1) // block_size)
        return cls(
            num_decodes=num_decodes,
            num_prefills=len(chunks),
            num_chunk_tokens=sum(len(chunk.token_ids) for chunk in chunks),
            num_ends=sum(chunk.is_last for chunk in chunks),
            num_scored=sum(len(chunk.token_ids) for chunk in chunks if chunk.logits is LogitsWanted.ALL),
            max_blocks=min(next(width for width in _WIDTHS if width >= needed), widest),
            has_penalties=batch.draws is not None and batch.draws.penalties is not None,
            num_biases=0 if batch.draws is None else _most(len(ids) for ids, _ in batch.draws.biases.values()),
            num_banned=0 if batch.draws is None else _most(len(ids) for ids in batch.draws.banned.values()),
        )

    @property
    def num_tokens(self) -> int:
        """Tokens, padding included."""
        return self.num_decodes + self.num_chunk_tokens

    @property
    def num_outputs(self) -> int:
        """Positions whose tokens are chosen, padding included."""
        return self.num_decodes + self.num_ends

    def fields(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the arrays, in order."""
        num_seqs = self.num_decodes + self.num_prefills
        return [
            ("token_ids", (self.num_tokens,)),
            ("sources", (self.num_tokens,)),
            ("output_rows", (self.num_outputs + self.num_scored,)),
            ("query_lens", (num_seqs,)),
            ("past_lens", (num_seqs,)),
            ("block_table", (num_seqs, self.max_blocks)),
            *((name, (self.num_outputs,)) for name in _COLUMNS),
            *((name, (self.num_outputs,)) for name in _PENALTIES if self.has_penalties),
            *((name, (self.num_outputs, self.num_biases)) for name in _BIASES if self.num_biases),
            *((name, (self.num_outputs, self.num_banned)) for name in _BANNED if self.num_banned),
        ]

    def places(self) -> list[tuple[str, tuple[int, ...], slice]]:
        """Names, shapes and words of the arrays. Each begins at 16 bytes, so that kernels read whole vectors."""
        found = []
        start = 0
        for name, shape in self.fields():
            size = math.prod(shape)
            found.append((name, shape, slice(start, start + size)))
            start += -(-size // _ALIGNMENT_WORDS) * _ALIGNMENT_WORDS
        return found

    @property
    def num_words(self) -> int:
        """Size of the buffer."""
        last: int = self.places()[-1][2].stop
        return last


@dataclass(slots=True, kw_only=True)
class DeviceStep:
    """A step's arrays on the device: views of one int32 buffer; see `StepLayout.fields`.

    A padding row is a sequence of one token in the padding block.

    Attributes:
        token_ids, sources: int32 [num_tokens]; where a source is not -1, the token is that output of the step before,
            and token_ids has 0.
        output_rows: int32 [num_outputs + num_scored]: which token each output is of; behind them the scored positions.
        query_lens, past_lens: int32 [num_decodes + num_prefills], tokens of each sequence in the step and before it.
        block_table: int32 [num_decodes + num_prefills, max_blocks].
        columns: One entry for each output.
    """

    layout: StepLayout
    token_ids: torch.Tensor
    sources: torch.Tensor
    output_rows: torch.Tensor
    query_lens: torch.Tensor
    past_lens: torch.Tensor
    block_table: torch.Tensor
    columns: SamplingColumns

    @classmethod
    def of(cls, layout: StepLayout, buffer: torch.Tensor) -> DeviceStep:
        """The views of a buffer that holds the step's words at its beginning."""
        views: dict[str, torch.Tensor] = {}
        for name, shape, place in layout.places():
            view = buffer[place]
            views[name] = (view.view(torch.float32) if name in _FLOATS else view).view(shape)
        names = [name for name in (*_COLUMNS, *_PENALTIES, *_BIASES, *_BANNED) if name in views]
        columns = SamplingColumns(**{name: views.pop(name) for name in names})
        return cls(layout=layout, columns=columns, **views)


def fill(
    batch: StepBatch,
    layout: StepLayout,
    tables: BlockTables,
    sources: NDArray[np.int32],
    words: NDArray[np.int32],
) -> None:
    """Writes a step into the beginning of `words` [at least layout.num_words]. The slots' blocks must be there.

    Args:
        sources: int32 [num_rows], as in `DeviceStep`.
    """
    arrays = {name: words[place].reshape(shape) for name, shape, place in layout.places()}
    _fill_decodes(batch, layout, tables, sources, arrays)
    _fill_chunks(batch.prefills, layout, tables, arrays)
    _fill_columns(batch.draws, len(batch.decode_token_ids), layout, arrays)


def _fill_decodes(
    batch: StepBatch,
    layout: StepLayout,
    tables: BlockTables,
    sources: NDArray[np.int32],
    arrays: dict[str, NDArray[np.int32]],
) -> None:
    num_rows, padded = len(batch.decode_token_ids), layout.num_decodes
    for name, padding, values in (
        ("block_table", PADDING_BLOCK, tables.table[:num_rows, : layout.max_blocks]),
        ("token_ids", 0, np.where(sources < 0, batch.decode_token_ids, 0)),
        ("sources", -1, sources),
        ("query_lens", 1, 1),
        ("past_lens", 0, batch.decode_lengths),
    ):
        arrays[name][:num_rows] = values
        arrays[name][num_rows:padded] = padding
    arrays["output_rows"][:padded] = np.arange(padded)


def _fill_chunks(
    chunks: Sequence[PrefillChunk], layout: StepLayout, tables: BlockTables, arrays: dict[str, NDArray[np.int32]]
) -> None:
    first = output = layout.num_decodes
    scored = layout.num_outputs
    arrays["sources"][first:] = -1
    for row, chunk in enumerate(chunks, layout.num_decodes):
        count = len(chunk.token_ids)
        stop = first + count
        arrays["token_ids"][first:stop] = chunk.token_ids
        arrays["query_lens"][row] = count
        arrays["past_lens"][row] = chunk.num_past
        arrays["block_table"][row] = tables.table[chunk.slot, : layout.max_blocks]
        if chunk.is_last:
            arrays["output_rows"][output] = stop - 1
            output += 1
        if chunk.logits is LogitsWanted.ALL:
            arrays["output_rows"][scored : scored + count] = np.arange(first, stop)
            scored += count
        first = stop


def _fill_columns(draws: Draws | None, num_rows: int, layout: StepLayout, arrays: dict[str, NDArray[np.int32]]) -> None:
    columns = {
        name: array.view(np.float32) if name in _FLOATS else array
        for name, array in arrays.items()
        if name in _COLUMNS or name in _PENALTIES or name in _BIASES or name in _BANNED
    }
    for name, column in columns.items():
        column[:] = _OFF.get(name, 0)
    if draws is None:
        return
    values = {name: getattr(draws, name) for name in _COLUMNS}
    if draws.penalties is not None:
        values |= {name: getattr(draws.penalties, name) for name in _PENALTIES[1:]}
        values["state_rows"] = draws.penalties.states + 1  # behind the spare one, which -1 becomes
    for name, column in values.items():
        columns[name][:num_rows] = column[:num_rows]
        columns[name][layout.num_decodes :] = column[num_rows:]
    padding = layout.num_decodes - num_rows
    for output, (ids, biases) in draws.biases.items():
        place = output if output < num_rows else output + padding
        columns["bias_ids"][place, : len(ids)] = ids
        columns["bias_values"][place, : len(ids)] = biases
    for output, ids in draws.banned.items():
        columns["banned_ids"][output if output < num_rows else output + padding, : len(ids)] = ids


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _most(counts: Iterable[int]) -> int:
    largest = max(counts, default=0)
    return _power_of_two(largest) if largest else 0
