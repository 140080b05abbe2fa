"""Tiny checkpoints of every family with odd shapes, and a runner for the graphs compiled from them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from safetensors.numpy import save_file

from vorta_kernels import cpu
from vorta_server.compiler.artifact import Manifest, load_manifest

VOCAB_SIZE = 101

_BASE: dict[str, Any] = {
    "hidden_act": "silu",
    "vocab_size": VOCAB_SIZE,
    "num_hidden_layers": 3,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A configuration; `is_standard` is False where transformers' own implementation does not cover it."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    is_standard: bool = True


def _case(name: str, architecture: str, model_type: str, *, is_standard: bool = True, **config: Any) -> Case:
    values = {**_BASE, "architectures": [architecture], "model_type": model_type, **config}
    return Case(name=name, config=values, is_standard=is_standard)


def _llama(name: str, *, is_standard: bool = True, **config: Any) -> Case:
    shape = {"hidden_size": 96, "intermediate_size": 136, "num_attention_heads": 6, "num_key_value_heads": 2}
    return _case(name, "LlamaForCausalLM", "llama", is_standard=is_standard, **{**shape, **config})


def _mistral(name: str, **config: Any) -> Case:
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    return _case(name, "MistralForCausalLM", "mistral", **{**shape, **config})


def _qwen2(name: str, **config: Any) -> Case:
    shape = {"hidden_size": 112, "intermediate_size": 152, "num_attention_heads": 7, "num_key_value_heads": 1}
    return _case(name, "Qwen2ForCausalLM", "qwen2", **{**shape, **config})


def _qwen3(name: str, **config: Any) -> Case:
    shape = {"hidden_size": 64, "intermediate_size": 120, "num_attention_heads": 4, "num_key_value_heads": 2}
    return _case(name, "Qwen3ForCausalLM", "qwen3", **{**shape, "head_dim": 32, **config})


CASES = [
    _llama("llama-grouped-heads"),
    _llama(
        "llama-tied-head-of-12",
        hidden_size=60,
        num_attention_heads=5,
        num_key_value_heads=5,
        intermediate_size=99,
        tie_word_embeddings=True,
    ),
    _llama("llama-one-layer-head-of-40", num_hidden_layers=1, head_dim=40),
    _llama("llama-biases", attention_bias=True, mlp_bias=True, rope_theta=5000.0),
    _llama(
        "llama3-rope",
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 50000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    _llama("llama-linear-rope-old-style", rope_theta=20000.0, rope_scaling={"type": "linear", "factor": 3.0}),
    _llama("llama-dynamic-rope", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
    _llama(
        "llama-yarn-rope",
        head_dim=32,
        rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    ),
    _llama(
        "llama-yarn-rope-untruncated",
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 2.5,
            "original_max_position_embeddings": 48,
            "attention_factor": 1.2,
            "beta_fast": 8.0,
            "beta_slow": 0.5,
            "truncate": False,
        },
    ),
    _llama("llama-partly-rotated", partial_rotary_factor=0.5, head_dim=24, is_standard=False),
    _mistral("mistral-window-of-7", sliding_window=7),
    _mistral("mistral-no-window-explicit-head", sliding_window=None, head_dim=48, num_key_value_heads=1),
    _qwen2("qwen2-tied", tie_word_embeddings=True, rms_norm_eps=1e-6),
    _qwen2("qwen2-windows-by-depth", use_sliding_window=True, sliding_window=5, max_window_layers=1),
    _qwen3("qwen3-explicit-head", tie_word_embeddings=True),
    _qwen3(
        "qwen3-head-of-24-biases-windows",
        head_dim=24,
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=9,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
    ),
]


def random_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    """Random weights of a size that makes the logits of a tiny model differ clearly."""
    rng = np.random.default_rng(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    query = config["num_attention_heads"] * head_dim
    key = config["num_key_value_heads"] * head_dim
    attention_bias = config.get("attention_bias", False)
    qkv_bias = attention_bias or config["model_type"] == "qwen2"
    mlp_bias = config.get("mlp_bias", False)
    tensors: dict[str, npt.NDArray[np.float32]] = {}

    def linear(name: str, num_rows: int, num_columns: int, biased: bool) -> None:
        tensors[f"{name}.weight"] = rng.normal(0, 1.3 / num_columns**0.5, (num_rows, num_columns))
        if biased:
            tensors[f"{name}.bias"] = rng.normal(0, 0.2, num_rows)

    def norm(name: str, size: int) -> None:
        tensors[f"{name}.weight"] = rng.normal(1, 0.2, size)

    tensors["model.embed_tokens.weight"] = rng.normal(0, 1, (config["vocab_size"], hidden))
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        linear(f"{prefix}.self_attn.q_proj", query, hidden, qkv_bias)
        linear(f"{prefix}.self_attn.k_proj", key, hidden, qkv_bias)
        linear(f"{prefix}.self_attn.v_proj", key, hidden, qkv_bias)
        linear(f"{prefix}.self_attn.o_proj", hidden, query, attention_bias)
        linear(f"{prefix}.mlp.gate_proj", inner, hidden, mlp_bias)
        linear(f"{prefix}.mlp.up_proj", inner, hidden, mlp_bias)
        linear(f"{prefix}.mlp.down_proj", hidden, inner, mlp_bias)
        norm(f"{prefix}.input_layernorm", hidden)
        norm(f"{prefix}.post_attention_layernorm", hidden)
        if config["model_type"] == "qwen3":
            norm(f"{prefix}.self_attn.q_norm", head_dim)
            norm(f"{prefix}.self_attn.k_norm", head_dim)
    norm("model.norm", hidden)
    if not config["tie_word_embeddings"]:
        linear("lm_head", config["vocab_size"], hidden, False)
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def write_checkpoint(folder: Path, config: dict[str, Any], tensors: dict[str, npt.NDArray[Any]]) -> Path:
    """Writes a checkpoint as the hub's tools do, with a tokenizer of whole words."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary = {f"w{index}": index for index in range(config["vocab_size"])}
    tokenizer = {"version": "1.0", "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "w2"}))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


class GraphRunner:
    """Runs an artifact's graph over KV slots of `capacity` positions, past and present sharing one buffer."""

    def __init__(self, artifact: Path, *, batch: int = 1, capacity: int = 128, graph: int = 0) -> None:
        self.manifest: Manifest = load_manifest(artifact)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        if self.manifest.kernels == "vorta":
            options.register_custom_ops_library(str(cpu.library()))
        self._session = ort.InferenceSession(
            artifact / self.manifest.graphs[graph].file, options, providers=["CPUExecutionProvider"]
        )
        shape = (batch, self.manifest.num_kv_heads, capacity, self.manifest.head_dim)
        self.slots = {
            f"{kind}_{layer}": np.zeros(shape, np.float32)
            for layer in range(self.manifest.num_layers)
            for kind in ("key", "value")
        }

    def step(
        self, ids: npt.ArrayLike, past: list[int], rows: list[int] | None = None, new: list[int] | None = None
    ) -> npt.NDArray[np.float32]:
        """Runs ids [B, S] on rows that hold `past` positions each; `new` of the S are real (default all).

        Returns the logits of the flattened positions `rows` (default all): [R, V].
        """
        tokens = np.asarray(ids, np.int64)
        batch, step = tokens.shape
        totals = np.asarray(past) + (np.asarray(new) if new is not None else step)
        wanted = np.arange(batch * step) if rows is None else np.asarray(rows)
        feed = {
            "input_ids": tokens,
            "seqlens_k": (totals - 1).astype(np.int32),
            "total_sequence_length": np.array(totals.max(), np.int32),
            "output_rows": wanted.astype(np.int64),
        }
        binding = self._session.io_binding()
        for name, value in feed.items():
            binding.bind_cpu_input(name, value)
        for name, slot in self.slots.items():
            value = ort.OrtValue.ortvalue_from_numpy(slot[:batch])
            binding.bind_ortvalue_input(f"past_{name}", value)
            binding.bind_ortvalue_output(f"present_{name}", value)
        binding.bind_output("logits")
        self._session.run_with_iobinding(binding)
        outputs = binding.get_outputs()
        for name, value in zip(self.slots, outputs[:-1], strict=True):
            self.slots[name][:batch] = value.numpy()
        logits: npt.NDArray[np.float32] = outputs[-1].numpy()
        return logits
