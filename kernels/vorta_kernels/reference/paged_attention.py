"""Attention over the paged cache: one query a sequence (decode), or several of each (chunked prefill)."""

from __future__ import annotations

import torch

from vorta_kernels.kv_cache import KvLayer
from vorta_kernels.reference.fp8 import dequantise_rows

__all__ = ["paged_decode", "paged_prefill"]


def paged_decode(
    query: torch.Tensor,
    cache: KvLayer,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    scale: float,
    window: int = 0,
) -> torch.Tensor:
    """Each sequence's last token attends to all its tokens.

    Args:
        query: [num_seqs, num_heads, head_dim]; a group of num_heads / num_kv_heads consecutive heads shares K and V.
        block_table: int32 [num_seqs, max_blocks]; entries past a sequence's blocks are not read.
        seq_lens: int32 [num_seqs], tokens in the cache, the query's included; 0 for a padding row, whose result is 0.
        scale: What the products are multiplied by.
        window: Tokens that a query sees, its own included; 0 for all.

    Returns:
        [num_seqs, num_heads, head_dim] like query.
    """
    starts = torch.arange(len(query) + 1, dtype=torch.int32, device=query.device)
    return paged_prefill(query, cache, block_table, seq_lens, starts, scale=scale, window=window)


def paged_prefill(
    query: torch.Tensor,
    cache: KvLayer,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    cu_query_lens: torch.Tensor,
    *,
    scale: float,
    window: int = 0,
) -> torch.Tensor:
    """The last tokens of each sequence attend to those before them and themselves.

    Args:
        query: [num_tokens, num_heads, head_dim], the sequences' queries one after the other.
        seq_lens: int32 [num_seqs], tokens in the cache, all of the sequence's queries included.
        cu_query_lens: int32 [num_seqs + 1], where each sequence's queries begin, and the end; more is padding.
        block_table, scale, window: As in `paged_decode`.

    Returns:
        [num_tokens, num_heads, head_dim] like query; 0 in padding rows.
    """
    result = torch.zeros_like(query)
    group = query.shape[1] // cache.num_kv_heads
    starts, lengths = cu_query_lens.tolist(), seq_lens.tolist()
    for index, length in enumerate(lengths):
        start, stop = starts[index], starts[index + 1]
        if start == stop or length == 0:
            continue
        blocks = block_table[index, : -(-length // cache.block_size)].long()
        key, value = (
            dequantise_rows(
                _blocks(values, blocks, length), None if scales is None else _blocks(scales, blocks, length)
            )
            for values, scales in ((cache.key, cache.key_scale), (cache.value, cache.value_scale))
        )
        rows = query[start:stop].double().transpose(0, 1)  # [num_heads, num_queries, head_dim]
        scores = rows @ key.repeat_interleave(group, 0).transpose(1, 2) * scale
        position = torch.arange(length - (stop - start), length, device=query.device)[:, None]
        column = torch.arange(length, device=query.device)[None]
        hidden = column > position
        if window:
            hidden |= column <= position - window
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        result[start:stop] = (weights @ value.repeat_interleave(group, 0)).transpose(0, 1).to(query.dtype)
    return result


def _blocks(cache: torch.Tensor, blocks: torch.Tensor, length: int) -> torch.Tensor:
    """The first `length` tokens of some blocks, [num_kv_heads, length, ...]."""
    if cache.element_size() == 1:
        return cache.view(torch.uint8)[blocks].transpose(0, 1).flatten(1, 2)[:, :length].contiguous().view(cache.dtype)
    return cache[blocks].transpose(0, 1).flatten(1, 2)[:, :length]
