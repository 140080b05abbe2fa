"""The shipped checkpoint: its files agree with each other."""

import json
from pathlib import Path

import numpy as np
from safetensors import safe_open
from tokenizers import Tokenizer

import vorta_server

FOLDER = Path(vorta_server.__file__).parent / "models" / "vorta-mini"
MAX_BYTES = 25_000_000


def test_size() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= MAX_BYTES


def test_tensors_fit_the_config() -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    query = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    wanted = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        wanted |= {
            prefix + "self_attn.q_proj.weight": (query, hidden),
            prefix + "self_attn.k_proj.weight": (kv, hidden),
            prefix + "self_attn.v_proj.weight": (kv, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, query),
            prefix + "mlp.gate_proj.weight": (ffn, hidden),
            prefix + "mlp.up_proj.weight": (ffn, hidden),
            prefix + "mlp.down_proj.weight": (hidden, ffn),
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "post_attention_layernorm.weight": (hidden,),
        }
    assert config["tie_word_embeddings"]
    with safe_open(FOLDER / "model.safetensors", "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no dict
    assert {name: tensor.shape for name, tensor in tensors.items()} == wanted
    assert all(tensor.dtype == np.float16 and np.isfinite(tensor).all() for tensor in tensors.values())


def test_ids_agree() -> None:
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    config = json.loads((FOLDER / "config.json").read_text())
    generation = json.loads((FOLDER / "generation_config.json").read_text())
    settings = json.loads((FOLDER / "tokenizer_config.json").read_text())
    ends = [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")]
    assert config["eos_token_id"] == generation["eos_token_id"] == ends
    assert config["vocab_size"] == tokenizer.get_vocab_size()
    assert settings["eos_token"] == "<|im_end|>"
    assert "add_generation_prompt" in settings["chat_template"]
