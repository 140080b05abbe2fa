"""The command with a stage in the place of `build` whose cells die, hang, and work: run by `test_main`."""

from __future__ import annotations

import os
import sys
import time
import types

from vorta_bench.h200.recording import Figure
from vorta_bench.h200.stage import Cell


def die() -> Figure:
    sys.stderr.write("the kernel wrote where it must not\n")
    sys.stderr.flush()
    os._exit(9)


def hang() -> Figure:
    time.sleep(600)
    return {}


stage = types.ModuleType("vorta_bench.h200.build")
stage.parts = lambda settings: ["mixed", "broken", "hanging", "never"]  # type: ignore[attr-defined]


def cells(settings: object, part: str) -> list[Cell]:
    if part == "broken":
        raise ImportError("no such package")
    if part == "hanging":
        return [Cell("hang", hang, 0)]
    return [Cell(f"{part} first", lambda: {"n": 1}, 0), Cell(f"{part} die", die, 0), Cell(f"{part} last", dict, 0)]


stage.cells = cells  # type: ignore[attr-defined]
sys.modules["vorta_bench.h200.build"] = stage

if __name__ == "__main__":
    from vorta_bench.h200.__main__ import main

    sys.exit(main(sys.argv[1:]))
