"""Linear layers and tables in ONNX's own operators, for engines that know no others (TensorRT, ORT's CUDA provider).

fp32, fp16 and bf16: weights and activations are of that type. int8 and int4: weights are quantised, everything else is
fp16. A quantised weight is a constant behind DequantizeLinear, which TensorRT fuses into the product (weight-only
quantisation) and ONNX Runtime into MatMulNBits.

int4: symmetric in blocks along the input, codes -8 to 7, the smallest positive scale that clips nothing. (The cpu's
scheme has scales of either sign; TensorRT's parser refuses those that are not positive.) int8: symmetric, one scale per
output, absmax / 127, which is how TensorRT documents it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from vorta_server.compiler.checkpoint import Float32Array
from vorta_server.compiler.graph import GraphBuilder
from vorta_server.compiler.linear import Linear, row_chunks
from vorta_server.compiler.weight import Matrix

__all__ = ["ELEMENTS", "OPSET_PRECISIONS", "OpsetProducts", "opset_rms_norm"]

OPSET_PRECISIONS = ("fp32", "fp16", "bf16", "int8", "int4")

ELEMENTS: dict[str, np.dtype[Any]] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.float16),
    "int4": np.dtype(np.float16),
}
"""The type of activations, by precision."""


class OpsetProducts:
    """A `ProductLowering`.

    Args:
        precision: One of OPSET_PRECISIONS.
        block: Weights of int4 that share a scale. A layer whose inputs no block of at least 16 divides stays in fp16.
    """

    def __init__(self, precision: str, block: int) -> None:
        self.element = ELEMENTS[precision]
        self._precision = precision
        self._block = block

    def linear(self, graph: GraphBuilder, x: str, layer: Linear) -> str:
        product = layer.name if layer.bias is None else f"{layer.name}/product"
        graph.node("MatMul", [x, self.columns(graph, layer.weight)], [product])
        if layer.bias is None:
            return product
        bias = graph.constant(f"{layer.name}.bias", layer.bias.astype(self.element))
        return graph.node("Add", [product, bias], [layer.name])

    def shared(self, graph: GraphBuilder, x: str, parts: Sequence[Linear]) -> list[str]:
        return [self.linear(graph, x, part) for part in parts]

    def embedding(self, graph: GraphBuilder, ids: str, table: Matrix) -> str:
        return graph.node("Gather", [self.rows(graph, table), ids], ["embedding"])

    def rows(self, graph: GraphBuilder, matrix: Matrix) -> str:
        """The matrix as it is, [N, K], unquantised."""
        shape = (matrix.num_rows, matrix.num_columns)
        key = f"{matrix.name}.{self.element.name}"
        return graph.weight(
            graph.store(key, self.element, shape, row_chunks(matrix, lambda rows: rows.astype(self.element)))
        )

    def is_quantised(self, matrix: Matrix) -> bool:
        """Whether `columns` quantises the matrix."""
        if self._precision == "int4":
            return _fitting_block(matrix.num_columns, self._block) > 0
        return self._precision == "int8"

    def columns(self, graph: GraphBuilder, matrix: Matrix) -> str:
        """The matrix transposed, [K, N], as MatMul wants it; quantised where the precision says so.

        The converted matrix is in memory while it is transposed.
        """
        if self.is_quantised(matrix):
            return self._int8(graph, matrix) if self._precision == "int8" else self._int4(graph, matrix)
        key = f"{matrix.name}.{self.element.name}.columns"
        if key not in graph.weights:
            whole = np.concatenate(list(row_chunks(matrix, lambda rows: rows.astype(self.element))))
            graph.store(key, self.element, whole.T.shape, [np.ascontiguousarray(whole.T)])
        return graph.weight(key)

    def _int8(self, graph: GraphBuilder, matrix: Matrix) -> str:
        key = f"{matrix.name}.int8.columns"
        if key not in graph.weights:
            pieces = list(row_chunks(matrix, quantise_outputs))
            codes = np.concatenate([codes for codes, _ in pieces]).T
            scales = np.concatenate([scale for _, scale in pieces]).astype(self.element)
            graph.store(key, np.int8, codes.shape, [np.ascontiguousarray(codes)])
            graph.store(f"{key}.scale", self.element, scales.shape, [scales])
        inputs = [graph.weight(key), graph.weight(f"{key}.scale")]
        return graph.node("DequantizeLinear", inputs, [f"{key}.real"], axis=1)

    def _int4(self, graph: GraphBuilder, matrix: Matrix) -> str:
        block = _fitting_block(matrix.num_columns, self._block)
        key = f"{matrix.name}.int4.columns{block}"
        if key not in graph.weights:
            pieces = list(row_chunks(matrix, lambda rows: quantise_blocks(rows, block)))
            codes = np.concatenate([codes for codes, _ in pieces]).T
            scales = np.concatenate([scale for _, scale in pieces]).T.astype(self.element)
            nibbles = pack_nibbles(codes)
            graph.store(key, np.uint8, nibbles.shape, [nibbles])
            graph.store(f"{key}.scale", self.element, scales.shape, [np.ascontiguousarray(scales)])
        inputs = [graph.nibbles(key, (matrix.num_columns, matrix.num_rows)), graph.weight(f"{key}.scale")]
        return graph.node("DequantizeLinear", inputs, [f"{key}.real"], axis=0, block_size=block)


def opset_rms_norm(graph: GraphBuilder, name: str, x: str, weight: str, epsilon: float) -> str:
    """An RMS norm over the last axis of x, times weight; computed in float32 whatever their type."""
    return graph.node("RMSNormalization", [x, weight], [name], axis=-1, epsilon=epsilon, stash_type=TensorProto.FLOAT)


def quantise_outputs(weight: Float32Array) -> tuple[npt.NDArray[np.int8], Float32Array]:
    """[N, K] float32 to int8 [N, K] between -127 and 127 and scales [N], all positive; w is about code * scale."""
    return _quantise(weight, -127, 127)


def quantise_blocks(weight: Float32Array, block: int) -> tuple[npt.NDArray[np.int8], Float32Array]:
    """[N, K] float32 to codes int8 [N, K] between -8 and 7 and scales [N, K / block], all positive. The block divides
    K."""
    codes, scales = _quantise(weight.reshape(len(weight), -1, block), -8, 7)
    return codes.reshape(weight.shape), scales


def _quantise(groups: Float32Array, lowest: int, highest: int) -> tuple[npt.NDArray[np.int8], Float32Array]:
    """Codes of groups along the last axis, and the groups' scales, which fp16 holds exactly."""
    scale = np.maximum(groups.max(axis=-1) / np.float32(highest), groups.min(axis=-1) / np.float32(lowest))
    # Rounded before the codes are made, so that those fit the scale that is stored.
    scale = scale.astype(np.float16).astype(np.float32)
    scale[scale <= 0] = 1
    codes = np.rint(groups / scale[..., None])
    return np.clip(codes, lowest, highest, out=codes).astype(np.int8), scale


def pack_nibbles(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Codes of any shape as ONNX stores int4: flat, two to a byte, the first one low; [ceil(size / 2)]."""
    flat = codes.reshape(-1).view(np.uint8) & np.uint8(15)
    flat = np.pad(flat, (0, len(flat) % 2))
    packed: npt.NDArray[np.uint8] = flat[0::2] | (flat[1::2] << np.uint8(4))
    return packed


def _fitting_block(size: int, wanted: int) -> int:
    """The largest of the wanted block and its halves down to 16 that divides the size; 0 for none."""
    while wanted >= 16 and size % wanted:
        wanted //= 2
    return wanted if wanted >= 16 else 0
