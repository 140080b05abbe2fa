"""`reference.linear.int4_linear` on a GPU, for few rows, with the matrix in the order in which the kernel reads it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vorta_kernels.cuda_ops.call import call, check
from vorta_kernels.reference.linear import Int4Weight

__all__ = ["ShuffledInt4Weight", "int4_linear", "shuffle_int4", "unshuffle_int4"]

_TILE_OUTPUTS = 16
_TILE_INPUTS = 64
_ZERO = 0x88888888 - (1 << 32)
"""Eight elements of 0, which stand as 8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShuffledInt4Weight:
    """An `Int4Weight` in tiles of 16 outputs by 64 inputs; tiles at the edge are filled up with zeros.

    Attributes:
        packed: int32 [ceil(num_outputs / 16), ceil(num_inputs / 64), 32, 4]: what each lane of a warp multiplies of a
            tile. With g = lane / 4 and t = lane % 4, bits 4 * (4 * e + 2 * i + r) on of word 2 * h + j are output
            g + 8 * r, input 32 * h + 8 * t + 4 * j + 2 * i + e, plus 8.
        scale: [ceil(num_outputs / 16), num_inputs / group, 16]; place 2 * g + r is output g + 8 * r.
        group: inputs that share a scale.
        num_outputs, num_inputs: of the matrix.
    """

    packed: torch.Tensor
    scale: torch.Tensor
    group: int
    num_outputs: int
    num_inputs: int


def shuffle_int4(weight: Int4Weight) -> ShuffledInt4Weight:
    """The matrix as the kernel reads it, on the same device.

    Raises:
        ValueError: The group is no multiple of 32 or does not divide the inputs.
    """
    num_outputs, num_inputs = weight.packed.shape[0], weight.packed.shape[1] * 8
    if weight.group % 32 or weight.group < 32 or num_inputs % weight.group:
        raise ValueError(f"group must be a multiple of 32 that divides {num_inputs} inputs, not {weight.group}")
    tiles, steps = -(-num_outputs // _TILE_OUTPUTS), -(-num_inputs // _TILE_INPUTS)
    words = weight.packed.new_full((tiles * _TILE_OUTPUTS, steps * _TILE_INPUTS // 8), _ZERO)
    words[:num_outputs, : num_inputs // 8] = weight.packed
    # [tile, r, g, step, h, t, (j, i, e)], where the last are a word's nibbles
    nibbles = _nibbles(words.view(tiles, 2, 8, steps, 2, 4)).unflatten(-1, (2, 2, 2))
    packed = _words(nibbles.permute(0, 3, 2, 5, 4, 6, 8, 7, 1).flatten(-3))
    scale = weight.scale.new_zeros(tiles * _TILE_OUTPUTS, num_inputs // weight.group)
    scale[:num_outputs] = weight.scale
    return ShuffledInt4Weight(
        packed=packed.reshape(tiles, steps, 32, 4),
        scale=scale.view(tiles, 2, 8, -1).permute(0, 3, 2, 1).reshape(tiles, -1, _TILE_OUTPUTS).contiguous(),
        group=weight.group,
        num_outputs=num_outputs,
        num_inputs=num_inputs,
    )


def unshuffle_int4(weight: ShuffledInt4Weight) -> Int4Weight:
    """The matrix that `shuffle_int4` was given."""
    tiles, steps = weight.packed.shape[:2]
    # [tile, step, g, t, h, j, e, i, r]
    nibbles = _nibbles(weight.packed.view(tiles, steps, 8, 4, 2, 2)).unflatten(-1, (2, 2, 2))
    words = _words(nibbles.permute(0, 8, 2, 1, 4, 3, 5, 7, 6).flatten(-3))
    scale = weight.scale.view(tiles, -1, 8, 2).permute(0, 3, 2, 1).reshape(tiles * _TILE_OUTPUTS, -1)
    rows = words.reshape(tiles * _TILE_OUTPUTS, steps * _TILE_INPUTS // 8)
    return Int4Weight(
        packed=rows[: weight.num_outputs, : weight.num_inputs // 8].contiguous(),
        scale=scale[: weight.num_outputs].contiguous(),
        group=weight.group,
    )


def int4_linear(x: torch.Tensor, weight: ShuffledInt4Weight, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """As the reference for a shuffled matrix, with sums in float32; made for 32 rows or fewer (more read the matrix
    again for every 32).

    Args:
        x: [num_rows, num_inputs], bfloat16 or float16, the type of the matrix's scales.
        out: [num_rows, num_outputs] like x, written instead of a new tensor.

    Raises:
        ValueError: A tensor's type, shape, device or layout is wrong.
    """
    if x.dim() != 2:
        raise ValueError(f"x must be of 2 dimensions, not {x.dim()}")
    if x.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"x must be bfloat16 or float16, not {x.dtype}")
    device, num_rows, num_outputs, num_inputs = x.device, len(x), weight.num_outputs, weight.num_inputs
    tiles, steps = -(-num_outputs // _TILE_OUTPUTS), -(-num_inputs // _TILE_INPUTS)
    check("x", x, x.dtype, (num_rows, num_inputs), device)
    check("weight.packed", weight.packed, torch.int32, (tiles, steps, 32, 4), device)
    check("weight.scale", weight.scale, x.dtype, (tiles, num_inputs // weight.group, _TILE_OUTPUTS), device)
    if out is None:
        out = torch.empty(num_rows, num_outputs, dtype=x.dtype, device=device)
    check("out", out, x.dtype, (num_rows, num_outputs), device)
    call(
        "vorta_int4_linear",
        device,
        x,
        weight.packed,
        weight.scale,
        num_rows,
        num_outputs,
        num_inputs,
        weight.group,
        int(x.dtype == torch.bfloat16),
        out,
    )
    return out


def _nibbles(words: torch.Tensor) -> torch.Tensor:
    """int32 [...] to its 8 nibbles, uint8 [..., 8], the lowest first."""
    return torch.stack([((words >> (4 * index)) & 15).to(torch.uint8) for index in range(8)], -1)


def _words(nibbles: torch.Tensor) -> torch.Tensor:
    """The inverse of `_nibbles`."""
    words = nibbles[..., 0].to(torch.int32)
    for index in range(1, 8):
        words |= nibbles[..., index].to(torch.int32) << (4 * index)
    return words
