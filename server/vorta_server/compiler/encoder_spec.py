"""What a text encoder looks like: the value that every encoder family's reader produces.

Supported are transformers over whole texts, normed before or after each half of a layer, with absolute, relative or
rotary positions, plain or gated feed-forward, and perhaps a head that scores. What differs between families is written
down here, names of tensors included, and `encoder.py` builds the graph from it alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vorta_server.compiler.config import ConfigReader
from vorta_server.compiler.rope import RopeSpec

MAX_POSITIONS = 1 << 24

Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]

# Names in configurations of what is computed here.
_ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderNames:
    """Where a family keeps its tensors. Names are without `.weight` and `.bias`; empty where there is no such part.

    Attributes:
        prefixes: What may stand before all names but those of the head ("bert.", or nothing in a bare model).
        layer: Before a layer's names, with {} for its index.
        qkv: The projections to queries, keys and values: three, or one of all three below each other.
        attention_output, attention_norm: Behind attention. The norm stands before it in a pre-norm encoder.
        inner: The first half of the feed-forward: one, or gate and factor, apart or below each other.
        outer, feed_norm: Its second half, and its norm.
        query_norm, key_norm: Norms of the heads.
        ignored: A pattern of tensors that belong to something else: the head of pretraining, an unused pooler.
    """

    prefixes: tuple[str, ...]
    words: str
    positions: str = ""
    types: str = ""
    embedding_norm: str = ""
    layer: str
    qkv: tuple[str, ...]
    attention_output: str
    attention_norm: str
    inner: tuple[str, ...]
    outer: str
    feed_norm: str
    query_norm: str = ""
    key_norm: str = ""
    relative: str = ""
    final_norm: str = ""
    ignored: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RelativeBias:
    """Numbers added to attention scores by the distance of key and query, shared by all layers (T5, arXiv 1910.10683).

    Attributes:
        num_buckets: Rows of the table, for both directions together.
        max_distance: From here on all distances share the last bucket.
    """

    num_buckets: int
    max_distance: int = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreHead:
    """What makes scores of hidden states: pooling, a dense layer, perhaps a norm, and the scores' layer.

    Attributes:
        pooling: Which hidden state the head takes: the first token's, or the mean of all.
        dense, norm, classifier: Full names of tensors; norm may be empty.
        uses_sigmoid: Whether a score is the logistic function of its logit when nothing else is asked for.
    """

    num_labels: int
    pooling: Literal["cls", "mean"]
    dense: str
    dense_bias: bool = True
    activation: Literal["tanh"] | Activation
    norm: str = ""
    classifier: str
    uses_sigmoid: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSpec:
    """An encoder's shapes and switches.

    Attributes:
        max_tokens: Tokens that an input may have, special ones included.
        norm: Layer norm or RMS norm; `norm_bias` only with the first.
        is_pre_norm: Norms stand before attention and feed-forward, and a last one behind all layers.
        has_first_norm: Whether the first layer of a pre-norm encoder norms its input.
        is_gated: The feed-forward's inner half is activation(gate) * factor.
        is_causal: A token sees nothing behind it.
        windows: For each layer the largest distance at which tokens see each other; None is any.
        ropes: For each layer how positions turn its heads; None is not at all.
        num_positions: Rows of the table of positions, 0 without one; a text's first token has `first_position`.
        num_types: Rows of the table of token types, 0 without one.
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
    max_tokens: int
    norm: Literal["layer", "rms"] = "layer"
    norm_epsilon: float
    norm_bias: bool = True
    is_pre_norm: bool = False
    has_first_norm: bool = True
    activation: Activation
    is_gated: bool = False
    is_causal: bool = False
    attention_bias: bool = True
    attention_output_bias: bool = True
    feed_bias: bool = True
    windows: tuple[int | None, ...]
    ropes: tuple[RopeSpec | None, ...]
    num_positions: int = 0
    first_position: int = 0
    num_types: int = 0
    relative: RelativeBias | None = None
    names: EncoderNames
    head: ScoreHead | None = None
    pad_token_id: int | None = None

    @property
    def default_pooling(self) -> str:
        """What one vector of a text is where the checkpoint does not say, as in sentence-transformers."""
        return "last" if self.is_causal else "mean"


def read_activation(config: ConfigReader, name: str, default: str) -> Activation:
    """The activation that a field names. Raises CheckpointError for one that is not computed here."""
    value = config.raw(name) if config.has(name) else default
    activation = _ACTIVATIONS.get(value) if isinstance(value, str) else None
    if activation is None:
        raise config.error(name, f"is {value!r}; supported are {', '.join(_ACTIVATIONS)}")
    return activation


def read_num_labels(config: ConfigReader) -> int:
    """The scores of an input: of `id2label`, or `num_labels`; two where neither says, as in the reference."""
    labels = config.raw("id2label")
    if isinstance(labels, dict) and labels:
        return len(labels)
    return config.positive_int("num_labels", 2, maximum=100_000)


def read_uses_sigmoid(config: ConfigReader, num_labels: int) -> bool:
    """Whether sentence-transformers' CrossEncoder applies the logistic function: with one label, unless the
    configuration names another activation. Raises CheckpointError for one that is neither of the two."""
    section = config.section("sentence_transformers")
    wanted = section.raw("activation_fn") if section is not None else None
    if wanted is None:
        wanted = config.raw("sbert_ce_default_activation_function")
    if wanted is None:
        return num_labels == 1
    name = wanted.rsplit(".", 1)[-1] if isinstance(wanted, str) else ""
    if name not in ("Sigmoid", "Identity"):
        raise config.error("activation_fn", f"is {wanted!r}; supported are Sigmoid and Identity")
    return name == "Sigmoid"


def check_common(config: ConfigReader) -> None:
    """Refuses what no encoder family supports. Raises CheckpointError naming the field."""
    if config.has("quantization_config"):
        raise config.error("quantization_config", "is set: compile from the unquantised checkpoint")


def read_heads(config: ConfigReader) -> tuple[int, int, int]:
    """hidden_size, num_attention_heads and the elements of a head, which must divide evenly into even heads."""
    hidden_size = config.positive_int("hidden_size", maximum=1 << 20)
    num_heads = config.positive_int("num_attention_heads", maximum=hidden_size)
    if hidden_size % num_heads:
        raise config.error("num_attention_heads", f"({num_heads}) must divide hidden_size ({hidden_size})")
    return hidden_size, num_heads, hidden_size // num_heads


def read_pad_token_id(config: ConfigReader, default: int | None) -> int | None:
    """`pad_token_id`, or the family's own."""
    ids = config.token_ids("pad_token_id")
    return ids[0] if ids else default
