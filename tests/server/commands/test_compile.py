"""`vorta compile` as a command; the compiler's own tests are elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.server.compiler.case import CASES, random_tensors, write_checkpoint
from vorta.cli import main
from vorta_server.compiler import tensorrt_engine


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    write_checkpoint(folder, CASES[0].config, random_tensors(CASES[0].config))
    return folder


def test_compile(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["compile", str(checkpoint), str(tmp_path / "out")]
    assert main([*words, "--precision", "int4", "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert (result["precision"], result["target"]) == ("int4", "cpu")
    assert (tmp_path / "out" / "manifest.json").is_file()
    assert main(words) == 2
    assert "--force replaces it (INVALID_FIELD, field out)" in capfd.readouterr().err
    assert main([*words, "--force"]) == 0
    assert "int8" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("options", "code", "field"),
    [
        (["--precision", "int3"], 2, "precision"),
        (["--target", "tpu"], 2, "target"),
        (["--target", "cuda"], 1, "target"),
        (["--max-model-len", "0"], 2, "max_model_len"),
    ],
)
def test_bad_argument(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], options: list[str], code: int, field: str
) -> None:
    assert main(["compile", str(checkpoint), str(tmp_path / "out"), *options]) == code
    assert f"field {field})" in capfd.readouterr().err


def test_no_checkpoint(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--data-dir", str(tmp_path)]
    assert main(["compile", str(tmp_path / "none"), str(tmp_path / "out"), *words]) == 2
    assert "field source" in capfd.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["compile", str(tmp_path / "empty"), str(tmp_path / "out"), "--json"]) == 1
    assert json.loads(capfd.readouterr().out)["error"]["reason"] == "CHECKPOINT_INVALID"


class FakeBuilder:
    """An `EngineBuilder` whose engines are a word."""

    version = "fake 1"

    def build(self, graph: bytes, file: Path, shapes: object) -> bytes:
        return b"engine"


def test_engines(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_engine, "find_tensorrt", FakeBuilder)
    words = ["compile", str(checkpoint), str(tmp_path / "out"), "--target", "tensorrt", "--precision", "bf16"]
    assert main([*words, "--engines", str(tmp_path / "engines"), "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert (result["precision"], result["target"], result["kernels"]) == ("bf16", "tensorrt", "portable")
    assert len(result["engines"]) == 7  # one for prompts, six for batches of decode steps
    assert all(Path(path).read_bytes() == b"engine" for path in result["engines"])


def test_engines_for_the_cpu(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", str(checkpoint), str(tmp_path / "out"), "--engines", str(tmp_path / "engines")]) == 2
    assert "--engines needs --target tensorrt" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
