"""Turns a folder of stages' JSON files into one page: `python -m vorta_bench.report DIR --out page.html`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vorta_bench.report.page import render_page
from vorta_bench.report.results import Results


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit status: 1 when the folder has no stage's file."""
    parser = argparse.ArgumentParser(prog="python -m vorta_bench.report", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="what `python -m vorta_bench.h200 --out` wrote")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: DIR/report.html")
    arguments = parser.parse_args(argv)
    results = Results.read(arguments.folder)
    if not results.stages:
        sys.stderr.write(f"vorta_bench.report: {arguments.folder} has no stage's JSON file\n")
        return 1
    out = arguments.out or arguments.folder / "report.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(render_page(results))
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
