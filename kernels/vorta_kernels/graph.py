"""Searching a graph of neighbours in C++ (`csrc/cpu/graph_search.cpp`) over 8-bit codes of its vectors."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vorta_kernels import cpu

__all__ = ["CodedGraph"]

_ALIGN = 64


class _Graph(ctypes.Structure):
    """As `csrc/cpu/graph_search.cpp` declares it."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("vectors", "codes", "scales", "norms")),
        *((name, ctypes.c_void_p) for name in ("neighbours", "offsets", "levels")),
        *((name, ctypes.c_int64) for name in ("rows", "dimension", "stride", "entry", "top_level")),
    )


@functools.cache
def _load(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.vorta_graph_quantise.argtypes = (pointer, number, number, number, pointer, pointer, pointer)
    library.vorta_graph_search.argtypes = (
        pointer, pointer, number, number, number, number, pointer, number, pointer, pointer,
    )  # fmt: skip
    library.vorta_graph_quantise.restype = library.vorta_graph_search.restype = None
    return library


class CodedGraph:
    """A graph over vectors, with a code for each of them. Any thread may search it.

    Args:
        vectors: float32 [rows, dimension], C order, like all arrays here; kept, not copied.
        neighbours: int32, the lists of all vertices; −1 ends one. Kept, not copied.
        offsets: uint64 [rows or more]: where the lists of each vertex begin. Kept, not copied.
        levels: int32 [levels + 1]: where the list of each level begins within a vertex's, that of level 0 first.
        entry: Where searches begin.
        top_level: The entry's level.
        is_distance: Scores are squared distances, less is better; else inner products.

    Raises:
        vorta_kernels.cpu.BuildError: The library cannot be built here.
    """

    def __init__(
        self,
        vectors: NDArray[np.float32],
        *,
        neighbours: NDArray[np.int32],
        offsets: NDArray[np.uint64],
        levels: NDArray[np.int32],
        entry: int,
        top_level: int,
        is_distance: bool,
    ) -> None:
        rows, dimension = vectors.shape
        stride = -(-dimension // _ALIGN) * _ALIGN
        # A line of memory holds no parts of two codes.
        memory = np.empty(rows * stride + _ALIGN, np.uint8)
        start = -memory.ctypes.data % _ALIGN
        self.codes: NDArray[np.uint8] = memory[start : start + rows * stride].reshape(rows, stride)
        self.scales = np.empty(rows, np.float32)
        self.norms = np.empty(rows, np.float32) if is_distance else None
        self._kept = vectors, neighbours, offsets, levels
        library = _load(cpu.library())
        self._search = library.vorta_graph_search
        self._graph = _Graph(
            *map(_address, (vectors, self.codes, self.scales, self.norms, neighbours, offsets, levels)),
            *(rows, dimension, stride, entry, top_level),
        )
        self._graph_address = ctypes.addressof(self._graph)
        self._dimension = dimension
        library.vorta_graph_quantise(
            *(_address(vectors), rows, dimension, stride),
            *map(_address, (self.codes, self.scales, self.norms)),
        )

    @property
    def num_bytes(self) -> int:
        """Memory of the codes and what belongs to them."""
        return self.codes.nbytes + self.scales.nbytes + (0 if self.norms is None else self.norms.nbytes)

    def search(
        self,
        queries: NDArray[np.float32],
        k: int,
        *,
        width: int,
        depth: int,
        bits: NDArray[np.uint8] | None = None,
        num_threads: int = 1,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and positions [queries, k] of the best of each query, exact scores, position −1 where there are fewer.

        Args:
            queries: [queries, dimension].
            k: Hits for each.
            width: Vertices that a walk keeps; at least k are.
            depth: How many of the best by their codes are compared by their vectors; at least k are.
            bits: Positions that count, little-endian bits; None for all.
            num_threads: At most.
        """
        count = len(queries)
        if queries.shape != (count, self._dimension):
            raise ValueError(f"queries of shape {queries.shape} for vectors of {self._dimension} numbers")
        scores = np.empty((count, k), np.float32)
        positions = np.empty((count, k), np.int64)
        self._search(
            self._graph_address, _address(queries), count, k, max(width, k), max(depth, k), _address(bits), num_threads,
            _address(scores), _address(positions),
        )  # fmt: skip
        return scores, positions


def _address(array: NDArray[np.generic] | None) -> int | None:
    if array is None:
        return None
    if not array.flags.c_contiguous:
        raise ValueError("the array is not contiguous")
    address: int = array.__array_interface__["data"][0]
    return address
