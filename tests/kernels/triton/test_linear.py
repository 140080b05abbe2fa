"""fp8_linear and int4_linear on the interpreter."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from vorta_kernels import grid
from vorta_kernels.reference import linear as reference
from vorta_kernels.triton_ops import linear as triton_ops
from vorta_kernels.triton_ops.tuning import Tiles

CPU = torch.device("cpu")
SMALL = [case for case in grid.CASES["linear"] if not case.is_large]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: f"{case.op}:{case.id}")
@pytest.mark.parametrize(
    "tiles",
    [None, Tiles(block_m=16, block_n=16, block_k=32, num_warps=4, num_stages=2)],
    ids=["default", "many small tiles"],
)
def test_agrees_with_the_reference(case: grid.Case, tiles: Tiles | None) -> None:
    expected = grid.run(case, getattr(reference, case.op), CPU)
    got = grid.run(case, partial(getattr(triton_ops, case.op), tiles=tiles), CPU)
    assert grid.mismatches(case, got, expected) == []


def test_tiles_grow_with_the_rows() -> None:
    assert [triton_ops._tiles(triton_ops.INT4_LINEAR, rows).block_m for rows in (1, 16, 17, 65, 5000)] == [
        16,
        16,
        64,
        128,
        128,
    ]
