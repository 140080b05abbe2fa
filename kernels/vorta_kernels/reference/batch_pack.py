"""From sequences to the packed arrays of a step, and the gather that closes gaps in per-sequence state."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["PackedBatch", "batch_compact", "batch_pack"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """A step's tokens one after the other, padded to a bucket.

    Attributes:
        cu_query_lens: int32 [num_seqs + 1], where each sequence's tokens begin, and the end.
        positions: int32 [num_tokens_padded], of each token in its sequence; 0 in padding.
        slots: int32 [num_tokens_padded], where its K and V go; -1 in padding.
        sequence: int32 [num_tokens_padded], which sequence it belongs to; -1 in padding.
    """

    cu_query_lens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    sequence: torch.Tensor


def batch_pack(
    query_lens: torch.Tensor,
    past_lens: torch.Tensor,
    block_table: torch.Tensor,
    *,
    block_size: int,
    num_tokens_padded: int,
) -> PackedBatch:
    """Packs sequences.

    Args:
        query_lens: int32 [num_seqs], tokens of each in this step; 0 is allowed. Their sum is at most num_tokens_padded.
        past_lens: int32 [num_seqs], tokens of each before this step.
        block_table: int32 [num_seqs, max_blocks].
    """
    device = query_lens.device
    cu_query_lens = torch.zeros(len(query_lens) + 1, dtype=torch.int32, device=device)
    cu_query_lens[1:] = query_lens.cumsum(0)
    num_tokens = int(cu_query_lens[-1])
    if num_tokens > num_tokens_padded:
        raise ValueError(f"{num_tokens} tokens do not fit {num_tokens_padded}")
    sequence = torch.full((num_tokens_padded,), -1, dtype=torch.int32, device=device)
    positions = torch.zeros_like(sequence)
    slots = torch.full_like(sequence, -1)
    owner = torch.repeat_interleave(torch.arange(len(query_lens), device=device), query_lens.long())
    position = torch.arange(num_tokens, device=device) - cu_query_lens[owner] + past_lens[owner]
    sequence[:num_tokens] = owner.int()
    positions[:num_tokens] = position.int()
    slots[:num_tokens] = block_table[owner, position // block_size] * block_size + (position % block_size).int()
    return PackedBatch(cu_query_lens=cu_query_lens, positions=positions, slots=slots, sequence=sequence)


def batch_compact(state: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Gathers rows of int32 state [num_rows, width]: row i of the result is row rows[i], or zeros where that is -1."""
    gathered = state[rows.clamp_min(0).long()]
    return torch.where((rows >= 0)[:, None], gathered, torch.zeros_like(gathered))
