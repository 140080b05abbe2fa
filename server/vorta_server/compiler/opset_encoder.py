"""Encoders in ONNX's own operators: the padded graph with standard attention, norms and rotation.

Activations are of the precision's type; hidden states, pooling and heads that score are float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from vorta_server.compiler.checkpoint import Float32Array
from vorta_server.compiler.encoder_lowering import EmbeddingLayer, NormLayer, NormRole, SelfAttention
from vorta_server.compiler.graph import GraphBuilder
from vorta_server.compiler.opset_product import OpsetProducts, opset_rms_norm
from vorta_server.compiler.padded import PaddedLowering

__all__ = ["OpsetEncoderLowering"]

# A score that no softmax gives weight to, also in fp16.
_NEVER = -30_000.0


class OpsetEncoderLowering(PaddedLowering):
    """Texts [B, S] with lengths, as `PaddedLowering`."""

    def __init__(self, products: OpsetProducts) -> None:
        super().__init__(products)
        self._element = products.element
        self._position_ids = ""

    def embedding(self, graph: GraphBuilder, layer: EmbeddingLayer) -> str:
        x = super().embedding(graph, layer)
        row = graph.node("Unsqueeze", ["steps", graph.constant("first_axis", np.array([0], np.int64))], ["steps_row"])
        self._position_ids = graph.node("Expand", [row, "shape"], ["position_ids"])
        return x

    def norm(self, graph: GraphBuilder, layer: NormLayer, role: NormRole) -> tuple[str, str]:
        normed, total = super().norm(graph, layer, role)
        if role == "output" and self._element != np.float32:
            normed = graph.node("Cast", [normed], [f"{normed}.float32"], to=TensorProto.FLOAT)
        return normed, total

    def _constant(self, graph: GraphBuilder, name: str, value: Float32Array) -> str:
        return graph.constant(name, value.astype(self._element))

    def _rms_norm(self, graph: GraphBuilder, name: str, x: str, weight: str, epsilon: float) -> str:
        return opset_rms_norm(graph, name, x, weight, epsilon)

    def _rotate(self, graph: GraphBuilder, name: str, heads: str, tables: Sequence[str]) -> str:
        return graph.node("RotaryEmbedding", [heads, *tables, self._position_ids], [name])

    def _attend(self, graph: GraphBuilder, qkv: tuple[str, str, str], layer: SelfAttention) -> str:
        inputs = [*qkv, self._mask(graph, layer)]
        scale = 1 / math.sqrt(layer.head_dim)
        return graph.node("Attention", inputs, [f"{layer.name}.mixed"], scale=scale, is_causal=0)

    def _mask(self, graph: GraphBuilder, layer: SelfAttention) -> str:
        """Who sees whom, [B, 1, S, S], or where scores have relative numbers these, [B, heads, S, S]."""
        key = (layer.window, layer.is_causal)
        if key in self._masks:
            return self._masks[key]
        name = f"mask_{'all' if layer.window is None else layer.window}"
        distance = self._distance(graph, name)
        # What only fills a text up sees itself, so that no row of scores is empty, which engines treat differently.
        itself = graph.node("Equal", [distance, "zero"], [f"{name}.itself"])
        mask = graph.node("Or", [self._seen(graph, name, layer, distance), itself], [name])
        if layer.relative is not None:
            relative = self._relative(graph, name, layer.relative, distance)
            never = graph.constant("mask/never", np.array(_NEVER, self._element))
            mask = graph.node("Where", [mask, relative, never], [f"{name}.with_relative"])
        self._masks[key] = mask
        return mask
