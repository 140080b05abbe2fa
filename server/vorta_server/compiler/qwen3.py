"""The Qwen3 family (dense): an RMS norm on every query and key head, an explicit head size."""

from __future__ import annotations

from vorta_server.compiler.config import ConfigReader
from vorta_server.compiler.spec import DecoderSpec, read_decoder, read_layer_windows

ARCHITECTURE = "Qwen3ForCausalLM"


def read_qwen3(config: ConfigReader) -> DecoderSpec:
    """`head_dim` defaults to 128, whatever the hidden size; `attention_bias` biases q, k, v and o."""
    attention_bias = config.flag("attention_bias", False)
    return read_decoder(
        config,
        ARCHITECTURE,
        windows=read_layer_windows(config),
        head_dim_default=128,
        max_position_default=32768,
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        qk_norm=True,
    )
