"""Copies of vectors on a GPU, over a fake of FAISS's GPU functions: what is copied, and what the copies answer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.vectors.driver import Driver
from tests.server.vectors.test_faiss_backend import create, ids, settled, upsert, vectors
from vorta.errors import FailedPrecondition
from vorta_server.vectors import gpu
from vorta_server.vectors import operation as op
from vorta_server.vectors.faiss_backend import FaissBackend
from vorta_server.vectors.faiss_config import FaissConfig
from vorta_server.vectors.gpu import open_gpu
from vorta_server.vectors.operation import Condition, Filter

NUM_POINTS = 300


@contextlib.contextmanager
def store(folder: Path, device: str) -> Iterator[Driver]:
    config = FaissConfig(
        seal_rows=8, min_save_rows=50, num_build_threads=1, num_search_threads=1, scan_rows_per_width=0, device=device
    )
    backend = FaissBackend(folder, config)
    try:
        yield Driver(backend)
    finally:
        backend.close()


def fill(driver: Driver, kind: str = "hnsw", distance: str = "l2") -> None:
    create(driver, index=op.IndexConfig(kind=kind), distance=distance)
    upsert(driver, NUM_POINTS)
    settled(driver)


def search(driver: Driver, queries: np.ndarray, **changes: Any) -> list[list[str]]:
    wanted = op.Search(collection="c", vectors=queries.astype("<f4").tobytes(), limit=5, with_payload=True, **changes)
    return [[hit.id for hit in result.hits] for result in driver.ask(wanted).results]


class FakeIndex:
    """FAISS's flat index, that counts what is asked of it and may have no room."""

    searches = 0
    max_rows = 1 << 40

    def __init__(self, flat: Any) -> None:
        self._flat = flat

    def add(self, vectors: np.ndarray) -> None:
        if self._flat.ntotal + len(vectors) > FakeIndex.max_rows:
            raise RuntimeError("CUDA out of memory")
        self._flat.add(vectors)

    def search(self, queries: np.ndarray, k: int) -> Any:
        FakeIndex.searches += 1
        return self._flat.search(queries, k)


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> type[FakeIndex]:
    monkeypatch.setattr(FakeIndex, "searches", 0)
    monkeypatch.setattr(FakeIndex, "max_rows", 1 << 40)
    monkeypatch.setattr(gpu.faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(gpu.faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(gpu.faiss, "index_cpu_to_gpu", lambda _, device, flat: FakeIndex(flat), raising=False)
    return FakeIndex


def test_which_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.faiss, "get_num_gpus", lambda: 0, raising=False)
    assert open_gpu("cpu") is None
    assert open_gpu("auto") is None
    with pytest.raises(FailedPrecondition, match=r"built for CPUs|sees no GPU") as caught:
        open_gpu("cuda")
    assert (caught.value.field, caught.value.reason) == ("vector.device", "DEVICE_MISSING")
    monkeypatch.setattr(gpu.faiss, "StandardGpuResources", object, raising=False)
    with pytest.raises(FailedPrecondition, match="FAISS sees no GPU"):
        open_gpu("cuda")
    monkeypatch.setattr(gpu.faiss, "get_num_gpus", lambda: 2)
    assert open_gpu("auto") is not None
    assert open_gpu("cuda") is not None
    assert open_gpu("cpu") is None


@pytest.mark.parametrize("distance", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("kind", ["hnsw", "flat"])
def test_searches_of_sealed_segments(kind: str, distance: str, with_gpu: type[FakeIndex], tmp_path: Path) -> None:
    queries = vectors(5, seed=9)
    answers = {}
    for device in ("cpu", "cuda"):
        with store(tmp_path / device, device) as driver:
            fill(driver, kind, distance)
            before = with_gpu.searches
            answers[device] = search(driver, queries, exact=device == "cpu")
            assert (with_gpu.searches > before) == (device == "cuda")
    assert answers["cpu"] == answers["cuda"]


def test_what_the_copy_does_not_answer(with_gpu: type[FakeIndex], tmp_path: Path) -> None:
    points = vectors(NUM_POINTS)
    with store(tmp_path, "cuda") as driver:
        fill(driver)
        before = with_gpu.searches
        some = Filter(must=[Condition(has_id=ids(8))])
        assert set(search(driver, points[:1], filter=some)[0]) <= set(ids(8))
        assert with_gpu.searches == before
        assert search(driver, points[3:4])[0][0] == "p0003"
        assert with_gpu.searches == before + 1
        driver.ask(op.DeletePoints(collection="c", ids=["p0003"]))
        assert "p0003" not in search(driver, points[3:4])[0]
        assert with_gpu.searches == before + 1


def test_no_room_on_the_gpu(
    with_gpu: type[FakeIndex], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(FakeIndex, "max_rows", 10)
    with store(tmp_path, "cuda") as driver:
        fill(driver)
        assert search(driver, vectors(NUM_POINTS)[5:6])[0][0] == "p0005"
    assert with_gpu.searches == 0
    assert "stay off the GPU: CUDA out of memory" in caplog.text


def test_after_a_start(with_gpu: type[FakeIndex], tmp_path: Path) -> None:
    with store(tmp_path, "cuda") as driver:
        fill(driver)
    with store(tmp_path, "cuda") as driver:
        before = with_gpu.searches
        assert search(driver, vectors(NUM_POINTS)[5:6])[0][0] == "p0005"
        assert with_gpu.searches == before + 1
