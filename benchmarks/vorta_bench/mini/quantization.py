"""Fake quantisation of weights, the same arithmetic as the compiler's, with straight-through gradients.

int4: symmetric, blocks of 32 along the input dimension, scale = (signed element of largest magnitude) / -8.
int8: symmetric, blocks of 32, scale = absolute maximum / 127.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

BLOCK_SIZE = 32
Precision = Literal["fp32", "int8", "int4"]


def quantize_weight(weight: Tensor, precision: Precision) -> Tensor:
    """The weight [out, in] after a round trip through `precision`; `in` is a multiple of 32."""
    if precision == "fp32":
        return weight
    blocks = weight.unflatten(-1, (-1, BLOCK_SIZE))
    low, high = blocks.aminmax(dim=-1, keepdim=True)
    if precision == "int8":
        scale = torch.maximum(high, -low) / 127
        scale = torch.where(scale == 0, 1.0, scale)
        return (torch.round(blocks / scale) * scale).flatten(-2)
    extreme = torch.where(high >= -low, high, low)
    scale = extreme / -8
    scale = torch.where(scale == 0, 1.0, scale)
    return (torch.clamp(torch.round(blocks / scale), -8, 7) * scale).flatten(-2)


def straight_through(weight: Tensor, precision: Precision) -> Tensor:
    """`quantize_weight` whose gradient passes to the weight unchanged."""
    if precision == "fp32":
        return weight
    return weight + (quantize_weight(weight.detach(), precision) - weight.detach())


def quantize_rows(activation: Tensor) -> Tensor:
    """Activations after a round trip through signed 8 bits with one scale per row."""
    scale = activation.abs().amax(dim=-1, keepdim=True).clamp_min(1e-8) / 127
    return torch.round(activation / scale) * scale
