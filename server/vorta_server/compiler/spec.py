"""What a decoder-only transformer looks like: the value that every family's reader produces.

All supported families are pre-norm decoders with RMS norm, rotary attention with grouped heads and a gated
SiLU feed-forward; what differs between them is written down here, and `decoder.py` builds the graph from it
alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from vorta_server.compiler.checkpoint import CheckpointError
from vorta_server.compiler.config import ConfigReader
from vorta_server.compiler.rope import RopeSpec, read_rope

# Far above any model; below what would take all memory before a missing tensor is noticed.
_MAX_LAYERS = 10_000
_MAX_POSITIONS = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """A decoder's shapes and switches.

    Attributes:
        windows: for each layer how many positions a token sees, itself included; None is all of them.
        qk_norm: RMS norm of each query and key head before the rotation (Qwen3).
    """

    architecture: str
    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeSpec
    tie_word_embeddings: bool
    windows: tuple[int | None, ...]
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False


def read_decoder(
    config: ConfigReader,
    architecture: str,
    *,
    windows: tuple[int | None, ...],
    head_dim_default: int | None = None,
    num_kv_heads_default: int | None = None,
    max_position_default: int | None = None,
    qkv_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
) -> DecoderSpec:
    """The fields that all families share, read and checked; the rest is given by the family.

    Raises CheckpointError naming the field.
    """
    activation = config.raw("hidden_act") if config.has("hidden_act") else "silu"
    if activation not in ("silu", "swish"):
        raise config.error("hidden_act", f"is {activation!r}; supported is silu")
    if config.has("quantization_config"):
        raise config.error("quantization_config", "is set: compile from the unquantised checkpoint")
    hidden_size = config.positive_int("hidden_size")
    num_heads = config.positive_int("num_attention_heads")
    num_kv_heads = config.positive_int("num_key_value_heads", num_kv_heads_default or num_heads)
    if num_heads % num_kv_heads:
        raise config.error("num_key_value_heads", f"({num_kv_heads}) must divide {num_heads} attention heads")
    if not config.has("head_dim") and head_dim_default is None and hidden_size % num_heads:
        raise config.error("num_attention_heads", f"({num_heads}) must divide hidden_size ({hidden_size})")
    head_dim = config.positive_int("head_dim", head_dim_default or hidden_size // num_heads)
    max_position_embeddings = config.positive_int(
        "max_position_embeddings", max_position_default, maximum=_MAX_POSITIONS
    )
    return DecoderSpec(
        architecture=architecture,
        model_type=config.text("model_type"),
        vocab_size=config.positive_int("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=config.positive_int("intermediate_size"),
        num_layers=len(windows),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=config.positive_float("rms_norm_eps", 1e-6),
        max_position_embeddings=max_position_embeddings,
        rope=read_rope(config, head_dim, max_position_embeddings),
        tie_word_embeddings=config.flag("tie_word_embeddings", False),
        windows=windows,
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
    )


def read_num_layers(config: ConfigReader) -> int:
    """`num_hidden_layers`."""
    return config.positive_int("num_hidden_layers", maximum=_MAX_LAYERS)


def read_layer_windows(config: ConfigReader) -> tuple[int | None, ...]:
    """Qwen's per-layer windows: `layer_types` (transformers 5), or `use_sliding_window`, `max_window_layers`.

    Raises CheckpointError for a list of the wrong length or an unknown kind of layer.
    """
    num_layers = read_num_layers(config)
    window = None
    if config.flag("use_sliding_window", False):
        window = config.positive_int("sliding_window", 4096)
    kinds = config.raw("layer_types")
    if kinds is None:
        first = config.raw("max_window_layers")
        if window is not None and (type(first) is not int or first < 0):
            raise config.error("max_window_layers", f"must be a number of layers, not {first!r}")
        return tuple(window if window is not None and layer >= first else None for layer in range(num_layers))
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise config.error("layer_types", f"must list {num_layers} layers")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise config.error("layer_types", f"has the unknown kind {kind!r}")
        if kind == "sliding_attention" and window is None:
            raise config.error("layer_types", "has sliding_attention, but use_sliding_window is off")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def context_length(spec: DecoderSpec, wanted: int | None) -> int:
    """A context's tokens: those wanted, up to what the rotary embedding was scaled for; by default the checkpoint's.

    Raises CheckpointError for more.
    """
    rope = spec.rope
    limit = spec.max_position_embeddings
    if rope.rope_type in ("linear", "dynamic"):
        limit = int(limit * max(rope.factor, 1.0))
    elif rope.rope_type in ("llama3", "yarn"):
        limit = max(limit, int(rope.original_max_position_embeddings * rope.factor))
    if wanted is None:
        return spec.max_position_embeddings
    if type(wanted) is not int or not 1 <= wanted <= limit:
        raise CheckpointError(f"max_model_len must be between 1 and {limit}, not {wanted!r}", field="max_model_len")
    return wanted
