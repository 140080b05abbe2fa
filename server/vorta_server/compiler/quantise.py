"""Block quantisation of weights: the one definition that the compiler, training and kernels share.

int4: symmetric, blocks of 32 (or more, see `default_block`) along the input dimension. m is the block's
element of largest magnitude with its sign (of two with equal magnitude the positive one), scale = m / -8,
q = clip(round(w / scale) + 8, 0, 15), w' = (q - 8) * scale. The block's extreme value is exact; any other
is off by at most |scale| / 2, or by |scale| for values beyond 7.5 |scale| on the far side, which the clip
cuts to 7. int8: symmetric, the same blocks. scale = absmax / 127, q = round(w / scale) + 128 as uint8; off
by at most scale / 2. A block of zeros has scale 1. Rounding is half to even.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vorta_server.compiler.checkpoint import Float32Array

BLOCK = 32

Uint8Array = npt.NDArray[np.uint8]


def num_blocks(num_columns: int, block: int = BLOCK) -> int:
    """How many blocks a row of this length has; the last one may be padded with zeros."""
    return -(-num_columns // block)


def quantise_int4(weight: Float32Array, block: int = BLOCK) -> tuple[Uint8Array, Float32Array]:
    """[N, K] float32 to packed nibbles [N, blocks, block / 2] (even elements low) and scales [N, blocks]."""
    blocks = _blocks(weight, block)
    high, low = blocks.max(axis=2), blocks.min(axis=2)
    scale = np.where(-low > high, low, high) / np.float32(-8)
    scale[scale == 0] = 1
    levels = np.rint(blocks / scale[:, :, None])
    levels += 8
    codes = np.clip(levels, 0, 15, out=levels).astype(np.uint8)
    return codes[:, :, 0::2] | (codes[:, :, 1::2] << 4), scale


def dequantise_int4(packed: Uint8Array, scale: Float32Array, num_columns: int) -> Float32Array:
    """The inverse of quantise_int4: [N, num_columns] float32."""
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1)
    values = (codes.astype(np.float32) - 8) * scale[:, :, None]
    return values.reshape(len(packed), -1)[:, :num_columns]


def quantise_int8(weight: Float32Array, block: int = BLOCK) -> tuple[Uint8Array, Float32Array]:
    """[N, K] float32 to bytes [N, blocks, block] around 128 and scales [N, blocks]."""
    blocks = _blocks(weight, block)
    scale = np.maximum(blocks.max(axis=2), -blocks.min(axis=2)) / np.float32(127)
    scale[scale == 0] = 1
    levels = np.rint(blocks / scale[:, :, None])
    levels += 128
    return levels.astype(np.uint8), scale


def dequantise_int8(codes: Uint8Array, scale: Float32Array, num_columns: int) -> Float32Array:
    """The inverse of quantise_int8: [N, num_columns] float32."""
    values = (codes.astype(np.float32) - 128) * scale[:, :, None]
    return values.reshape(len(codes), -1)[:, :num_columns]


def _blocks(weight: Float32Array, block: int) -> Float32Array:
    num_rows, num_columns = weight.shape
    padding = -num_columns % block
    if padding:
        weight = np.pad(weight, ((0, 0), (0, padding)))
    return weight.reshape(num_rows, -1, block)
