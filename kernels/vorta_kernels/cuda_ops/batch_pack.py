"""`reference.batch_pack` on a GPU."""

from __future__ import annotations

import ctypes

import torch

from vorta_kernels.cuda_ops.call import call, check
from vorta_kernels.reference.batch_pack import PackedBatch

__all__ = ["MAX_SEQS", "batch_compact", "batch_pack"]

MAX_SEQS = 8192
"""Sequences that one call packs: where each begins is kept in shared memory."""


def batch_pack(
    query_lens: torch.Tensor,
    past_lens: torch.Tensor,
    block_table: torch.Tensor,
    *,
    block_size: int,
    num_tokens_padded: int,
    out: PackedBatch | None = None,
) -> PackedBatch:
    """As the reference, but that nobody sees on the host what the lengths add up to: tokens past `num_tokens_padded`
    are left out (`cu_query_lens` still counts them), and a token for which the table has no block gets slot -1.

    Args:
        out: Written instead of a new batch, as a CUDA graph needs.

    Raises:
        ValueError: A tensor's type, shape, device or layout is wrong, or there are more than MAX_SEQS sequences.
    """
    device, num_seqs = query_lens.device, len(query_lens)
    if num_seqs > MAX_SEQS:
        raise ValueError(f"{num_seqs} sequences are more than {MAX_SEQS}")
    if block_size < 1 or num_tokens_padded < 0:
        raise ValueError(f"block_size {block_size} and num_tokens_padded {num_tokens_padded} must be positive")
    if block_table.dim() != 2:
        raise ValueError(f"block_table must be [num_seqs, max_blocks], not of shape {tuple(block_table.shape)}")
    max_blocks = block_table.shape[1]
    check("query_lens", query_lens, torch.int32, (num_seqs,), device)
    check("past_lens", past_lens, torch.int32, (num_seqs,), device)
    check("block_table", block_table, torch.int32, (num_seqs, max_blocks), device)
    if out is None:
        starts = torch.empty(num_seqs + 1, dtype=torch.int32, device=device)
        columns = torch.empty(3, num_tokens_padded, dtype=torch.int32, device=device)
        out = PackedBatch(cu_query_lens=starts, positions=columns[0], slots=columns[1], sequence=columns[2])
    check("cu_query_lens", out.cu_query_lens, torch.int32, (num_seqs + 1,), device)
    for name in ("positions", "slots", "sequence"):
        check(name, getattr(out, name), torch.int32, (num_tokens_padded,), device)
    call(
        "vorta_batch_pack",
        device,
        query_lens,
        past_lens,
        block_table,
        num_seqs,
        max_blocks,
        block_size,
        num_tokens_padded,
        out.cu_query_lens,
        out.positions,
        out.slots,
        out.sequence,
    )
    return out


def batch_compact(state: torch.Tensor, rows: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """As the reference; a row that `state` does not have gives zeros.

    Args:
        out: int32 [len(rows), width], written instead of a new tensor; other memory than `state`.

    Raises:
        ValueError: A tensor's type, shape, device or layout is wrong.
    """
    if state.dim() != 2 or rows.dim() != 1:
        raise ValueError(f"state and rows must be of 2 and 1 dimensions, not {state.dim()} and {rows.dim()}")
    device, (num_rows, width) = state.device, state.shape
    check("state", state, torch.int32, state.shape, device)
    check("rows", rows, torch.int32, rows.shape, device)
    if out is None:
        out = torch.empty(len(rows), width, dtype=torch.int32, device=device)
    check("out", out, torch.int32, (len(rows), width), device)
    call("vorta_batch_compact", device, state, rows, num_rows, len(rows), ctypes.c_int64(width), out)
    return out
