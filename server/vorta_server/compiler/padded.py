"""Encoders on ONNX Runtime's operators alone: texts filled up to the longest one, for machines without a compiler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from onnx import TensorProto

from vorta_server.compiler.checkpoint import Float32Array
from vorta_server.compiler.encoder_lowering import (
    EmbeddingLayer,
    NormLayer,
    NormRole,
    RelativeTable,
    SelfAttention,
    activate,
)
from vorta_server.compiler.encoder_spec import Activation
from vorta_server.compiler.graph import MICROSOFT, GraphBuilder
from vorta_server.compiler.linear import Linear, ProductLowering, rms_norm, take_linear
from vorta_server.compiler.opset_attention import Attended, attend, make_mask

__all__ = ["PaddedLowering"]


class PaddedLowering:
    """Texts [B, S] with lengths.

    Its parts that begin with an underscore are what `opset_encoder.py` does otherwise.

    Args:
        linears: How linear layers and the table of words compute.
    """

    _element: np.dtype[Any] = np.dtype(np.float32)

    def __init__(self, linears: ProductLowering) -> None:
        self._linears = linears
        self._masks: dict[tuple[int | None, bool], str] = {}
        self._real = ""

    def embedding(self, graph: GraphBuilder, layer: EmbeddingLayer) -> str:
        ids = graph.input("input_ids", TensorProto.INT64, ["texts", "step"])
        graph.input("lengths", TensorProto.INT64, ["texts"])
        shape = graph.node("Shape", [ids], ["shape"])
        size = graph.node("Gather", [shape, graph.constant("one", np.array(1, np.int64))], ["size"], axis=0)
        graph.node("Range", [graph.constant("zero", np.array(0, np.int64)), size, "one"], ["steps"])
        x = self._linears.embedding(graph, ids, layer.words)
        if layer.positions is not None:
            first = graph.constant("first_position", np.array(layer.first_position, np.int64))
            rows = graph.node("Add", ["steps", first], ["position_rows"])
            table = self._constant(graph, "positions", layer.positions)
            x = graph.node("Add", [x, graph.node("Gather", [table, rows], ["position_embedding"])], ["with_positions"])
        if layer.types is not None:
            rows = "zero"
            if len(layer.types) > 1:
                rows = graph.input("token_types", TensorProto.INT64, ["texts", "step"])
            table = self._constant(graph, "types", layer.types)
            x = graph.node("Add", [x, graph.node("Gather", [table, rows], ["type_embedding"])], ["with_types"])
        return x

    def norm(self, graph: GraphBuilder, layer: NormLayer, role: NormRole) -> tuple[str, str]:
        total = layer.residual
        if layer.delta:
            total = graph.node("Add", [layer.residual, layer.delta], [f"{layer.name}.total"])
        affine = [self._constant(graph, f"{layer.name}.weight", layer.weight)]
        if layer.bias is not None:
            affine.append(self._constant(graph, f"{layer.name}.bias", layer.bias))
        if layer.is_rms:
            self._rms_norm(graph, layer.name, total, affine[0], layer.epsilon)
        else:
            graph.node("LayerNormalization", [total, *affine], [layer.name], axis=-1, epsilon=layer.epsilon)
        return layer.name, total

    def delta(self, graph: GraphBuilder, x: str, layer: Linear) -> str:
        return self.linear(graph, x, layer)

    def linear(self, graph: GraphBuilder, x: str, layer: Linear) -> str:
        return self._linears.linear(graph, x, layer)

    def activated(self, graph: GraphBuilder, x: str, layer: Linear, activation: Activation, is_gated: bool) -> str:
        inner = self.linear(graph, x, layer)
        name = f"{inner}.activated"
        if not is_gated:
            return activate(graph, name, inner, activation)
        gate, factor = f"{inner}.gate", f"{inner}.factor"
        graph.node("Split", [inner], [gate, factor], axis=-1, num_outputs=2)
        return graph.node("Mul", [activate(graph, f"{gate}.activated", gate, activation), factor], [name])

    def attention(self, graph: GraphBuilder, x: str, qkv: Sequence[Linear], layer: SelfAttention) -> str:
        heads, kv_heads, dim = layer.num_heads, layer.num_kv_heads, layer.head_dim
        if len(qkv) == 1:
            qkv = _split(qkv[0], [heads * dim, kv_heads * dim, kv_heads * dim])
        query, key, value = self._linears.shared(graph, x, qkv)
        norms = layer.norms or (None, None)
        query = self._heads(graph, query, heads, layer, norms[0], is_rotated=True)
        key = self._heads(graph, key, kv_heads, layer, norms[1], is_rotated=True)
        value = self._heads(graph, value, kv_heads, layer, None, is_rotated=False)
        mixed = self._attend(graph, (query, key, value), layer)
        rows = graph.node("Transpose", [mixed], [f"{layer.name}.rows"], perm=[0, 2, 1, 3])
        merged = graph.constant("merged_shape", np.array([0, 0, -1], np.int64))
        return graph.node("Reshape", [rows, merged], [layer.name])

    def first_tokens(self, graph: GraphBuilder, name: str, x: str) -> str:
        return graph.node("Gather", [x, "zero"], [name], axis=1)

    def mean(self, graph: GraphBuilder, name: str, x: str) -> str:
        last_axis = graph.constant("last_axis", np.array([-1], np.int64))
        weights = graph.node("Cast", [self._is_real(graph)], [f"{name}.weights"], to=TensorProto.FLOAT)
        column = graph.node("Unsqueeze", [weights, last_axis], [f"{name}.column"])
        kept = graph.node("Mul", [x, column], [f"{name}.kept"])
        step_axis = graph.constant("step_axis", np.array([1], np.int64))
        total = graph.node("ReduceSum", [kept, step_axis], [f"{name}.total"], keepdims=0)
        count = graph.node("ReduceSum", [column, step_axis], [f"{name}.count"], keepdims=0)
        return graph.node("Div", [total, count], [name])

    def output(self, graph: GraphBuilder, x: str, name: str, size: int) -> None:
        graph.node("Identity", [x], [name])
        graph.output(name, TensorProto.FLOAT, ["texts", "step", size])

    def _heads(
        self,
        graph: GraphBuilder,
        x: str,
        num_heads: int,
        layer: SelfAttention,
        norm: Float32Array | None,
        *,
        is_rotated: bool,
    ) -> str:
        """x [B, S, heads * D] as [B, heads, S, D], normed and rotated."""
        shape = graph.constant(f"heads_shape_{num_heads}", np.array([0, 0, num_heads, layer.head_dim], np.int64))
        heads = graph.node("Reshape", [x, shape], [f"{x}.heads"])
        if norm is not None:
            weight = self._constant(graph, f"{x}.norm", norm)
            heads = self._rms_norm(graph, f"{x}.normed", heads, weight, layer.epsilon)
        heads = graph.node("Transpose", [heads], [f"{x}.by_head"], perm=[0, 2, 1, 3])
        if not is_rotated or layer.rope is None:
            return heads
        name, cosines, sines = layer.rope
        tables = [self._constant(graph, f"{name}.{part}", table) for part, table in (("cos", cosines), ("sin", sines))]
        return self._rotate(graph, f"{x}.rotated", heads, tables)

    def _constant(self, graph: GraphBuilder, name: str, value: Float32Array) -> str:
        """A constant of the type that activations have."""
        return graph.constant(name, value.astype(self._element))

    def _rms_norm(self, graph: GraphBuilder, name: str, x: str, weight: str, epsilon: float) -> str:
        return rms_norm(graph, name, x, weight, epsilon)

    def _rotate(self, graph: GraphBuilder, name: str, heads: str, tables: Sequence[str]) -> str:
        """Heads [B, heads, S, D] turned by their positions; tables are cos and sin, each [positions, D / 2]."""
        first = graph.constant("first_turn", np.array([0], np.int64))
        return graph.node("RotaryEmbedding", [heads, first, *tables], [name], domain=MICROSOFT)

    def _attend(self, graph: GraphBuilder, qkv: tuple[str, str, str], layer: SelfAttention) -> str:
        """Attention of queries [B, heads, S, D] to keys and values [B, kv heads, S, D]: [B, heads, S, D]."""
        query, key, value = qkv
        attended = Attended(
            query=query,
            key=key,
            value=value,
            mask=self._mask(graph, layer),
            num_heads=layer.num_heads,
            num_kv_heads=layer.num_kv_heads,
            scale=1 / math.sqrt(layer.head_dim),
        )
        return attend(graph, f"{layer.name}.mixed", attended, self._element)

    def _is_real(self, graph: GraphBuilder) -> str:
        """Whether a place holds a token: [B, S]."""
        if not self._real:
            axis = graph.constant("last_axis", np.array([-1], np.int64))
            column = graph.node("Unsqueeze", ["lengths", axis], ["lengths_column"])
            self._real = graph.node("Less", ["steps", column], ["is_real"])
        return self._real

    def _mask(self, graph: GraphBuilder, layer: SelfAttention) -> str:
        """What is added to scores [B, heads, S, S]; layers of one kind share it."""
        key = (layer.window, layer.is_causal)
        if key not in self._masks:
            name = f"mask_{'all' if layer.window is None else layer.window}"
            distance = self._distance(graph, name)
            seen = self._seen(graph, name, layer, distance)
            relative = ""
            if layer.relative is not None:
                relative = self._relative(graph, name, layer.relative, distance)
            self._masks[key] = make_mask(graph, name, seen, self._element, relative)
        return self._masks[key]

    def _seen(self, graph: GraphBuilder, name: str, layer: SelfAttention, distance: str) -> str:
        """Whether a query sees a key, [B, 1, S, S]; `distance` as of `_distance`."""
        inner_axes = graph.constant("inner_axes", np.array([1, 2], np.int64))
        seen = graph.node("Unsqueeze", [self._is_real(graph), inner_axes], [f"{name}.real"])
        if layer.is_causal:
            before = graph.node("LessOrEqual", [distance, "zero"], [f"{name}.before"])
            seen = graph.node("And", [seen, before], [f"{name}.causal"])
        if layer.window is not None:
            far = graph.node("Abs", [distance], [f"{name}.far"])
            limit = graph.constant(f"{name}.limit", np.array(layer.window, np.int64))
            near = graph.node("LessOrEqual", [far, limit], [f"{name}.near"])
            seen = graph.node("And", [seen, near], [f"{name}.seen"])
        return seen

    def _relative(self, graph: GraphBuilder, name: str, relative: RelativeTable, distance: str) -> str:
        """What each head adds to the scores, [heads, S, S]."""
        middle = graph.constant("relative/middle", np.array(relative.reach - 1, np.int64))
        column = graph.node("Add", [distance, middle], [f"{name}.column"])
        table = self._constant(graph, "relative", relative.values)
        return graph.node("Gather", [table, column], [f"{name}.relative"], axis=1)

    def _distance(self, graph: GraphBuilder, name: str) -> str:
        """Key less query, [S, S]."""
        axis = graph.constant("last_axis", np.array([-1], np.int64))
        queries = graph.node("Unsqueeze", ["steps", axis], [f"{name}.queries"])
        return graph.node("Sub", ["steps", queries], [f"{name}.distance"])


def _split(layer: Linear, sizes: Sequence[int]) -> list[Linear]:
    """A layer whose outputs are several layers', apart."""
    bounds = np.cumsum([0, *sizes]).tolist()
    return [
        take_linear(layer, f"{layer.name}.{index}", start, stop) for index, (start, stop) in enumerate(pairwise(bounds))
    ]
