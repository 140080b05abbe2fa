"""silu(gate) * up, to the activations' type or to float8 with a scale a row.

Floor: reads 2 * n elements a row and writes n (n + 4 bytes as float8).

Design: to 16 bits a flat grid of (row, block of columns), no reduction. To float8 one program a row with the row in
registers, since the scale needs the row's largest magnitude before anything is written; reading the row twice would
double the traffic of a kernel that does nothing else.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vorta_kernels.kv_cache import FP8
from vorta_kernels.triton_ops.fp8 import has_fp8, quantise
from vorta_kernels.triton_ops.tuning import row_warps

__all__ = ["silu_mul", "silu_mul_fp8"]


@triton.jit
def silu_mul_kernel(
    gate_up,
    result,
    scales,
    stride,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    FP8: tl.constexpr,
    HARDWARE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    gate = tl.load(gate_up + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    values = gate / (1.0 + tl.exp(-gate)) * up
    if FP8:
        quantised, scale = quantise(values, tl.max(tl.abs(values), 0), HARDWARE)
        tl.store(result + row * WIDTH + column, quantised, mask=inside)
        tl.store(scales + row, scale)
    else:
        tl.store(result + row * WIDTH + column, values.to(result.dtype.element_ty), mask=inside)


def silu_mul(gate_up: torch.Tensor, *, block: int = 1024, num_warps: int = 4) -> torch.Tensor:
    """See `reference.silu_mul.silu_mul`. Rows may be strided; elements of a row may not."""
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    result = torch.empty(num_rows, width, dtype=gate_up.dtype, device=gate_up.device)
    silu_mul_kernel[(num_rows, triton.cdiv(width, block))](
        gate_up,
        result,
        result,
        gate_up.stride(0),
        WIDTH=width,
        BLOCK=block,
        FP8=False,
        HARDWARE=False,
        num_warps=num_warps,
    )
    return result


def silu_mul_fp8(gate_up: torch.Tensor, *, num_warps: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """See `reference.silu_mul.silu_mul_fp8`."""
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    result = torch.empty(num_rows, width, dtype=torch.uint8, device=gate_up.device)
    scales = torch.empty(num_rows, dtype=torch.float32, device=gate_up.device)
    block = triton.next_power_of_2(width)
    silu_mul_kernel[(num_rows, 1)](
        gate_up,
        result,
        scales,
        gate_up.stride(0),
        WIDTH=width,
        BLOCK=block,
        FP8=True,
        HARDWARE=has_fp8(gate_up.device),
        num_warps=num_warps or row_warps(block),
    )
    return result.view(FP8), scales
