"""Head norm, rotary embedding and the write of K and V into the paged cache, in one launch behind the QKV product.

Floor: reads qkv once and writes as much, queries to their own array, K and V to the cache (head_dim + 4 bytes a head as
float8); cosines and sines are rotary_dim floats a token.

Design: a grid of (token, tile of heads): tiles of queries, then of keys, then of values, so that even one token
spreads over many programs. A tile of heads is read as the two halves that rotate with each other (and what is not
rotated), each a contiguous run per head, so no element is loaded twice and no shuffle is needed; the norm's sum and
the scale's maximum are reductions over registers. The cache is [block, head, token, dim], so what a token writes of a
head is one run of head_dim elements. Slots are int32, the offsets they become int64.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vorta_kernels.kv_cache import FP8, KvLayer
from vorta_kernels.triton_ops.fp8 import as_bytes, has_fp8, quantise

__all__ = ["rope_kv"]


@triton.jit
def rope_kv_kernel(
    qkv,
    cos_sin,
    positions,
    slots,
    query,
    key,
    value,
    key_scale,
    value_scale,
    q_norm,
    k_norm,
    eps,
    qkv_stride,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    DIM_P: tl.constexpr,  # powers of two from head_dim, HALF and what is not rotated
    HALF_P: tl.constexpr,
    REST_P: tl.constexpr,
    NORM: tl.constexpr,
    FP8: tl.constexpr,
    HARDWARE: tl.constexpr,
):
    QUERY_TILES: tl.constexpr = (NUM_HEADS + TILE - 1) // TILE
    KV_TILES: tl.constexpr = (NUM_KV_HEADS + TILE - 1) // TILE
    REST: tl.constexpr = HEAD_DIM - 2 * HALF
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    row = qkv + token * qkv_stride
    slot = tl.load(slots + token)
    block = (slot // BLOCK_SIZE).to(tl.int64)
    offset = slot % BLOCK_SIZE
    if tile < QUERY_TILES + KV_TILES:
        is_query = tile < QUERY_TILES
        if is_query | (slot >= 0):
            head = tl.where(is_query, tile, tile - QUERY_TILES) * TILE + tl.arange(0, TILE)
            is_head = head < tl.where(is_query, NUM_HEADS, NUM_KV_HEADS)
            source = row + (tl.where(is_query, 0, NUM_HEADS) + head)[:, None] * HEAD_DIM
            half = tl.arange(0, HALF_P)
            in_half = is_head[:, None] & (half < HALF)[None, :]
            first = tl.load(source + half[None, :], mask=in_half, other=0.0).to(tl.float32)
            second = tl.load(source + HALF + half[None, :], mask=in_half, other=0.0).to(tl.float32)
            last = tl.arange(0, REST_P)
            in_rest = is_head[:, None] & (last < REST)[None, :]
            if REST > 0:
                rest = tl.load(source + 2 * HALF + last[None, :], mask=in_rest, other=0.0).to(tl.float32)
            else:
                rest = tl.zeros([TILE, REST_P], tl.float32)
            if NORM:
                squares = tl.sum(first * first, 1) + tl.sum(second * second, 1) + tl.sum(rest * rest, 1)
                factor = tl.rsqrt(squares / HEAD_DIM + eps)[:, None]
                gain = tl.where(is_query, q_norm, k_norm)
                first *= factor * tl.load(gain + half, mask=half < HALF, other=0.0).to(tl.float32)[None, :]
                second *= factor * tl.load(gain + HALF + half, mask=half < HALF, other=0.0).to(tl.float32)[None, :]
                if REST > 0:
                    rest *= (
                        factor * tl.load(gain + 2 * HALF + last, mask=last < REST, other=0.0).to(tl.float32)[None, :]
                    )
            angles = cos_sin + tl.load(positions + token).to(tl.int64) * (2 * HALF) + half
            cos = tl.load(angles, mask=half < HALF, other=0.0)[None, :]
            sin = tl.load(angles + HALF, mask=half < HALF, other=0.0)[None, :]
            turned = first * cos - second * sin
            second = second * cos + first * sin
            if is_query:
                out = query + (token * NUM_HEADS + head)[:, None] * HEAD_DIM
                tl.store(out + half[None, :], turned.to(query.dtype.element_ty), mask=in_half)
                tl.store(out + HALF + half[None, :], second.to(query.dtype.element_ty), mask=in_half)
                if REST > 0:
                    tl.store(out + 2 * HALF + last[None, :], rest.to(query.dtype.element_ty), mask=in_rest)
            else:
                place = (block * NUM_KV_HEADS + head) * BLOCK_SIZE + offset
                kept = key + place[:, None] * HEAD_DIM
                if FP8:
                    largest = tl.maximum(tl.max(tl.abs(turned), 1), tl.max(tl.abs(second), 1))
                    largest = tl.maximum(largest, tl.max(tl.abs(rest), 1))
                    turned_bytes, scale = quantise(turned, largest[:, None], HARDWARE)
                    second_bytes, scale = quantise(second, largest[:, None], HARDWARE)
                    tl.store(kept + half[None, :], turned_bytes, mask=in_half)
                    tl.store(kept + HALF + half[None, :], second_bytes, mask=in_half)
                    if REST > 0:
                        rest_bytes, scale = quantise(rest, largest[:, None], HARDWARE)
                        tl.store(kept + 2 * HALF + last[None, :], rest_bytes, mask=in_rest)
                    tl.store(key_scale + place[:, None], scale, mask=is_head[:, None])
                else:
                    tl.store(kept + half[None, :], turned.to(key.dtype.element_ty), mask=in_half)
                    tl.store(kept + HALF + half[None, :], second.to(key.dtype.element_ty), mask=in_half)
                    if REST > 0:
                        tl.store(kept + 2 * HALF + last[None, :], rest.to(key.dtype.element_ty), mask=in_rest)
    elif slot >= 0:
        head = (tile - QUERY_TILES - KV_TILES) * TILE + tl.arange(0, TILE)
        is_head = head < NUM_KV_HEADS
        dim = tl.arange(0, DIM_P)
        inside = is_head[:, None] & (dim < HEAD_DIM)[None, :]
        source = row + (NUM_HEADS + NUM_KV_HEADS + head)[:, None] * HEAD_DIM + dim[None, :]
        values = tl.load(source, mask=inside, other=0.0)
        place = (block * NUM_KV_HEADS + head) * BLOCK_SIZE + offset
        target = value + place[:, None] * HEAD_DIM + dim[None, :]
        if FP8:
            wide = values.to(tl.float32)
            value_bytes, scale = quantise(wide, tl.max(tl.abs(wide), 1)[:, None], HARDWARE)
            tl.store(target, value_bytes, mask=inside)
            tl.store(value_scale + place[:, None], scale, mask=is_head[:, None])
        else:
            tl.store(target, values.to(tl.float32).to(value.dtype.element_ty), mask=inside)


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
    tile: int = 8,
    num_warps: int = 2,
) -> torch.Tensor:
    """See `reference.rope_kv.rope_kv`. `tile` is how many heads a program takes, a power of two. Rows of qkv may be
    strided; the cache must be contiguous."""
    num_tokens, num_kv_heads, head_dim = len(qkv), cache.num_kv_heads, cache.key.shape[3]
    half = cos_sin.shape[2]
    query = torch.empty(num_tokens, num_heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    key, value = as_bytes(cache.key), as_bytes(cache.value)
    tile = min(tile, triton.next_power_of_2(num_heads))
    rope_kv_kernel[(num_tokens, triton.cdiv(num_heads, tile) + 2 * triton.cdiv(num_kv_heads, tile))](
        qkv,
        cos_sin,
        positions,
        slots,
        query,
        key,
        value,
        key if cache.key_scale is None else cache.key_scale,
        value if cache.value_scale is None else cache.value_scale,
        qkv if q_norm is None else q_norm,
        qkv if k_norm is None else k_norm,
        eps,
        qkv.stride(0),
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        HALF=half,
        BLOCK_SIZE=cache.block_size,
        TILE=tile,
        DIM_P=triton.next_power_of_2(head_dim),
        HALF_P=triton.next_power_of_2(half),
        REST_P=triton.next_power_of_2(max(head_dim - 2 * half, 1)),
        NORM=q_norm is not None and k_norm is not None,
        FP8=cache.key.dtype == FP8,
        HARDWARE=has_fp8(qkv.device),
        num_warps=num_warps,
    )
    return query
