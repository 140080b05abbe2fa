"""`vorta pull` against a hub on this host; the real hub is never asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.commands.fake_hub import FakeHub
from vorta import errors
from vorta.cli import main
from vorta_server.commands.pull import pull

FILES = {
    "config.json": b"{}",
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"a": 1}',
    "model-00001-of-00002.safetensors": b"one" * 1000,
    "model-00002-of-00002.safetensors": b"two" * 1000,
    "model.safetensors.index.json": b"{}",
    "pytorch_model.bin": b"pickle",
    "model.gguf": b"gguf",
    "onnx/model.safetensors": b"elsewhere",
    "onnx/config.json": b"elsewhere",
    "LICENSE": b"free",
}
WANTED = {name for name in FILES if "/" not in name and not name.endswith((".bin", ".gguf"))}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    hub = FakeHub({"owner/model": dict(FILES)})
    yield hub
    hub.close()


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_pull(hub: FakeHub, tmp_path: Path) -> None:
    folder, is_new = pull("owner/model", data_dir=tmp_path, endpoint=hub.endpoint)
    assert folder == tmp_path / "models" / "owner--model"
    assert is_new
    assert names_in(folder) == WANTED
    assert (folder / "model-00002-of-00002.safetensors").read_bytes() == b"two" * 1000
    assert not any("pytorch" in request or "onnx/" in request for request in hub.requests)


def test_a_pulled_model_is_not_downloaded_again(hub: FakeHub, tmp_path: Path) -> None:
    pull("owner/model", data_dir=tmp_path, endpoint=hub.endpoint)
    hub.requests.clear()
    folder, is_new = pull("owner/model", data_dir=tmp_path, endpoint=hub.endpoint)
    assert not is_new
    assert not hub.requests
    hub.models["owner/model"]["config.json"] = b'{"new": 1}'
    del hub.models["owner/model"]["LICENSE"]
    hub.commit = "b" * 40
    pull("owner/model", data_dir=tmp_path, endpoint=hub.endpoint, force=True)
    assert (folder / "config.json").read_bytes() == b'{"new": 1}'
    assert names_in(folder) == WANTED - {"LICENSE"}


def test_an_interrupted_pull_leaves_no_model_and_is_taken_up(hub: FakeHub, tmp_path: Path) -> None:
    hub.broken.add("tokenizer.json")
    with pytest.raises(errors.Unavailable):
        pull("owner/model", data_dir=tmp_path, endpoint=hub.endpoint)
    assert not (tmp_path / "models" / "owner--model").exists()
    hub.broken.clear()
    folder, _ = pull("owner/model", data_dir=tmp_path, endpoint=hub.endpoint)
    assert names_in(folder) == WANTED


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_a_model_that_cannot_be_served_is_refused(hub: FakeHub, tmp_path: Path, missing: str) -> None:
    del hub.models["owner/model"][missing]
    with pytest.raises(errors.FailedPrecondition, match="cannot be served") as caught:
        pull("owner/model", data_dir=tmp_path, endpoint=hub.endpoint)
    assert caught.value.field == missing
    assert not names_in(tmp_path)


def test_unknown_model_and_revision(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound, match="owner/other"):
        pull("owner/other", data_dir=tmp_path, endpoint=hub.endpoint)
    with pytest.raises(errors.NotFound, match="revision v9"):
        pull("owner/model", data_dir=tmp_path, endpoint=hub.endpoint, revision="v9")


def test_gated_model(hub: FakeHub, tmp_path: Path) -> None:
    hub.gated.add("owner/model")
    with pytest.raises(errors.PermissionDenied, match="gated"):
        pull("owner/model", data_dir=tmp_path, endpoint=hub.endpoint)


def test_no_hub(tmp_path: Path) -> None:
    with pytest.raises(errors.Unavailable, match="hub"):
        pull("owner/model", data_dir=tmp_path, endpoint="http://localhost:1")


@pytest.mark.parametrize("model", ["", "../x", "a/b/c", ".hidden", "a..b", "a b", "a\\b"])
def test_bad_id(tmp_path: Path, model: str) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        pull(model, data_dir=tmp_path, endpoint="http://localhost:1")
    assert caught.value.field == "model"


def test_command(hub: FakeHub, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["pull", "owner/model", "--data-dir", str(tmp_path), "--endpoint", hub.endpoint]
    assert main([*words, "--json"]) == 0
    result = json.loads(capfd.readouterr().out)
    assert result["is_new"]
    assert result["path"] == str(tmp_path / "models" / "owner--model")
    assert main(words) == 0
    assert "already here" in capfd.readouterr().out
    assert main(["pull", "owner/none", *words[2:]]) == 1
    assert "error: the hub has no owner/none" in capfd.readouterr().err
