"""Checkpoints as GGUF files for llama.cpp: the same weights, written with the `gguf` package.

    python -m vorta_bench.peers.gguf_file CHECKPOINT OUT.gguf --type q4_0

Covers Llama and Qwen2 decoders with a byte-level BPE tokenizer, which is what `vorta_bench` measures with.
Quantisation is llama.cpp's own (`llama_model_quantize`), from a float32 file that is removed afterwards.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["write_gguf"]

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_TOP_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write_gguf(checkpoint: Path, out: Path, file_type: str) -> Path:
    """Writes `out` in one of llama.cpp's types (f16, q8_0, q4_0); returns it.

    Raises RuntimeError when llama.cpp refuses to quantise.
    """
    full = out.with_suffix(".f32.tmp")
    _write_float32(checkpoint, full)
    try:
        _quantise(full, out, file_type)
    finally:
        full.unlink()
    return out


def _write_float32(checkpoint: Path, out: Path) -> None:
    import gguf
    from safetensors.numpy import load_file

    config = json.loads((checkpoint / "config.json").read_text())
    architecture = config["model_type"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer = gguf.GGUFWriter(out, architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_tokenizer(writer, json.loads((checkpoint / "tokenizer.json").read_text()), config)
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        values = tensor.astype(np.float32)
        if architecture == "llama" and "q_proj" in name:
            values = _interleaved(values, heads)
        if architecture == "llama" and "k_proj" in name:
            values = _interleaved(values, kv_heads)
        writer.add_tensor(_tensor_name(name), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensor_name(name: str) -> str:
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    stem, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{_NAMES[stem]}.{kind}"


def _interleaved(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Llama's heads with the two elements of a rotated pair side by side, as llama.cpp rotates them there."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _add_tokenizer(writer: Any, tokenizer: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    import gguf

    model = tokenizer["model"]
    special = {token["id"] for token in tokenizer.get("added_tokens", ()) if token["special"]}
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2" if config["model_type"] == "llama" else "qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if index in special else gguf.TokenType.NORMAL for index in range(len(tokens))]
    )
    writer.add_token_merges(merges)
    writer.add_bos_token_id(config["bos_token_id"])
    eos = config["eos_token_id"]
    writer.add_eos_token_id(eos[0] if isinstance(eos, list) else eos)
    writer.add_add_bos_token(False)


def _quantise(source: Path, out: Path, file_type: str) -> None:
    import llama_cpp

    # The callback must live as long as it is set.
    silence = llama_cpp.llama_log_callback(lambda level, text, user_data: None)
    llama_cpp.llama_log_set(silence, None)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{file_type.upper()}")
    # The head stays in the file's own type: by default it would be kept at 6 bits, which is slower.
    params.pure = True
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
    if code:
        raise RuntimeError(f"llama.cpp refused to quantise to {file_type}: {code}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a checkpoint as a GGUF file.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", default="q4_0", choices=["f16", "q8_0", "q4_0"])
    arguments = parser.parse_args()
    print(write_gguf(arguments.checkpoint, arguments.out, arguments.type))


if __name__ == "__main__":
    main()
