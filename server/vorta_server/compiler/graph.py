"""A small ONNX graph builder, and the file of weights that several graphs share.

Tensors of some size go to one external data file, each once, however many graphs name it; ONNX Runtime maps
that file into memory. Knows nothing of transformers or quantisation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

MICROSOFT = "com.microsoft"
VORTA = "vorta"  # the operators of vorta_kernels.cpu
OPSET = 21
IR_VERSION = 10
# What a graph of ONNX's own operators alone is written in: the first opset with TensorScatter.
STANDARD_OPSET = 24
STANDARD_IR_VERSION = 11

# Pages of a mapped file begin at multiples of this; a big tensor that begins on one shares no page with
# others.
_PAGE_BYTES = 4096
# Small tensors need the alignment of vector loads only.
_LINE_BYTES = 64
# Below this a tensor stays in the graph: ONNX Runtime reads shapes and constants from there.
_INLINE_BYTES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightEntry:
    """One tensor of the weight file. `data_type` is ONNX's number of the element type."""

    data_type: int
    shape: tuple[int, ...]
    offset_bytes: int
    num_bytes: int


class WeightFile:
    """An append-only file of tensors, hashed while it is written.

    Args:
        stream: an opened binary file; the caller closes it. Its errors (a full disk) pass through.
        name: the file's name beside the graphs.
    """

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.name = name
        self.num_bytes = 0
        self._stream = stream
        self._digest = hashlib.sha256()
        self._entries: dict[str, WeightEntry] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def entry(self, key: str) -> WeightEntry:
        """The entry of a tensor written before; KeyError otherwise."""
        return self._entries[key]

    def add(
        self, key: str, dtype: npt.DTypeLike, shape: Sequence[int], chunks: Iterable[npt.NDArray[Any]]
    ) -> WeightEntry:
        """Writes the tensor whose bytes are the chunks one after the other. Each key is written once.

        Raises ValueError when the chunks do not fill the shape.
        """
        if key in self._entries:
            raise ValueError(f"weight {key} is written twice")
        element = np.dtype(dtype)
        expected = int(np.prod(shape, dtype=np.int64)) * element.itemsize
        self._align(_PAGE_BYTES if expected >= _PAGE_BYTES else _LINE_BYTES)
        start = self.num_bytes
        for chunk in chunks:
            if chunk.dtype != element:
                raise ValueError(f"weight {key}: chunk of {chunk.dtype}, expected {element}")
            # By way of bytes: bfloat16 is no type of Python's buffers.
            self._write(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data)
        if self.num_bytes - start != expected:
            raise ValueError(f"weight {key}: {self.num_bytes - start} bytes, expected {expected}")
        entry = WeightEntry(
            data_type=helper.np_dtype_to_tensor_dtype(element),
            shape=tuple(shape),
            offset_bytes=start,
            num_bytes=expected,
        )
        self._entries[key] = entry
        return entry

    def hexdigest(self) -> str:
        """The sha256 of all that was written."""
        return self._digest.hexdigest()

    def _align(self, multiple: int) -> None:
        self._write(bytes(-self.num_bytes % multiple))

    def _write(self, data: bytes | memoryview) -> None:
        self._stream.write(data)
        self._digest.update(data)
        self.num_bytes += len(data)


class GraphBuilder:
    """Collects nodes, inputs, outputs and constants of one graph. The caller names values, each once.

    Args:
        weights: the file that large constants go to.
        is_standard: nothing but ONNX's own operators, in STANDARD_OPSET; a node of another domain raises ValueError.
    """

    def __init__(self, weights: WeightFile, *, is_standard: bool = False) -> None:
        self.weights = weights
        self._is_standard = is_standard
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initializers: dict[str, TensorProto] = {}

    def input(self, name: str, data_type: int, shape: Sequence[int | str]) -> str:
        """Declares a graph input; a text in the shape names a free dimension."""
        self._inputs.append(helper.make_tensor_value_info(name, data_type, list(shape)))
        return name

    def output(self, name: str, data_type: int, shape: Sequence[int | str]) -> None:
        """Declares the value as a graph output."""
        self._outputs.append(helper.make_tensor_value_info(name, data_type, list(shape)))

    def node(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], *, domain: str = "", **attributes: Any
    ) -> str:
        """Appends a node; returns its first output that has a name. An empty name leaves out an optional one."""
        if domain and self._is_standard:
            raise ValueError(f"{op} is an operator of {domain}, in a graph of standard operators")
        node_name = next(name for name in outputs if name)
        self._nodes.append(
            helper.make_node(
                op,
                _without_last_empty(inputs),
                _without_last_empty(outputs),
                name=node_name,
                domain=domain,
                **attributes,
            )
        )
        return node_name

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        """A tensor at hand: small ones live in the graph, others in the weight file. Idempotent by name."""
        if name in self._initializers:
            return name
        if value.nbytes >= _INLINE_BYTES:
            return self.weight(self.store(name, value.dtype, value.shape, [value]))
        self._initializers[name] = onnx.numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def store(
        self,
        key: str,
        dtype: npt.DTypeLike,
        shape: Sequence[int],
        chunks: Iterable[npt.NDArray[Any]],
    ) -> str:
        """Puts a tensor into the weight file, not yet into the graph. When the file has one of this key
        already (another layer or graph wrote it), the chunks are not read. Returns the key."""
        if key not in self.weights:
            self.weights.add(key, dtype, shape, chunks)
        return key

    def weight(self, key: str) -> str:
        """A stored tensor as an initializer of the same name. Idempotent."""
        return self.weight_view(key, key, self.weights.entry(key).shape)

    def weight_view(self, name: str, key: str, shape: Sequence[int]) -> str:
        """A stored tensor under another name, with a shape of as many elements. Idempotent."""
        if name not in self._initializers:
            entry = self.weights.entry(key)
            if np.prod(entry.shape, dtype=np.int64) != np.prod(shape, dtype=np.int64):
                raise ValueError(f"weight {key} has the shape {entry.shape}, which {tuple(shape)} does not fit")
            self._add_external(name, entry, entry.data_type, shape)
        return name

    def nibbles(self, key: str, shape: Sequence[int]) -> str:
        """A stored tensor of bytes as int4 of this shape: two to a byte, the first one low. Idempotent."""
        if key not in self._initializers:
            entry = self.weights.entry(key)
            if entry.num_bytes != (np.prod(shape, dtype=np.int64) + 1) // 2:
                raise ValueError(f"weight {key} has {entry.num_bytes} bytes, which {tuple(shape)} nibbles do not fill")
            self._add_external(key, entry, TensorProto.INT4, shape)
        return key

    def _add_external(self, name: str, entry: WeightEntry, data_type: int, shape: Sequence[int]) -> None:
        tensor = TensorProto(name=name, data_type=data_type, dims=list(shape))
        tensor.data_location = TensorProto.EXTERNAL
        for field, value in (
            ("location", self.weights.name),
            ("offset", entry.offset_bytes),
            ("length", entry.num_bytes),
        ):
            tensor.external_data.add(key=field, value=str(value))
        self._initializers[name] = tensor

    def model(self, name: str) -> onnx.ModelProto:
        """The finished graph."""
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, list(self._initializers.values()))
        opsets, ir_version = [helper.make_opsetid("", STANDARD_OPSET)], STANDARD_IR_VERSION
        if not self._is_standard:
            opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1), helper.make_opsetid(VORTA, 1)]
            ir_version = IR_VERSION
        return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, producer_name="vorta")


def _without_last_empty(names: Sequence[str]) -> list[str]:
    """The names up to the last that is not empty: some operators take an empty one at the end for one that is given."""
    result = list(names)
    while result and not result[-1]:
        result.pop()
    return result
