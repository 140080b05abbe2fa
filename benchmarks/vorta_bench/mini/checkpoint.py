"""The checkpoint folder in Hugging Face's layout: written in fp16, read back into the torch model."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from vorta_bench.mini.chat import END_OF_TEXT, TURN_END
from vorta_bench.mini.model import MiniModel, ModelConfig
from vorta_bench.mini.tokenizer import save_tokenizer


def save_checkpoint(model: MiniModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write config.json, generation_config.json, model.safetensors and the tokenizer files."""
    config = model.config
    save_tokenizer(tokenizer, folder, config.max_length)
    end_of_text, turn_end = tokenizer.token_to_id(END_OF_TEXT), tokenizer.token_to_id(TURN_END)
    ids = {"bos_token_id": end_of_text, "eos_token_id": [turn_end, end_of_text], "pad_token_id": end_of_text}
    document = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "float16",
        **ids,
    }
    (folder / "config.json").write_text(json.dumps(document, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps({**ids, "do_sample": False}, indent=2) + "\n")
    tensors = {name: tensor.detach().cpu().half().contiguous() for name, tensor in model.state_dict().items()}
    weights = folder / "model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # the library makes it readable for its owner alone


def load_checkpoint(folder: Path) -> tuple[MiniModel, Tokenizer]:
    """The model in fp32 and its tokenizer."""
    document = json.loads((folder / "config.json").read_text())
    config = ModelConfig(
        vocab_size=document["vocab_size"],
        hidden_size=document["hidden_size"],
        num_layers=document["num_hidden_layers"],
        num_heads=document["num_attention_heads"],
        num_kv_heads=document["num_key_value_heads"],
        head_dim=document["head_dim"],
        intermediate_size=document["intermediate_size"],
        rope_theta=document["rope_theta"],
        norm_eps=document["rms_norm_eps"],
        max_length=document["max_position_embeddings"],
    )
    model = MiniModel(config)
    tensors = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    model.load_state_dict(tensors)
    return model.eval().requires_grad_(False), Tokenizer.from_file(str(folder / "tokenizer.json"))


def model_from_state(path: Path) -> MiniModel:
    """The model of a training state (state.pt)."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    model = MiniModel(ModelConfig(**state["config"]))
    model.load_state_dict(state["model"])
    return model.eval().requires_grad_(False)
