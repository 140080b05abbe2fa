"""How an encoder's parts compute: the seam between the shape of `encoder.py` and arithmetic.

A batch is one value: its inputs and the order of its tokens are the lowering's, and so is what lies between two linear
layers, since that is what the next one reads. `packed.py` and `padded.py` have the lowerings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from vorta_server.compiler.checkpoint import Float32Array
from vorta_server.compiler.encoder_spec import Activation, ScoreHead
from vorta_server.compiler.graph import GraphBuilder
from vorta_server.compiler.linear import Linear
from vorta_server.compiler.weight import Matrix

__all__ = ["EmbeddingLayer", "EncoderLowering", "NormLayer", "NormRole", "RelativeTable", "SelfAttention", "score"]

NormRole = Literal["inner", "stream", "output"]
"""Who reads a norm: linear layers; those and the next sum; or others alone, at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingLayer:
    """Rows of tables that are added up for each token.

    Attributes:
        words: [V, H].
        positions: [rows, H] or None; a text's first token has `first_position`.
        types: [rows, H] or None; with one row it is everyone's, with more a graph has the input token_types.
    """

    words: Matrix
    positions: Float32Array | None
    first_position: int
    types: Float32Array | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NormLayer:
    """A norm of residual + delta (empty for none): layer norm with weight and perhaps bias, or RMS norm."""

    name: str
    residual: str
    delta: str
    weight: Float32Array
    bias: Float32Array | None
    epsilon: float
    is_rms: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RelativeTable:
    """What is added to scores: values [heads, 2 reach - 1], of distance d (key less query) in column reach - 1 + d."""

    values: Float32Array
    reach: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfAttention:
    """One layer's attention inside each text.

    Attributes:
        window: Largest distance at which tokens see each other; None for any.
        rope: cos and sin of every position, each [positions, head_dim / 2], and a name for both; None for no rotation.
        norms: Weights of RMS norms of every query and key head, each [head_dim]; None for none.
    """

    name: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None
    is_causal: bool
    rope: tuple[str, Float32Array, Float32Array] | None
    norms: tuple[Float32Array, Float32Array] | None
    epsilon: float
    relative: RelativeTable | None


class EncoderLowering(Protocol):
    """How one graph computes. Values that stand for all tokens are written [tokens, ...] whatever their real shape."""

    def embedding(self, graph: GraphBuilder, layer: EmbeddingLayer) -> str:
        """Declares the graph's inputs and adds up the tables' rows: [tokens, H]."""
        ...

    def norm(self, graph: GraphBuilder, layer: NormLayer, role: NormRole) -> tuple[str, str]:
        """The norm [tokens, H], and the sum where the role is "inner" and the sum is another value than the norm."""
        ...

    def linear(self, graph: GraphBuilder, x: str, layer: Linear) -> str:
        """x W^T + b: [tokens, N] float32."""
        ...

    def delta(self, graph: GraphBuilder, x: str, layer: Linear) -> str:
        """The layer's output, read by the next `norm` of this lowering alone; returns its name."""
        ...

    def activated(self, graph: GraphBuilder, x: str, layer: Linear, activation: Activation, is_gated: bool) -> str:
        """activation(linear(x)), read by `linear` alone. Gated: the first half's activation times the second half."""
        ...

    def attention(self, graph: GraphBuilder, x: str, qkv: Sequence[Linear], layer: SelfAttention) -> str:
        """Projects x to queries, keys and values (three layers, or all in one) and attends: [tokens, heads * dim]."""
        ...

    def first_tokens(self, graph: GraphBuilder, name: str, x: str) -> str:
        """Each text's first token: [texts, H]; linear layers and norms take it like [tokens, H]."""
        ...

    def mean(self, graph: GraphBuilder, name: str, x: str) -> str:
        """The mean of each text's tokens: [texts, H] float32."""
        ...

    def output(self, graph: GraphBuilder, x: str, name: str, size: int) -> None:
        """Declares x [tokens, size] as the graph's output under this name."""
        ...


def score(graph: GraphBuilder, x: str, head: ScoreHead, dense: Linear, norm: NormLayer | None, last: Linear) -> None:
    """The logits [texts, labels] of x [texts, H], in float32: a head is a small part of the work and decides alone."""
    value = _gemm(graph, x, dense, "score.dense")
    value = activate(graph, f"{value}.activated", value, head.activation)
    if norm is not None:
        inputs = [value, graph.constant(f"{norm.name}.weight", norm.weight)]
        if norm.bias is not None:
            inputs.append(graph.constant(f"{norm.name}.bias", norm.bias))
        value = graph.node("LayerNormalization", inputs, ["score.norm"], axis=-1, epsilon=norm.epsilon)
    _gemm(graph, value, last, "logits")


def _gemm(graph: GraphBuilder, x: str, layer: Linear, name: str) -> str:
    weight = layer.weight.read(0, layer.weight.num_rows)
    inputs = [x, graph.constant(f"{layer.name}.weight", np.asarray(weight))]
    if layer.bias is not None:
        inputs.append(graph.constant(f"{layer.name}.bias", layer.bias))
    return graph.node("Gemm", inputs, [name], transB=1)


def activate(graph: GraphBuilder, name: str, x: str, activation: Activation | Literal["tanh"]) -> str:
    """An activation through ONNX's own operators."""
    match activation:
        case "gelu":
            return graph.node("Gelu", [x], [name])
        case "gelu_tanh":
            return graph.node("Gelu", [x], [name], approximate="tanh")
        case "relu":
            return graph.node("Relu", [x], [name])
        case "tanh":
            return graph.node("Tanh", [x], [name])
        case "silu":
            logistic = graph.node("Sigmoid", [x], [f"{name}/logistic"])
            return graph.node("Mul", [x, logistic], [name])
