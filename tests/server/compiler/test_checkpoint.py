"""Every wrong or torn checkpoint is refused with its name, and nothing of it gets past the compiler."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from tests.server.compiler.case import CASES, GraphRunner, random_tensors, write_checkpoint
from vorta_server.compiler.checkpoint import Checkpoint, CheckpointError, parse_header
from vorta_server.compiler.compile import compile_checkpoint

Tensors = dict[str, npt.NDArray[Any]]


def refusal(source: Path, out: Path) -> CheckpointError:
    """The error with which compiling fails; checks that it leaves nothing behind."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(CheckpointError) as caught:
        compile_checkpoint(source, out, precision="fp32")
    assert sorted(out.parent.iterdir()) == before
    return caught.value


def rewrite_weights(folder: Path, change: Callable[[Tensors], None], tensors: Tensors) -> None:
    changed = dict(tensors)
    change(changed)
    save_file(changed, folder / "model.safetensors")


def edit_json(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text())
    content.update(values)
    file.write_text(json.dumps({key: value for key, value in content.items() if value != "ABSENT"}))


Q_PROJ = "model.layers.0.self_attn.q_proj.weight"

WRONG_TENSORS: list[tuple[str, Callable[[Tensors], Any], str, str]] = [
    ("missing", lambda t: t.pop(Q_PROJ), Q_PROJ, "lacks the tensor"),
    ("no final norm", lambda t: t.pop("model.norm.weight"), "model.norm.weight", "lacks"),
    ("no head", lambda t: t.pop("lm_head.weight"), "lm_head.weight", "lacks"),
    ("misshapen", lambda t: t.update({Q_PROJ: t[Q_PROJ][:, 1:].copy()}), Q_PROJ, r"\[96, 95\].*\[96, 96\]"),
    ("transposed", lambda t: t.update({Q_PROJ: t[Q_PROJ].reshape(-1)}), Q_PROJ, "has the shape"),
    ("float64", lambda t: t.update({Q_PROJ: t[Q_PROJ].astype(np.float64)}), Q_PROJ, "stored as F64"),
    ("integers", lambda t: t.update({Q_PROJ: t[Q_PROJ].astype(np.int8)}), Q_PROJ, "stored as I8"),
    (
        "a bias too many",
        lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.zeros(96, np.float32)}),
        "model.layers.0.self_attn.q_proj.bias",
        "not part of LlamaForCausalLM",
    ),
    (
        "a layer too many",
        lambda t: t.update({"model.layers.1.mlp.up_proj.weight": np.zeros((136, 96), np.float32)}),
        "model.layers.1.mlp.up_proj.weight",
        "not part of",
    ),
]


@pytest.mark.parametrize(
    ("change", "field", "message"), [w[1:] for w in WRONG_TENSORS], ids=[w[0] for w in WRONG_TENSORS]
)
def test_wrong_tensors(
    small_checkpoint: Path,
    small_tensors: Tensors,
    tmp_path: Path,
    change: Callable[[Tensors], None],
    field: str,
    message: str,
) -> None:
    rewrite_weights(small_checkpoint, change, small_tensors)
    caught = refusal(small_checkpoint, tmp_path / "out")
    assert caught.field == field
    assert field in str(caught)
    assert caught.path is not None
    with pytest.raises(CheckpointError, match=message):
        raise caught


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers(
    small_checkpoint: Path, small_tensors: Tensors, tmp_path: Path, value: float
) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors[Q_PROJ] = tensors[Q_PROJ].copy()
        tensors[Q_PROJ][5, 7] = value

    rewrite_weights(small_checkpoint, spoil, small_tensors)
    assert refusal(small_checkpoint, tmp_path / "out").field == Q_PROJ


def test_large_finite_values_are_fine(small_checkpoint: Path, small_tensors: Tensors, tmp_path: Path) -> None:
    """A sum that overflows float32 is no reason to refuse."""

    def enlarge(tensors: Tensors) -> None:
        tensors[Q_PROJ] = np.full_like(tensors[Q_PROJ], 3e38)

    rewrite_weights(small_checkpoint, enlarge, small_tensors)
    compile_checkpoint(small_checkpoint, tmp_path / "out", precision="fp32")


WRONG_CONFIG: list[tuple[dict[str, Any], str]] = [
    ({"architectures": ["GPT2LMHeadModel"]}, "architectures"),
    ({"architectures": "LlamaForCausalLM"}, "architectures"),
    ({"architectures": []}, "architectures"),
    ({"architectures": "ABSENT"}, "architectures"),
    ({"hidden_size": 0}, "hidden_size"),
    ({"hidden_size": "96"}, "hidden_size"),
    ({"hidden_size": True}, "hidden_size"),
    ({"num_hidden_layers": "ABSENT"}, "num_hidden_layers"),
    ({"num_hidden_layers": -1}, "num_hidden_layers"),
    ({"num_attention_heads": 7}, "num_key_value_heads"),
    ({"num_attention_heads": 10}, "num_attention_heads"),
    ({"num_key_value_heads": 4}, "num_key_value_heads"),
    ({"vocab_size": "ABSENT"}, "vocab_size"),
    ({"num_hidden_layers": 10**12}, "num_hidden_layers"),
    ({"max_position_embeddings": 10**12}, "max_position_embeddings"),
    ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
    ({"rope_theta": 1.0}, "rope_theta"),
    ({"rope_scaling": {"type": "dynamic", "factor": 1e300}}, "rope_scaling.factor"),
    ({"hidden_act": "gelu"}, "hidden_act"),
    ({"rms_norm_eps": -1e-6}, "rms_norm_eps"),
    ({"rms_norm_eps": "tiny"}, "rms_norm_eps"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ({"attention_bias": 1}, "attention_bias"),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ({"eos_token_id": -1}, "eos_token_id"),
    ({"eos_token_id": [2, "3"]}, "eos_token_id"),
    ({"eos_token_id": 101}, "eos_token_id"),
    ({"bos_token_id": 1.5}, "bos_token_id"),
    ({"rope_scaling": {"type": "longrope"}}, "rope_scaling.type"),
    ({"rope_parameters": {"rope_type": "magic"}}, "rope_parameters.rope_type"),
    ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters.factor"),
    ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "rope_parameters.factor"),
    ({"rope_parameters": {"rope_type": "llama3", "factor": 2}}, "rope_parameters.low_freq_factor"),
    ({"rope_parameters": "default"}, "rope_parameters"),
    ({"rope_parameters": {"rope_theta": -1}}, "rope_parameters.rope_theta"),
    ({"rope_parameters": {"sliding_attention": {}, "full_attention": {}}}, "rope_parameters.full_attention"),
    ({"rope_theta": None, "partial_rotary_factor": 1.5}, "partial_rotary_factor"),
    ({"partial_rotary_factor": 0.2}, "partial_rotary_factor"),
]


@pytest.mark.parametrize(("change", "field"), WRONG_CONFIG, ids=lambda value: json.dumps(value)[:60])
def test_wrong_configuration(small_checkpoint: Path, tmp_path: Path, change: dict[str, Any], field: str) -> None:
    edit_json(small_checkpoint / "config.json", **change)
    caught = refusal(small_checkpoint, tmp_path / "out")
    assert caught.field == field
    assert field in str(caught)
    assert caught.path == small_checkpoint / "config.json"


def test_unknown_architecture_is_named(small_checkpoint: Path, tmp_path: Path) -> None:
    edit_json(small_checkpoint / "config.json", architectures=["GPT2LMHeadModel"])
    assert "GPT2LMHeadModel" in str(refusal(small_checkpoint, tmp_path / "out"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_file(small_checkpoint: Path, tmp_path: Path, name: str) -> None:
    (small_checkpoint / name).unlink()
    caught = refusal(small_checkpoint, tmp_path / "out")
    assert caught.field == name
    assert name in str(caught)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_broken_json(small_checkpoint: Path, tmp_path: Path, name: str, text: bytes) -> None:
    (small_checkpoint / name).write_bytes(text)
    assert refusal(small_checkpoint, tmp_path / "out").field == name


def test_tokenizer_without_a_model(small_checkpoint: Path, tmp_path: Path) -> None:
    (small_checkpoint / "tokenizer.json").write_text('{"version": "1.0"}')
    assert refusal(small_checkpoint, tmp_path / "out").field == "tokenizer.json"


@pytest.mark.parametrize("vocabulary", [{"a": 0, "b": 101}, [["a", -1.0]] * 102])
def test_tokenizer_of_another_model(small_checkpoint: Path, tmp_path: Path, vocabulary: Any) -> None:
    (small_checkpoint / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    caught = refusal(small_checkpoint, tmp_path / "out")
    assert caught.field == "tokenizer.json"
    assert "102 tokens" in str(caught)


def test_pickled_weights_are_named(small_checkpoint: Path, tmp_path: Path) -> None:
    (small_checkpoint / "model.safetensors").rename(small_checkpoint / "pytorch_model.bin")
    assert "pytorch_model.bin is a pickle" in str(refusal(small_checkpoint, tmp_path / "out"))


@pytest.mark.parametrize("source", ["nowhere", "small/config.json"])
def test_not_a_folder(small_checkpoint: Path, tmp_path: Path, source: str) -> None:
    assert refusal(tmp_path / source, tmp_path / "out").path == tmp_path / source


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 0.5, -1])
def test_truncated_weights(small_checkpoint: Path, tmp_path: Path, kept: float) -> None:
    file = small_checkpoint / "model.safetensors"
    data = file.read_bytes()
    cut = int(len(data) * kept) if isinstance(kept, float) else kept
    file.write_bytes(data[:cut])
    caught = refusal(small_checkpoint, tmp_path / "out")
    assert caught.path == file
    assert "truncated" in str(caught)


def test_weights_that_are_no_safetensors(small_checkpoint: Path, tmp_path: Path) -> None:
    (small_checkpoint / "model.safetensors").write_bytes(b"PK\x03\x04" * 1000)
    assert "not safetensors" in str(refusal(small_checkpoint, tmp_path / "out"))


def shard(folder: Path, tensors: Tensors) -> dict[str, str]:
    """Splits the weights over two files with an index; returns the map."""
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


def test_shards(small_checkpoint: Path, small_tensors: Tensors, tmp_path: Path) -> None:
    compile_checkpoint(small_checkpoint, tmp_path / "whole", precision="int4")
    shard(small_checkpoint, small_tensors)
    compile_checkpoint(small_checkpoint, tmp_path / "sharded", precision="int4")
    assert (tmp_path / "whole/weights.bin").read_bytes() == (tmp_path / "sharded/weights.bin").read_bytes()


def test_missing_shard(small_checkpoint: Path, small_tensors: Tensors, tmp_path: Path) -> None:
    shard(small_checkpoint, small_tensors)
    (small_checkpoint / "model-00002-of-00002.safetensors").unlink()
    assert refusal(small_checkpoint, tmp_path / "out").field == "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    "weight_map",
    [None, {}, {"a": "../secret.safetensors"}, {"a": 1}],
    ids=["absent", "empty", "path", "type"],
)
def test_wrong_index(
    small_checkpoint: Path, small_tensors: Tensors, tmp_path: Path, weight_map: dict[str, Any] | None
) -> None:
    shard(small_checkpoint, small_tensors)
    (small_checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert refusal(small_checkpoint, tmp_path / "out").field == "weight_map"


def test_index_names_a_tensor_that_its_shard_lacks(
    small_checkpoint: Path, small_tensors: Tensors, tmp_path: Path
) -> None:
    weight_map = shard(small_checkpoint, small_tensors)
    weight_map[Q_PROJ] = next(file for file in weight_map.values() if file != weight_map[Q_PROJ])
    (small_checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert refusal(small_checkpoint, tmp_path / "out").field == Q_PROJ


def test_tied_checkpoint_with_the_head_saved_again(
    small_config: dict[str, Any], small_tensors: Tensors, tmp_path: Path
) -> None:
    config = {**small_config, "tie_word_embeddings": True}
    same = {**small_tensors, "lm_head.weight": small_tensors["model.embed_tokens.weight"]}
    compile_checkpoint(write_checkpoint(tmp_path / "same", config, same), tmp_path / "out", precision="fp32")
    other = write_checkpoint(tmp_path / "other", config, small_tensors)
    assert refusal(other, tmp_path / "out2").field == "lm_head.weight"


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_weights(tmp_path: Path, dtype: npt.DTypeLike) -> None:
    """A checkpoint in 16 bits compiles to the same artifact as its values widened to float32."""
    config = CASES[0].config
    narrow = {name: value.astype(dtype) for name, value in random_tensors(config).items()}
    wide = {name: value.astype(np.float32) for name, value in narrow.items()}
    folders = [write_checkpoint(tmp_path / n, config, t) for n, t in (("narrow", narrow), ("wide", wide))]
    outs = [folder.parent / f"{folder.name}-out" for folder in folders]
    for folder, out in zip(folders, outs, strict=True):
        compile_checkpoint(folder, out, precision="fp32")
    assert (outs[0] / "weights.bin").read_bytes() == (outs[1] / "weights.bin").read_bytes()
    assert np.isfinite(GraphRunner(outs[0]).step([[1, 2, 3]], [0])).all()


def test_buffers_of_older_checkpoints_are_ignored(
    small_checkpoint: Path, small_tensors: Tensors, tmp_path: Path
) -> None:
    def add(tensors: Tensors) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)

    rewrite_weights(small_checkpoint, add, small_tensors)
    compile_checkpoint(small_checkpoint, tmp_path / "out", precision="fp32")


def test_fingerprint_follows_the_content(small_checkpoint: Path, small_tensors: Tensors) -> None:
    def fingerprint() -> str:
        with Checkpoint(small_checkpoint) as checkpoint:
            return checkpoint.fingerprint()

    first = fingerprint()
    assert fingerprint() == first
    edit_json(small_checkpoint / "tokenizer_config.json", eos_token="w3")
    second = fingerprint()
    assert second != first
    rewrite_weights(small_checkpoint, lambda tensors: tensors[Q_PROJ].fill(0), small_tensors)
    assert fingerprint() != second


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=14), inner, max_size=4),
    max_leaves=12,
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "F16", "I8", "Q"]) | json_values,
        "shape": st.lists(st.integers(0, 6), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(0, 300), min_size=2, max_size=2) | json_values,
    },
)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=6), entries | json_values, max_size=4) | json_values)
def test_any_header_is_read_or_refused(header: Any) -> None:
    """Whatever the header says, an accepted tensor lies inside the file and has the bytes of its shape."""
    num_bytes, data_start = 260, 60
    try:
        tensors = parse_header(json.dumps(header).encode(), Path("x.safetensors"), data_start, num_bytes)
    except CheckpointError:
        return
    for tensor in tensors:
        assert data_start <= tensor.start_bytes <= tensor.end_bytes <= num_bytes
        size = {"F32": 4, "BF16": 2, "F16": 2}.get(tensor.dtype)
        if size is not None:
            assert tensor.end_bytes - tensor.start_bytes == size * int(np.prod(tensor.shape))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_as_header_are_refused_or_read(data: bytes) -> None:
    with contextlib.suppress(CheckpointError):
        parse_header(data, Path("x.safetensors"), 8, 208)


def test_header_longer_than_its_file(small_checkpoint: Path, tmp_path: Path) -> None:
    (small_checkpoint / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    assert "truncated" in str(refusal(small_checkpoint, tmp_path / "out"))
