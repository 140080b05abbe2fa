"""Kernels against their references over a grid of shapes: `vorta_kernels.grid` (the Triton ones) and
`vorta_kernels.cuda_check` (CUDA C++), each in a process of its own, as a kernel that is wrong may kill it."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterable, Sequence

from vorta_bench.h200.command import run_module
from vorta_bench.h200.recording import Figure
from vorta_bench.h200.stage import Cell, Settings, Skip

__all__ = ["cells", "parts"]


def parts(settings: Settings) -> Sequence[str]:
    """One process, which starts others."""
    return ["parity"]


def cells(settings: Settings, part: str) -> Iterable[Cell]:
    """One cell a program. A figure is there when the program ran; `ok` says whether everything agreed."""
    return [
        Cell("grid", lambda: _check("vorta_kernels.grid", settings), 60),
        Cell("cuda_check", lambda: _check("vorta_kernels.cuda_check", settings), 60),
    ]


def _check(module: str, settings: Settings) -> Figure:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        raise Skip(f"{module} is not there")
    if settings.is_dry:
        raise Skip("kernels do not run on a CPU; their tests run them in Triton's interpreter")
    return run_module(module, timeout_s=settings.until_s - time.time() - 10)
