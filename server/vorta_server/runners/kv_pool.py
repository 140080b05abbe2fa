"""Memory for K and V on a CPU: slots of fixed capacity that cost nothing until tokens are written.

One anonymous mapping [layers * 2, slots, heads, capacity, head_dim] float32. For each layer K and V, any run of
consecutive slots is contiguous, as a batch [B, KH, T, D] wants it. The system provides a page when it is first
written, and takes it back when its slot is discarded.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["KvPool"]

# The mapping is reserved, not committed: most of it is never touched.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0)

# Elements of one position and head are a multiple of 16 float32; this many positions are whole pages.
_POSITIONS_PER_PAGES = 64


_POSITIONS_BY_PIECE = 128
"""From so many positions on each head's are copied by themselves."""


class KvPool:
    """K and V of all layers.

    Args:
        capacity: positions per slot; rounded up so that every slot begins on a page.
    """

    def __init__(self, *, num_layers: int, num_slots: int, num_heads: int, capacity: int, head_dim: int) -> None:
        capacity = -(-capacity // _POSITIONS_PER_PAGES) * _POSITIONS_PER_PAGES
        shape = (2 * num_layers, num_slots, num_heads, capacity, head_dim)
        num_bytes = int(np.prod(shape, dtype=np.int64)) * 4
        self._memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
        self._array: NDArray[np.float32] = np.frombuffer(self._memory, np.float32).reshape(shape)
        self.bytes_per_token = 2 * num_layers * num_heads * head_dim * 4
        self._layer_bytes, self._slot_bytes = self._array.strides[:2]

    def shape(self, num_slots: int) -> tuple[int, int, int, int]:
        """The shape of one layer's K or V over that many slots."""
        _, _, num_heads, capacity, head_dim = self._array.shape
        return num_slots, num_heads, capacity, head_dim

    def addresses(self, slot: int) -> Iterator[tuple[str, int]]:
        """Names (key_0, value_0, key_1, …) and addresses of every layer's K and V from this slot on."""
        base = self._array.ctypes.data + slot * self._slot_bytes
        for index in range(len(self._array)):
            yield f"{('key', 'value')[index % 2]}_{index // 2}", base + index * self._layer_bytes

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Copies the first tokens of one slot to another."""
        tokens = self._array[:, :, :, :num_tokens]
        if num_tokens < _POSITIONS_BY_PIECE:
            tokens[:, target] = tokens[:, source]
            return
        for layer in tokens:  # a third faster in contiguous pieces
            for to, of in zip(layer[target], layer[source], strict=True):
                to[...] = of

    def discard(self, slot: int) -> None:
        """Gives the slot's pages back; it reads as zeros afterwards."""
        if self._slot_bytes % mmap.PAGESIZE:
            self._array[:, slot] = 0
            return
        for index in range(len(self._array)):
            start = index * self._layer_bytes + slot * self._slot_bytes
            self._memory.madvise(mmap.MADV_DONTNEED, start, self._slot_bytes)

    def close(self) -> None:
        """Unmaps the memory once nothing refers to it. Idempotent."""
        self._array = np.empty((0, 0, 0, 0, 0), np.float32)
        if not self._memory.closed:
            self._memory.close()
