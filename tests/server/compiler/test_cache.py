"""First use compiles, later uses find; damage and change compile anew; processes do not race."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vorta.errors import FailedPrecondition
from vorta_server.compiler.artifact import load_manifest
from vorta_server.compiler.cache import CacheBusyError, _locked, artifact_for
from vorta_server.compiler.checkpoint import CheckpointError


def artifacts_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()]


def stamp(artifact: Path) -> int:
    return (artifact / "manifest.json").stat().st_ino


def test_second_use_finds_the_first(small_checkpoint: Path, tmp_path: Path) -> None:
    calls: list[str] = []
    cache = tmp_path / "deep" / "cache"

    def use() -> Path:
        return artifact_for(
            small_checkpoint,
            precision="int4",
            cache_dir=cache,
            progress=lambda stage, fraction: calls.append(stage),
        )

    first = use()
    assert calls
    assert first.name.startswith("small-int4-")
    calls.clear()
    assert use() == first
    assert not calls


def test_each_request_has_its_own(small_checkpoint: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    paths = {
        artifact_for(small_checkpoint, precision=precision, cache_dir=cache, max_model_len=length)
        for precision in ("fp32", "int8")
        for length in (None, 64)
    }
    assert len(paths) == 4
    assert {load_manifest(path).max_model_len for path in paths} == {128, 64}


def test_changed_checkpoint_compiles_anew(small_checkpoint: Path, tmp_path: Path) -> None:
    first = artifact_for(small_checkpoint, precision="fp32", cache_dir=tmp_path / "cache")
    (small_checkpoint / "generation_config.json").write_text('{"eos_token_id": 9}')
    second = artifact_for(small_checkpoint, precision="fp32", cache_dir=tmp_path / "cache")
    assert first != second
    assert load_manifest(second).eos_token_ids == (9,)


def test_damaged_artifact_compiles_anew(small_checkpoint: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    artifact = artifact_for(small_checkpoint, precision="fp32", cache_dir=cache)
    weights = (artifact / "weights.bin").read_bytes()
    (artifact / "weights.bin").write_bytes(weights[:-1] + b"\xff")
    (cache / f".{artifact.name}.tmp-1-dead").mkdir()
    assert artifact_for(small_checkpoint, precision="fp32", cache_dir=cache) == artifact
    load_manifest(artifact)
    assert artifacts_in(cache) == [artifact]


def test_failure_leaves_nothing(small_checkpoint: Path, tmp_path: Path) -> None:
    (small_checkpoint / "config.json").write_text('{"architectures": ["Unknown"]}')
    with pytest.raises(CheckpointError, match="Unknown"):
        artifact_for(small_checkpoint, precision="fp32", cache_dir=tmp_path / "cache")
    assert artifacts_in(tmp_path / "cache") == []


def test_wrong_request_creates_no_cache(small_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition):
        artifact_for(small_checkpoint, precision="fp16", target="cuda", cache_dir=tmp_path / "cache")
    with pytest.raises(CheckpointError):
        artifact_for(small_checkpoint, precision="fp64", cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_threads_compile_once(small_checkpoint: Path, tmp_path: Path) -> None:
    starts: list[str] = []
    results: list[Path] = []

    def use() -> None:
        results.append(
            artifact_for(
                small_checkpoint,
                precision="int8",
                cache_dir=tmp_path / "cache",
                progress=lambda stage, fraction: starts.append(stage) if fraction == 0 else None,
            )
        )

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert len(set(results)) == 1
    assert starts.count("reading the checkpoint") == 1


def test_processes_compile_once(small_checkpoint: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from vorta_server.compiler.cache import artifact_for\n"
        "marks = []\n"
        "path = artifact_for(Path(sys.argv[1]), precision='int4', cache_dir=Path(sys.argv[2]),\n"
        "                    progress=lambda stage, fraction: marks.append(stage))\n"
        "print(path.name, bool(marks))"
    )
    command = [sys.executable, "-c", code, str(small_checkpoint), str(tmp_path / "cache")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate()[0].split() for process in processes]
    assert len({name for name, _ in outputs}) == 1
    assert sorted(compiled for _, compiled in outputs) == ["False", "False", "True"]


def test_waiting_for_a_lock_ends(tmp_path: Path) -> None:
    with (
        _locked(tmp_path / "lock", 1),
        pytest.raises(CacheBusyError, match="still locked"),
        _locked(tmp_path / "lock", 0.1),
    ):
        pass
    with _locked(tmp_path / "lock", 1):
        pass
