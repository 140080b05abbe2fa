"""The entry's arguments, special tokens, lengths, progress and what it must not import."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.reference import decoder as reference
from tests.server.compiler.case import CASES, Case, GraphRunner, random_tensors, write_checkpoint
from tests.server.compiler.test_parity import error, prompt
from vorta.errors import FailedPrecondition
from vorta_server.compiler.artifact import load_manifest
from vorta_server.compiler.checkpoint import CheckpointError
from vorta_server.compiler.compile import compile_checkpoint, default_block


def test_the_cuda_runner_needs_no_compiling(small_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="vorta serve --runner cuda takes the checkpoint") as caught:
        compile_checkpoint(small_checkpoint, tmp_path / "out", target="cuda", precision="fp16")
    assert caught.value.field == "target"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"target": "tpu", "precision": "int4"}, "target"),
        ({"precision": "fp16"}, "precision"),
        ({"precision": "bf16"}, "precision"),
        ({"precision": ""}, "precision"),
        ({"precision": "fp32", "max_model_len": 0}, "max_model_len"),
        ({"precision": "fp32", "max_model_len": -5}, "max_model_len"),
        ({"precision": "fp32", "max_model_len": 129}, "max_model_len"),
        ({"precision": "fp32", "max_model_len": True}, "max_model_len"),
    ],
)
def test_wrong_arguments(small_checkpoint: Path, tmp_path: Path, arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(CheckpointError, match=field) as caught:
        compile_checkpoint(small_checkpoint, tmp_path / "out", **arguments)
    assert caught.value.field == field
    assert not (tmp_path / "out").exists()


def test_generation_config_has_the_last_word(small_checkpoint: Path, tmp_path: Path) -> None:
    generation = {"eos_token_id": [7, 9, 7], "pad_token_id": 5}
    (small_checkpoint / "generation_config.json").write_text(json.dumps(generation))
    manifest = compile_checkpoint(small_checkpoint, tmp_path / "out", precision="fp32")
    assert manifest.eos_token_ids == (7, 9)
    assert manifest.pad_token_id == 5
    assert manifest.bos_token_id == 1
    assert "generation_config.json" in manifest.files


def test_chat_template_travels_along(small_checkpoint: Path, tmp_path: Path) -> None:
    (small_checkpoint / "chat_template.jinja").write_text("{{ messages }}")
    manifest = compile_checkpoint(small_checkpoint, tmp_path / "out", precision="fp32")
    assert "chat_template.jinja" in manifest.files


def test_no_special_tokens(small_config: dict[str, Any], small_tensors: Any, tmp_path: Path) -> None:
    config = {**small_config, "bos_token_id": None, "eos_token_id": None}
    source = write_checkpoint(tmp_path / "in", config, small_tensors)
    manifest = compile_checkpoint(source, tmp_path / "out", precision="fp32")
    assert (manifest.bos_token_id, manifest.eos_token_ids, manifest.pad_token_id) == (None, (), None)


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "linear", "factor": 3.0}, 384),
        ({"rope_type": "dynamic", "factor": 2.0}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
    ],
)
def test_scaled_models_may_be_longer(
    small_config: dict[str, Any], small_tensors: Any, tmp_path: Path, rope: dict[str, Any], limit: int
) -> None:
    source = write_checkpoint(tmp_path / "in", {**small_config, "rope_scaling": rope}, small_tensors)
    assert compile_checkpoint(source, tmp_path / "a", precision="fp32").max_model_len == 128
    longest = compile_checkpoint(source, tmp_path / "b", precision="fp32", max_model_len=limit)
    assert longest.max_model_len == limit
    with pytest.raises(CheckpointError, match=f"between 1 and {limit}"):
        compile_checkpoint(source, tmp_path / "c", precision="fp32", max_model_len=limit + 1)


def test_shorter_artifact(small_checkpoint: Path, small_config: dict[str, Any], tmp_path: Path) -> None:
    compile_checkpoint(small_checkpoint, tmp_path / "out", precision="fp32", max_model_len=32)
    ids = prompt(32)
    runner = GraphRunner(tmp_path / "out", capacity=32)
    expected = reference.logits(small_config, random_tensors(small_config), ids)
    assert error(runner.step([ids], [0]), expected) < 1e-4


def test_progress_ascends_to_one(checkpoint_of: Callable[[Case], Path], tmp_path: Path) -> None:
    calls: list[tuple[str, float]] = []
    compile_checkpoint(
        checkpoint_of(CASES[0]),
        tmp_path / "out",
        precision="int4",
        progress=lambda stage, fraction: calls.append((stage, fraction)),
    )
    fractions = [fraction for _, fraction in calls]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert len(calls) >= CASES[0].config["num_hidden_layers"]


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_compiling_is_deterministic(checkpoint_of: Callable[[Case], Path], tmp_path: Path, precision: str) -> None:
    source = checkpoint_of(CASES[-1])
    first, second = (compile_checkpoint(source, tmp_path / name, precision=precision) for name in ("first", "second"))
    assert first == second
    assert load_manifest(tmp_path / "first") == first


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_big_weights_begin_on_pages(artifact_of: Callable[[Case, str], Path], precision: str) -> None:
    artifact = artifact_of(CASES[0], precision)
    for graph in load_manifest(artifact).graphs:
        model = onnx.load(artifact / graph.file, load_external_data=False)
        external = [tensor for tensor in model.graph.initializer if tensor.external_data]
        assert external
        for tensor in external:
            place = {entry.key: entry.value for entry in tensor.external_data}
            assert place["location"] == "weights.bin"
            multiple = 4096 if int(place["length"]) >= 4096 else 64
            assert int(place["offset"]) % multiple == 0


def test_tied_weights_are_stored_once(small_config: dict[str, Any], tmp_path: Path) -> None:
    """fp32 keeps one table for the embedding and the head; int8 shares its 8-bit rows with the head, int4 keeps a
    4-bit head; both have the head of their many-rows graph beside it, at a byte each."""
    config = {**small_config, "tie_word_embeddings": True, "vocab_size": 4096, "intermediate_size": 32}
    source = write_checkpoint(tmp_path / "in", config, random_tensors(config))
    table = 4096 * config["hidden_size"]
    for precision, table_bytes in (("fp32", 4 * table), ("int8", table * 17 / 8), ("int4", table * 22 / 8)):
        compile_checkpoint(source, tmp_path / precision, precision=precision)
        assert (tmp_path / precision / "weights.bin").stat().st_size < table_bytes * 1.4


def test_window_longer_than_the_context(small_tensors: Any, small_config: dict[str, Any], tmp_path: Path) -> None:
    config = {
        **small_config,
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": 4096,
    }
    source = write_checkpoint(tmp_path / "in", config, small_tensors)
    compile_checkpoint(source, tmp_path / "out", precision="fp32")
    ids = prompt(60)
    ours = GraphRunner(tmp_path / "out").step([ids], [0])
    assert error(ours, reference.logits(config, small_tensors, ids)) < 1e-4


def test_no_torch_and_no_runtime() -> None:
    """Compiling loads neither torch nor transformers nor ONNX Runtime nor grpc."""
    code = (
        "import sys, vorta_server.compiler.cache\n"
        "print([m for m in ('torch', 'transformers', 'onnxruntime', 'grpc', 'safetensors') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_numbers_are_float32(artifact_of: Callable[[Case, str], Path]) -> None:
    assert GraphRunner(artifact_of(CASES[0], "int4")).step([[1]], [0]).dtype == np.float32


def test_a_block_that_is_no_size_is_refused(small_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="block is 48") as caught:
        compile_checkpoint(small_checkpoint, tmp_path / "out", precision="int4", block=48)
    assert caught.value.field == "block"


@pytest.mark.parametrize(("num_parameters", "block"), [(3_440_000, 32), (99_999_999, 32), (100_000_000, 128)])
def test_large_models_have_larger_blocks(num_parameters: int, block: int) -> None:
    assert default_block(num_parameters) == block


def test_fp32_needs_no_kernels(small_checkpoint: Path, tmp_path: Path) -> None:
    manifest = compile_checkpoint(small_checkpoint, tmp_path / "out", precision="fp32", kernels="vorta")
    assert manifest.kernels == "portable"


def test_kernels_make_one_graph_of_smaller_weights(small_checkpoint: Path, tmp_path: Path) -> None:
    sizes = {}
    for kernels, num_graphs in (("portable", 2), ("vorta", 1)):
        out = tmp_path / kernels
        manifest = compile_checkpoint(small_checkpoint, out, precision="int4", kernels=kernels)
        assert manifest.kernels == kernels
        assert len(manifest.graphs) == num_graphs
        sizes[kernels] = manifest.files["weights.bin"].bytes
    assert sizes["vorta"] < sizes["portable"]
