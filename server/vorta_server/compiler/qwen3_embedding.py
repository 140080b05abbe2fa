"""Qwen3 as an encoder (Qwen3-Embedding, arXiv 2506.05176): the decoder's layers without its head.

A text's vector is its last token's, the only one that sees the whole text.
"""

from __future__ import annotations

from vorta_server.compiler.config import ConfigReader
from vorta_server.compiler.encoder_spec import EncoderNames, EncoderSpec, read_pad_token_id
from vorta_server.compiler.qwen3 import read_qwen3

EMBEDDING_ARCHITECTURES = ("Qwen3Model", "Qwen3ForCausalLM")

_NAMES = EncoderNames(
    prefixes=("model.", ""),
    words="embed_tokens",
    layer="layers.{}.",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attention_output="self_attn.o_proj",
    attention_norm="input_layernorm",
    inner=("mlp.gate_proj", "mlp.up_proj"),
    outer="mlp.down_proj",
    feed_norm="post_attention_layernorm",
    query_norm="self_attn.q_norm",
    key_norm="self_attn.k_norm",
    final_norm="norm",
    ignored=r"lm_head\.weight",
)


def read_qwen3_embedding(config: ConfigReader, architecture: str) -> EncoderSpec:
    """The fields are those of the decoder."""
    spec = read_qwen3(config)
    if spec.rope.rotary_dim != spec.head_dim:
        raise config.error("partial_rotary_factor", "rotates a part of a head, which encoders do not")
    return EncoderSpec(
        architecture=architecture,
        model_type=spec.model_type,
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_layers=spec.num_layers,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        max_tokens=spec.max_position_embeddings,
        norm="rms",
        norm_epsilon=spec.rms_norm_eps,
        norm_bias=False,
        is_pre_norm=True,
        activation="silu",
        is_gated=True,
        is_causal=True,
        attention_bias=spec.qkv_bias,
        attention_output_bias=spec.output_bias,
        feed_bias=False,
        # A decoder's window counts the token itself.
        windows=tuple(None if window is None else window - 1 for window in spec.windows),
        ropes=(spec.rope,) * spec.num_layers,
        names=_NAMES,
        pad_token_id=read_pad_token_id(config, None),
    )
