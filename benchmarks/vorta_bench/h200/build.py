"""Builds what the GPU needs: the CUDA C++ library, and nothing else ahead of its first use."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from vorta_bench.h200.recording import Figure
from vorta_bench.h200.stage import Cell, Settings, Skip

__all__ = ["cells", "parts"]


def parts(settings: Settings) -> Sequence[str]:
    """One process."""
    return ["build"]


def cells(settings: Settings, part: str) -> Iterable[Cell]:
    """The CPU's operators are built too: the server samples with them."""
    return [
        Cell("libvorta_cuda", lambda: _library("vorta_kernels.cuda", settings), 120),
        Cell("cpu operators", lambda: _library("vorta_kernels.cpu", settings), 60),
    ]


def _library(module: str, settings: Settings) -> Figure:
    begin_s = time.perf_counter()
    try:
        path = Path(str(importlib.import_module(module).library()))
    except ModuleNotFoundError as error:
        raise Skip(f"{error.name} is not there") from error
    except Exception as error:
        if settings.is_dry:
            raise Skip(f"not built on this host: {error}") from error
        raise
    return {"file": path.name, "bytes": path.stat().st_size, "seconds": round(time.perf_counter() - begin_s, 2)}
