"""Paged K and V on a torch device: the layout that every attention kernel reads and writes.

A block holds `block_size` consecutive tokens of one sequence in one layer. A sequence's tokens lie in the blocks that
its row of a block table names, in order; a token's slot is `block * block_size + offset`. K and V of one head and block
are contiguous, [block_size, head_dim], so that a block is one tile of attention.

In float8_e4m3fn every token and head has a scale of its own, so no calibration is needed: 4 bytes in `head_dim`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["FP8", "FP8_MAX", "KvCache", "KvLayer"]

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
"""The largest finite value of float8_e4m3fn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayer:
    """One layer's part of the cache; views of it.

    Attributes:
        key, value: [num_blocks, num_kv_heads, block_size, head_dim], float32, float16, bfloat16 or float8_e4m3fn.
        key_scale, value_scale: float32 [num_blocks, num_kv_heads, block_size], what a token's elements are multiplied
            by; None but for float8_e4m3fn.
    """

    key: torch.Tensor
    value: torch.Tensor
    key_scale: torch.Tensor | None = None
    value_scale: torch.Tensor | None = None

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self.key.shape[2]

    @property
    def num_kv_heads(self) -> int:
        """Heads of K and V."""
        return self.key.shape[1]


class KvCache:
    """K and V of all layers in one allocation each.

    Args:
        dtype: float32, float16, bfloat16 or float8_e4m3fn.
        block_size: tokens of a block, a power of two from 16 on.

    Attributes:
        tensors: everything that belongs to a block, each [num_layers, num_blocks, ...]: what copying a block copies.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        num_kv_heads: int,
        block_size: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        if block_size < 16 or block_size & (block_size - 1):
            raise ValueError(f"block_size must be a power of two from 16 on, not {block_size}")
        if dtype not in (torch.float32, torch.float16, torch.bfloat16, FP8):
            raise ValueError(f"KV of type {dtype} is not supported")
        shape = (num_layers, num_blocks, num_kv_heads, block_size, head_dim)
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.dtype = dtype
        # Zeroed, since what is masked is still multiplied by zero, and that must not be NaN.
        self._key = torch.zeros(shape, dtype=dtype, device=device)
        self._value = torch.zeros(shape, dtype=dtype, device=device)
        self._key_scale = self._value_scale = None
        self.tensors = [self._key, self._value]
        if dtype == FP8:
            self._key_scale = torch.zeros(shape[:-1], dtype=torch.float32, device=device)
            self._value_scale = torch.zeros(shape[:-1], dtype=torch.float32, device=device)
            self.tensors += [self._key_scale, self._value_scale]

    @staticmethod
    def bytes_per_token(*, num_layers: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Bytes that one token takes in all layers."""
        head_bytes = head_dim * dtype.itemsize + (4 if dtype == FP8 else 0)
        return 2 * num_layers * num_kv_heads * head_bytes

    def layer(self, index: int) -> KvLayer:
        """One layer's views."""
        return KvLayer(
            key=self._key[index],
            value=self._value[index],
            key_scale=None if self._key_scale is None else self._key_scale[index],
            value_scale=None if self._value_scale is None else self._value_scale[index],
        )
