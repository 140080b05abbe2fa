"""What a stage is made of, and how its cells are run: one after the other, within a time, each figure kept at once."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from vorta_bench.h200.recording import Figure, Recording

__all__ = ["NO_TIME", "POISONED", "Cell", "Settings", "Skip", "StageModule", "brief", "once", "run_cells"]

_T = TypeVar("_T")
NO_TIME = "the time of the stage was over"
POISONED = 70
"""Exit status of a process whose device answers nothing any more; the rest is measured in a new one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a run is told.

    Attributes:
        device: "cuda" or "cpu". On a CPU every stage runs with tiny sizes, to be tested; its figures mean nothing.
        out: Folder of the JSON files.
        work: Folder of what may be thrown away: checkpoints, a server's data.
        models: Names in `model_shape.SHAPES`, the most important first.
        precisions: Names in `floor.PRECISIONS`.
        is_fake: Whether the fake runner takes the place of Vorta's, so that a dry run is quick and needs no torch.
        until_s: When the stage must have ended, as `time.time`.
    """

    device: str
    out: Path
    work: Path
    models: tuple[str, ...]
    precisions: tuple[str, ...]
    until_s: float
    is_fake: bool = False

    @property
    def is_dry(self) -> bool:
        """Whether this run is on a CPU."""
        return self.device == "cpu"

    def choose(self, cuda: Any, cpu: Any) -> Any:
        """The size for the device."""
        return cpu if self.is_dry else cuda


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure to be measured.

    Attributes:
        key: Its name in the recording.
        measure: Returns the figure.
        most_s: It is not begun with fewer seconds left.
    """

    key: str
    measure: Callable[[], Figure]
    most_s: float = 30.0


class StageModule(Protocol):
    """A module of this package that measures something."""

    def parts(self, settings: Settings) -> Sequence[str]:
        """Names of the processes that the stage is cut into, the most important first. Imports no torch."""
        ...

    def cells(self, settings: Settings, part: str) -> Iterable[Cell]:
        """What one process measures. Cheap: what cells have in common is made by the first that is measured."""
        ...


class Skip(Exception):
    """Raised by a cell that cannot be measured here; its text says why."""


def run_cells(cells: Iterable[Cell], recording: Recording, until_s: float) -> None:
    """Measures what is neither measured nor failed yet.

    Raises SystemExit(POISONED) when an error has left the device unusable for this process.
    """
    for cell in cells:
        if cell.key in recording.figures or cell.key in recording.failures:
            continue
        if time.time() + cell.most_s > until_s:
            recording.skip(cell.key, NO_TIME)
            continue
        recording.begin(cell.key)
        try:
            figure = cell.measure()
        except Skip as reason:
            recording.skip(cell.key, str(reason))
            print(f"{cell.key}: skipped: {reason}", flush=True)
        except Exception as error:
            traceback.print_exc()
            recording.fail(cell.key, brief(error))
            print(f"{cell.key}: FAILED: {brief(error)}", flush=True)
            if _is_poisoned(error):
                sys.exit(POISONED)
        else:
            recording.add(cell.key, figure)
            print(f"{cell.key}: {_line(figure)}", flush=True)


def once(make: Callable[[], _T]) -> Callable[[], _T]:
    """What several cells share: made by the first that asks. What could not be made is not tried again."""
    made: list[_T] = []
    errors: list[Exception] = []

    def get() -> _T:
        if errors:
            raise errors[0]
        if not made:
            try:
                made.append(make())
            except Exception as error:
                errors.append(error)
                raise
        return made[0]

    return get


def brief(error: BaseException) -> str:
    """An error's class and the first line of its text."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:300]}"


def _is_poisoned(error: BaseException) -> bool:
    # Out of memory leaves a device usable; whatever else CUDA says does not.
    text = str(error)
    return "CUDA error" in text and "out of memory" not in text


def _line(figure: Figure) -> str:
    cells = []
    for name, value in figure.items():
        if isinstance(value, float):
            cells.append(f"{name} {value:.4g}")
        elif isinstance(value, int | str | bool):
            cells.append(f"{name} {str(value)[:80]}")
    return ", ".join(cells)
