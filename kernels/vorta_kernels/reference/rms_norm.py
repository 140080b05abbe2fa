"""RMS normalisation (arXiv 1910.07467) with the residual addition before it and quantisation behind it."""

from __future__ import annotations

import torch

from vorta_kernels.reference.fp8 import quantise_rows

__all__ = ["rms_norm", "rms_norm_fp8"]


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalises each row of x, or of x + residual.

    Args:
        x: [num_rows, hidden_size].
        weight: [hidden_size].
        residual: like x; the sum is rounded to x's type before it is normalised, as it is what later layers see.

    Returns:
        The normalised rows and the new residual (x itself without one), both like x.
    """
    total = x if residual is None else (x.double() + residual.double()).to(x.dtype)
    return _normalise(total, weight, eps).to(x.dtype), total


def rms_norm_fp8(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`rms_norm` whose rows come as float8_e4m3fn with float32 scales [num_rows], quantised from the unrounded rows.

    Returns values, scales, and the new residual.
    """
    total = x if residual is None else (x.double() + residual.double()).to(x.dtype)
    values, scale = quantise_rows(_normalise(total, weight, eps))
    return values, scale, total


def _normalise(rows: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = rows.double()
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.double()
