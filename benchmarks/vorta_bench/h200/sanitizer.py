"""compute-sanitizer on the CUDA C++ kernels, small: memory errors and races. It does not work under every sandbox:
that it was tried and refused is recorded as such, and is not a pass."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from vorta_bench.h200.command import run_command
from vorta_bench.h200.recording import Figure
from vorta_bench.h200.stage import Cell, Settings, Skip

__all__ = ["cells", "parts"]

_TOOLS = ("memcheck", "racecheck")
_WRONG = 99
"""Exit status that the tool gives where it found something, unlike any of Python's."""


def parts(settings: Settings) -> Sequence[str]:
    """One process, which starts others."""
    return ["sanitizer"]


def cells(settings: Settings, part: str) -> Iterable[Cell]:
    """One cell a tool."""
    return [Cell(tool, lambda tool=tool: _sanitize(tool, settings), 60) for tool in _TOOLS]  # type: ignore[misc]


def _sanitize(tool: str, settings: Settings) -> Figure:
    if settings.is_dry:
        raise Skip("a dry run on a CPU")
    if importlib.util.find_spec("vorta_kernels.cuda_check") is None:
        raise Skip("vorta_kernels.cuda_check is not there")
    sanitizer = _find()
    if sanitizer is None:
        raise Skip("compute-sanitizer is not there")
    command = [sanitizer, "--tool", tool, "--error-exitcode", str(_WRONG), "--target-processes", "all"]
    command += [sys.executable, "-m", "vorta_kernels.cuda_check", "--small"]
    share = 2 if tool == _TOOLS[0] else 1
    figure = run_command(command, timeout_s=(settings.until_s - time.time() - 10) / share)
    output = str(figure["output"])
    # A tool that cannot attach says so and runs nothing; only its own summary shows that it looked.
    figure["looked"] = "ERROR SUMMARY" in output or "RACECHECK SUMMARY" in output
    figure["ok"] = figure["looked"] and figure["status"] == 0
    return figure


def _find() -> str | None:
    candidates = [shutil.which("compute-sanitizer"), "/usr/local/cuda/bin/compute-sanitizer"]
    return next((path for path in candidates if path is not None and Path(path).exists()), None)
