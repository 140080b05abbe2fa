"""Writes checkpoints with random weights, in the shapes that speed is measured on.

    python -m vorta_bench.random_model half OUT
    python -m vorta_bench.random_model mini OUT

`half` is a Qwen2-shaped decoder of 386 M parameters (24 layers of 896, 14 heads on 2 KV heads, vocabulary
32,000, tied), `mini` one of 3.4 M in vorta-mini's shape (6 layers of 192), `encoder` a BERT of all-MiniLM-L6-v2's shape
(6 layers of 384). Speed depends on shapes alone; the text that such a model writes means nothing. Needs no torch: the
same seed writes the same bytes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

__all__ = ["PRESETS", "write_random_checkpoint", "write_tokenizer"]

PRESETS: dict[str, dict[str, Any]] = {
    "half": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
    },
    "mini": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 192,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "intermediate_size": 512,
        "vocab_size": 4096,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
    },
    "encoder": {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "vocab_size": 30522,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "tie_word_embeddings": False,
    },
}
"""config.json of each model; what they have in common is added when they are written."""

_COMMON: dict[str, Any] = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "torch_dtype": "float16",
}

_SPECIAL_TOKENS = ("<s>", "</s>", "<unk>")


def write_random_checkpoint(folder: Path, preset: str, *, seed: int = 0) -> Path:
    """Writes config.json, model.safetensors (float16) and a tokenizer into a new folder; returns it.

    Raises KeyError for an unknown preset, FileExistsError when the folder exists.
    """
    config = {**_COMMON, **PRESETS[preset]}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    make = _encoder_tensors if config["model_type"] == "bert" else _decoder_tensors
    tensors = dict(make(config, np.random.default_rng(seed)))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(folder, config["vocab_size"])
    return folder


def _matrix(rng: np.random.Generator, num_rows: int, num_columns: int) -> npt.NDArray[np.float16]:
    values = rng.standard_normal((num_rows, num_columns), np.float32)
    values *= np.float32(num_columns**-0.5)
    return values.astype(np.float16)


def _decoder_tensors(config: dict[str, Any], rng: np.random.Generator) -> Iterator[tuple[str, npt.NDArray[np.float16]]]:
    matrix = partial(_matrix, rng)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head_dim = hidden // config["num_attention_heads"]
    key = config["num_key_value_heads"] * head_dim
    has_bias = config["model_type"] == "qwen2"

    yield "model.embed_tokens.weight", matrix(config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for name, num_rows in (("q", hidden), ("k", key), ("v", key)):
            yield f"{prefix}.self_attn.{name}_proj.weight", matrix(num_rows, hidden)
            if has_bias:
                bias = rng.standard_normal(num_rows, np.float32) * np.float32(0.1)
                yield f"{prefix}.self_attn.{name}_proj.bias", bias.astype(np.float16)
        yield f"{prefix}.self_attn.o_proj.weight", matrix(hidden, hidden)
        yield f"{prefix}.mlp.gate_proj.weight", matrix(inner, hidden)
        yield f"{prefix}.mlp.up_proj.weight", matrix(inner, hidden)
        yield f"{prefix}.mlp.down_proj.weight", matrix(hidden, inner)
        yield f"{prefix}.input_layernorm.weight", np.ones(hidden, np.float16)
        yield f"{prefix}.post_attention_layernorm.weight", np.ones(hidden, np.float16)
    yield "model.norm.weight", np.ones(hidden, np.float16)


def _encoder_tensors(config: dict[str, Any], rng: np.random.Generator) -> Iterator[tuple[str, npt.NDArray[np.float16]]]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    tables = {"word": "vocab_size", "position": "max_position_embeddings", "token_type": "type_vocab_size"}
    for table, size in tables.items():
        yield f"embeddings.{table}_embeddings.weight", _matrix(rng, config[size], hidden)
    norms = ["embeddings.LayerNorm"]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"encoder.layer.{layer}"
        for name, num_rows, num_columns in (
            *((f"attention.self.{part}", hidden, hidden) for part in ("query", "key", "value")),
            ("attention.output.dense", hidden, hidden),
            ("intermediate.dense", inner, hidden),
            ("output.dense", hidden, inner),
        ):
            yield f"{prefix}.{name}.weight", _matrix(rng, num_rows, num_columns)
            yield f"{prefix}.{name}.bias", np.zeros(num_rows, np.float16)
        norms += [f"{prefix}.attention.output.LayerNorm", f"{prefix}.output.LayerNorm"]
    for name in norms:
        yield f"{name}.weight", np.ones(hidden, np.float16)
        yield f"{name}.bias", np.zeros(hidden, np.float16)


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Writes a byte-level BPE of all bytes and of pairs of them, as many as the vocabulary has room for; threes, each
    of a pair and a byte, follow when there is room for more.

    Raises ValueError for a vocabulary smaller than the bytes or larger than all of these.
    """
    alphabet = _byte_characters()
    tokens = [*_SPECIAL_TOKENS, *alphabet]
    merges: list[list[str]] = []
    for first in alphabet:
        for second in alphabet:
            if len(tokens) < vocab_size:
                merges.append([first, second])
                tokens.append(first + second)
    for pair in [first + second for first in alphabet for second in alphabet]:
        for byte in alphabet:
            if len(tokens) >= vocab_size:
                break
            merges.append([pair, byte])
            tokens.append(pair + byte)
    if len(tokens) != vocab_size:
        raise ValueError(f"a vocabulary of {vocab_size} is too large or too small for threes of bytes")
    document = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": index,
                "content": token,
                "special": True,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
            for index, token in enumerate(_SPECIAL_TOKENS)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": merges,
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(document))
    names = dict(zip(("bos_token", "eos_token", "unk_token"), _SPECIAL_TOKENS, strict=True))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _byte_characters() -> list[str]:
    """The printable character of each byte in byte-level BPE, the bytes of text first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a checkpoint with random weights.")
    parser.add_argument("preset", choices=sorted(PRESETS))
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(write_random_checkpoint(arguments.out, arguments.preset, seed=arguments.seed))


if __name__ == "__main__":
    main()
