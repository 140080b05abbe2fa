"""FAISS: indexes of the kinds that there are, how they are built, searched and kept in a file.

Scores are inner products (greater is better) or squared distances (less is better); positions are −1 where there are
fewer hits than were asked for. Vectors are normalised beforehand where the distance is cosine.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from vorta_kernels import cpu
from vorta_kernels.graph import CodedGraph
from vorta_server.vectors.operation import IndexConfig

__all__ = [
    "KINDS",
    "BuildStopped",
    "Selector",
    "VectorIndex",
    "build_index",
    "load_index",
    "scan",
    "set_threads",
    "worst_score",
]

Matrix = npt.NDArray[np.float32]
Found = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
"""Scores and positions, both of shape (queries, k), best first."""

KINDS = ("hnsw", "ivf_pq", "sq8")

_SLICE_ROWS = 512  # rows added between two looks at whether to stop
_RERANK = {"ivf_pq": 8, "sq8": 4}
_MIN_RERANK = 64
_CODED_RERANK, _MIN_CODED_RERANK = 2, 16
_GATHER_ROWS = 1 << 15
_MEASURED_QUERIES = 200
_WANTED_RECALL = 0.96
_TRAIN_ROWS_PER_LIST = 64

_pointer = faiss.swig_ptr
_inner_products = faiss.knn_inner_product
_distances = faiss.knn_L2sqr


class BuildStopped(Exception):
    """A build was told to stop."""


def set_threads(count: int) -> None:
    """OpenMP threads of FAISS in the calling thread."""
    faiss.omp_set_num_threads(count)


class Selector:
    """Takes the positions whose bits are set; sees later changes of `bits`.

    Args:
        bits: A bit for each position, little-endian.

    Attributes:
        faiss_selector: For FAISS.
    """

    __slots__ = ("bits", "faiss_selector")

    def __init__(self, bits: npt.NDArray[np.uint8]) -> None:
        self.bits = bits
        self.faiss_selector = faiss.IDSelectorBitmap(len(bits), _pointer(bits))


def worst_score(distance: str) -> float:
    """What every real score is better than."""
    return math.inf if distance == "l2" else -math.inf


def scan(queries: Matrix, vectors: Matrix, k: int, distance: str, selector: Selector | None = None) -> Found:
    """Compares with every vector that the selector takes.

    Args:
        queries: Shape (queries, dimension), C order.
        vectors: Shape (rows, dimension), C order.
        k: Hits for each.
        distance: "cosine", "dot" or "l2".
        selector: Which count; None for all.
    """
    count, dimension = queries.shape
    scores = np.empty((count, k), np.float32)
    positions = np.empty((count, k), np.int64)
    search = _distances if distance == "l2" else _inner_products
    faiss_selector = selector.faiss_selector if selector is not None else None
    search(
        _pointer(queries),
        _pointer(vectors),
        dimension,
        count,
        len(vectors),
        k,
        _pointer(scores),
        _pointer(positions),
        *((None, faiss_selector) if distance == "l2" else (faiss_selector,)),
    )
    return scores, positions


class VectorIndex(abc.ABC):
    """An index over a segment's vectors.

    Attributes:
        kind: One of `KINDS`.
        vectors: What it indexes, shape (rows, dimension).
        faiss_index: FAISS's.
    """

    kind: str
    keeps_vectors = False
    """Whether its own file has the vectors, so that they need no other."""

    def __init__(self, faiss_index: Any, vectors: Matrix, distance: str) -> None:
        self.faiss_index = faiss_index
        self.vectors = vectors
        self._distance = distance

    @abc.abstractmethod
    def search(self, queries: Matrix, k: int, *, ef: int, probes: int, selector: Selector | None = None) -> Found:
        """The best of each query.

        Args:
            queries: Shape (queries, dimension).
            k: Hits for each.
            ef: HNSW's width.
            probes: IVF's cells; 0 for its own default.
            selector: Positions that count, None for all.
        """

    def save(self, path: Path) -> None:
        """Writes FAISS's file."""
        faiss.write_index(self.faiss_index, str(path))

    @property
    def num_bytes(self) -> int:
        """Memory, estimated."""
        return self.vectors.nbytes

    def _call(self, queries: Matrix, k: int, params: Any) -> Found:
        scores = np.empty((len(queries), k), np.float32)
        positions = np.empty((len(queries), k), np.int64)
        self.faiss_index.search_c(len(queries), _pointer(queries), k, _pointer(scores), _pointer(positions), params)
        return scores, positions

    def _reranked(self, queries: Matrix, k: int, found: Found) -> Found:
        """Exact scores of the candidates, the best k of them."""
        candidates = found[1]
        is_l2 = self._distance == "l2"
        scores = np.empty(candidates.shape, np.float32)
        step = max(1, _GATHER_ROWS // candidates.shape[1])
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            gathered = self.vectors[np.maximum(candidates[part], 0)]
            if is_l2:
                gathered = gathered - queries[part, None, :]
                scores[part] = np.einsum("qcd,qcd->qc", gathered, gathered)
            else:
                scores[part] = np.matmul(gathered, queries[part, :, None])[:, :, 0]
        scores[candidates < 0] = worst_score(self._distance)
        order = np.argsort(scores if is_l2 else -scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(candidates, order, axis=1)


class _Hnsw(VectorIndex):
    """FAISS's graph, searched by our kernel over 8-bit codes; by FAISS itself where the kernel cannot be built."""

    kind = "hnsw"
    keeps_vectors = True

    def __init__(self, faiss_index: Any, distance: str) -> None:
        storage = faiss.downcast_index(faiss_index.storage)
        count = faiss_index.ntotal * faiss_index.d
        # A view into the index, which this object keeps alive.
        vectors = faiss.rev_swig_ptr(storage.get_xb(), count).reshape(faiss_index.ntotal, faiss_index.d)
        super().__init__(faiss_index, vectors, distance)
        self._params = faiss.SearchParametersHNSW()
        self._coded = _coded(faiss_index, vectors, distance)

    def search(self, queries: Matrix, k: int, *, ef: int, probes: int, selector: Selector | None = None) -> Found:
        if self._coded is not None:
            return self._coded.search(
                queries,
                k,
                width=ef,
                depth=_CODED_RERANK * k + _MIN_CODED_RERANK,
                bits=selector.bits if selector is not None else None,
                num_threads=faiss.omp_get_max_threads(),
            )
        params = self._params
        params.efSearch = max(ef, k)
        params.sel = selector.faiss_selector if selector is not None else None
        return self._call(queries, k, params)

    @property
    def num_bytes(self) -> int:
        links = self.faiss_index.hnsw.nb_neighbors(0) * 4 + 24
        codes = self._coded.num_bytes if self._coded is not None else 0
        return int(self.vectors.nbytes + codes + self.faiss_index.ntotal * links)


def _coded(faiss_index: Any, vectors: Matrix, distance: str) -> CodedGraph | None:
    """The kernel's view of FAISS's graph, which must outlive it; None where there is nothing to search or no kernel."""
    hnsw = faiss_index.hnsw
    if not len(vectors) or not cpu.is_available():
        return None
    return CodedGraph(
        vectors,
        neighbours=faiss.rev_swig_ptr(hnsw.neighbors.data(), hnsw.neighbors.size()),
        offsets=faiss.rev_swig_ptr(hnsw.offsets.data(), hnsw.offsets.size()),
        levels=faiss.vector_to_array(hnsw.cum_nneighbor_per_level),
        entry=hnsw.entry_point,
        top_level=hnsw.max_level,
        is_distance=distance == "l2",
    )


class _Sq8(VectorIndex):
    kind = "sq8"

    def __init__(self, faiss_index: Any, vectors: Matrix, distance: str) -> None:
        super().__init__(faiss_index, vectors, distance)
        self._params = faiss.SearchParametersHNSW()

    def search(self, queries: Matrix, k: int, *, ef: int, probes: int, selector: Selector | None = None) -> Found:
        wide = min(len(self.vectors), max(k + _MIN_RERANK // 2, min(k * _RERANK["sq8"], k + 1000)))
        params = self._params
        params.efSearch = max(ef, wide)
        params.sel = selector.faiss_selector if selector is not None else None
        return self._reranked(queries, k, self._call(queries, max(wide, k), params))

    @property
    def num_bytes(self) -> int:
        links = self.faiss_index.hnsw.nb_neighbors(0) * 4 + 24
        return int(self.faiss_index.ntotal * (self.faiss_index.d + links))


class _IvfPq(VectorIndex):
    kind = "ivf_pq"

    def __init__(self, faiss_index: Any, vectors: Matrix, distance: str) -> None:
        super().__init__(faiss_index, vectors, distance)
        self._params = faiss.SearchParametersIVF()

    def search(self, queries: Matrix, k: int, *, ef: int, probes: int, selector: Selector | None = None) -> Found:
        wide = min(len(self.vectors), max(k + _MIN_RERANK, min(k * _RERANK["ivf_pq"], k + 4000)))
        params = self._params
        params.nprobe = min(probes or self.faiss_index.nprobe, self.faiss_index.nlist)
        params.sel = selector.faiss_selector if selector is not None else None
        return self._reranked(queries, k, self._call(queries, max(wide, k), params))

    @property
    def num_bytes(self) -> int:
        lists = self.faiss_index.nlist * self.faiss_index.d * 4
        return int(self.faiss_index.ntotal * (self.faiss_index.code_size + 8) + lists)


def build_index(
    kind: str,
    vectors: Matrix,
    config: IndexConfig,
    distance: str,
    *,
    base: VectorIndex | None = None,
    report: Callable[[float], None],
) -> VectorIndex:
    """Builds an index.

    Args:
        kind: One of `KINDS`.
        vectors: Shape (rows, dimension), C order; not copied where the index keeps no vectors of its own.
        config: Options.
        distance: "cosine", "dot" or "l2".
        base: An HNSW index of the first rows, to continue a copy of.
        report: Called with the share that is done; may raise `BuildStopped`.
    """
    metric = faiss.METRIC_L2 if distance == "l2" else faiss.METRIC_INNER_PRODUCT
    if kind == "ivf_pq":
        return _build_ivf_pq(vectors, config, distance, metric, report)
    dimension = vectors.shape[1]
    if base is not None:
        index = faiss.clone_index(base.faiss_index)
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(dimension, config.m, metric)
    else:
        index = faiss.IndexHNSWSQ(dimension, faiss.ScalarQuantizer.QT_8bit, config.m, metric)
        index.train(vectors)
    index.hnsw.efConstruction = config.ef_construction
    _add_in_slices(index, vectors, report)
    return _Hnsw(index, distance) if kind == "hnsw" else _Sq8(index, vectors, distance)


def _add_in_slices(index: Any, vectors: Matrix, report: Callable[[float], None]) -> None:
    first = index.ntotal
    for start in range(first, len(vectors), _SLICE_ROWS):
        report((start - first) / (len(vectors) - first))
        index.add(vectors[start : start + _SLICE_ROWS])


def _build_ivf_pq(
    vectors: Matrix, config: IndexConfig, distance: str, metric: int, report: Callable[[float], None]
) -> VectorIndex:
    rows, dimension = vectors.shape
    lists = min(config.num_lists or round(4 * math.sqrt(rows)), max(1, rows // 39))
    parts = next(size for size in range(max(1, dimension // 2), 0, -1) if dimension % size == 0)
    quantizer = faiss.IndexFlat(dimension, metric)
    index = faiss.IndexIVFPQFastScan(quantizer, dimension, lists, parts, 4, metric)
    index.cp.max_points_per_centroid = _TRAIN_ROWS_PER_LIST
    report(0.0)
    index.train(vectors)
    report(0.5)
    for start in range(0, rows, 1 << 15):
        index.add(vectors[start : start + (1 << 15)])
        report(0.5 + 0.4 * start / rows)
    made = _IvfPq(index, vectors, distance)
    index.nprobe = config.num_probes or _measured_probes(made, vectors, distance)
    return made


def _measured_probes(index: _IvfPq, vectors: Matrix, distance: str) -> int:
    """The fewest cells, a power of two, that give the wanted recall for some of the rows themselves."""
    chosen = np.random.default_rng(0).choice(len(vectors), min(_MEASURED_QUERIES, len(vectors)), replace=False)
    queries = np.ascontiguousarray(vectors[chosen])
    k = min(11, len(vectors))  # the row itself is no achievement
    wanted = scan(queries, vectors, k, distance)[1]
    probes = 1
    while probes < index.faiss_index.nlist:
        found = index.search(queries, k, ef=0, probes=probes)[1]
        hits = sum(len(np.intersect1d(a, b)) - 1 for a, b in zip(wanted, found, strict=True))
        if hits >= _WANTED_RECALL * (k - 1) * len(queries):
            break
        probes *= 2
    return min(probes, int(index.faiss_index.nlist))


def load_index(kind: str, path: Path, vectors: Matrix | None, distance: str) -> VectorIndex:
    """Reads an index. The file must be known to be whole: FAISS may crash on a damaged one.

    Args:
        kind: One of `KINDS`.
        path: FAISS's file.
        vectors: What it indexes; None for those kinds whose file has them.
        distance: "cosine", "dot" or "l2".
    """
    index = faiss.read_index(str(path))
    if kind == "hnsw":
        return _Hnsw(index, distance)
    assert vectors is not None
    return (_Sq8 if kind == "sq8" else _IvfPq)(index, vectors, distance)
