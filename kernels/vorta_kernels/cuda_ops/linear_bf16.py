"""A product with an unquantised matrix on a GPU, for few rows."""

from __future__ import annotations

import ctypes

import torch

from vorta_kernels.cuda_ops.call import call, check

__all__ = ["linear_bf16"]


def linear_bf16(x: torch.Tensor, weight: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """x [num_rows, num_inputs] times the matrix [num_outputs, num_inputs]: [num_rows, num_outputs], all of bfloat16 or
    all of float16, with sums in float32; made for 16 rows or fewer (more read the matrix again for every 16).

    Args:
        out: Written instead of a new tensor.

    Raises:
        ValueError: A tensor's type, shape, device or layout is wrong, or the inputs are no multiple of 8.
    """
    if x.dim() != 2 or weight.dim() != 2:
        raise ValueError(f"x and weight must be of 2 dimensions, not {x.dim()} and {weight.dim()}")
    if x.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"x must be bfloat16 or float16, not {x.dtype}")
    device, (num_rows, num_inputs), num_outputs = x.device, x.shape, len(weight)
    if num_inputs % 8:
        raise ValueError(f"{num_inputs} inputs are no multiple of 8")
    check("x", x, x.dtype, x.shape, device)
    check("weight", weight, x.dtype, (num_outputs, num_inputs), device)
    if out is None:
        out = torch.empty(num_rows, num_outputs, dtype=x.dtype, device=device)
    check("out", out, x.dtype, (num_rows, num_outputs), device)
    call(
        "vorta_linear_16",
        device,
        x,
        weight,
        num_rows,
        num_outputs,
        ctypes.c_int64(num_inputs),
        int(x.dtype == torch.bfloat16),
        out,
    )
    return out
