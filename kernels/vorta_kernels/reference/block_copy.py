"""Copies of whole cache blocks, in every layer at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["block_copy"]


def block_copy(tensors: Sequence[torch.Tensor], pairs: torch.Tensor) -> None:
    """Copies block pairs[i, 0] to block pairs[i, 1], in place.

    Args:
        tensors: `KvCache.tensors`, each [num_layers, num_blocks, ...].
        pairs: int32 [num_pairs, 2]. No target is named twice, and no target is a source.
    """
    source, target = pairs.long().unbind(1)
    for tensor in tensors:
        view = tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor
        view[:, target] = view[:, source]
