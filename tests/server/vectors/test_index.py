"""HNSW by our kernel and by FAISS, which find the same; where rows are in a segment."""

from __future__ import annotations

import numpy as np
import pytest

from vorta_kernels import cpu
from vorta_server.vectors.index import Matrix, Selector, VectorIndex, build_index, scan
from vorta_server.vectors.operation import IndexConfig
from vorta_server.vectors.segment import Segment


def clustered(rows: int, dimension: int, distance: str) -> Matrix:
    rng = np.random.default_rng(4)
    centres = rng.standard_normal((40, dimension))
    vectors = centres[rng.integers(40, size=rows)] + 0.4 * rng.standard_normal((rows, dimension))
    if distance == "cosine":
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


def built(vectors: Matrix, distance: str) -> VectorIndex:
    return build_index("hnsw", vectors, IndexConfig(), distance, report=lambda _: None)


@pytest.mark.parametrize("by_kernel", [True, False])
@pytest.mark.parametrize("distance", ["cosine", "dot", "l2"])
def test_hnsw(distance: str, by_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if by_kernel and cpu.compiler() is None:
        pytest.skip("no C++ compiler is installed to build the kernels")
    monkeypatch.setattr(cpu, "is_available", lambda: by_kernel)
    every = clustered(3040, 50, distance)
    vectors, queries = np.ascontiguousarray(every[:3000]), np.ascontiguousarray(every[3000:])
    index = built(vectors, distance)
    bits = np.random.default_rng(5).integers(0, 256, 375).astype(np.uint8)
    passes = np.unpackbits(bits, bitorder="little").astype(np.bool_)
    for selector in (None, Selector(bits)):
        wanted = scan(queries, vectors, 10, distance, selector)
        scores, positions = index.search(queries, 10, ef=128, probes=0, selector=selector)
        assert (positions >= 0).all()
        if selector is not None:
            assert passes[positions].all()
        assert np.mean([np.isin(a, b).mean() for a, b in zip(wanted[1], positions, strict=True)]) > 0.97
        gathered = vectors[positions].astype(np.float64)
        exact = (
            (gathered * queries[:, None]).sum(2) if distance != "l2" else ((gathered - queries[:, None]) ** 2).sum(2)
        )
        np.testing.assert_allclose(scores, exact, rtol=1e-4, atol=1e-4)
        assert (np.diff(scores, axis=1) * (1 if distance == "l2" else -1) >= 0).all()


def test_bits_may_change_between_searches() -> None:
    vectors = clustered(2000, 32, "cosine")
    index = built(vectors, "cosine")
    bits = np.full(250, 255, np.uint8)
    selector = Selector(bits)
    assert index.search(vectors[:1], 1, ef=64, probes=0, selector=selector)[1].tolist() == [[0]]
    bits[0] ^= 1
    assert index.search(vectors[:1], 1, ef=64, probes=0, selector=selector)[1].tolist() != [[0]]
    bits[:] = 0
    assert index.search(vectors[:1], 3, ef=64, probes=0, selector=selector)[1].tolist() == [[-1, -1, -1]]


@pytest.mark.parametrize("rows", [[7, 8, 9, 10], [3, 7, 8, 21]], ids=["all", "some left out"])
def test_places_of_rows(rows: list[int]) -> None:
    segment = Segment(np.array(rows, np.int64), list("abcd"), np.zeros((4, 2), np.float32), "dot")
    assert segment.places_of(np.array([rows[2], rows[0], rows[3]])).tolist() == [2, 0, 3]
