"""rope_kv on the interpreter."""

from __future__ import annotations

import pytest
import torch

from vorta_kernels import grid
from vorta_kernels.reference import rope_kv as reference
from vorta_kernels.triton_ops import rope_kv as triton_ops

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "case", [case for case in grid.CASES["rope_kv"] if not case.is_large], ids=lambda case: case.id
)
def test_agrees_with_the_reference(case: grid.Case) -> None:
    expected = grid.run(case, getattr(reference, case.op), CPU)
    assert grid.mismatches(case, grid.run(case, getattr(triton_ops, case.op), CPU), expected) == []
