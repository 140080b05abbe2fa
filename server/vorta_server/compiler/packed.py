"""Encoders on Vorta's own operators (`vorta_kernels.cpu`): texts behind each other, no padding.

A product is one operator with what follows it, a norm or an activation, so that a few rows go through both while they
are in a core's caches. In int8 an activation's row becomes 8-bit integers with a factor of its own, weights are 8-bit
blocks that share a scale. In both a row's arithmetic is the same whatever is beside it, so that a text's result does
not depend on the texts that it is computed with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from vorta_server.compiler.checkpoint import Float32Array
from vorta_server.compiler.encoder_lowering import EmbeddingLayer, NormLayer, NormRole, SelfAttention
from vorta_server.compiler.encoder_spec import Activation
from vorta_server.compiler.graph import VORTA, GraphBuilder
from vorta_server.compiler.linear import Linear, row_chunks, stack_linears, store_blocks
from vorta_server.compiler.native import TILE, NativeLowering
from vorta_server.compiler.quantise import BLOCK
from vorta_server.compiler.weight import Matrix

__all__ = ["PackedFloatLowering", "PackedIntegerLowering"]

# Numbers of csrc/cpu/rows.h.
_ACTIVATION_CODES: dict[Activation, int] = {"gelu": 0, "gelu_tanh": 1, "relu": 2, "silu": 3}

# The operator reads a row of relative numbers in vectors, past its end.
_OVERHANG = 15


class _PackedLowering:
    """What both precisions share.

    A product that only a norm reads is kept until the norm comes, which then is one operator with it.
    """

    uses_halves = False
    """Whether attention may multiply bfloat16 numbers, where the processor does that faster."""

    def __init__(self) -> None:
        self._deltas: dict[str, tuple[str, Linear]] = {}

    def linear(self, graph: GraphBuilder, x: str, layer: Linear) -> str:
        """Each precision's own."""
        raise NotImplementedError

    def delta(self, graph: GraphBuilder, x: str, layer: Linear) -> str:
        self._deltas[layer.name] = (x, layer)
        return layer.name

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
            halves=int(self.uses_halves),
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
    """Weights in tiles of 16 outputs, and activations, in float32."""

    def embedding(self, graph: GraphBuilder, layer: EmbeddingLayer) -> str:
        words = layer.words
        shape = (words.num_rows, words.num_columns)
        key = graph.store(f"{words.name}.fp32", np.float32, shape, row_chunks(words, lambda rows: rows))
        return self._embed(graph, layer, [graph.weight(key), "", ""])

    def linear(self, graph: GraphBuilder, x: str, layer: Linear) -> str:
        inputs = self._product(graph, x, layer)
        return graph.node("MatMulTiles", inputs, [layer.name], domain=VORTA, N=layer.weight.num_rows)

    def activated(self, graph: GraphBuilder, x: str, layer: Linear, activation: Activation, is_gated: bool) -> str:
        return graph.node(
            "MatMulTilesActivate",
            self._product(graph, x, layer),
            [f"{layer.name}.activated"],
            domain=VORTA,
            N=layer.weight.num_rows,
            activation=_ACTIVATION_CODES[activation],
            gated=int(is_gated),
        )

    def norm(self, graph: GraphBuilder, layer: NormLayer, role: NormRole) -> tuple[str, str]:
        sizes = {"rms": int(layer.is_rms), "epsilon": layer.epsilon}
        affine = norm_constants(graph, layer)
        if not layer.delta:
            graph.node("Norm", [layer.residual, *affine], [layer.name], domain=VORTA, multiple=0, **sizes)
            return layer.name, layer.residual
        total = f"{layer.name}.total" if role == "inner" else ""
        x, product = self._deltas.pop(layer.delta)
        graph.node(
            "MatMulTilesNorm",
            [*self._product(graph, x, product), layer.residual, *affine],
            [layer.name, total],
            domain=VORTA,
            N=product.weight.num_rows,
            **sizes,
        )
        return layer.name, total

    def _product(self, graph: GraphBuilder, x: str, layer: Linear) -> list[str]:
        bias = graph.constant(f"{layer.name}.bias", layer.bias) if layer.bias is not None else ""
        return [x, graph.weight(store_float_tiles(graph, layer.weight)), bias]


class PackedIntegerLowering(_PackedLowering):
    """8-bit weights in blocks (see quantise.py), 8-bit activations with a factor for each block; sums in float32."""

    uses_halves = True

    def __init__(self, block: int) -> None:
        super().__init__()
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
        name = f"{layer.name}.activated"
        graph.node(
            "MatMulBlocksActivate",
            self._blocks.product(graph, x, layer),
            self._blocks.codes_of(name),
            domain=VORTA,
            N=layer.weight.num_rows,
            block=self._block,
            multiple=self._block,
            activation=_ACTIVATION_CODES[activation],
            gated=int(is_gated),
        )
        return name

    def norm(self, graph: GraphBuilder, layer: NormLayer, role: NormRole) -> tuple[str, str]:
        sizes = {"rms": int(layer.is_rms), "epsilon": layer.epsilon, "multiple": self._block}
        affine = norm_constants(graph, layer)
        normed = "" if role == "inner" else layer.name
        codes = ["", ""] if role == "output" else self._blocks.codes_of(layer.name)
        if not layer.delta:
            graph.node("Norm", [layer.residual, *affine], [normed, *codes], domain=VORTA, **sizes)
            return layer.name, layer.residual
        total = f"{layer.name}.total" if role == "inner" else ""
        x, product = self._deltas.pop(layer.delta)
        graph.node(
            "MatMulBlocksNorm",
            [*self._blocks.product(graph, x, product), layer.residual, *affine],
            [normed, total, *codes],
            domain=VORTA,
            N=product.weight.num_rows,
            block=self._block,
            **sizes,
        )
        return layer.name, total


def norm_constants(graph: GraphBuilder, layer: NormLayer) -> list[str]:
    """Names of the norm's weight and of its bias, which may be empty."""
    bias = graph.constant(f"{layer.name}.bias", layer.bias) if layer.bias is not None else ""
    return [graph.constant(f"{layer.name}.weight", layer.weight), bias]


def store_float_tiles(graph: GraphBuilder, matrix: Matrix) -> str:
    """Stores a matrix [N, K] in the order of csrc/cpu/float_gemm.h, [tiles, K, 16]; returns its key."""
    tiles = -(-matrix.num_rows // TILE)

    def convert(rows: Float32Array) -> Float32Array:
        whole = np.pad(rows, ((0, -len(rows) % TILE), (0, 0)))
        return np.ascontiguousarray(whole.reshape(-1, TILE, rows.shape[1]).transpose(0, 2, 1))

    shape = (tiles, matrix.num_columns * TILE)
    return graph.store(f"{matrix.name}.tiles32", np.float32, shape, row_chunks(matrix, convert, multiple=TILE))
