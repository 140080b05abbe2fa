"""Encoders in ONNX's own operators: the padded graph with standard attention, norms and rotation.

Activations are of the precision's type; hidden states, pooling and heads that score are float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from vorta_server.compiler.encoder_lowering import EmbeddingLayer, NormLayer, NormRole, SelfAttention
from vorta_server.compiler.graph import GraphBuilder
from vorta_server.compiler.opset_product import OpsetProducts, opset_rms_norm
from vorta_server.compiler.padded import PaddedLowering

__all__ = ["OpsetEncoderLowering"]


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

    def _rms_norm(self, graph: GraphBuilder, name: str, x: str, weight: str, epsilon: float) -> str:
        return opset_rms_norm(graph, name, x, weight, epsilon)

    def _rotate(self, graph: GraphBuilder, name: str, heads: str, tables: Sequence[str]) -> str:
        return graph.node("RotaryEmbedding", [heads, *tables, self._position_ids], [name])

    def _seen(self, graph: GraphBuilder, name: str, layer: SelfAttention, distance: str) -> str:
        """As there, and every place sees itself: so the mask has a row for each, which the operator wants, and none is
        empty."""
        itself = graph.node("Equal", [distance, "zero"], [f"{name}.itself"])
        return graph.node("Or", [super()._seen(graph, name, layer, distance), itself], [f"{name}.whole"])
