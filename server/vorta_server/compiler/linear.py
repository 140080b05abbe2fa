"""How linear layers and embeddings compute, by precision: the seam between shape and arithmetic.

A lowering adds the nodes of a linear layer to a graph and its weights to the weight file, and the norms and the
attention between them, since what those leave is what the next layer reads.

Contract of every lowering: y = x W^T + b over the last axis of x, whatever x's other axes and with zero
rows too; weights are stored under names derived from the layer's name and the lowering's own storage, so
that a second graph which stores them alike shares them.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from vorta_server.compiler.checkpoint import Float32Array
from vorta_server.compiler.graph import MICROSOFT, GraphBuilder
from vorta_server.compiler.quantise import BLOCK, Uint8Array, num_blocks, quantise_int4, quantise_int8
from vorta_server.compiler.weight import Matrix, stack_rows

T = TypeVar("T")

# Rows are read and quantised in pieces of about this many elements, few enough to stay in the caches.
_CHUNK_ELEMENTS = 1 << 19

# MatMulNBits quantises its input to 8 bits by blocks of 32 at this level, and multiplies integers.
_INT8_ACTIVATIONS = 4

# Steps from zero to the largest value of a row of 8-bit activations.
_LEVELS = 127


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A linear layer: weight [N, K] and bias [N] or None. The name is unique in the decoder."""

    name: str
    weight: Matrix
    bias: Float32Array | None = None


class ProductLowering(Protocol):
    """How linear layers and tables of rows compute."""

    def linear(self, graph: GraphBuilder, x: str, layer: Linear) -> str:
        """Adds the layer on the value x [..., K]; returns the output's name [..., N]."""
        ...

    def shared(self, graph: GraphBuilder, x: str, parts: Sequence[Linear]) -> list[str]:
        """Several layers on one input, one output each (q, k, v that are normed); shared work may be done once."""
        ...

    def embedding(self, graph: GraphBuilder, ids: str, table: Matrix) -> str:
        """Rows of the table [V, K] at ids [B, S]: [B, S, K], the first residual."""
        ...


class LinearLowering(ProductLowering, Protocol):
    """How one decoder's graph computes."""

    @property
    def element(self) -> np.dtype[Any]:
        """The type of the cache's elements, of rope tables and of norms' weights."""
        ...

    def inputs(self, graph: GraphBuilder, *, max_positions: int) -> None:
        """Declares what attention takes beside the caches: where each row's tokens are. Rope tables have max_positions
        rows."""
        ...

    def head_norm(self, graph: GraphBuilder, name: str, x: str, weight: str, epsilon: float) -> str:
        """RMS norm over the last axis of x [B, S, heads, D] times weight."""
        ...

    def logits(self, graph: GraphBuilder, x: str, layer: Linear) -> str:
        """The last layer, on x [R, K]: float32 [R, N]."""
        ...

    def packed(self, graph: GraphBuilder, x: str, name: str, parts: Sequence[Linear]) -> str:
        """Several layers on one input, their outputs side by side in one value [..., sum of N] (q, k, v)."""
        ...

    def gated(self, graph: GraphBuilder, x: str, name: str, gate: Linear, up: Linear) -> str:
        """silu(gate(x)) * up(x), read by linear layers of this lowering alone; returns its name."""
        ...

    def delta(self, graph: GraphBuilder, x: str, layer: Linear) -> str:
        """The layer's output, read by `norm` of this lowering alone; returns its name."""
        ...

    def norm(
        self, graph: GraphBuilder, name: str, residual: str, delta: str | None, weight: str, epsilon: float
    ) -> tuple[str, str]:
        """RMS norm of residual + delta times weight, read by linear layers of this lowering alone, and the sum."""
        ...

    def attention(self, graph: GraphBuilder, name: str, layer: AttentionLayer) -> str:
        """Rotates, appends to the cache and attends: [B, S, num_heads * head_dim]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionLayer:
    """One attention layer of a graph; see `decoder.py` for the graph's inputs.

    Attributes:
        query: [B, S, num_heads * head_dim], or with key and value behind it where those are empty.
        key, value: Names of [B, S, num_kv_heads * head_dim], or empty.
        cache: Names of the layer's keys and values, to which past_ or present_ is prefixed.
        window: Positions that a query sees, itself included; None for all.
    """

    query: str
    key: str
    value: str
    cache: tuple[str, str]
    num_heads: int
    num_kv_heads: int
    scale: float
    window: int | None


def gate_with_silu(graph: GraphBuilder, name: str, gate: str, up: str) -> str:
    """silu(gate) * up, elementwise."""
    activated = graph.node("QuickGelu", [gate], [f"{name}/silu"], domain=MICROSOFT, alpha=1.0)
    return graph.node("Mul", [activated, up], [name])


def stack_linears(name: str, parts: Sequence[Linear]) -> Linear:
    """The layers as one whose output is theirs side by side; a missing bias counts as zeros."""
    bias = None
    if any(part.bias is not None for part in parts):
        bias = np.concatenate(
            [np.zeros(part.weight.num_rows, np.float32) if part.bias is None else part.bias for part in parts]
        )
    return Linear(name=name, weight=stack_rows(name, [part.weight for part in parts]), bias=bias)


def take_linear(layer: Linear, name: str, start: int, stop: int) -> Linear:
    """The layer's outputs from start to stop - 1, as a layer."""
    weight = layer.weight
    part = Matrix(
        name=name,
        num_rows=stop - start,
        num_columns=weight.num_columns,
        read=lambda first, last: weight.read(start + first, start + last),
    )
    return Linear(name=name, weight=part, bias=None if layer.bias is None else layer.bias[start:stop])


def slot_inputs(graph: GraphBuilder) -> None:
    """The inputs of attention over KV slots, ONNX Runtime's and Vorta's."""
    graph.input("seqlens_k", TensorProto.INT32, ["batch"])
    graph.input("total_sequence_length", TensorProto.INT32, [])


def rms_norm(graph: GraphBuilder, name: str, x: str, weight: str, epsilon: float) -> str:
    """An RMS norm over the last axis of x, times weight, through ONNX Runtime's operator."""
    return graph.node("SimplifiedLayerNormalization", [x, weight], [name], axis=-1, epsilon=epsilon, stash_type=1)


class StandardLowering:
    """What lowerings have in common that use the operators of ONNX Runtime."""

    element: np.dtype[Any] = np.dtype(np.float32)

    def inputs(self, graph: GraphBuilder, *, max_positions: int) -> None:
        slot_inputs(graph)

    def head_norm(self, graph: GraphBuilder, name: str, x: str, weight: str, epsilon: float) -> str:
        return rms_norm(graph, name, x, weight, epsilon)

    def logits(self, graph: GraphBuilder, x: str, layer: Linear) -> str:
        return self.linear(graph, x, layer)

    def linear(self, graph: GraphBuilder, x: str, layer: Linear) -> str:
        """Each lowering's own."""
        raise NotImplementedError

    def packed(self, graph: GraphBuilder, x: str, name: str, parts: Sequence[Linear]) -> str:
        return self.linear(graph, x, stack_linears(name, parts))

    def shared(self, graph: GraphBuilder, x: str, parts: Sequence[Linear]) -> list[str]:
        return [self.linear(graph, x, part) for part in parts]

    def gated(self, graph: GraphBuilder, x: str, name: str, gate: Linear, up: Linear) -> str:
        return gate_with_silu(graph, name, self.linear(graph, x, gate), self.linear(graph, x, up))

    def delta(self, graph: GraphBuilder, x: str, layer: Linear) -> str:
        return self.linear(graph, x, layer)

    def norm(
        self, graph: GraphBuilder, name: str, residual: str, delta: str | None, weight: str, epsilon: float
    ) -> tuple[str, str]:
        if delta is None:
            return rms_norm(graph, name, residual, weight, epsilon), residual
        total = f"{name}.residual"
        graph.node(
            "SkipSimplifiedLayerNormalization",
            [residual, delta, weight],
            [name, "", "", total],
            domain=MICROSOFT,
            epsilon=epsilon,
        )
        return name, total

    def attention(self, graph: GraphBuilder, name: str, layer: AttentionLayer) -> str:
        return graph.node(
            "GroupQueryAttention",
            [
                layer.query,
                layer.key,
                layer.value,
                *(f"past_{part}" for part in layer.cache),
                "seqlens_k",
                "total_sequence_length",
                "cos_cache",
                "sin_cache",
            ],
            [name, *(f"present_{part}" for part in layer.cache)],
            domain=MICROSOFT,
            num_heads=layer.num_heads,
            kv_num_heads=layer.num_kv_heads,
            do_rotary=1,
            rotary_interleaved=0,
            scale=layer.scale,
            local_window_size=-1 if layer.window is None else layer.window,
        )


class Float32Lowering(StandardLowering):
    """Weights as they are, [N, K] float32, multiplied transposed. A tied embedding is stored once."""

    def linear(self, graph: GraphBuilder, x: str, layer: Linear) -> str:
        weight = self._store(graph, layer.weight)
        product = layer.name if layer.bias is None else f"{layer.name}/product"
        graph.node("FusedMatMul", [x, weight], [product], domain=MICROSOFT, transB=1)
        if layer.bias is None:
            return product
        return graph.node("Add", [product, graph.constant(f"{layer.name}.bias", layer.bias)], [layer.name])

    def embedding(self, graph: GraphBuilder, ids: str, table: Matrix) -> str:
        return graph.node("Gather", [self._store(graph, table), ids], ["embedding"])

    def _store(self, graph: GraphBuilder, matrix: Matrix) -> str:
        shape = (matrix.num_rows, matrix.num_columns)
        key = f"{matrix.name}.fp32"
        return graph.weight(graph.store(key, np.float32, shape, row_chunks(matrix, lambda rows: rows)))


class BlockLowering(StandardLowering):
    """Weights in blocks at 4 or 8 bits (see quantise.py), through MatMulNBits with 8-bit activations.

    The embedding is kept at 8 bits in both: it costs memory, not time, since a token reads one row of it;
    and in int8 a tied one shares the head's bytes.
    """

    def __init__(self, precision: str, block: int = BLOCK) -> None:
        self._bits = {"int4": 4, "int8": 8}[precision]
        self._block = block

    def linear(self, graph: GraphBuilder, x: str, layer: Linear) -> str:
        num_rows, num_columns = layer.weight.num_rows, layer.weight.num_columns
        codes, scales = store_blocks(graph, layer.weight, self._bits, self._block)
        inputs = [x, graph.weight(codes), graph.weight(scales)]
        if layer.bias is not None:
            inputs += ["", "", graph.constant(f"{layer.name}.bias", layer.bias)]
        return graph.node(
            "MatMulNBits",
            inputs,
            [layer.name],
            domain=MICROSOFT,
            K=num_columns,
            N=num_rows,
            bits=self._bits,
            block_size=self._block,
            accuracy_level=_INT8_ACTIVATIONS,
        )

    def embedding(self, graph: GraphBuilder, ids: str, table: Matrix) -> str:
        if table.num_columns % BLOCK:
            return Float32Lowering().embedding(graph, ids, table)
        codes, scales = store_blocks(graph, table, 8)
        flat = graph.weight_view(f"{codes}/flat", codes, (table.num_rows, table.num_columns))
        return graph.node(
            "GatherBlockQuantized",
            [flat, ids, graph.weight(scales)],
            ["embedding"],
            domain=MICROSOFT,
            bits=8,
            block_size=BLOCK,
            gather_axis=0,
            quantize_axis=1,
        )


class IntegerLowering(StandardLowering):
    """8-bit integer products with one scale per row of x and one per output: the fastest for many rows.

    Rows of x become uint8 around 128 with scale absmax / 127, so that a row's result does not depend on the
    rows beside it; weights become 7-bit integers with scale absmax / 63 per output (see `quantise_channels`),
    taken from the checkpoint and not from a coarser quantisation. The products are summed exactly, in 32 bits.
    Values that several layers read are quantised once.
    """

    def __init__(self) -> None:
        self._quantised: dict[str, tuple[str, str]] = {}
        self._row_factors: dict[str, str] = {}

    def linear(self, graph: GraphBuilder, x: str, layer: Linear) -> str:
        product, largest = self._product(graph, x, layer)
        if layer.bias is None:
            return graph.node("Mul", [product, largest], [layer.name])
        scaled = graph.node("Mul", [product, largest], [f"{layer.name}/scaled"])
        return graph.node("Add", [scaled, graph.constant(f"{layer.name}.bias", layer.bias)], [layer.name])

    def gated(self, graph: GraphBuilder, x: str, name: str, gate: Linear, up: Linear) -> str:
        activated = self.linear(graph, x, gate)
        if up.bias is not None:
            return gate_with_silu(graph, name, activated, self.linear(graph, x, up))
        # The rows of up's output wait for their factors until the next layer's, where a row has one element.
        product, self._row_factors[name] = self._product(graph, x, up)
        return gate_with_silu(graph, name, activated, product)

    def embedding(self, graph: GraphBuilder, ids: str, table: Matrix) -> str:
        return BlockLowering("int8").embedding(graph, ids, table)

    def _product(self, graph: GraphBuilder, x: str, layer: Linear) -> tuple[str, str]:
        """x W^T without the bias, and the factor [..., 1] by which each of its rows is yet to be multiplied."""
        codes, largest = self._quantise(graph, x)
        step, middle = self._code_constants(graph)
        weight, scale = store_channels(graph, layer.weight)
        product = graph.node(
            "MatMulIntegerToFloat",
            [codes, graph.weight(weight), step, graph.weight(scale), middle],
            [f"{layer.name}/product"],
            domain=MICROSOFT,
        )
        return product, largest

    def _code_constants(self, graph: GraphBuilder) -> tuple[str, str]:
        """The step between two codes of a row whose absmax is 1, and the code of zero."""
        step = graph.constant("integer/step", np.array(1 / _LEVELS, np.float32))
        return step, graph.constant("integer/middle", np.array(_LEVELS + 1, np.uint8))

    def _quantise(self, graph: GraphBuilder, x: str) -> tuple[str, str]:
        """Adds the quantisation of x [..., K] once; returns its codes [..., K] and a factor [..., 1], its absmax times
        what `gated` left out. A value is (code - middle) * step * factor."""
        if x not in self._quantised:
            magnitude = graph.node("Abs", [x], [f"{x}/magnitude"])
            last_axis = graph.constant("integer/last_axis", np.array([-1], np.int64))
            largest = graph.node("ReduceMax", [magnitude, last_axis], [f"{x}/largest"], keepdims=1)
            # In a row of zeros this is 0 / 0; whatever its codes, its results are multiplied by zero.
            fractions = graph.node("Div", [x, largest], [f"{x}/fractions"])
            codes = graph.node("QuantizeLinear", [fractions, *self._code_constants(graph)], [f"{x}/codes"])
            if x in self._row_factors:
                largest = graph.node("Mul", [largest, self._row_factors[x]], [f"{x}/factor"])
            self._quantised[x] = (codes, largest)
        return self._quantised[x]


def store_channels(graph: GraphBuilder, matrix: Matrix) -> tuple[str, str]:
    """Quantises the matrix to 7 bits per output and stores codes [K, N] and scales [N]; returns both keys.

    The codes of the whole matrix are in memory while they are transposed.
    """
    code_name, scale_name = f"{matrix.name}.channel7", f"{matrix.name}.channel7.scale"
    if code_name not in graph.weights:
        pieces = list(row_chunks(matrix, quantise_channels))
        columns = np.concatenate([codes for codes, _ in pieces]).T
        graph.store(code_name, np.int8, columns.shape, [np.ascontiguousarray(columns)])
        scales = np.concatenate([scale for _, scale in pieces])
        graph.store(scale_name, np.float32, scales.shape, [scales])
    return code_name, scale_name


def quantise_channels(weight: Float32Array) -> tuple[npt.NDArray[np.int8], Float32Array]:
    """[N, K] float32 to int8 [N, K] between -63 and 63 and scales [N]; w is about code * scale.

    Seven bits, because x86 without VNNI adds two products of uint8 and int8 in 16 bits: 2 * 255 * 63 fits,
    2 * 255 * 127 would saturate without a trace. An artifact must be right on every machine.
    """
    scale = np.abs(weight).max(axis=1) / np.float32(63)
    scale[scale == 0] = 1
    return np.rint(weight / scale[:, None]).astype(np.int8), scale


def store_blocks(graph: GraphBuilder, matrix: Matrix, bits: int, block: int = BLOCK) -> tuple[str, str]:
    """Quantises the matrix to 4 or 8 bits and stores codes [N, blocks, block * bits / 8] and scales [N, blocks].

    Returns the keys of both. One pass over the matrix; scales wait in memory (a 32nd of the float32 size).
    """
    blocks = num_blocks(matrix.num_columns, block)
    quantise = partial(quantise_int4 if bits == 4 else quantise_int8, block=block)
    scale_chunks: list[Float32Array] = []

    def codes() -> Iterator[Uint8Array]:
        for code_chunk, scale_chunk in row_chunks(matrix, quantise):
            scale_chunks.append(scale_chunk)
            yield code_chunk

    code_name = f"{matrix.name}.int{bits}" if block == BLOCK else f"{matrix.name}.int{bits}.block{block}"
    scale_name = f"{code_name}.scale"
    graph.store(code_name, np.uint8, (matrix.num_rows, blocks, block * bits // 8), codes())
    graph.store(scale_name, np.float32, (matrix.num_rows, blocks), scale_chunks)
    return code_name, scale_name


def row_chunks(matrix: Matrix, convert: Callable[[Float32Array], T], multiple: int = 1) -> Iterator[T]:
    """Reads the matrix in slices of rows and yields `convert` of each, in order, converting on all cores.

    Every slice but the last has a multiple of `multiple` rows. At most twice as many slices as cores are in memory.
    """
    step = max(1, _CHUNK_ELEMENTS // matrix.num_columns // multiple) * multiple
    num_workers = min(os.cpu_count() or 1, 8)
    pending: deque[Future[T]] = deque()

    def piece(start: int) -> T:
        return convert(matrix.read(start, min(start + step, matrix.num_rows)))

    with ThreadPoolExecutor(num_workers, thread_name_prefix="quantise") as executor:
        for start in range(0, matrix.num_rows, step):
            pending.append(executor.submit(piece, start))
            if len(pending) >= 2 * num_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
