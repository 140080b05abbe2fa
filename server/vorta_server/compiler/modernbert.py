"""ModernBERT (arXiv 2412.13663): rotary positions, layers that see all or a window, gated feed-forward, norms first."""

from __future__ import annotations

from typing import Literal

from vorta_server.compiler.config import ConfigReader
from vorta_server.compiler.encoder_spec import (
    MAX_POSITIONS,
    EncoderNames,
    EncoderSpec,
    ScoreHead,
    check_common,
    read_activation,
    read_heads,
    read_num_labels,
    read_pad_token_id,
    read_uses_sigmoid,
)
from vorta_server.compiler.rope import RopeSpec
from vorta_server.compiler.spec import read_num_layers

EMBEDDING_ARCHITECTURES = ("ModernBertModel", "ModernBertForMaskedLM")
SCORE_ARCHITECTURES = ("ModernBertForSequenceClassification",)

_FULL, _WINDOW = "full_attention", "sliding_attention"
_DEFAULT_THETA = {_FULL: 160_000.0, _WINDOW: 10_000.0}
_OLD_THETA_FIELD = {_FULL: "global_rope_theta", _WINDOW: "local_rope_theta"}


def read_modernbert(config: ConfigReader, architecture: str) -> EncoderSpec:
    """`local_attention` tokens are a window's whole width; every `global_attn_every_n_layers`-th layer sees all."""
    check_common(config)
    hidden_size, num_heads, head_dim = read_heads(config)
    if head_dim % 2:
        raise config.error("num_attention_heads", f"({num_heads}) makes heads of {head_dim} elements; must be even")
    max_tokens = config.positive_int("max_position_embeddings", 8192, maximum=MAX_POSITIONS)
    kinds = _read_kinds(config)
    window = config.positive_int("local_attention", 128) // 2
    ropes = {kind: _read_rope(config, kind, head_dim, max_tokens) for kind in set(kinds)}
    is_scoring = architecture in SCORE_ARCHITECTURES
    attention_bias = config.flag("attention_bias", False)
    return EncoderSpec(
        architecture=architecture,
        model_type=config.text("model_type"),
        vocab_size=config.positive_int("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=config.positive_int("intermediate_size"),
        num_layers=len(kinds),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        max_tokens=max_tokens,
        norm_epsilon=config.positive_float("norm_eps", 1e-5),
        norm_bias=config.flag("norm_bias", False),
        is_pre_norm=True,
        has_first_norm=False,
        activation=read_activation(config, "hidden_activation", "gelu"),
        is_gated=True,
        attention_bias=attention_bias,
        attention_output_bias=attention_bias,
        feed_bias=config.flag("mlp_bias", False),
        windows=tuple(window if kind == _WINDOW else None for kind in kinds),
        ropes=tuple(ropes[kind] for kind in kinds),
        names=EncoderNames(
            prefixes=("model.", ""),
            words="embeddings.tok_embeddings",
            embedding_norm="embeddings.norm",
            layer="layers.{}.",
            qkv=("attn.Wqkv",),
            attention_output="attn.Wo",
            attention_norm="attn_norm",
            inner=("mlp.Wi",),
            outer="mlp.Wo",
            feed_norm="mlp_norm",
            final_norm="final_norm",
            ignored="" if is_scoring else r"head\..*|decoder\..*",
        ),
        head=_read_head(config) if is_scoring else None,
        pad_token_id=read_pad_token_id(config, None),
    )


def _read_kinds(config: ConfigReader) -> list[str]:
    """Each layer's kind of attention: `layer_types` (transformers 5), or counted."""
    num_layers = read_num_layers(config)
    kinds = config.raw("layer_types")
    if kinds is None:
        every = config.positive_int("global_attn_every_n_layers", 3)
        return [_WINDOW if layer % every else _FULL for layer in range(num_layers)]
    if not isinstance(kinds, list) or len(kinds) != num_layers or any(kind not in _DEFAULT_THETA for kind in kinds):
        raise config.error("layer_types", f"must list {num_layers} layers, each {_FULL} or {_WINDOW}")
    return kinds


def _read_rope(config: ConfigReader, kind: str, head_dim: int, max_tokens: int) -> RopeSpec:
    """`rope_parameters` by kind (transformers 5), or a theta for each kind."""
    source, name = config, _OLD_THETA_FIELD[kind]
    section = config.section("rope_parameters")
    part = section.section(kind) if section is not None else None
    if part is not None:
        if part.raw("rope_type") not in (None, "default"):
            raise part.error("rope_type", f"is {part.raw('rope_type')!r}; supported is default")
        source, name = part, "rope_theta"
    return RopeSpec(
        rope_type="default",
        theta=source.positive_float(name, _DEFAULT_THETA[kind], above=1.0, maximum=1e20),
        rotary_dim=head_dim,
        max_position_embeddings=max_tokens,
        original_max_position_embeddings=max_tokens,
    )


def _read_head(config: ConfigReader) -> ScoreHead:
    num_labels = read_num_labels(config)
    pooling: Literal["cls", "mean"]
    match config.raw("classifier_pooling") or "cls":
        case "cls":
            pooling = "cls"
        case "mean":
            pooling = "mean"
        case other:
            raise config.error("classifier_pooling", f"is {other!r}; supported are cls and mean")
    return ScoreHead(
        num_labels=num_labels,
        pooling=pooling,
        dense="head.dense",
        dense_bias=config.flag("classifier_bias", False),
        activation=read_activation(config, "classifier_activation", "gelu"),
        norm="head.norm",
        classifier="classifier",
        uses_sigmoid=read_uses_sigmoid(config, num_labels),
    )
