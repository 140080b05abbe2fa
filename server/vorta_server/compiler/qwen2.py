"""The Qwen2 family (Qwen2 and Qwen2.5): biased q, k and v, windows by layer."""

from __future__ import annotations

from vorta_server.compiler.config import ConfigReader
from vorta_server.compiler.spec import DecoderSpec, read_decoder, read_layer_windows

ARCHITECTURE = "Qwen2ForCausalLM"


def read_qwen2(config: ConfigReader) -> DecoderSpec:
    """q, k and v are always biased, o never."""
    return read_decoder(
        config,
        ARCHITECTURE,
        windows=read_layer_windows(config),
        max_position_default=32768,
        qkv_bias=True,
    )
