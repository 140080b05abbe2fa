"""Encoders on Vorta's own operators (`vorta_kernels.cpu`): texts behind each other, no padding.

In fp32 products are ONNX Runtime's and all between them is ours. In int8 an activation's row becomes 8-bit integers
with a factor of its own, weights are 8-bit blocks that share a scale, and what lies between two products ends in the
codes that the next one reads: sums of a block are exact, and a text's result does not depend on the texts beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from vorta_server.compiler.encoder_lowering import EmbeddingLayer, NormLayer, NormRole, SelfAttention
from vorta_server.compiler.encoder_spec import Activation
from vorta_server.compiler.graph import MICROSOFT, VORTA, GraphBuilder
from vorta_server.compiler.linear import Linear, row_chunks, stack_linears, store_blocks
from vorta_server.compiler.native import NativeLowering
from vorta_server.compiler.quantise import BLOCK

__all__ = ["PackedFloatLowering", "PackedIntegerLowering"]

# Numbers of csrc/cpu/rows.h.
_ACTIVATION_CODES: dict[Activation, int] = {"gelu": 0, "gelu_tanh": 1, "relu": 2, "silu": 3}

# The operator reads a row of relative numbers in vectors, past its end.
_OVERHANG = 15


class _PackedLowering:
    """What both precisions share."""

    def linear(self, graph: GraphBuilder, x: str, layer: Linear) -> str:
        """Each precision's own."""
        raise NotImplementedError

    def attention(self, graph: GraphBuilder, x: str, qkv: Sequence[Linear], layer: SelfAttention) -> str:
        stacked = qkv[0] if len(qkv) == 1 else stack_linears(f"{layer.name}.qkv", qkv)
        inputs = [self.linear(graph, x, stacked), "offsets", *[""] * 5]
        reach = 0
        if layer.rope is not None:
            name, cosines, sines = layer.rope
            inputs[2:4] = [graph.constant(f"{name}.cos", cosines), graph.constant(f"{name}.sin", sines)]
        if layer.norms is not None:
            query, key = layer.norms
            inputs[4:6] = [graph.constant(f"{layer.name}.query", query), graph.constant(f"{layer.name}.key", key)]
        if layer.relative is not None:
            values, reach = layer.relative.values, layer.relative.reach
            inputs[6] = graph.constant("relative", np.pad(values, ((0, 0), (0, _OVERHANG))))
        return graph.node(
            "PackedAttention",
            inputs,
            [layer.name],
            domain=VORTA,
            num_heads=layer.num_heads,
            num_kv_heads=layer.num_kv_heads,
            window=-1 if layer.window is None else layer.window,
            causal=int(layer.is_causal),
            reach=reach,
            scale=1.0 / math.sqrt(layer.head_dim),
            epsilon=layer.epsilon,
        )

    def first_tokens(self, graph: GraphBuilder, name: str, x: str) -> str:
        bounds = [graph.constant(f"first/{part}", np.array([at], np.int64)) for part, at in (("from", 0), ("to", -1))]
        starts = graph.node("Slice", ["offsets", *bounds], [f"{name}.starts"])
        return graph.node("Gather", [x, starts], [name], axis=0)

    def mean(self, graph: GraphBuilder, name: str, x: str) -> str:
        return graph.node("MeanOfTexts", [x, "offsets"], [name], domain=VORTA)

    def output(self, graph: GraphBuilder, x: str, name: str, size: int) -> None:
        graph.node("Identity", [x], [name])
        graph.output(name, TensorProto.FLOAT, ["tokens", size])

    def _embed(self, graph: GraphBuilder, layer: EmbeddingLayer, words: Sequence[str]) -> str:
        """`words`: names of the float table, the codes and the scales, empty for what is not there."""
        ids = graph.input("input_ids", TensorProto.INT32, ["tokens"])
        offsets = graph.input("offsets", TensorProto.INT32, ["bounds"])
        inputs = [ids, offsets, *words, "", "", ""]
        if layer.positions is not None:
            inputs[5] = graph.constant("positions", layer.positions)
        if layer.types is not None:
            inputs[7] = graph.constant("types", layer.types)
            if len(layer.types) > 1:
                inputs[6] = graph.input("token_types", TensorProto.INT32, ["tokens"])
        return graph.node(
            "EmbedTokens",
            inputs,
            ["embedding"],
            domain=VORTA,
            hidden_size=layer.words.num_columns,
            first_position=layer.first_position,
        )


class PackedFloatLowering(_PackedLowering):
    """Weights [N, K] and activations in float32."""

    def embedding(self, graph: GraphBuilder, layer: EmbeddingLayer) -> str:
        words = layer.words
        shape = (words.num_rows, words.num_columns)
        key = graph.store(f"{words.name}.fp32", np.float32, shape, row_chunks(words, lambda rows: rows))
        return self._embed(graph, layer, [graph.weight(key), "", ""])

    def linear(self, graph: GraphBuilder, x: str, layer: Linear) -> str:
        shape = (layer.weight.num_rows, layer.weight.num_columns)
        key = graph.store(f"{layer.name}.fp32", np.float32, shape, row_chunks(layer.weight, lambda rows: rows))
        inputs = [x, graph.weight(key)]
        if layer.bias is not None:
            inputs.append(graph.constant(f"{layer.name}.bias", layer.bias))
        return graph.node("Gemm", inputs, [layer.name], transB=1)

    def activated(self, graph: GraphBuilder, x: str, layer: Linear, activation: Activation, is_gated: bool) -> str:
        inner = self.linear(graph, x, layer)
        attributes = {"activation": _ACTIVATION_CODES[activation], "gated": int(is_gated)}
        return graph.node("Activate", [inner], [f"{inner}.activated"], domain=VORTA, **attributes)

    def norm(self, graph: GraphBuilder, layer: NormLayer, role: NormRole) -> tuple[str, str]:
        weight = graph.constant(f"{layer.name}.weight", layer.weight)
        if layer.is_rms:
            return rms_norm(graph, layer, weight)
        total = layer.residual
        outputs = [layer.name]
        if layer.delta and role == "inner":
            total = f"{layer.name}.total"
            outputs.append(total)
        inputs = [layer.residual, weight, bias_of(graph, layer), layer.delta]
        graph.node("LayerNorm", inputs, outputs, domain=VORTA, epsilon=layer.epsilon)
        return layer.name, total


class PackedIntegerLowering(_PackedLowering):
    """8-bit weights in blocks (see quantise.py), 8-bit activations with a factor for each row; sums in float32."""

    def __init__(self, block: int) -> None:
        self._block = block
        self._blocks = NativeLowering("int8", block)

    def embedding(self, graph: GraphBuilder, layer: EmbeddingLayer) -> str:
        codes, scales = store_blocks(graph, layer.words, 8)
        blocks = -(-layer.words.num_columns // BLOCK)
        flat = graph.weight_view(f"{codes}/flat", codes, (layer.words.num_rows, blocks * BLOCK))
        return self._embed(graph, layer, ["", flat, graph.weight(scales)])

    def linear(self, graph: GraphBuilder, x: str, layer: Linear) -> str:
        return self._blocks.linear(graph, x, layer)

    def activated(self, graph: GraphBuilder, x: str, layer: Linear, activation: Activation, is_gated: bool) -> str:
        inner = self.linear(graph, x, layer)
        name = f"{inner}.activated"
        graph.node(
            "ActivateQuantise",
            [inner],
            self._blocks.codes_of(name),
            domain=VORTA,
            activation=_ACTIVATION_CODES[activation],
            gated=int(is_gated),
            multiple=self._block,
        )
        return name

    def norm(self, graph: GraphBuilder, layer: NormLayer, role: NormRole) -> tuple[str, str]:
        weight = graph.constant(f"{layer.name}.weight", layer.weight)
        if role == "output":
            return PackedFloatLowering().norm(graph, layer, role)
        if layer.is_rms:
            delta = layer.delta or None
            return self._blocks.norm(graph, layer.name, layer.residual, delta, weight, layer.epsilon)
        total = layer.residual
        outputs = [*self._blocks.codes_of(layer.name), layer.name if role == "stream" else ""]
        if layer.delta and role == "inner":
            total = f"{layer.name}.total"
            outputs.append(total)
        inputs = [layer.residual, weight, bias_of(graph, layer), layer.delta]
        graph.node("LayerNormQuantise", inputs, outputs, domain=VORTA, multiple=self._block, epsilon=layer.epsilon)
        return layer.name, total


def bias_of(graph: GraphBuilder, layer: NormLayer) -> str:
    """The norm's bias, or an empty name."""
    return graph.constant(f"{layer.name}.bias", layer.bias) if layer.bias is not None else ""


def rms_norm(graph: GraphBuilder, layer: NormLayer, weight: str) -> tuple[str, str]:
    """An RMS norm through ONNX Runtime's operators, and its sum."""
    if not layer.delta:
        graph.node(
            "SimplifiedLayerNormalization",
            [layer.residual, weight],
            [layer.name],
            axis=-1,
            epsilon=layer.epsilon,
            stash_type=1,
        )
        return layer.name, layer.residual
    total = f"{layer.name}.total"
    graph.node(
        "SkipSimplifiedLayerNormalization",
        [layer.residual, layer.delta, weight],
        [layer.name, "", "", total],
        domain=MICROSOFT,
        epsilon=layer.epsilon,
    )
    return layer.name, total
