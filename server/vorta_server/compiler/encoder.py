"""The encoder's graph, built from an EncoderSpec.

Packed (our operators; a batch is one row of tokens, texts behind each other):
    inputs   input_ids int32 [T]; offsets int32 [B + 1], where each text begins, and T; token_types int32 [T]
    output   hidden_states float32 [T, H]
Padded (ONNX Runtime's operators; texts are filled up at their end):
    inputs   input_ids int64 [B, S]; lengths int64 [B]; token_types int64 [B, S]
    output   hidden_states float32 [B, S, H], of which the rows behind a text's length mean nothing
token_types is an input only where the model has more than one type. With a head that scores, the output is logits
float32 [B, labels] instead.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from vorta_server.compiler.checkpoint import Float32Array
from vorta_server.compiler.encoder_lowering import (
    EmbeddingLayer,
    EncoderLowering,
    NormLayer,
    NormRole,
    RelativeTable,
    SelfAttention,
    score,
)
from vorta_server.compiler.encoder_spec import EncoderSpec, RelativeBias
from vorta_server.compiler.encoder_weight import EncoderWeights
from vorta_server.compiler.graph import GraphBuilder
from vorta_server.compiler.rope import RopeSpec, rope_tables
from vorta_server.compiler.sentence import DenseLayer

__all__ = ["EncoderGraph", "relative_buckets"]


class EncoderGraph:
    """Adds an encoder to a graph.

    Args:
        graph: The builder; the encoder is all it will hold.
        spec: The encoder's shape.
        weights: Its tensors.
        lowering: How its parts compute.
        max_tokens: Positions in tables that are made here.
        dense: Layers behind the last one.
        progress: Called with a layer's index as it begins.
    """

    def __init__(
        self,
        graph: GraphBuilder,
        spec: EncoderSpec,
        weights: EncoderWeights,
        lowering: EncoderLowering,
        *,
        max_tokens: int,
        dense: tuple[DenseLayer, ...],
        progress: Callable[[int], None],
    ) -> None:
        self._graph = graph
        self._spec = spec
        self._weights = weights
        self._lowering = lowering
        self._max_tokens = max_tokens
        self._dense = dense
        self._progress = progress
        self._ropes: dict[RopeSpec, tuple[str, Float32Array, Float32Array]] = {}
        self._relative = self._read_relative()

    def build(self) -> None:
        """Adds every node from input_ids to hidden_states or logits."""
        graph, spec, names = self._graph, self._spec, self._spec.names
        x = self._lowering.embedding(graph, self._embedding_layer())
        residual, delta = x, ""
        if names.embedding_norm:
            x = residual = self._norm(names.embedding_norm, None, residual, "", "stream")[0]
        for layer in range(spec.num_layers):
            self._progress(layer)
            is_last = layer == spec.num_layers - 1
            if spec.is_pre_norm:
                if layer > 0 or spec.has_first_norm:
                    x, residual = self._norm(names.attention_norm, layer, residual, delta, "inner")
                attended, residual = self._attention(layer, x, residual)
                delta = self._delta(attended, names.attention_output, layer)
                x, residual = self._norm(names.feed_norm, layer, residual, delta, "inner")
                delta = self._feed_forward(layer, x)
            else:
                attended, residual = self._attention(layer, x, x)
                delta = self._delta(attended, names.attention_output, layer)
                x, _ = self._norm(names.attention_norm, layer, residual, delta, "stream")
                delta = self._feed_forward(layer, x)
                x, _ = self._norm(names.feed_norm, layer, x, delta, "output" if is_last else "stream")
        if spec.is_pre_norm:
            x, _ = self._norm(names.final_norm, None, residual, delta, "output")
        self._progress(spec.num_layers)
        if spec.head is not None:
            self._score(x)
        else:
            self._hidden_states(x)

    def _embedding_layer(self) -> EmbeddingLayer:
        spec, names, weights = self._spec, self._spec.names, self._weights
        return EmbeddingLayer(
            words=weights.matrix(f"{weights.name(names.words)}.weight"),
            positions=weights.table(names.positions) if names.positions else None,
            first_position=spec.first_position,
            types=weights.table(names.types) if names.types else None,
        )

    def _norm(self, part: str, layer: int | None, residual: str, delta: str, role: NormRole) -> tuple[str, str]:
        norm = self._norm_layer(self._weights.name(part, layer), residual, delta)
        return self._lowering.norm(self._graph, norm, role)

    def _norm_layer(self, name: str, residual: str, delta: str) -> NormLayer:
        return NormLayer(
            name=name,
            residual=residual,
            delta=delta,
            weight=self._weights.vector(f"{name}.weight"),
            bias=self._weights.optional_vector(f"{name}.bias"),
            epsilon=self._spec.norm_epsilon,
            is_rms=self._spec.norm == "rms",
        )

    def _attention(self, layer: int, x: str, residual: str) -> tuple[str, str]:
        """What the layer's attention gives and the residual beside it: of all tokens, or in the last layer of those
        that the head takes, since from there on nothing mixes tokens."""
        spec, names, weights = self._spec, self._spec.names, self._weights
        rope, window = spec.ropes[layer], spec.windows[layer]
        norms = None
        if names.query_norm:
            query, key = (
                weights.vector(f"{weights.name(part, layer)}.weight") for part in (names.query_norm, names.key_norm)
            )
            norms = (query, key)
        attended = self._lowering.attention(
            self._graph,
            x,
            [weights.linear(weights.name(part, layer)) for part in names.qkv],
            SelfAttention(
                name=weights.name("attended", layer),
                num_heads=spec.num_heads,
                num_kv_heads=spec.num_kv_heads,
                head_dim=spec.head_dim,
                window=window if window is None or window < self._max_tokens - 1 else None,
                is_causal=spec.is_causal,
                rope=self._rope(rope) if rope is not None else None,
                norms=norms,
                epsilon=spec.norm_epsilon,
                relative=self._relative,
            ),
        )
        if layer == spec.num_layers - 1 and spec.head is not None and spec.head.pooling == "cls":
            attended = self._lowering.first_tokens(self._graph, f"{attended}.first", attended)
            residual = self._lowering.first_tokens(self._graph, f"{attended}.residual", residual)
        return attended, residual

    def _rope(self, rope: RopeSpec) -> tuple[str, Float32Array, Float32Array]:
        if rope not in self._ropes:
            self._ropes[rope] = (f"rope{len(self._ropes)}", *rope_tables(rope, self._max_tokens))
        return self._ropes[rope]

    def _read_relative(self) -> RelativeTable | None:
        spec = self._spec
        if spec.relative is None:
            return None
        reach = self._max_tokens
        buckets = relative_buckets(spec.relative, np.arange(1 - reach, reach))
        values = self._weights.table(spec.names.relative)[buckets].T
        return RelativeTable(values=np.ascontiguousarray(values), reach=reach)

    def _delta(self, x: str, part: str, layer: int) -> str:
        return self._lowering.delta(self._graph, x, self._weights.linear(self._weights.name(part, layer)))

    def _feed_forward(self, layer: int, x: str) -> str:
        spec, names = self._spec, self._spec.names
        inner = self._weights.stacked(names.inner, layer, "inner")
        x = self._lowering.activated(self._graph, x, inner, spec.activation, spec.is_gated)
        return self._delta(x, names.outer, layer)

    def _score(self, x: str) -> None:
        head = self._spec.head
        assert head is not None
        if head.pooling == "mean":
            x = self._lowering.mean(self._graph, "pooled", x)
        norm = self._norm_layer(head.norm, "", "") if head.norm else None
        dense, last = self._weights.linear(head.dense), self._weights.linear(head.classifier)
        score(self._graph, x, head, dense, norm, last)
        self._graph.output("logits", TensorProto.FLOAT, ["texts", head.num_labels])

    def _hidden_states(self, x: str) -> None:
        graph, size = self._graph, self._spec.hidden_size
        for dense in self._dense:
            size = len(dense.weight)
            weight = graph.constant(f"{dense.name}.weight", np.ascontiguousarray(dense.weight.T))
            x = graph.node("MatMul", [x, weight], [f"{dense.name}.product"])
            if dense.bias is not None:
                x = graph.node("Add", [x, graph.constant(f"{dense.name}.bias", dense.bias)], [f"{dense.name}.biased"])
            if dense.has_tanh:
                x = graph.node("Tanh", [x], [f"{dense.name}.tanh"])
        self._lowering.output(graph, x, "hidden_states", size)


def relative_buckets(bias: RelativeBias, distances: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The bucket of each distance (key less query): near ones apart, far ones together by the logarithm.

    In float32, as in the reference: at a bucket's edge the rounding decides.
    """
    half = bias.num_buckets // 2
    exact = half // 2
    far = np.abs(distances)
    with np.errstate(divide="ignore"):
        ratio = np.log(far.astype(np.float32) / np.float32(exact)) / np.float32(np.log(bias.max_distance / exact))
        spread = np.where(far < exact, 0, ratio * np.float32(half - exact))
    logarithmic = np.minimum(exact + spread.astype(np.int64), half - 1)
    return np.where(distances > 0, half, 0) + np.where(far < exact, far, logarithmic)
