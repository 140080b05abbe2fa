"""`reference.block_copy` on a GPU, and the exchange of blocks with host memory."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from vorta_kernels.cuda_ops.call import call, check, pointers

__all__ = ["MAX_TENSORS", "block_copy", "block_swap"]

MAX_TENSORS = 4
"""Tensors of one call: K, V, and the scales of each."""


def block_copy(tensors: Sequence[torch.Tensor], pairs: torch.Tensor) -> None:
    """As the reference; a pair that names a block which is not there (-1, say) is left out: pairs can be padded.

    Raises:
        ValueError: A tensor's type, shape, device or layout is wrong.
    """
    if not tensors:
        return
    device = tensors[0].device
    num_layers, num_blocks, sizes = _layout(tensors)
    for index, tensor in enumerate(tensors):
        check(f"tensors[{index}]", tensor, tensor.dtype, tensor.shape, device)
    if pairs.dim() != 2:
        raise ValueError(f"pairs must be [num_pairs, 2], not of shape {tuple(pairs.shape)}")
    check("pairs", pairs, torch.int32, (len(pairs), 2), device)
    call(
        "vorta_block_copy",
        device,
        pointers(tensors),
        (ctypes.c_int64 * len(sizes))(*sizes),
        len(tensors),
        num_layers,
        num_blocks,
        pairs,
        len(pairs),
    )


def block_swap(
    source: Sequence[torch.Tensor], target: Sequence[torch.Tensor], pairs: Sequence[tuple[int, int]]
) -> None:
    """Copies block pairs[i][0] of `source` to block pairs[i][1] of `target` in every layer, between a GPU and the host.

    The copies are enqueued on the GPU's current stream; from memory that is not pinned they wait for it.

    Args:
        source, target: Tensors as in `block_copy`, alike but for their number of blocks; one of the two on the host.

    Raises:
        ValueError: The tensors do not fit each other or a block is not there.
    """
    if len(source) != len(target):
        raise ValueError(f"{len(source)} tensors to {len(target)}")
    if not source or not pairs:
        return
    num_layers, source_blocks, sizes = _layout(source)
    target_layers, target_blocks, target_sizes = _layout(target)
    if (num_layers, sizes) != (target_layers, target_sizes):
        raise ValueError("source and target differ in layers or in the bytes of a block")
    for tensor in (*source, *target):
        if not tensor.is_contiguous():
            raise ValueError("tensors must be contiguous")
    for here, there in pairs:
        if not (0 <= here < source_blocks and 0 <= there < target_blocks):
            raise ValueError(f"no blocks {here} and {there} in {source_blocks} and {target_blocks}")
    is_to_host = target[0].device.type == "cpu"
    device = (source if is_to_host else target)[0].device
    flat = [block for pair in pairs for block in pair]
    call(
        "vorta_block_swap",
        device,
        pointers(source),
        pointers(target),
        (ctypes.c_int64 * len(sizes))(*sizes),
        len(source),
        num_layers,
        ctypes.c_int64(source_blocks),
        ctypes.c_int64(target_blocks),
        (ctypes.c_int * len(flat))(*flat),
        len(pairs),
        int(is_to_host),
    )


def _layout(tensors: Sequence[torch.Tensor]) -> tuple[int, int, list[int]]:
    """Layers, blocks, and the bytes of a block of each tensor; raises ValueError where the tensors disagree."""
    if len(tensors) > MAX_TENSORS:
        raise ValueError(f"{len(tensors)} tensors are more than {MAX_TENSORS}")
    if any(tensor.dim() < 2 or tensor.shape[:2] != tensors[0].shape[:2] for tensor in tensors):
        raise ValueError("tensors must be [num_layers, num_blocks, ...], with the same two numbers")
    num_layers, num_blocks = tensors[0].shape[:2]
    return num_layers, num_blocks, [tensor.shape[2:].numel() * tensor.element_size() for tensor in tensors]
