"""Random histories of a store with small segments against a dictionary: writes, filters, searches, pages, restarts."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.vectors.driver import Driver
from vorta_server.vectors import operation as op
from vorta_server.vectors.faiss_backend import FaissBackend
from vorta_server.vectors.faiss_config import FaissConfig
from vorta_server.vectors.operation import Condition, Filter, Range

DIMENSION = 6
CONFIG = FaissConfig(
    seal_rows=80,
    min_save_rows=40,
    inline_column_rows=60,  # so that the reader's thread reads columns too
    cache_bytes=20_000,  # so that views are dropped
    num_build_threads=1,
    num_search_threads=2,
    max_group_writes=4,
    scan_rows_per_width=0,
)
KINDS = ["auto", "hnsw", "flat", "sq8"]


class Model:
    """What the store should hold."""

    def __init__(self, distance: str) -> None:
        self.distance = distance
        self.points: dict[str, tuple[np.ndarray, dict[str, Any]]] = {}

    def ranked(self, query: np.ndarray, passes: Any = lambda payload: True) -> list[tuple[str, float]]:
        found = []
        for point_id, (vector, payload) in self.points.items():
            if passes(payload):
                a, b = vector.astype(np.float64), query.astype(np.float64)
                if self.distance == "l2":
                    found.append((float(((a - b) ** 2).sum()), point_id))
                else:
                    score = float(a @ b)
                    if self.distance == "cosine":
                        score /= float(np.linalg.norm(a) * np.linalg.norm(b))
                    found.append((-score, point_id))
        return [(point_id, score) for score, point_id in sorted(found)]


FILTERS: list[tuple[Filter, Any]] = [
    (Filter(must=[Condition(field="n", range=Range(lt=10))]), lambda p: p.get("n", 99) < 10),
    (Filter(must=[Condition(field="colour", match="red")]), lambda p: p.get("colour") == "red"),
    (
        Filter(must_not=[Condition(field="colour", any_of=["red", "blue"])]),
        lambda p: p.get("colour") not in ("red", "blue"),
    ),
    (Filter(must=[Condition(field="n", exists=False)]), lambda p: "n" not in p),
    (Filter(must=[Condition(field="text", text="apple")]), lambda p: "apple" in p.get("text", "")),
]


@pytest.mark.parametrize("seed", range(10))
def test_random_histories(tmp_path: Path, seed: int) -> None:
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    distance = ("cosine", "l2", "dot")[seed % 3]
    kind = KINDS[seed % len(KINDS)]
    model = Model(distance)
    backend = FaissBackend(tmp_path, CONFIG)
    driver = Driver(backend)
    index = op.IndexConfig(kind=kind, m=16, ef_search=96)
    driver.ask(
        op.CreateCollection(
            collection=op.Collection(
                name="c", dimension=DIMENSION, distance=distance, index=index, text_fields=["text"],
                schema={"n": "integer", "colour": "keyword"},
            )
        )
    )  # fmt: skip
    recalls: list[float] = []
    for _ in range(120):
        action = rng.random()
        if action < 0.45:
            ids = [f"p{i}" for i in rng.sample(range(600), rng.randint(1, 60))]
            vectors = numbers.normal(size=(len(ids), DIMENSION)).astype("<f4")
            payloads = [
                {
                    "n": rng.randrange(40),
                    "colour": rng.choice(["red", "green", "blue"]),
                    "text": rng.choice(["apple pie", "pear"]),
                }
                if rng.random() < 0.8
                else {}
                for _ in ids
            ]
            written = driver.ask(
                op.UpsertPoints(
                    collection="c", ids=ids, vectors=vectors.tobytes(), payloads=[json.dumps(p) for p in payloads]
                )
            )
            assert written.count == len(ids)
            model.points.update(dict(zip(ids, zip(vectors, payloads, strict=True), strict=True)))
        elif action < 0.55:
            ids = [f"p{i}" for i in rng.sample(range(600), rng.randint(1, 40))]
            assert driver.ask(op.DeletePoints(collection="c", ids=ids)).count == len(model.points.keys() & set(ids))
            for point_id in ids:
                model.points.pop(point_id, None)
        elif action < 0.6:
            filter_, passes = rng.choice(FILTERS)
            wanted = {i for i, (_, payload) in model.points.items() if passes(payload)}
            if rng.random() < 0.3:
                assert driver.ask(op.DeletePoints(collection="c", filter=filter_)).count == len(wanted)
                for point_id in wanted:
                    del model.points[point_id]
            assert driver.ask(op.CountPoints(collection="c", filter=filter_)).count == len(
                [1 for _, payload in model.points.values() if passes(payload)]
            )
        elif action < 0.65:
            backend.close()
            backend = FaissBackend(tmp_path, CONFIG)
            driver = Driver(backend)
        elif action < 0.7:
            page = driver.ask(op.ScrollPoints(collection="c", limit=1000, with_payload=False))
            assert [point.id for point in page.points] == sorted(model.points)
        else:
            query = numbers.normal(size=DIMENSION).astype("<f4")
            filter_, passes = rng.choice([(None, lambda payload: True), *FILTERS])
            wanted = [point_id for point_id, _ in model.ranked(query, passes)[:10]]
            exact = op.Search(collection="c", vectors=query.tobytes(), filter=filter_, exact=True, with_payload=False)
            assert driver.ids(exact) == wanted
            # A batch with others beside it, through indexes.
            search = op.Search(collection="c", vectors=query.tobytes(), filter=filter_)
            found = [[hit.id for hit in answer.results[0].hits] for answer in driver.ask_all([search, search])]
            assert found[0] == found[1]
            assert set(found[0]) <= model.points.keys()
            assert all(passes(model.points[point_id][1]) for point_id in found[0])
            recalls.append(len(set(found[0]) & set(wanted)) / len(wanted) if wanted else 1.0)
        stats = driver.ask(op.GetCollection(collection="c")).stats
        assert stats.num_points == len(model.points)
    backend.close()
    assert np.mean(recalls) >= 0.95
    backend = FaissBackend(tmp_path, CONFIG)
    points = Driver(backend).ask(op.ScrollPoints(collection="c", limit=1000, with_vector=True)).points
    backend.close()
    assert {point.id: json.loads(point.payload or "{}") for point in points} == {
        point_id: payload for point_id, (_, payload) in model.points.items()
    }
    for point in points:
        np.testing.assert_array_equal(np.frombuffer(point.vector, "<f4"), model.points[point.id][0])


def test_recall_at_every_selectivity(tmp_path: Path) -> None:
    """Clusters, as real vectors have them; filters that have nothing to do with them, and some that have."""
    rng = np.random.default_rng(5)
    count, dimension = 12_000, 32
    centres = rng.normal(size=(60, dimension))
    cluster = rng.integers(60, size=count)
    vectors = (centres[cluster] + 0.35 * rng.normal(size=(count, dimension))).astype("<f4")
    backend = FaissBackend(tmp_path, FaissConfig(num_build_threads=2, num_search_threads=2))
    try:
        driver = Driver(backend)
        driver.ask(op.CreateCollection(collection=op.Collection(name="c", dimension=dimension, distance="l2")))
        for start in range(0, count, 2000):
            ids = [f"p{i}" for i in range(start, start + 2000)]
            payloads = [f'{{"u": {i * 7919 % 1000}, "cluster": {cluster[i]}}}' for i in range(start, start + 2000)]
            part = vectors[start : start + 2000].tobytes()
            driver.ask(op.UpsertPoints(collection="c", ids=ids, vectors=part, payloads=payloads))
        while driver.ask(op.GetCollection(collection="c")).stats.is_building:
            pass
        assert driver.ask(op.GetCollection(collection="c")).stats.num_segments
        queries = (centres[rng.integers(60, size=40)] + 0.35 * rng.normal(size=(40, dimension))).astype("<f4")
        u = np.array([i * 7919 % 1000 for i in range(count)])
        strategies = set()
        cases = [(Filter(must=[Condition(field="u", range=Range(lt=share * 1000))]), u < share * 1000)
                 for share in (0.001, 0.01, 0.1, 0.3, 0.5, 0.9)]  # fmt: skip
        cases.append((Filter(must=[Condition(field="cluster", any_of=list(range(6)))]), cluster < 6))
        for filter_, mask in cases:
            for _ in range(2):  # the second time with what was kept of the first
                search = op.Search(collection="c", vectors=queries.tobytes(), filter=filter_, with_payload=False)
                results = driver.ask(search).results
                strategies.add(results[0].strategy)
                allowed = np.flatnonzero(mask)
                distances = ((queries[:, None, :] - vectors[allowed][None]) ** 2).sum(axis=2)
                wanted = [{f"p{allowed[i]}" for i in order[:10]} for order in np.argsort(distances, axis=1)]
                hits = [{hit.id for hit in result.hits} for result in results]
                recall = np.mean([len(a & b) / len(b) for a, b in zip(hits, wanted, strict=True)])
                assert recall >= 0.95, (filter_, recall)
        assert strategies == {"filtered_exact", "filtered_index"}
    finally:
        backend.close()
