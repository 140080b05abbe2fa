"""Products with quantised weights: what runs where the CUDA C++ library is not built, and above the few rows its
matrix-vector kernels are for.

Floor: for few rows the weight once, num_outputs * num_inputs / 2 bytes (and the groups' scales) in 4 bits or
num_outputs * num_inputs in float8; for many rows 2 * num_rows * num_outputs * num_inputs operations.

Design: tiles of rows by outputs, a loop over the inputs, float32 sums. Programs go through the rows of a few columns of
tiles before the next, so that weights are read from memory once and then from L2.

4 bits: a step takes inputs of one group, so levels, which are exact in 16 bits, go into the product as they are and one
multiplication of the partial sums by the group's scale follows. A word is spread to its eight inputs in registers.
Above compute capability 8.9 float8 rows and weights go into the tensor cores as they are, 128 inputs before their sums
are added in full float32; below, they are decoded to float16, which holds them exactly.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from vorta_kernels.reference.linear import Fp8Weight, Int4Weight
from vorta_kernels.triton_ops.fp8 import as_bytes, from_e4m3, has_fp8
from vorta_kernels.triton_ops.tuning import FP8_LINEAR, INT4_LINEAR, Tiles

__all__ = ["fp8_linear", "int4_linear"]

_TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


@triton.jit
def _tile(num_rows, NUM_OUTPUTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, WIDTH: tl.constexpr):
    """This program's tile of rows and of outputs: down the rows of WIDTH columns of tiles, then the next ones."""
    program = tl.program_id(0)
    tiles_m = tl.cdiv(num_rows, BLOCK_M)
    tiles_n = (NUM_OUTPUTS + BLOCK_N - 1) // BLOCK_N
    group = program // (tiles_m * WIDTH)
    first = group * WIDTH
    width = tl.minimum(tiles_n - first, WIDTH)
    inner = program - group * tiles_m * WIDTH
    return inner // width, first + inner % width


@triton.jit(do_not_specialize=["num_rows"])
def int4_linear_kernel(
    x,
    packed,
    scale,
    product,
    num_rows,
    x_stride,
    NUM_INPUTS: tl.constexpr,
    NUM_OUTPUTS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DOT: tl.constexpr,
):
    tile_m, tile_n = _tile(num_rows, NUM_OUTPUTS, BLOCK_M, BLOCK_N, 8)
    row = (tile_m * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    output = (tile_n * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    is_row, is_output = row < num_rows, output < NUM_OUTPUTS
    lane = tl.arange(0, BLOCK_K)
    word = tl.arange(0, BLOCK_K // 8)
    shift = 4 * tl.arange(0, 8)
    rows = x + row[:, None] * x_stride + lane[None, :]
    words = packed + output[:, None] * (NUM_INPUTS // 8) + word[None, :]
    scales = scale + output * (NUM_INPUTS // GROUP)
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, NUM_INPUTS, BLOCK_K):
        x_tile = tl.load(rows + first, mask=is_row[:, None], other=0.0).to(DOT)
        word_tile = tl.load(words + first // 8, mask=is_output[:, None], other=0)
        levels = ((word_tile[:, :, None] >> shift[None, None, :]) & 15) - 8
        levels = tl.reshape(levels, [BLOCK_N, BLOCK_K]).to(tl.float32).to(DOT)
        factor = tl.load(scales + first // GROUP, mask=is_output, other=0.0).to(tl.float32)
        sums += tl.dot(x_tile, tl.trans(levels), input_precision="ieee") * factor[None, :]
    target = product + row[:, None] * NUM_OUTPUTS + output[None, :]
    tl.store(target, sums.to(product.dtype.element_ty), mask=is_row[:, None] & is_output[None, :])


@triton.jit(do_not_specialize=["num_rows"])
def fp8_linear_kernel(
    x,
    x_scale,
    weight,
    weight_scale,
    product,
    num_rows,
    NUM_INPUTS: tl.constexpr,
    NUM_OUTPUTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HARDWARE: tl.constexpr,
):
    tile_m, tile_n = _tile(num_rows, NUM_OUTPUTS, BLOCK_M, BLOCK_N, 8)
    row = (tile_m * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    output = (tile_n * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    is_row, is_output = row < num_rows, output < NUM_OUTPUTS
    lane = tl.arange(0, BLOCK_K)
    rows = x + row[:, None] * NUM_INPUTS + lane[None, :]
    columns = weight + output[:, None] * NUM_INPUTS + lane[None, :]
    sums = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, NUM_INPUTS, BLOCK_K):
        inside_x, inside_w = is_row[:, None], is_output[:, None]
        if NUM_INPUTS % BLOCK_K != 0:
            inside_x = inside_x & (first + lane < NUM_INPUTS)[None, :]
            inside_w = inside_w & (first + lane < NUM_INPUTS)[None, :]
        x_tile = tl.load(rows + first, mask=inside_x, other=0)
        w_tile = tl.load(columns + first, mask=inside_w, other=0)
        if HARDWARE:
            x_tile = x_tile.to(tl.float8e4nv, bitcast=True)
            w_tile = w_tile.to(tl.float8e4nv, bitcast=True)
            sums = tl.dot(x_tile, tl.trans(w_tile), sums, max_num_imprecise_acc=BLOCK_K)
        else:
            x_half = from_e4m3(x_tile, tl.float16, False)
            w_half = from_e4m3(w_tile, tl.float16, False)
            sums = tl.dot(x_half, tl.trans(w_half), sums)
    sums *= tl.load(x_scale + row, mask=is_row, other=0.0)[:, None]
    sums *= tl.load(weight_scale + output, mask=is_output, other=0.0)[None, :]
    target = product + row[:, None] * NUM_OUTPUTS + output[None, :]
    tl.store(target, sums.to(product.dtype.element_ty), mask=is_row[:, None] & is_output[None, :])


def int4_linear(x: torch.Tensor, weight: Int4Weight, *, tiles: Tiles | None = None) -> torch.Tensor:
    """See `reference.linear.int4_linear`. `tiles` is used instead of `tuning.INT4_LINEAR`'s; its block_k is halved
    until a group is a multiple of it."""
    num_rows, num_inputs = x.shape
    num_outputs = len(weight.packed)
    tiles = tiles or _tiles(INT4_LINEAR, num_rows)
    block_k = tiles.block_k
    while weight.group % block_k:
        block_k //= 2
    product = torch.empty(num_rows, num_outputs, dtype=x.dtype, device=x.device)
    int4_linear_kernel[(triton.cdiv(num_rows, tiles.block_m) * triton.cdiv(num_outputs, tiles.block_n),)](
        x,
        weight.packed,
        weight.scale,
        product,
        num_rows,
        x.stride(0),
        NUM_INPUTS=num_inputs,
        NUM_OUTPUTS=num_outputs,
        GROUP=weight.group,
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        BLOCK_K=block_k,
        DOT=_TYPES[x.dtype],
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return product


def fp8_linear(
    x: torch.Tensor, x_scale: torch.Tensor, weight: Fp8Weight, dtype: torch.dtype, *, tiles: Tiles | None = None
) -> torch.Tensor:
    """See `reference.linear.fp8_linear`; all are contiguous. `tiles` is used instead of `tuning.FP8_LINEAR`'s."""
    num_rows, num_inputs = x.shape
    num_outputs = len(weight.values)
    tiles = tiles or _tiles(FP8_LINEAR, num_rows)
    product = torch.empty(num_rows, num_outputs, dtype=dtype, device=x.device)
    fp8_linear_kernel[(triton.cdiv(num_rows, tiles.block_m) * triton.cdiv(num_outputs, tiles.block_n),)](
        as_bytes(x),
        x_scale,
        as_bytes(weight.values),
        weight.scale,
        product,
        num_rows,
        NUM_INPUTS=num_inputs,
        NUM_OUTPUTS=num_outputs,
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        BLOCK_K=tiles.block_k,
        HARDWARE=has_fp8(x.device),
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return product


def _tiles(table: Sequence[Tiles], num_rows: int) -> Tiles:
    return next((tiles for tiles in table if num_rows <= tiles.block_m), table[-1])
