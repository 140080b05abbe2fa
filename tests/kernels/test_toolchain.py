"""Says what of the kernels' tests cannot run here, as those are not even collected then."""

from __future__ import annotations

import importlib.util

import pytest

from vorta_kernels import cuda


@pytest.mark.parametrize("module", ["torch", "triton"])
def test_what_runs_the_triton_kernels_is_installed(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(
            f"{module} is not installed: tests/kernels/triton is left out (scripts/setup_kernels.sh installs it)"
        )


def test_nvcc_is_installed() -> None:
    if cuda.find_tool("nvcc") is None:
        pytest.skip("nvcc is not installed: the CUDA C++ kernels are emulated but not compiled")
