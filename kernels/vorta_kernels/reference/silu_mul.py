"""The gate of a feed-forward layer: silu(gate) * up."""

from __future__ import annotations

import torch

from vorta_kernels.reference.fp8 import quantise_rows

__all__ = ["silu_mul", "silu_mul_fp8"]


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Rows [num_rows, 2 * n], gate first, to [num_rows, n] of the same type."""
    return _gated(gate_up).to(gate_up.dtype)


def silu_mul_fp8(gate_up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`silu_mul` as float8_e4m3fn [num_rows, n] and float32 scales [num_rows]."""
    return quantise_rows(_gated(gate_up))


def _gated(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.double().chunk(2, -1)
    return gate * torch.sigmoid(gate) * up
