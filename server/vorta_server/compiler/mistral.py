"""The Mistral family: Llama's shape with a sliding window on all layers (or none)."""

from __future__ import annotations

from vorta_server.compiler.config import ConfigReader
from vorta_server.compiler.spec import DecoderSpec, read_decoder, read_num_layers

ARCHITECTURE = "MistralForCausalLM"


def read_mistral(config: ConfigReader) -> DecoderSpec:
    """`sliding_window` null or absent is full attention."""
    kinds = config.raw("layer_types")
    if isinstance(kinds, list) and len(set(map(str, kinds))) > 1:
        raise config.error("layer_types", "differs between layers, which Mistral's architecture does not do")
    window = config.positive_int("sliding_window") if config.has("sliding_window") else None
    return read_decoder(
        config,
        ARCHITECTURE,
        windows=(window,) * read_num_layers(config),
        num_kv_heads_default=8,
        max_position_default=4096 * 32,
    )
