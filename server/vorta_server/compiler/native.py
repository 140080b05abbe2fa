"""The lowering onto Vorta's own operators (`vorta_kernels.cpu`): one graph and one copy of the weights.

Activations become 8-bit integers with one factor a row, weights stay at 4 or 8 bits in blocks; products of a block are
summed exactly, so that a row's result does not depend on the rows beside it. Between two products there is one
operator, which adds, norms or gates and quantises at once. Attention works on a KV head and all its query heads at a
time, so that keys and values are read once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from vorta_server.compiler.checkpoint import Float32Array
from vorta_server.compiler.graph import VORTA, GraphBuilder
from vorta_server.compiler.linear import (
    AttentionLayer,
    BlockLowering,
    Linear,
    rms_norm,
    row_chunks,
    slot_inputs,
    stack_linears,
)
from vorta_server.compiler.quantise import Uint8Array, num_blocks, quantise_int4, quantise_int8
from vorta_server.compiler.weight import Matrix, take_rows

__all__ = ["NativeLowering", "pack_tiles", "take_turns"]

TILE = 16
"""Outputs whose weights lie together; see csrc/cpu/gemm.h."""


class NativeLowering:
    """Weights in blocks at 4 or 8 bits (see quantise.py), packed in tiles, through `MatMulBlocks`.

    The embedding is kept at 8 bits in both, as in `BlockLowering`.
    """

    element: np.dtype[Any] = np.dtype(np.float32)

    def __init__(self, precision: str, block: int) -> None:
        self._bits = {"int4": 4, "int8": 8}[precision]
        self._block = block
        self._quantised: dict[str, tuple[str, str]] = {}
        self._deltas: dict[str, tuple[str, Linear]] = {}  # products that the norm behind them will compute

    def inputs(self, graph: GraphBuilder, *, max_positions: int) -> None:
        slot_inputs(graph)

    def head_norm(self, graph: GraphBuilder, name: str, x: str, weight: str, epsilon: float) -> str:
        return rms_norm(graph, name, x, weight, epsilon)

    def logits(self, graph: GraphBuilder, x: str, layer: Linear) -> str:
        return self.linear(graph, x, layer)

    def linear(self, graph: GraphBuilder, x: str, layer: Linear) -> str:
        sizes = {"N": layer.weight.num_rows, "bits": self._bits, "block": self._block}
        return graph.node("MatMulBlocks", self.product(graph, x, layer), [layer.name], domain=VORTA, **sizes)

    def product(self, graph: GraphBuilder, x: str, layer: Linear) -> list[str]:
        """The five inputs of a product: codes and factors of x, weights, scales and bias, which may be empty."""
        codes, scales = store_tiles(graph, layer.weight, self._bits, self._block)
        bias = graph.constant(f"{layer.name}.bias", layer.bias) if layer.bias is not None else ""
        return [*self._quantise(graph, x), graph.weight(codes), graph.weight(scales), bias]

    def packed(self, graph: GraphBuilder, x: str, name: str, parts: Sequence[Linear]) -> str:
        return self.linear(graph, x, stack_linears(name, parts))

    def shared(self, graph: GraphBuilder, x: str, parts: Sequence[Linear]) -> list[str]:
        return [self.linear(graph, x, part) for part in parts]

    def gated(self, graph: GraphBuilder, x: str, name: str, gate: Linear, up: Linear) -> str:
        both = take_turns(f"{name}.gate_and_up", gate, up)
        sizes = {"N": gate.weight.num_rows, "bits": self._bits, "block": self._block, "multiple": self._block}
        graph.node("MatMulBlocksGate", self.product(graph, x, both), self.codes_of(name), domain=VORTA, **sizes)
        return name

    def embedding(self, graph: GraphBuilder, ids: str, table: Matrix) -> str:
        return BlockLowering("int8").embedding(graph, ids, table)

    def delta(self, graph: GraphBuilder, x: str, layer: Linear) -> str:
        self._deltas[layer.name] = (x, layer)
        return layer.name

    def norm(
        self, graph: GraphBuilder, name: str, residual: str, delta: str | None, weight: str, epsilon: float
    ) -> tuple[str, str]:
        if delta is None:
            outputs = self.codes_of(name)
            graph.node(
                "AddNormQuantise", [residual, weight], outputs, domain=VORTA, multiple=self._block, epsilon=epsilon
            )
            return name, residual
        total = f"{name}.residual"
        x, layer = self._deltas.pop(delta)
        graph.node(
            "MatMulBlocksAddNorm",
            [*self.product(graph, x, layer), residual, weight],
            [*self.codes_of(name), total],
            domain=VORTA,
            N=layer.weight.num_rows,
            bits=self._bits,
            block=self._block,
            multiple=self._block,
            epsilon=epsilon,
        )
        return name, total

    def attention(self, graph: GraphBuilder, name: str, layer: AttentionLayer) -> str:
        inputs = [layer.query, layer.key, layer.value, *(f"past_{part}" for part in layer.cache)]
        return graph.node(
            "Attention",
            [*inputs, "seqlens_k", "cos_cache", "sin_cache"],
            [name, *(f"present_{part}" for part in layer.cache)],
            domain=VORTA,
            num_heads=layer.num_heads,
            num_kv_heads=layer.num_kv_heads,
            window=layer.window or 0,
            scale=layer.scale,
        )

    def codes_of(self, name: str) -> list[str]:
        """Names for the codes and factors that stand for a value from now on."""
        self._quantised[name] = (f"{name}/codes", f"{name}/factor")
        return list(self._quantised[name])

    def _quantise(self, graph: GraphBuilder, x: str) -> tuple[str, str]:
        if x not in self._quantised:
            graph.node("Quantise", [x], self.codes_of(x), domain=VORTA, multiple=self._block)
        return self._quantised[x]


def take_turns(name: str, gate: Linear, up: Linear) -> Linear:
    """The layers as one whose outputs are 16 of the one and 16 of the other in turn, filled up with zeros."""
    size = gate.weight.num_rows
    places = np.append(np.arange(size), np.full(-size % TILE, -1)).reshape(-1, TILE)
    empty = np.full_like(places, -1)
    orders = [np.concatenate(pair, axis=1).reshape(-1) for pair in ((places, empty), (empty, places))]
    parts = [take_rows(layer.weight, order) for layer, order in zip((gate, up), orders, strict=True)]
    weight = Matrix(
        name=name,
        num_rows=parts[0].num_rows,
        num_columns=parts[0].num_columns,
        read=lambda start, stop: parts[0].read(start, stop) + parts[1].read(start, stop),
    )
    biases = [
        np.where(order < 0, np.float32(0), layer.bias[order])
        for layer, order in zip((gate, up), orders, strict=True)
        if layer.bias is not None
    ]
    return Linear(name=name, weight=weight, bias=sum(biases[1:], biases[0]) if biases else None)


def store_tiles(graph: GraphBuilder, matrix: Matrix, bits: int, block: int) -> tuple[str, str]:
    """Quantises the matrix and stores codes [tiles, bytes] and scales [tiles, blocks * 16]; returns both keys."""
    blocks, tiles = num_blocks(matrix.num_columns, block), -(-matrix.num_rows // TILE)
    code_name = f"{matrix.name}.tiles{bits}.block{block}"
    scale_name = f"{code_name}.scale"
    quantise = partial(quantise_int4 if bits == 4 else quantise_int8, block=block)
    scale_chunks: list[Float32Array] = []

    def convert(weight: Float32Array) -> tuple[Uint8Array, Float32Array]:
        return pack_tiles(*quantise(weight), bits=bits)

    def codes() -> Iterator[Uint8Array]:
        for code_chunk, scale_chunk in row_chunks(matrix, convert, multiple=TILE):
            scale_chunks.append(scale_chunk)
            yield code_chunk

    graph.store(code_name, np.uint8, (tiles, TILE * blocks * block * bits // 8), codes())
    graph.store(scale_name, np.float32, (tiles, blocks * TILE), scale_chunks)
    return code_name, scale_name


def pack_tiles(codes: Uint8Array, scales: Float32Array, *, bits: int) -> tuple[Uint8Array, npt.NDArray[np.float32]]:
    """Codes [N, blocks, block * bits / 8] and scales [N, blocks] of quantise.py in the order of csrc/cpu/gemm.h.

    Returns uint8 [tiles, 16 * K * bits / 8] and float32 [tiles, blocks * 16]. Outputs that fill up the last tile have
    the scale 0.
    """
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1)
    rows = codes.reshape(len(codes), -1)
    missing = -len(rows) % TILE
    rows = np.pad(rows, ((0, missing), (0, 0)))
    scales = np.pad(scales, ((0, missing), (0, 0)))
    tiles = len(rows) // TILE
    quads = rows.reshape(tiles, TILE, -1, 4).transpose(0, 2, 1, 3)  # [tiles, K / 4, 16, 4]
    if bits == 4:
        quads = quads[:, 0::2] | (quads[:, 1::2] << np.uint8(4))
    packed = np.ascontiguousarray(quads).reshape(tiles, -1)
    ordered = np.ascontiguousarray(scales.reshape(tiles, TILE, -1).transpose(0, 2, 1)).reshape(tiles, -1)
    return packed, ordered
