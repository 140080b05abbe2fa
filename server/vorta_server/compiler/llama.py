"""The Llama family (Llama 2, 3, 3.1, 3.2, and models published under its architecture)."""

from __future__ import annotations

from vorta_server.compiler.config import ConfigReader
from vorta_server.compiler.spec import DecoderSpec, read_decoder, read_num_layers

ARCHITECTURE = "LlamaForCausalLM"


def read_llama(config: ConfigReader) -> DecoderSpec:
    """Full attention everywhere; `attention_bias` biases q, k, v and o, `mlp_bias` the feed-forward."""
    attention_bias = config.flag("attention_bias", False)
    return read_decoder(
        config,
        ARCHITECTURE,
        windows=(None,) * read_num_layers(config),
        max_position_default=2048,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=config.flag("mlp_bias", False),
    )
