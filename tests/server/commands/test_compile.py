"""`vorta compile` as a command; the compiler's own tests are elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.server.compiler.case import CASES, random_tensors, write_checkpoint
from vorta.cli import main


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
