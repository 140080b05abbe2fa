"""Launch constants of all Triton kernels, in one place, so that a tuning run has one module to rewrite.

They are starting points from counting registers and bytes, and are measured nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DECODE", "FP8_LINEAR", "INT4_LINEAR", "PREFILL", "PREFILL_BEFORE_HOPPER", "Launch", "Tiles", "row_warps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How an attention kernel is launched.

    Attributes:
        block_m: Rows of a tile of queries; for decode the least rows, as a group is padded to them.
        block_n: Tokens of K and V of one iteration.
        num_warps, num_stages: As in Triton.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """How a product is launched: a program's tile is [block_m, block_n], in steps of block_k."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


DECODE = {
    # By (padded head_dim, bytes of an element of the cache). Tiles in flight hide latency. The address of a tile is
    # itself loaded (from the block table), so Triton puts (stages - 2) / 2, rounded up, tiles of K and of V on their
    # way: with 5 stages two of each, 64 KiB at 64 x 128 x 2 bytes, and three programs fit a multiprocessor of Hopper.
    (64, 1): Launch(block_m=16, block_n=64, num_warps=4, num_stages=5),
    (64, 2): Launch(block_m=16, block_n=64, num_warps=4, num_stages=5),
    (64, 4): Launch(block_m=16, block_n=32, num_warps=4, num_stages=3),
    (128, 1): Launch(block_m=16, block_n=64, num_warps=4, num_stages=5),
    (128, 2): Launch(block_m=16, block_n=64, num_warps=4, num_stages=5),
    (128, 4): Launch(block_m=16, block_n=32, num_warps=4, num_stages=2),
}

PREFILL = {
    # The same keys. 128 rows and 8 warps give each of two warp groups a 64-row wgmma on Hopper.
    (64, 1): Launch(block_m=128, block_n=64, num_warps=8, num_stages=3),
    (64, 2): Launch(block_m=128, block_n=64, num_warps=8, num_stages=3),
    (64, 4): Launch(block_m=64, block_n=32, num_warps=4, num_stages=2),
    (128, 1): Launch(block_m=128, block_n=64, num_warps=8, num_stages=3),
    (128, 2): Launch(block_m=128, block_n=64, num_warps=8, num_stages=3),
    (128, 4): Launch(block_m=64, block_n=32, num_warps=8, num_stages=2),
}

PREFILL_BEFORE_HOPPER = PREFILL | {
    # Below compute capability 9.0 products take their operands from registers, and 64 tokens at once spill.
    (128, 1): Launch(block_m=128, block_n=32, num_warps=8, num_stages=3),
    (128, 2): Launch(block_m=128, block_n=32, num_warps=8, num_stages=3),
}

INT4_LINEAR = (
    # By rows: the first entry whose block_m is not below them, else the last.
    Tiles(block_m=16, block_n=64, block_k=64, num_warps=4, num_stages=4),
    Tiles(block_m=64, block_n=128, block_k=64, num_warps=4, num_stages=3),
    Tiles(block_m=128, block_n=128, block_k=64, num_warps=8, num_stages=3),
)

FP8_LINEAR = (
    Tiles(block_m=16, block_n=64, block_k=128, num_warps=4, num_stages=4),
    Tiles(block_m=64, block_n=128, block_k=128, num_warps=4, num_stages=3),
    Tiles(block_m=128, block_n=128, block_k=128, num_warps=8, num_stages=3),
)


def row_warps(width: int) -> int:
    """Warps for a program that holds a row of `width` elements in registers: 16 elements a thread, 1 to 16 warps."""
    warps = 1
    while warps < 16 and warps * 32 * 16 < width:
        warps *= 2
    return warps
