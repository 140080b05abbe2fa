"""rms_norm and rms_norm_fp8 on the interpreter."""

from __future__ import annotations

import pytest
import torch

from vorta_kernels import grid
from vorta_kernels.reference import rms_norm as reference
from vorta_kernels.triton_ops import rms_norm as triton_ops

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "case", [case for case in grid.CASES["rms_norm"] if not case.is_large], ids=lambda case: case.id
)
def test_agrees_with_the_reference(case: grid.Case) -> None:
    expected = grid.run(case, getattr(reference, case.op), CPU)
    assert grid.mismatches(case, grid.run(case, getattr(triton_ops, case.op), CPU), expected) == []


def test_without_a_residual_the_new_one_is_x_itself() -> None:
    x = torch.randn(2, 64)
    assert triton_ops.rms_norm(x, torch.ones(64), 1e-6)[1] is x


def test_rows_may_be_strided() -> None:
    x, weight = torch.randn(3, 128), torch.ones(64)
    expected, _ = reference.rms_norm(x[:, 64:], weight, 1e-6)
    torch.testing.assert_close(triton_ops.rms_norm(x[:, 64:], weight, 1e-6)[0], expected)
