"""An artifact is complete or absent, and any change to it is noticed."""

from __future__ import annotations

import errno
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.compiler.case import CASES, Case
from vorta_server.compiler.artifact import (
    ArtifactError,
    GraphEntry,
    StorageError,
    is_artifact,
    load_manifest,
    sha256_of,
)
from vorta_server.compiler.checkpoint import CheckpointError
from vorta_server.compiler.compile import compile_checkpoint


@pytest.fixture
def artifact(tmp_path: Path, artifact_of: Callable[[Case, str], Path]) -> Path:
    """An artifact that a test may damage."""
    return Path(shutil.copytree(artifact_of(CASES[0], "int4"), tmp_path / "artifact"))


def edit_manifest(artifact: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = artifact / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def test_manifest_names_every_file(artifact: Path) -> None:
    manifest = load_manifest(artifact)
    names = {file.name for file in artifact.iterdir()}
    assert names == set(manifest.files) | {"manifest.json"}
    assert names >= {"model.onnx", "weights.bin", "tokenizer.json", "tokenizer_config.json"}
    for name, entry in manifest.files.items():
        assert entry.bytes == (artifact / name).stat().st_size
        assert entry.sha256 == sha256_of(artifact / name)
    assert is_artifact(artifact)


def test_manifest_describes_the_model(artifact: Path) -> None:
    manifest = load_manifest(artifact)
    config = CASES[0].config
    assert manifest.kind == "generation"
    assert manifest.architecture == "LlamaForCausalLM"
    assert manifest.model_type == "llama"
    assert (manifest.target, manifest.precision, manifest.kv_dtype) == ("cpu", "int4", "float32")
    assert (manifest.vocab_size, manifest.hidden_size, manifest.num_layers) == (101, 96, 3)
    assert (manifest.num_heads, manifest.num_kv_heads, manifest.head_dim) == (6, 2, 16)
    assert manifest.max_model_len == config["max_position_embeddings"]
    assert (manifest.bos_token_id, manifest.eos_token_ids, manifest.pad_token_id) == (1, (2,), None)
    assert {"compiler", "onnx", "vorta"} <= set(manifest.versions)
    assert len(manifest.source.fingerprint) == 64


def test_missing_file_is_noticed(artifact: Path) -> None:
    for name in load_manifest(artifact).files:
        data = (artifact / name).read_bytes()
        (artifact / name).unlink()
        with pytest.raises(ArtifactError, match="cannot be read") as caught:
            load_manifest(artifact, verify=False)
        assert caught.value.field == name
        (artifact / name).write_bytes(data)


def test_flipped_bit_is_noticed(artifact: Path) -> None:
    for name in load_manifest(artifact).files:
        data = (artifact / name).read_bytes()
        (artifact / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(ArtifactError, match="sha256 differs") as caught:
            load_manifest(artifact)
        assert caught.value.field == name
        (artifact / name).write_bytes(data)
    load_manifest(artifact)


def test_cut_file_is_noticed_without_hashing(artifact: Path) -> None:
    file = artifact / "weights.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="bytes, the manifest says") as caught:
        load_manifest(artifact, verify=False)
    assert caught.value.field == "weights.bin"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda m: m.update(format="other"), "manifest.json"),
        (lambda m: m.update(format_version=2), "manifest.json"),
        (lambda m: m.pop("head_dim"), "manifest.json"),
        (lambda m: m.update(num_layers="three"), "manifest.json"),
        (lambda m: m.update(graphs=[]), "graphs"),
        (lambda m: m.update(graphs=[{"file": "model.onnx", "min_rows": 2}]), "graphs"),
        (lambda m: m["graphs"].append({"file": "model.onnx", "min_rows": 1}), "graphs"),
        (lambda m: m["graphs"].append({"file": "other.onnx", "min_rows": 9}), "graphs"),
        (lambda m: m["files"].update({"../secret": {"sha256": "", "bytes": 1}}), "files"),
    ],
)
def test_wrong_manifest(artifact: Path, change: Callable[[dict[str, Any]], Any], field: str) -> None:
    edit_manifest(artifact, change)
    with pytest.raises(ArtifactError) as caught:
        load_manifest(artifact)
    assert caught.value.field == field
    assert caught.value.path == artifact


@settings(deadline=None)
@given(data=st.binary(max_size=60))
def test_any_bytes_as_manifest(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("artifact")
    (folder / "manifest.json").write_bytes(data)
    assert not is_artifact(folder)
    with pytest.raises(ArtifactError):
        load_manifest(folder)


def test_not_an_artifact(tmp_path: Path) -> None:
    assert not is_artifact(tmp_path)
    assert not is_artifact(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="no artifact"):
        load_manifest(tmp_path / "nowhere")


def test_graph_for_a_number_of_rows(artifact: Path) -> None:
    def add(manifest: dict[str, Any]) -> None:
        first = manifest["graphs"][0]["file"]
        manifest["graphs"] = [{"file": first, "min_rows": rows} for rows in (1, 16, 256)]

    edit_manifest(artifact, add)
    manifest = load_manifest(artifact)
    chosen = {rows: manifest.graph_for(rows).min_rows for rows in (1, 15, 16, 255, 256, 4000)}
    assert chosen == {1: 1, 15: 1, 16: 16, 255: 16, 256: 256, 4000: 256}
    assert isinstance(manifest.graphs[0], GraphEntry)


class FullDisk(io.BytesIO):
    """A file on a disk that has room for `room` more bytes in all files together."""

    def __init__(self, room: list[int], path: Path, code: int) -> None:
        super().__init__()
        self._room, self._path, self._code = room, path, code
        path.touch()

    def write(self, data: Any) -> int:
        self._room[0] -= len(data)
        if self._room[0] < 0:
            raise OSError(self._code, "No space left on device", str(self._path))
        return super().write(data)

    def close(self) -> None:
        if not self.closed:
            self._path.write_bytes(self.getvalue())
        super().close()


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_disk_full(
    tmp_path: Path, checkpoint_of: Callable[[Case], Path], artifact: Path, fraction: float, code: int
) -> None:
    """Wherever the disk fills up, nothing of the artifact is left, and the error says so."""
    total = sum(file.stat().st_size for file in artifact.iterdir())
    room = [int(total * fraction)]
    folder = tmp_path / "full"
    folder.mkdir()

    def opener(path: Path) -> BinaryIO:
        return FullDisk(room, path, code)

    with pytest.raises(StorageError, match="No space left on device") as caught:
        compile_checkpoint(checkpoint_of(CASES[0]), folder / "out", precision="int4", opener=opener)
    assert caught.value.is_disk_full
    assert caught.value.out == folder / "out"
    assert str(folder / "out") in str(caught.value)
    assert list(folder.iterdir()) == []


def test_same_disk_with_room(tmp_path: Path, checkpoint_of: Callable[[Case], Path]) -> None:
    """The fake disk itself is no reason to fail."""
    room = [10**9]
    out = tmp_path / "out"
    compile_checkpoint(
        checkpoint_of(CASES[0]),
        out,
        precision="int4",
        opener=lambda path: FullDisk(room, path, errno.ENOSPC),
    )
    load_manifest(out)


def test_place_that_cannot_be_written(tmp_path: Path, checkpoint_of: Callable[[Case], Path]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError) as caught:
        compile_checkpoint(checkpoint_of(CASES[0]), tmp_path / "file" / "out", precision="int4")
    assert not caught.value.is_disk_full


def test_existing_artifact_is_kept_unless_told(artifact: Path, checkpoint_of: Callable[[Case], Path]) -> None:
    source = checkpoint_of(CASES[0])
    with pytest.raises(ArtifactError, match="already holds an artifact") as caught:
        compile_checkpoint(source, artifact, precision="int8")
    assert caught.value.field == "out"
    assert load_manifest(artifact).precision == "int4"
    compile_checkpoint(source, artifact, precision="int8", overwrite=True)
    assert load_manifest(artifact).precision == "int8"
    assert [path.name for path in artifact.parent.iterdir()] == ["artifact"]


def test_other_folders_are_never_replaced(tmp_path: Path, checkpoint_of: Callable[[Case], Path]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ArtifactError, match="is not empty"):
            compile_checkpoint(checkpoint_of(CASES[0]), tmp_path / "mine", precision="fp32", overwrite=overwrite)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_empty_folder_is_a_place(tmp_path: Path, checkpoint_of: Callable[[Case], Path]) -> None:
    (tmp_path / "out").mkdir()
    compile_checkpoint(checkpoint_of(CASES[0]), tmp_path / "out", precision="fp32")
    load_manifest(tmp_path / "out")


def test_failed_overwrite_keeps_the_old_artifact(artifact: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(CheckpointError):
        compile_checkpoint(tmp_path / "nowhere", artifact, precision="int8", overwrite=True)
    assert load_manifest(artifact).precision == "int4"
    assert sorted(path.name for path in tmp_path.iterdir()) == before
