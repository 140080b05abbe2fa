"""Checkpoints of random weights, made on the device and written layer by layer: what a server is started on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vorta_bench.h200.model_shape import ModelShape
from vorta_bench.random_model import write_tokenizer

__all__ = ["random_tensors", "write_checkpoint", "write_config"]

_MARGIN_BYTES = 4 << 30


def random_tensors(shape: ModelShape, device: str, *, seed: int = 0) -> Iterator[tuple[str, Any]]:
    """Tensors in bfloat16 under the names of Hugging Face's Llama, in the order of the layers.

    Matrices are normal with the variance 1 / num_inputs, so that activations keep their size through the layers.
    """
    import torch

    generator = torch.Generator(device).manual_seed(seed)

    def matrix(num_outputs: int, num_inputs: int) -> Any:
        values = torch.empty((num_outputs, num_inputs), dtype=torch.bfloat16, device=device)
        return values.normal_(0.0, num_inputs**-0.5, generator=generator)

    hidden, inner = shape.hidden_size, shape.intermediate_size
    query, key = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    sizes = {
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (key, hidden),
        "self_attn.v_proj": (key, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    ones = torch.ones(hidden, dtype=torch.bfloat16, device=device)
    yield "model.embed_tokens.weight", matrix(shape.vocab_size, hidden)
    for layer in range(shape.num_layers):
        for name, (num_outputs, num_inputs) in sizes.items():
            yield f"model.layers.{layer}.{name}.weight", matrix(num_outputs, num_inputs)
        yield f"model.layers.{layer}.input_layernorm.weight", ones
        yield f"model.layers.{layer}.post_attention_layernorm.weight", ones
    yield "model.norm.weight", ones
    yield "lm_head.weight", matrix(shape.vocab_size, hidden)


def write_config(folder: Path, shape: ModelShape) -> Path:
    """A checkpoint's folder with its configuration and a tokenizer but no weights; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=2) + "\n")
    (folder / "generation_config.json").write_text('{"bos_token_id": 0, "eos_token_id": 1}\n')
    write_tokenizer(folder, shape.vocab_size)
    return folder


def write_checkpoint(folder: Path, shape: ModelShape, device: str) -> Path:
    """A whole checkpoint, one file a layer; returns the folder. One that is complete is left as it is.

    Raises RuntimeError when the disk has too little room.
    """
    from safetensors.torch import save_file

    index_path = folder / "model.safetensors.index.json"
    if index_path.exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    needed = 2 * (shape.num_linear + 2 * shape.num_head)
    if shutil.disk_usage(folder).free < needed + _MARGIN_BYTES * (needed > _MARGIN_BYTES):
        raise RuntimeError(f"the checkpoint needs {needed / 1e9:.1f} GB in {folder}")
    write_config(folder, shape)
    weight_map: dict[str, str] = {}
    pending: dict[str, Any] = {}
    num_files = 0

    def flush() -> None:
        nonlocal num_files
        file = f"model-{num_files:05d}.safetensors"
        num_files += 1
        weight_map.update(dict.fromkeys(pending, file))
        save_file({name: tensor.cpu().clone() for name, tensor in pending.items()}, folder / file, {"format": "pt"})
        pending.clear()

    for name, tensor in random_tensors(shape, device):
        pending[name] = tensor
        if name.endswith(("post_attention_layernorm.weight", "embed_tokens.weight")):
            flush()
    flush()
    index_path.write_text(json.dumps({"metadata": {"total_size": needed}, "weight_map": weight_map}, indent=1) + "\n")
    return folder
