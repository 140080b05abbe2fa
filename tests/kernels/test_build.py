"""Building libraries: once, whole or not at all, and no compiler left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vorta_kernels import build

# A compiler as g++ is one: a driver that waits for a child of its own. It writes down whom to look for.
SLOW = 'sleep 60 & echo "$$ $!" > "$0.pids.part"; mv "$0.pids.part" "$0.pids"; wait'


def script(folder: Path, body: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def pids(program: str) -> list[int]:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if Path(f"{program}.pids").exists():
            return [int(pid) for pid in Path(f"{program}.pids").read_text().split()]
        time.sleep(0.02)
    raise AssertionError("the compiler did not start")


def wait_ended(pid: int) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.02)
    raise AssertionError(f"{pid} still runs")


def test_a_library_is_built_once_by_all_who_want_it_at_once(tmp_path: Path) -> None:
    program = script(tmp_path, 'echo built >> "$0.log"; sleep 0.3; echo "warned"; echo library > "$2"')
    path = tmp_path / "kept" / "one.so"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: build.run_compiler([program], path, timeout_s=60), range(4)))
    assert path.read_text() == "library\n"
    assert path.with_suffix(".log").read_text() == "warned\n"
    assert Path(f"{program}.log").read_text() == "built\n"


def test_a_failure_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    program = script(tmp_path, "echo half > $2; echo line 3 is wrong >&2; exit 4")
    path = tmp_path / "kept" / "one.so"
    with pytest.raises(build.BuildError, match="failed: line 3 is wrong"):
        build.run_compiler([program], path, timeout_s=60)
    assert list(path.parent.iterdir()) == []
    path.parent.rmdir()
    path.parent.write_text("a file, no folder")
    with pytest.raises(build.BuildError, match=r"one\.so failed"):
        build.run_compiler([program], path, timeout_s=60)


def test_a_compiler_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    program = script(tmp_path, SLOW)
    with pytest.raises(build.BuildError, match="timed out"):
        build.run_compiler([program], tmp_path / "one.so", timeout_s=0.5)
    for pid in pids(program):
        wait_ended(pid)


def test_another_that_builds_for_too_long_is_not_waited_for(tmp_path: Path) -> None:
    with build._alone(tmp_path, 0.0), pytest.raises(build.BuildError, match="another process"):
        build.run_compiler(["true"], tmp_path / "one.so", timeout_s=0.3)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_compiler_ends_with_who_started_it(tmp_path: Path, how: signal.Signals) -> None:
    program = script(tmp_path, SLOW)
    code = "import sys; from pathlib import Path; from vorta_kernels import build\n"
    code += "build.run_compiler([sys.argv[1]], Path(sys.argv[2]), timeout_s=60)"
    starter = subprocess.Popen([sys.executable, "-c", code, program, str(tmp_path / "one.so")])
    found = pids(program)
    assert all(os.getpgid(pid) != os.getpgid(0) for pid in found)
    starter.send_signal(how)
    starter.wait(30)
    for pid in found:
        wait_ended(pid)


def test_what_a_library_is_made_of_is_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "a.cpp"
    source.write_text("one")
    first = build.kept("kernels", "x", ["-O3"], [source])
    assert first.parent == tmp_path / "vorta" / "kernels"
    assert first == build.kept("kernels", "x", ["-O3"], [source])
    assert first != build.kept("kernels", "x", ["-O2"], [source])
    source.write_text("two")
    assert first != build.kept("kernels", "x", ["-O3"], [source])


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(build.BuildError, match="cannot be run"):
        build.version(str(tmp_path / "none"))
