"""The command: processes that die or hang cost their own cell, stages end in time, a dry run reaches its page."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vorta_bench.h200.environment import MAX_TREE_BYTES, ROOT, source_tree_bytes
from vorta_bench.h200.recording import DRY_RUN
from vorta_bench.h200.stage import NO_TIME, Skip
from vorta_bench.report.__main__ import main as report

MISBEHAVING = Path(__file__).parent / "misbehaving.py"
command = importlib.import_module("vorta_bench.h200.__main__")


def run(out: Path, *arguments: str) -> int:
    command = [sys.executable, "-m", "vorta_bench.h200", "--device", "cpu", "--out", str(out), *arguments]
    return subprocess.run([*command, "--work", str(out / "work")], check=False, stdout=subprocess.DEVNULL).returncode


def read(out: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / f"{stage}.json").read_text())
    return found


@pytest.fixture
def misbehave(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Runs the command, here and in the processes of its parts, with the stage of `misbehaving`."""
    monkeypatch.setitem(sys.modules, "vorta_bench.h200.build", None)  # so that the test's is taken back out
    exec(compile(MISBEHAVING.read_text(), MISBEHAVING, "exec"), {"__name__": "misbehaving"})
    monkeypatch.setattr(command, "_COMMAND", (sys.executable, str(MISBEHAVING)))
    fixed = ["build", "--device", "cpu", "--out", str(tmp_path), "--work", str(tmp_path / "work")]
    return lambda *arguments: int(command.main([*fixed, *arguments]))


def test_a_process_that_dies_costs_its_own_cell(misbehave: Callable[..., int], tmp_path: Path) -> None:
    assert misbehave("--only", "mixed", "--only", "broken") == 1
    document = read(tmp_path, "build")
    assert document["device"] == DRY_RUN
    assert document["figures"] == {"mixed first": {"n": 1}, "mixed last": {}}
    assert document["failures"]["mixed die"] == "the process ended with status 9: the kernel wrote where it must not"
    assert "no such package" in document["failures"]["broken"]
    # A resumed run keeps what there is, and tries again what failed.
    assert misbehave("--only", "never", "--resume") == 1
    document = read(tmp_path, "build")
    assert document["figures"].keys() == {"mixed first", "mixed last", "never first", "never last"}
    assert document["failures"].keys() == {"never die"}


@pytest.mark.slow
def test_a_process_that_hangs_is_ended_with_its_stage(misbehave: Callable[..., int], tmp_path: Path) -> None:
    assert misbehave("--only", "hanging", "--only", "never", "--limit-s", "15") == 1
    document = read(tmp_path, "build")
    assert document["failures"] == {"hang": "it was still running when the time of the stage was over"}
    assert document["skipped"] == {"never": NO_TIME}


def test_an_engine_stage_on_a_cpu_and_its_page(tmp_path: Path) -> None:
    assert run(tmp_path, "engine", "--precisions", "bf16", "--only", "graphs") == 0
    document = read(tmp_path, "engine")
    assert document["device"] == DRY_RUN
    assert {"tiny/bf16/graphs/decode 4x16", "tiny/bf16/graphs/prefill 16"} <= document["figures"].keys()
    assert report([str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "This is a dry run on a CPU" in page
    assert "Not run: environment, build" in page


def test_without_a_gpu_nothing_is_measured_unless_asked(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "vorta_bench.h200", "--out", str(tmp_path / "out")]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no CUDA device" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_wrong_stage_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["kernel", "--out", str(tmp_path)])
    assert "unknown stage 'kernel'" in capsys.readouterr().err


def test_the_source_tree_is_small_enough_to_be_carried() -> None:
    try:
        size = source_tree_bytes(ROOT)
    except Skip as reason:
        pytest.skip(str(reason))
    assert size < MAX_TREE_BYTES


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_stage_on_a_cpu_and_the_page(tmp_path: Path) -> None:
    assert run(tmp_path) == 0
    for stage in command.STAGES:
        document = read(tmp_path, stage)
        assert document["device"] == DRY_RUN
        assert not document["failures"], stage
        assert document["figures"] or document["skipped"]
    wire = read(tmp_path, "wire")["figures"]
    assert {"tiny/fp8/single", "tiny/fp8/wire wave x3", "tiny/fp8/bare wave x3", "tiny/fp8/most streams"} <= wire.keys()
    assert report([str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    assert "End to end over gRPC" in (tmp_path / "page.html").read_text()
