"""Quantisation of rows to float8_e4m3fn: one float32 scale a row, from the row's largest magnitude."""

from __future__ import annotations

import torch

from vorta_kernels.kv_cache import FP8, FP8_MAX

__all__ = ["dequantise_rows", "quantise_rows"]

_SMALLEST_SCALE = 1e-12
"""A row of zeros gets this scale: no division by zero, and zeros come back."""


def quantise_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [..., n] of any float type to float8_e4m3fn [..., n] and float32 scales [...]; row = values * scale."""
    values = rows.float()
    scale = (values.abs().amax(-1) / FP8_MAX).clamp_min(_SMALLEST_SCALE)
    # Rounding in the division may pass the largest value by an ulp, which float8_e4m3fn turns into NaN.
    return (values / scale[..., None]).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale


def dequantise_rows(values: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """The rows in float64; without a scale just the cast."""
    wide = values.to(torch.float32).double() if values.dtype == FP8 else values.double()
    return wide if scale is None else wide * scale.double()[..., None]
