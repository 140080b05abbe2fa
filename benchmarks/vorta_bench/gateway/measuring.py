"""CPU time and ratios."""

from __future__ import annotations

import statistics
from pathlib import Path

__all__ = ["cpu_s", "ratio"]


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, with all its threads."""
    # By the scheduler's nanoseconds: clock ticks are too coarse for what is measured here.
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of what ours is over theirs, by rounds."""
    return round(statistics.median([a / b for a, b in zip(ours, theirs, strict=True)]), 2)
