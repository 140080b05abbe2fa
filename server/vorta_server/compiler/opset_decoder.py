"""Decoders in ONNX's own operators, with linear KV: TensorScatter writes a step's keys and values behind each row's
past, Attention reads the whole cache under a mask of who sees what.

One mask covers lengths, causality and windows, of which the operator has no notion.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from vorta_server.compiler.graph import GraphBuilder
from vorta_server.compiler.linear import AttentionLayer, Linear, stack_linears
from vorta_server.compiler.opset_attention import Attended, attend, make_mask
from vorta_server.compiler.opset_product import OpsetProducts, opset_rms_norm

__all__ = ["OpsetDecoderLowering", "slot_copy"]


def slot_copy(graph: GraphBuilder, data_type: int, num_kv_heads: int, head_dim: int) -> None:
    """Adds all of a graph that copies one slot of a cache: input `source`, output `target`, both [1, KH, T, D].

    A runner needs it because ONNX Runtime has no other way to copy on its devices.
    """
    shape: list[int | str] = [1, num_kv_heads, "capacity", head_dim]
    graph.node("Identity", [graph.input("source", data_type, shape)], ["target"])
    graph.output("target", data_type, shape)


class OpsetDecoderLowering(OpsetProducts):
    """A `LinearLowering`; see `OpsetProducts` for the arguments."""

    def __init__(self, precision: str, block: int) -> None:
        super().__init__(precision, block)
        self._masks: dict[int | None, str] = {}

    def inputs(self, graph: GraphBuilder, *, max_positions: int) -> None:
        past = graph.input("past_lengths", TensorProto.INT64, ["batch"])
        for name, value in (("zero", 0), ("one", 1), ("last_position", max_positions - 1)):
            graph.constant(name, np.array(value, np.int64))
        shape = graph.node("Shape", ["input_ids"], ["ids_shape"])
        size = graph.node("Gather", [shape, "one"], ["step_size"], axis=0)
        graph.node("Range", ["zero", size, "one"], ["steps"])
        column = graph.node("Unsqueeze", [past, self._axes(graph, -1)], ["past_column"])
        graph.node("Add", [column, "steps"], ["positions"])
        # What only fills a batch up may lie behind the tables; no token does.
        graph.node("Min", ["positions", "last_position"], ["rotary_positions"])

    def packed(self, graph: GraphBuilder, x: str, name: str, parts: Sequence[Linear]) -> str:
        return self.linear(graph, x, stack_linears(name, parts))

    def gated(self, graph: GraphBuilder, x: str, name: str, gate: Linear, up: Linear) -> str:
        value = self.linear(graph, x, gate)
        logistic = graph.node("Sigmoid", [value], [f"{name}/logistic"])
        activated = graph.node("Mul", [value, logistic], [f"{name}/silu"])
        return graph.node("Mul", [activated, self.linear(graph, x, up)], [name])

    def delta(self, graph: GraphBuilder, x: str, layer: Linear) -> str:
        return self.linear(graph, x, layer)

    def norm(
        self, graph: GraphBuilder, name: str, residual: str, delta: str | None, weight: str, epsilon: float
    ) -> tuple[str, str]:
        total = residual if delta is None else graph.node("Add", [residual, delta], [f"{name}.residual"])
        return opset_rms_norm(graph, name, total, weight, epsilon), total

    def head_norm(self, graph: GraphBuilder, name: str, x: str, weight: str, epsilon: float) -> str:
        return opset_rms_norm(graph, name, x, weight, epsilon)

    def logits(self, graph: GraphBuilder, x: str, layer: Linear) -> str:
        """Unquantised it is the table of rows that a tied embedding is, too, so that both are stored once."""
        name = layer.name if self.element == np.float32 else f"{layer.name}/{self.element.name}"
        if self.is_quantised(layer.weight):
            graph.node("MatMul", [x, self.columns(graph, layer.weight)], [name])
        else:
            graph.node("Gemm", [x, self.rows(graph, layer.weight)], [name], transB=1)
        if name != layer.name:
            graph.node("Cast", [name], [layer.name], to=TensorProto.FLOAT)
        return layer.name

    def attention(self, graph: GraphBuilder, name: str, layer: AttentionLayer) -> str:
        query, key, value = self._heads(graph, name, layer)
        query, key = (self._rotate(graph, heads) for heads in (query, key))
        keys, values = (
            graph.node("TensorScatter", [f"past_{part}", update, "past_lengths"], [f"present_{part}"], axis=2)
            for part, update in zip(layer.cache, (key, value), strict=True)
        )
        attended = Attended(
            query=query,
            key=keys,
            value=values,
            mask=self._mask(graph, layer),
            num_heads=layer.num_heads,
            num_kv_heads=layer.num_kv_heads,
            scale=layer.scale,
        )
        mixed = attend(graph, f"{name}.mixed", attended, self.element)
        rows = graph.node("Transpose", [mixed], [f"{name}.rows"], perm=[0, 2, 1, 3])
        merged = graph.constant("merged_shape", np.array([0, 0, -1], np.int64))
        return graph.node("Reshape", [rows, merged], [name])

    def _heads(self, graph: GraphBuilder, name: str, layer: AttentionLayer) -> list[str]:
        """Queries, keys and values apart, each [B, heads, S, D]."""
        counts = (layer.num_heads, layer.num_kv_heads, layer.num_kv_heads)
        if layer.key:
            values = (layer.query, layer.key, layer.value)
            return [self._by_head(graph, value, count) for value, count in zip(values, counts, strict=True)]
        by_head = self._by_head(graph, layer.query, sum(counts))
        names = [f"{name}.{part}" for part in ("query", "key", "value")]
        graph.node("Split", [by_head, graph.constant("head_counts", np.array(counts, np.int64))], names, axis=1)
        return names

    def _by_head(self, graph: GraphBuilder, x: str, count: int) -> str:
        """x [B, S, count * D] as [B, count, S, D]."""
        shape = graph.constant(f"split_shape_{count}", np.array([0, 0, count, -1], np.int64))
        heads = graph.node("Reshape", [x, shape], [f"{x}.by_token"])
        return graph.node("Transpose", [heads], [f"{x}.by_head"], perm=[0, 2, 1, 3])

    def _rotate(self, graph: GraphBuilder, heads: str) -> str:
        inputs = [heads, "cos_cache", "sin_cache", "rotary_positions"]
        return graph.node("RotaryEmbedding", inputs, [f"{heads}.rotated"])

    def _mask(self, graph: GraphBuilder, layer: AttentionLayer) -> str:
        """What is added to scores of tokens and places of the cache, [B, 1, S, T]; layers of one window share it."""
        if layer.window in self._masks:
            return self._masks[layer.window]
        name = f"mask_{'all' if layer.window is None else layer.window}"
        keys, column = self._places(graph, layer)
        seen = graph.node("LessOrEqual", [keys, column], [f"{name}.before"])
        if layer.window is not None:
            width = graph.constant(f"{name}.width", np.array(layer.window, np.int64))
            limit = graph.node("Sub", [column, width], [f"{name}.limit"])
            near = graph.node("Greater", [keys, limit], [f"{name}.near"])
            seen = graph.node("And", [seen, near], [f"{name}.seen"])
        seen = graph.node("Unsqueeze", [seen, self._axes(graph, 1)], [f"{name}.by_head"])
        self._masks[layer.window] = make_mask(graph, name, seen, self.element)
        return name

    def _places(self, graph: GraphBuilder, layer: AttentionLayer) -> tuple[str, str]:
        """The cache's places [T], and each token's own [B, S, 1]."""
        if not self._masks:
            shape = graph.node("Shape", [f"past_{layer.cache[0]}"], ["cache_shape"])
            two = graph.constant("two", np.array(2, np.int64))
            capacity = graph.node("Gather", [shape, two], ["capacity"], axis=0)
            graph.node("Range", ["zero", capacity, "one"], ["places"])
            graph.node("Unsqueeze", ["positions", self._axes(graph, -1)], ["own_places"])
        return "places", "own_places"

    def _axes(self, graph: GraphBuilder, axis: int) -> str:
        return graph.constant(f"axes_{axis}", np.array([axis], np.int64))
