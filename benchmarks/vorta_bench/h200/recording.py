"""The JSON file of a stage. It is written anew, whole, after every figure: a run that is cut keeps what it had."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any

__all__ = ["DRY_RUN", "Figure", "Recording"]

Figure = dict[str, Any]

DRY_RUN = "cpu (dry run, figures mean nothing for a GPU)"
"""The device of a recording that was made without a GPU."""


class Recording:
    """Figures by key, and why others are missing.

    Attributes:
        figures: What was measured.
        failures: Cells that were tried and failed, with the reason.
        skipped: Cells that were not tried, with the reason.
        running: The cell that is being measured; one that a dead process leaves behind killed it.
    """

    def __init__(self, path: Path, stage: str) -> None:
        """Reads the file where there is one; nothing is written before the first change."""
        self._path = path
        document = json.loads(path.read_text()) if path.exists() else {}
        self._head: dict[str, Any] = {
            "stage": stage,
            "device": document.get("device", "unknown"),
            "command": document.get("command", ""),
            "begun": document.get("begun", _now()),
        }
        self.figures: dict[str, Figure] = document.get("figures", {})
        self.failures: dict[str, str] = document.get("failures", {})
        self.skipped: dict[str, str] = document.get("skipped", {})
        self.running: str | None = document.get("running")

    def describe(self, *, device: str, command: str) -> None:
        """Notes what measures, and the command that began it."""
        self._head |= {"device": device, "command": command}
        self._write()

    def begin(self, key: str) -> None:
        """Notes that a cell is being measured."""
        self.running = key
        self.failures.pop(key, None)
        self.skipped.pop(key, None)
        self._write()

    def add(self, key: str, figure: Figure) -> None:
        """Keeps a figure."""
        self.figures[key] = figure
        self._end(key)

    def fail(self, key: str, reason: str) -> None:
        """Notes that a cell failed."""
        self.failures[key] = reason
        self._end(key)

    def skip(self, key: str, reason: str) -> None:
        """Notes that a cell was not tried."""
        self.skipped[key] = reason
        self._end(key)

    def forget_failures(self) -> None:
        """Lets a resumed run try again what failed."""
        self.failures.clear()
        self.skipped.clear()
        self.running = None
        self._write()

    def _end(self, key: str) -> None:
        if self.running == key:
            self.running = None
        self._write()

    def _write(self) -> None:
        document = {
            **self._head,
            "ended": _now(),
            "figures": self.figures,
            "failures": self.failures,
            "skipped": self.skipped,
            "running": self.running,
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        with temporary.open("w") as file:
            file.write(json.dumps(document, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
