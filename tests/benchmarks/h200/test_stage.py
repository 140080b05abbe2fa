"""Cells and recordings: figures are kept one by one, whatever becomes of the others."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from vorta_bench.h200.recording import Figure, Recording
from vorta_bench.h200.stage import NO_TIME, POISONED, Cell, Skip, once, run_cells


def raising(error: Exception) -> Cell:
    def measure() -> Figure:
        raise error

    return Cell("raising", measure, 0)


def far() -> float:
    return time.time() + 60


def test_every_figure_is_in_the_file_before_the_next_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "engine.json"

    def second() -> Figure:
        document = json.loads(path.read_text())
        assert document["figures"] == {"first": {"value": 1}}
        assert document["running"] == "second"
        return {"value": 2}

    run_cells([Cell("first", lambda: {"value": 1}, 0), Cell("second", second, 0)], Recording(path, "engine"), far())
    document = json.loads(path.read_text())
    assert document["stage"] == "engine"
    assert document["figures"] == {"first": {"value": 1}, "second": {"value": 2}}
    assert document["running"] is None


def test_what_is_there_is_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    Recording(path, "a").add("first", {"value": 1})
    run_cells([Cell("first", lambda: {"value": 2}, 0)], Recording(path, "a"), far())
    assert Recording(path, "a").figures == {"first": {"value": 1}}


def test_failures_and_skips_are_kept_with_their_reasons_and_tried_again_when_resumed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    cells = [raising(ValueError("wrong\nmore")), Cell("late", dict, 120)]
    run_cells(cells, Recording(path, "a"), far())
    recording = Recording(path, "a")
    assert recording.failures == {"raising": "ValueError: wrong"}
    assert recording.skipped == {"late": NO_TIME}
    recording.forget_failures()
    run_cells([raising(Skip("not here")), Cell("late", lambda: {"value": 1}, 1)], Recording(path, "a"), far())
    recording = Recording(path, "a")
    assert (recording.failures, recording.skipped) == ({}, {"raising": "not here"})
    assert recording.figures == {"late": {"value": 1}}


def test_a_poisoned_device_ends_the_process_with_the_failure_recorded(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(SystemExit) as caught:
        run_cells([raising(RuntimeError("CUDA error: an illegal memory access"))], Recording(path, "a"), far())
    assert caught.value.code == POISONED
    assert Recording(path, "a").failures.keys() == {"raising"}


def test_memory_that_does_not_suffice_poisons_nothing(tmp_path: Path) -> None:
    cells = [raising(RuntimeError("CUDA error: out of memory")), Cell("next", dict, 0)]
    run_cells(cells, Recording(tmp_path / "a.json", "a"), far())
    assert Recording(tmp_path / "a.json", "a").figures == {"next": {}}


def test_what_cells_share_is_made_once_and_its_failure_is_not_repeated() -> None:
    calls: list[int] = []

    def make() -> int:
        calls.append(1)
        raise OSError("no server")

    get = once(make)
    for _ in range(3):
        with pytest.raises(OSError, match="no server"):
            get()
    assert len(calls) == 1
    numbers = iter(range(3))
    get_number = once(lambda: next(numbers))
    assert [get_number(), get_number()] == [0, 0]
