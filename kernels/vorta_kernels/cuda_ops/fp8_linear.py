"""`reference.linear.fp8_linear` on a GPU, for few rows."""

from __future__ import annotations

import ctypes

import torch

from vorta_kernels.cuda_ops.call import call, check
from vorta_kernels.kv_cache import FP8
from vorta_kernels.reference.linear import Fp8Weight

__all__ = ["fp8_linear"]


def fp8_linear(
    x: torch.Tensor, x_scale: torch.Tensor, weight: Fp8Weight, dtype: torch.dtype, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """As the reference, with sums in float32; made for 16 rows or fewer (more read the matrix again for every 16).

    Args:
        dtype: bfloat16 or float16.
        out: [num_rows, num_outputs] of `dtype`, written instead of a new tensor.

    Raises:
        ValueError: A tensor's type, shape, device or layout is wrong, or the inputs are no multiple of 16.
    """
    if x.dim() != 2 or weight.values.dim() != 2:
        raise ValueError(f"x and weight must be of 2 dimensions, not {x.dim()} and {weight.values.dim()}")
    if dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"dtype must be bfloat16 or float16, not {dtype}")
    device, (num_rows, num_inputs), num_outputs = x.device, x.shape, len(weight.values)
    if num_inputs % 16:
        raise ValueError(f"{num_inputs} inputs are no multiple of 16")
    check("x", x, FP8, x.shape, device)
    check("x_scale", x_scale, torch.float32, (num_rows,), device)
    check("weight.values", weight.values, FP8, (num_outputs, num_inputs), device)
    check("weight.scale", weight.scale, torch.float32, (num_outputs,), device)
    if out is None:
        out = torch.empty(num_rows, num_outputs, dtype=dtype, device=device)
    check("out", out, dtype, (num_rows, num_outputs), device)
    call(
        "vorta_fp8_linear",
        device,
        x,
        x_scale,
        weight.values,
        weight.scale,
        num_rows,
        num_outputs,
        ctypes.c_int64(num_inputs),
        int(dtype == torch.bfloat16),
        out,
    )
    return out
