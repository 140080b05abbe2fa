"""RMS norm with the residual addition before it and, for float8 layers, the row's quantisation behind it.

Floor: reads x and the residual, writes the sum and the rows: 4 * hidden_size elements a row (2 without a residual),
with float8 3 elements and hidden_size + 4 bytes. The weight comes from L2 after the first rows.

Design: one program a row, the row in registers (hidden_size padded to a power of two), so every element is read once
and the two reductions, of squares and for the scale, cost no memory. The quantised rows are computed from float32,
never from rounded ones.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vorta_kernels.kv_cache import FP8
from vorta_kernels.triton_ops.fp8 import has_fp8, quantise
from vorta_kernels.triton_ops.tuning import row_warps

__all__ = ["rms_norm", "rms_norm_fp8"]


@triton.jit
def rms_norm_kernel(
    x,
    residual,
    weight,
    total,
    normalised,
    scales,
    eps,
    x_stride,
    residual_stride,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    RESIDUAL: tl.constexpr,
    FP8: tl.constexpr,
    HARDWARE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < HIDDEN
    values = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    if RESIDUAL:
        values += tl.load(residual + row * residual_stride + column, mask=inside, other=0.0).to(tl.float32)
        rounded = values.to(total.dtype.element_ty)
        tl.store(total + row * HIDDEN + column, rounded, mask=inside)
        values = rounded.to(tl.float32)
    gain = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    values = values * tl.rsqrt(tl.sum(values * values, 0) / HIDDEN + eps) * gain
    if FP8:
        quantised, scale = quantise(values, tl.max(tl.abs(values), 0), HARDWARE)
        tl.store(normalised + row * HIDDEN + column, quantised, mask=inside)
        tl.store(scales + row, scale)
    else:
        tl.store(normalised + row * HIDDEN + column, values.to(normalised.dtype.element_ty), mask=inside)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    residual: torch.Tensor | None = None,
    *,
    num_warps: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `reference.rms_norm.rms_norm`. Rows may be strided; elements of a row may not."""
    normalised = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return normalised, _launch(x, weight, eps, residual, normalised, None, num_warps)


def rms_norm_fp8(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    residual: torch.Tensor | None = None,
    *,
    num_warps: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `reference.rms_norm.rms_norm_fp8`."""
    normalised = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    scales = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    total = _launch(x, weight, eps, residual, normalised, scales, num_warps)
    return normalised.view(FP8), scales, total


def _launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    residual: torch.Tensor | None,
    normalised: torch.Tensor,
    scales: torch.Tensor | None,
    num_warps: int | None,
) -> torch.Tensor:
    """Returns the new residual."""
    num_rows, hidden_size = x.shape
    total = x if residual is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(hidden_size)
    rms_norm_kernel[(num_rows,)](
        x,
        x if residual is None else residual,
        weight,
        total,
        normalised,
        normalised if scales is None else scales,
        eps,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        HIDDEN=hidden_size,
        BLOCK=block,
        RESIDUAL=residual is not None,
        FP8=scales is not None,
        HARDWARE=has_fp8(x.device),
        num_warps=num_warps or row_warps(block),
    )
    return total
