"""Products with quantised weights: float8 rows by float8 rows, and 16-bit rows by 4-bit groups."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vorta_kernels.reference.fp8 import dequantise_rows, quantise_rows

__all__ = ["Fp8Weight", "Int4Weight", "fp8_linear", "int4_linear", "quantise_fp8", "quantise_int4", "unpack_int4"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Weight:
    """A matrix in float8.

    Attributes:
        values: float8_e4m3fn [num_outputs, num_inputs].
        scale: float32 [num_outputs].
    """

    values: torch.Tensor
    scale: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Int4Weight:
    """A matrix in 4 bits, symmetric, one scale for each group of a row.

    Attributes:
        packed: int32 [num_outputs, num_inputs / 8]; bits 4 * j to 4 * j + 3 of a word are input 8 * i + j, plus 8.
        scale: [num_outputs, num_inputs / group], of the activations' type.
        group: inputs that share a scale: a multiple of 32.
    """

    packed: torch.Tensor
    scale: torch.Tensor
    group: int


def quantise_fp8(weight: torch.Tensor) -> Fp8Weight:
    """A matrix [num_outputs, num_inputs], each row by its largest magnitude."""
    values, scale = quantise_rows(weight)
    return Fp8Weight(values=values, scale=scale)


def fp8_linear(x: torch.Tensor, x_scale: torch.Tensor, weight: Fp8Weight, dtype: torch.dtype) -> torch.Tensor:
    """x float8_e4m3fn [num_rows, num_inputs] with scales float32 [num_rows], times the matrix: [num_rows, num_outputs]
    of `dtype`."""
    rows, matrix = dequantise_rows(x, x_scale), dequantise_rows(weight.values, weight.scale)
    return (rows @ matrix.T).to(dtype)


def quantise_int4(weight: torch.Tensor, group: int, dtype: torch.dtype) -> Int4Weight:
    """A matrix [num_outputs, num_inputs] to 4 bits; each group takes the scale of the least squared error
    among max / 8 to max / 7, as rounding to the largest alone wastes a level.

    Raises ValueError where the group does not divide the inputs or is no multiple of 32.
    """
    num_outputs, num_inputs = weight.shape
    if group % 32 or num_inputs % group:
        raise ValueError(f"group must be a multiple of 32 that divides {num_inputs} inputs, not {group}")
    groups = weight.float().view(num_outputs, num_inputs // group, group)
    largest = groups.abs().amax(-1).clamp_min(1e-12)
    best_error = torch.full_like(largest, float("inf"))
    best_scale = largest / 7
    for divisor in (7.0, 7.25, 7.5, 7.75, 8.0):
        scale = (largest / divisor).to(dtype).float().clamp_min(torch.finfo(dtype).tiny)
        error = (_levels(groups, scale) * scale[..., None] - groups).square().sum(-1)
        is_better = error < best_error
        best_error, best_scale = torch.where(is_better, error, best_error), torch.where(is_better, scale, best_scale)
    levels = (_levels(groups, best_scale) + 8).to(torch.int64).view(num_outputs, num_inputs // 8, 8)
    words = (levels << (4 * torch.arange(8, device=weight.device))).sum(-1)
    packed = torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
    return Int4Weight(packed=packed, scale=best_scale.to(dtype), group=group)


def _levels(groups: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (groups / scale[..., None]).round().clamp(-8, 7)


def unpack_int4(weight: Int4Weight) -> torch.Tensor:
    """The matrix's levels, int8 [num_outputs, num_inputs], -8 to 7."""
    shifts = 4 * torch.arange(8, dtype=torch.int32, device=weight.packed.device)
    return (((weight.packed[..., None] >> shifts) & 15) - 8).to(torch.int8).flatten(1)


def int4_linear(x: torch.Tensor, weight: Int4Weight) -> torch.Tensor:
    """x [num_rows, num_inputs] of 16 or 32 bits, times the matrix: [num_rows, num_outputs] of x's type."""
    matrix = unpack_int4(weight).double() * weight.scale.double().repeat_interleave(weight.group, 1)
    return (x.double() @ matrix.T).to(x.dtype)
