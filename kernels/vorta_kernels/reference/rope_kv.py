"""Rotary position embedding (arXiv 2104.09864, halves as in GPT-NeoX) of queries and keys, and the write of K and V
into the paged cache; before it, where the model has it, the RMS norm of each head (Qwen3)."""

from __future__ import annotations

import torch

from vorta_kernels.kv_cache import FP8, KvLayer
from vorta_kernels.reference.fp8 import quantise_rows

__all__ = ["rope_kv"]


def rope_kv(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    cache: KvLayer,
    *,
    num_heads: int,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """Rotates, writes K and V, and returns the queries.

    Args:
        qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]: queries, keys, values.
        cos_sin: float32 [max_positions, 2, rotary_dim / 2]; elements past rotary_dim are not rotated.
        positions: int32 [num_tokens].
        slots: int32 [num_tokens], where K and V go; -1 writes nothing (padding).
        cache: The layer's cache, written in place.
        q_norm, k_norm: [head_dim], the weights of the norm of each head before the rotation; both or neither.

    Returns:
        Queries [num_tokens, num_heads, head_dim] of qkv's type.
    """
    num_kv_heads, block_size, head_dim = cache.num_kv_heads, cache.block_size, cache.key.shape[3]
    heads = qkv.double().view(len(qkv), num_heads + 2 * num_kv_heads, head_dim)
    query, key, value = heads.split([num_heads, num_kv_heads, num_kv_heads], 1)
    if q_norm is not None and k_norm is not None:
        query, key = _normalise(query, q_norm, eps), _normalise(key, k_norm, eps)
    cos, sin = cos_sin[positions.long()].double()[:, None].unbind(2)
    key = _rotate(key, cos, sin)
    for name, rows in (("key", key), ("value", value)):
        target, scales = getattr(cache, name), getattr(cache, f"{name}_scale")
        is_real = slots >= 0
        block, offset = slots[is_real].long() // block_size, slots[is_real].long() % block_size
        if target.dtype == FP8:
            values, scale = quantise_rows(rows[is_real])
            # torch cannot index float8 on every device; bytes it can.
            target.view(torch.uint8)[block, :, offset] = values.view(torch.uint8)
            scales[block, :, offset] = scale
        else:
            target[block, :, offset] = rows[is_real].to(target.dtype)
    return _rotate(query, cos, sin).to(qkv.dtype)


def _rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = cos.shape[-1]
    first, second, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)


def _normalise(heads: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return heads * torch.rsqrt(heads.square().mean(-1, keepdim=True) + eps) * weight.double()
