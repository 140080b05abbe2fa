"""Kernels against their references: every case of `vorta_kernels.grid`, the large ones too, with the operations that
the runner calls (`vorta_kernels.ops`); and `vorta_kernels.cuda_check`, the CUDA C++ kernels by themselves.

A case is a cell of its own: a kernel that is wrong may take its process along. Where they disagree the cell fails. On a
CPU the operations are the references, so a dry run tests this stage and no kernel.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Iterable, Sequence
from typing import Any

from vorta_bench.h200.command import run_module
from vorta_bench.h200.recording import Figure
from vorta_bench.h200.stage import Cell, Settings, Skip

__all__ = ["cells", "parts"]

_CUDA_CHECK = "vorta_kernels.cuda_check"
_STEMS = (
    *("rms_norm", "silu_mul", "rope_kv", "paged_attention", "linear", "sample", "verify"),
    *("batch_pack", "block_copy"),
)
_NUM_DRY_CASES = 3


def parts(settings: Settings) -> Sequence[str]:
    """A process for each module of operations."""
    return [*_STEMS, "cuda_check"]


def cells(settings: Settings, part: str) -> Iterable[Cell]:
    """The cases of an operation's module."""
    if part == "cuda_check":
        return [Cell(part, lambda: _cuda_check(settings), 60)]
    try:
        grid: Any = importlib.import_module("vorta_kernels.grid")
    except ModuleNotFoundError as error:
        return [_missing(part, f"{error.name} is not there")]
    cases = grid.CASES.get(part, ())
    if not cases:
        return [_missing(part, "the grid has no cases of it")]
    if settings.is_dry:
        cases = [case for case in cases if not case.is_large][:_NUM_DRY_CASES]
    return [
        Cell(f"{case.op}({case.id})", lambda case=case: _compare(settings, grid, part, case), 10)  # type: ignore[misc]
        for case in cases
    ]


def _missing(part: str, reason: str) -> Cell:
    def skip() -> Figure:
        raise Skip(reason)

    return Cell(part, skip, 0)


def _compare(settings: Settings, grid: Any, stem: str, case: Any) -> Figure:
    import torch

    device = torch.device(settings.device)
    reference = getattr(importlib.import_module(f"vorta_kernels.reference.{stem}"), case.op)
    operation = getattr(importlib.import_module("vorta_kernels.ops"), case.op)
    expected = grid.run(case, reference, device)
    begin_s = time.perf_counter()
    got = grid.run(case, operation, device)
    seconds = time.perf_counter() - begin_s
    found = grid.mismatches(case, got, expected)
    if found:
        raise AssertionError("; ".join(found))
    return {"ok": True, "is_large": case.is_large, "seconds": round(seconds, 3)}


def _cuda_check(settings: Settings) -> Figure:
    if importlib.util.find_spec(_CUDA_CHECK) is None:
        raise Skip(f"{_CUDA_CHECK} is not there")
    if settings.is_dry:
        raise Skip("the CUDA C++ kernels are tested on a CPU by their own tests")
    figure = run_module(_CUDA_CHECK, timeout_s=settings.until_s - time.time() - 10)
    if not figure["ok"]:
        raise AssertionError(f"status {figure['status']}: {str(figure['output']).strip()[-500:]}")
    return figure
