"""What every vector backend promises, as checks that know no backend.

Each function takes a `Driver` and a collection name nobody else uses. `test_contract.py` runs all of them on every
backend. They hold for an empty server of the backend's own and for one that others use too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.server.vectors.driver import (
    COLOURS,
    DIMENSION,
    IDS,
    NUM_POINTS,
    QUERIES,
    SCHEMA,
    VECTORS,
    Driver,
    collection,
    filled,
    oracle,
    payload_of,
)
from vorta.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unimplemented,
)
from vorta_server.vectors import operation as ops
from vorta_server.vectors.operation import (
    Condition,
    Filter,
    GeoRadius,
    IndexConfig,
    Operation,
    Range,
    Search,
)

# Collections and aliases


def check_collections(driver: Driver, name: str) -> None:
    made = driver.ask(ops.CreateCollection(collection=collection(name, description="für Tests", embedding_model="m")))
    assert made.collection.name == name
    got = driver.ask(ops.GetCollection(collection=name))
    for field in ("dimension", "distance", "text_fields", "embedding_model", "description", "index"):
        assert getattr(got.collection, field) == getattr(collection(name, **_TEXTS), field)
    assert SCHEMA.items() <= got.collection.schema.items()
    assert got.stats.num_points == 0
    assert got.created_s > 0
    with pytest.raises(AlreadyExists) as caught:
        driver.ask(ops.CreateCollection(collection=collection(name)))
    assert caught.value.reason == "COLLECTION_ALREADY_EXISTS"
    listed = [info.collection.name for info in driver.ask(ops.ListCollections()).collections]
    assert name in listed
    assert listed == sorted(listed)
    driver.ask(ops.DeleteCollection(collection=name))
    assert name not in [info.collection.name for info in driver.ask(ops.ListCollections()).collections]
    for operation in (
        ops.GetCollection(collection=name),
        ops.DeleteCollection(collection=name),
        ops.CountPoints(collection=name),
        ops.GetPoints(collection=name, ids=["a"]),
        ops.ScrollPoints(collection=name),
        Search(collection=name, vectors=QUERIES[:1].tobytes()),
        ops.UpsertPoints(collection=name, ids=["a"], vectors=VECTORS[:1].tobytes()),
        ops.DeletePoints(collection=name, ids=["a"]),
        ops.SwapAlias(alias=f"{name}-alias", collection=name),
    ):
        with pytest.raises(NotFound) as missing:
            driver.ask(operation)
        assert missing.value.reason == "COLLECTION_NOT_FOUND", operation


_TEXTS = {"description": "für Tests", "embedding_model": "m"}


def check_names_that_differ_little(driver: Driver, name: str) -> None:
    names = [f"{name}a", f"{name}A", f"{name}-a", f"{name}_a", f"0{name}a"]
    for index, one in enumerate(names):
        driver.ask(ops.CreateCollection(collection=collection(one)))
        driver.ask(ops.UpsertPoints(collection=one, ids=[f"i{index}"], vectors=VECTORS[:1].tobytes()))
    for index, one in enumerate(names):
        assert [point.id for point in driver.ask(ops.ScrollPoints(collection=one)).points] == [f"i{index}"]
    listed = {info.collection.name for info in driver.ask(ops.ListCollections()).collections}
    assert set(names) <= listed
    for one in names:
        driver.ask(ops.DeleteCollection(collection=one))


def check_bad_definitions(driver: Driver, name: str) -> None:
    for changes in (
        {"name": "-x"},
        {"name": ""},
        {"name": "x" * 65},
        {"name": "ä"},
        {"dimension": 0},
        {"dimension": 70_000},
        {"distance": "manhattan"},
        {"index": IndexConfig(kind="annoy")},
        {"schema": {"a": "colour"}},
    ):
        with pytest.raises(InvalidArgument) as caught:
            driver.ask(ops.CreateCollection(collection=collection(**({"name": name} | changes))))
        assert caught.value.field, changes


def check_aliases(driver: Driver, name: str) -> None:
    alias = f"{name}-now"
    for index, one in enumerate((f"{name}1", f"{name}2")):
        driver.ask(ops.CreateCollection(collection=collection(one)))
        driver.ask(ops.UpsertPoints(collection=one, ids=[f"of{index}"], vectors=VECTORS[:1].tobytes()))
    first = driver.ask(ops.SwapAlias(alias=alias, collection=f"{name}1"))
    assert (first.alias, first.collection, first.previous) == (alias, f"{name}1", "")
    search = Search(collection=alias, vectors=VECTORS[:1].tobytes())
    assert driver.ids(search) == ["of0"]
    second = driver.ask(ops.SwapAlias(alias=alias, collection=f"{name}2"))
    assert second.previous == f"{name}1"
    assert driver.ids(search) == ["of1"]
    info = driver.ask(ops.GetCollection(collection=alias))
    assert (info.collection.name, info.aliases) == (f"{name}2", [alias])
    driver.ask(ops.UpsertPoints(collection=alias, ids=["more"], vectors=VECTORS[1:2].tobytes()))
    assert driver.ask(ops.CountPoints(collection=f"{name}2")).count == 2
    assert (alias, f"{name}2") in [(a.alias, a.collection) for a in driver.ask(ops.ListAliases()).aliases]
    with pytest.raises(AlreadyExists):
        driver.ask(ops.CreateCollection(collection=collection(alias)))
    with pytest.raises(AlreadyExists):
        driver.ask(ops.SwapAlias(alias=f"{name}1", collection=f"{name}2"))
    with pytest.raises((InvalidArgument, NotFound, FailedPrecondition)):
        driver.ask(ops.DeleteCollection(collection=alias))
    driver.ask(ops.DeleteCollection(collection=f"{name}2"))
    assert alias not in [a.alias for a in driver.ask(ops.ListAliases()).aliases]
    driver.ask(ops.SwapAlias(alias=alias, collection=f"{name}1"))
    driver.ask(ops.DeleteAlias(alias=alias))
    with pytest.raises(NotFound) as caught:
        driver.ask(ops.DeleteAlias(alias=alias))
    assert caught.value.reason == "ALIAS_NOT_FOUND"
    driver.ask(ops.DeleteCollection(collection=f"{name}1"))


# Points


def check_upsert_and_get(driver: Driver, name: str) -> None:
    filled(driver, name)
    assert driver.ask(ops.CountPoints(collection=name)).count == NUM_POINTS
    points = driver.ask(
        ops.GetPoints(collection=name, ids=["p03", "nobody", "p01"], with_payload=True, with_vector=True)
    ).points
    assert [point.id for point in points] == ["p03", "p01"]
    assert json.loads(points[0].payload) == payload_of(3)
    np.testing.assert_allclose(np.frombuffer(points[0].vector, "<f4"), VECTORS[3], rtol=1e-6)
    bare = driver.ask(ops.GetPoints(collection=name, ids=["p03"], with_payload=False)).points[0]
    assert (bare.payload, bare.vector) == ("", b"")
    written = driver.ask(
        ops.UpsertPoints(
            collection=name, ids=["p03", "new"], vectors=VECTORS[:2].tobytes(), payloads=['{"number": 1}', "{}"]
        )
    )
    assert written.count == 2
    replaced = driver.ask(ops.GetPoints(collection=name, ids=["p03"], with_vector=True)).points[0]
    assert json.loads(replaced.payload) == {"number": 1}
    np.testing.assert_allclose(np.frombuffer(replaced.vector, "<f4"), VECTORS[0], rtol=1e-6)
    assert driver.ask(ops.CountPoints(collection=name)).count == NUM_POINTS + 1
    # What a replaced payload no longer has is no longer found.
    gone = Filter(must=[Condition(field="colour", match=COLOURS[3]), Condition(has_id=["p03"])])
    assert driver.ask(ops.CountPoints(collection=name, filter=gone)).count == 0


def check_odd_ids(driver: Driver, name: str) -> None:
    ids = ["a", "A", " a", "a ", "ä", "日本", "550e8400-e29b-41d4-a716-446655440000", "x" * 256, '"', "\\", "*", "a/b"]
    driver.ask(ops.CreateCollection(collection=collection(name)))
    driver.ask(ops.UpsertPoints(collection=name, ids=ids, vectors=VECTORS[: len(ids)].tobytes()))
    assert [point.id for point in driver.ask(ops.GetPoints(collection=name, ids=ids)).points] == ids
    found: list[str] = []
    after = ""
    while True:
        page = driver.ask(ops.ScrollPoints(collection=name, after=after, limit=5))
        found += [point.id for point in page.points]
        after = page.next_after
        if not after:
            break
    assert found == sorted(ids, key=str.encode)
    assert driver.ask(ops.DeletePoints(collection=name, ids=["a ", "nobody"])).count == 1
    assert driver.ask(ops.CountPoints(collection=name, filter=Filter(must=[Condition(has_id=["a", "A"])]))).count == 2


def check_payloads_are_kept(driver: Driver, name: str) -> None:
    payloads = [
        '{"big": 9007199254740993, "float": 1.5, "null": null, "empty": [], "deep": {"a": [{"b": 1}, {"b": "x"}]}}',
        '{"text": " spaces kept \\n", "unicode": "\\u00e9\\ud83d\\ude00", "": "empty key", "a.b": 1}',
        "{}",
    ]
    driver.ask(ops.CreateCollection(collection=collection(name, schema={})))
    driver.ask(ops.UpsertPoints(collection=name, ids=["a", "b", "c"], vectors=VECTORS[:3].tobytes(), payloads=payloads))
    points = driver.ask(ops.GetPoints(collection=name, ids=["a", "b", "c"])).points
    assert [json.loads(point.payload) for point in points] == [json.loads(text) for text in payloads]


def check_bad_upserts(driver: Driver, name: str) -> None:
    filled(driver, name)
    nan, zero = VECTORS[:1].copy(), np.zeros((1, DIMENSION), "<f4")
    nan[0, 2] = np.nan
    one = VECTORS[:1].tobytes()
    for changes, reason in (
        ({"vectors": one[:-4]}, "DIMENSION_MISMATCH"),
        ({"vectors": one + one}, None),
        ({"vectors": nan.tobytes()}, "INVALID_FIELD"),
        ({"vectors": zero.tobytes()}, "INVALID_FIELD"),
        ({"ids": [""]}, None),
        ({"ids": ["x" * 257]}, None),
        ({"ids": ["n1", "n1"], "vectors": one + one}, None),
        ({"payloads": ["[]"]}, None),
        ({"payloads": ["{"]}, None),
        ({"payloads": ['{"number": "one"}']}, "FIELD_TYPE_MISMATCH"),
        ({"payloads": ['{"when": "yesterday"}']}, "FIELD_TYPE_MISMATCH"),
        # All or nothing: the good one beside the bad one is not written either.
        (
            {"ids": ["n1", "n2"], "vectors": one + one, "payloads": ["{}", '{"is_even": 1}']},
            "FIELD_TYPE_MISMATCH",
        ),
    ):
        operation: dict[str, Any] = {"collection": name, "ids": ["n1"], "vectors": one} | changes
        with pytest.raises(InvalidArgument) as caught:
            driver.ask(ops.UpsertPoints(**operation))
        assert reason in (None, caught.value.reason), changes
    assert driver.ask(ops.CountPoints(collection=name)).count == NUM_POINTS


def check_delete(driver: Driver, name: str) -> None:
    filled(driver, name)
    assert driver.ask(ops.DeletePoints(collection=name, ids=["p00", "p01", "nobody"])).count == 2
    even = Filter(must=[Condition(field="is_even", match=True)])
    assert driver.ask(ops.DeletePoints(collection=name, filter=even)).count == NUM_POINTS // 2 - 1
    left = [point.id for point in driver.ask(ops.ScrollPoints(collection=name)).points]
    assert left == [point_id for index, point_id in enumerate(IDS) if index % 2 and index != 1]
    found = driver.ids(Search(collection=name, vectors=QUERIES[:1].tobytes(), limit=100))
    assert sorted(found) == left
    with pytest.raises(InvalidArgument):
        driver.ask(ops.DeletePoints(collection=name))
    with pytest.raises(InvalidArgument):
        driver.ask(ops.DeletePoints(collection=name, ids=["a"], filter=even))


def check_writes_that_nobody_waits_for(driver: Driver, name: str) -> None:
    driver.ask(ops.CreateCollection(collection=collection(name)))
    answers = driver.ask_all(
        [
            ops.UpsertPoints(
                collection=name, ids=[f"i{index}"], vectors=VECTORS[index : index + 1].tobytes(), wait=False
            )
            for index in range(8)
        ]
    )
    assert {answer.sequence for answer in answers} == {0}
    # A later write that is waited for comes after them.
    driver.ask(ops.UpsertPoints(collection=name, ids=["i0"], vectors=VECTORS[9:10].tobytes()))
    assert driver.ask(ops.CountPoints(collection=name)).count == 8
    point = driver.ask(ops.GetPoints(collection=name, ids=["i0"], with_vector=True)).points[0]
    np.testing.assert_allclose(np.frombuffer(point.vector, "<f4"), VECTORS[9], rtol=1e-6)


def check_scroll(driver: Driver, name: str) -> None:
    filled(driver, name)
    pages, after = [], ""
    while True:
        page = driver.ask(ops.ScrollPoints(collection=name, after=after, limit=25, with_payload=False))
        pages.append([point.id for point in page.points])
        after = page.next_after
        if not after:
            break
    assert [point_id for page in pages for point_id in page] == IDS
    assert [len(page) for page in pages] == [25, 25, 10]
    odd = Filter(must_not=[Condition(field="is_even", match=True)])
    page = driver.ask(ops.ScrollPoints(collection=name, filter=odd, after="p10", limit=3, with_vector=True))
    assert [point.id for point in page.points] == ["p11", "p13", "p15"]
    assert all(len(point.vector) == 4 * DIMENSION for point in page.points)
    for bad in (0, 10_001):
        with pytest.raises(InvalidArgument):
            driver.ask(ops.ScrollPoints(collection=name, limit=bad))


# Filters

FILTERS: list[tuple[Filter, Callable[[int, dict[str, Any]], bool]]] = [
    (Filter(), lambda i, p: True),
    (Filter(must=[Condition(field="number", match=7)]), lambda i, p: i == 7),
    (Filter(must=[Condition(field="colour", match="red")]), lambda i, p: p["colour"] == "red"),
    (Filter(must=[Condition(field="colour", match=" red ")]), lambda i, p: p["colour"] == " red "),
    (Filter(must=[Condition(field="colour", match="RED")]), lambda i, p: False),
    (Filter(must=[Condition(field="colour", any_of=["Größe", "blue"])]), lambda i, p: p["colour"] in ("Größe", "blue")),
    (Filter(must=[Condition(field="number", any_of=[1, 2, 99])]), lambda i, p: i in (1, 2)),
    (Filter(must=[Condition(field="is_even", match=False)]), lambda i, p: not p["is_even"]),
    (Filter(must=[Condition(field="tags", match="odd")]), lambda i, p: "odd" in p.get("tags", [])),
    (Filter(must=[Condition(field="number", range=Range(gt=10, lte=20))]), lambda i, p: 10 < i <= 20),
    (Filter(must=[Condition(field="number", range=Range(gte=9.5, lt=12.5))]), lambda i, p: 9.5 <= i < 12.5),
    (Filter(must=[Condition(field="price", range=Range(gte=2.25, lt=3))]), lambda i, p: 2.25 <= p["price"] < 3),
    (
        Filter(must=[Condition(field="when", datetime_range=Range(gte=1_767_528_000.0, lt=1_767_700_800.0))]),
        lambda i, p: "2026-01-04T12" <= p["when"] < "2026-01-06T12",
    ),
    (Filter(must=[Condition(field="tags", exists=True)]), lambda i, p: "tags" in p),
    (Filter(must=[Condition(field="extra", exists=False)]), lambda i, p: "extra" not in p),
    (Filter(must=[Condition(field="title", text="fast point")]), lambda i, p: "fast" in p["title"]),
    (Filter(must=[Condition(field="title", text="FAST 33")]), lambda i, p: i == 33),
    (
        Filter(must=[Condition(field="place", geo_radius=GeoRadius(latitude=50.1, longitude=8.0, radius_m=3_000))]),
        lambda i, p: abs(i - 10) <= 2,
    ),
    (Filter(must=[Condition(has_id=["p05", "p06", "nobody"])]), lambda i, p: i in (5, 6)),
    (Filter(must=[Condition(field="meta.level", match=3)]), lambda i, p: p["meta"]["level"] == 3),
    (
        Filter(
            should=[Condition(field="number", match=1), Condition(field="number", match=2)],
            must_not=[Condition(field="is_even", match=True)],
        ),
        lambda i, p: i == 1,
    ),
    (
        Filter(
            must=[
                Condition(
                    filter=Filter(
                        should=[
                            Condition(field="colour", match="red"),
                            Condition(filter=Filter(must_not=[Condition(field="number", range=Range(lt=50))])),
                        ]
                    )
                )
            ],
            must_not=[Condition(has_id=["p55"])],
        ),
        lambda i, p: (p["colour"] == "red" or i >= 50) and i != 55,
    ),
    (Filter(must_not=[Condition(field="tags", any_of=["even", "odd"])]), lambda i, p: "tags" not in p),
]


def check_filters(driver: Driver, name: str) -> None:
    filled(driver, name)
    for filter_, passes in FILTERS:
        wanted = [IDS[i] for i in range(NUM_POINTS) if passes(i, payload_of(i))]
        page = driver.ask(ops.ScrollPoints(collection=name, filter=filter_, limit=100, with_payload=False))
        assert [point.id for point in page.points] == wanted, filter_
        assert driver.ask(ops.CountPoints(collection=name, filter=filter_)).count == len(wanted)
        found = driver.ids(Search(collection=name, vectors=QUERIES[:1].tobytes(), filter=filter_, limit=100))
        allowed = set(wanted)
        assert found == [point_id for point_id, _ in oracle(QUERIES[0]) if point_id in allowed], filter_


def check_bad_filters(driver: Driver, name: str) -> None:
    filled(driver, name)
    for condition, reason in (
        (Condition(field="nothing", match="x"), "FILTER_FIELD_UNKNOWN"),
        (Condition(field="number", match="x"), "FIELD_TYPE_MISMATCH"),
        (Condition(field="colour", range=Range(gt=1)), "FIELD_TYPE_MISMATCH"),
        (Condition(field="colour", text="red"), None),
        (Condition(field="number"), None),
        (Condition(field="number", match=1, exists=True), None),
        (Condition(match="x"), None),
    ):
        with pytest.raises(InvalidArgument) as caught:
            driver.ask(ops.CountPoints(collection=name, filter=Filter(must=[condition])))
        assert reason in (None, caught.value.reason), condition


# Search


def check_search(driver: Driver, name: str) -> None:
    for distance in ("cosine", "dot", "l2"):
        one = f"{name}-{distance}"
        filled(driver, one, distance=distance)
        results = driver.ask(Search(collection=one, vectors=QUERIES.tobytes(), limit=7, offset=2)).results
        assert len(results) == len(QUERIES)
        for query, result in zip(QUERIES, results, strict=True):
            wanted = oracle(query, distance)[2:9]
            assert [hit.id for hit in result.hits] == [point_id for point_id, _ in wanted]
            np.testing.assert_allclose([hit.score for hit in result.hits], [score for _, score in wanted], atol=1e-4)
        hits = driver.ask(Search(collection=one, vectors=QUERIES[:1].tobytes(), limit=3, with_vector=True)).results[0]
        for hit in hits.hits:
            index = IDS.index(hit.id)
            assert json.loads(hit.payload) == payload_of(index)
            np.testing.assert_allclose(np.frombuffer(hit.vector, "<f4"), VECTORS[index], rtol=1e-6)
            assert hit.dense_score is None
        bare = driver.ask(Search(collection=one, vectors=QUERIES[:1].tobytes(), limit=3, with_payload=False))
        assert {(hit.payload, hit.vector) for hit in bare.results[0].hits} == {("", b"")}


def check_threshold_and_limits(driver: Driver, name: str) -> None:
    for distance in ("cosine", "l2"):
        one = f"{name}-{distance}"
        filled(driver, one, distance=distance)
        wanted = oracle(QUERIES[0], distance)
        threshold = (wanted[4][1] + wanted[5][1]) / 2
        search = Search(collection=one, vectors=QUERIES[:1].tobytes(), limit=50, score_threshold=threshold)
        assert driver.ids(search) == [point_id for point_id, _ in wanted[:5]]
        assert len(driver.ids(Search(collection=one, vectors=QUERIES[:1].tobytes(), limit=10_000))) == NUM_POINTS
        assert driver.ids(Search(collection=one, vectors=QUERIES[:1].tobytes(), offset=100)) == []


def check_exact_search(driver: Driver, name: str) -> None:
    filled(driver, name)
    result = driver.ask(Search(collection=name, vectors=QUERIES[:1].tobytes(), exact=True)).results[0]
    assert result.strategy == "exact"
    assert [hit.id for hit in result.hits] == [point_id for point_id, _ in oracle(QUERIES[0])[:10]]


def check_search_by_id(driver: Driver, name: str) -> None:
    filled(driver, name)
    results = driver.ask(Search(collection=name, ids=["p05", "p06"], limit=4)).results
    for index, result in zip((5, 6), results, strict=True):
        assert [hit.id for hit in result.hits] == [point_id for point_id, _ in oracle(VECTORS[index])[1:5]]
    with pytest.raises(NotFound) as caught:
        driver.ask(Search(collection=name, ids=["nobody"]))
    assert caught.value.reason == "POINT_NOT_FOUND"


def check_bad_searches(driver: Driver, name: str) -> None:
    filled(driver, name)
    one = QUERIES[:1].tobytes()
    for changes in (
        {},
        {"vectors": one[:-4]},
        {"vectors": one, "limit": 0},
        {"vectors": one, "limit": 10_001},
        {"vectors": one, "offset": -1},
        {"vectors": one, "ids": ["p01"]},
        {"vectors": np.zeros((1, DIMENSION), "<f4").tobytes()},
        {"vectors": one, "texts": ["x"], "fusion": "sum"},
        {"vectors": one, "texts": ["x"], "fusion": "weighted", "dense_weight": 1.5},
    ):
        with pytest.raises(InvalidArgument):
            driver.ask(Search(collection=name, **changes))


def check_empty_collection(driver: Driver, name: str) -> None:
    driver.ask(ops.CreateCollection(collection=collection(name)))
    assert driver.ids(Search(collection=name, vectors=QUERIES[:1].tobytes())) == []
    assert driver.ids(Search(collection=name, texts=["fast"])) == []
    assert driver.ids(Search(collection=name, vectors=QUERIES[:1].tobytes(), texts=["fast"])) == []
    page = driver.ask(ops.ScrollPoints(collection=name))
    assert (page.points, page.next_after) == ([], "")
    assert driver.ask(ops.CountPoints(collection=name)).count == 0


def check_text_search(driver: Driver, name: str) -> None:
    driver.ask(ops.CreateCollection(collection=collection(name)))
    texts = ["red apple", "red red apple pie with cream and sugar", "green pear", "Apple", "nothing here"]
    driver.ask(
        ops.UpsertPoints(
            collection=name,
            ids=[f"t{index}" for index in range(len(texts))],
            vectors=VECTORS[: len(texts)].tobytes(),
            payloads=[json.dumps({"title": text}) for text in texts],
        )
    )
    result = driver.ask(Search(collection=name, texts=["apple", "pear"])).results
    assert result[0].strategy == "text"
    assert {hit.id for hit in result[0].hits} == {"t0", "t1", "t3"}
    assert result[0].hits[0].id == "t3"  # the shortest one
    scores = [hit.score for hit in result[0].hits]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) > 0
    assert [hit.id for hit in result[1].hits] == ["t2"]
    only = Filter(must=[Condition(has_id=["t1", "t2"])])
    assert driver.ids(Search(collection=name, texts=["apple"], filter=only)) == ["t1"]
    driver.ask(ops.CreateCollection(collection=collection(f"{name}-bare", text_fields=[])))
    with pytest.raises((InvalidArgument, FailedPrecondition)):
        driver.ask(Search(collection=f"{name}-bare", texts=["apple"]))


def check_hybrid(driver: Driver, name: str) -> None:
    filled(driver, name)
    one = QUERIES[:1].tobytes()
    options: dict[str, Any] = {"num_candidates": 20, "limit": 40, "with_payload": False}
    dense = driver.ask(Search(collection=name, vectors=one, limit=20)).results[0].hits
    text = driver.ask(Search(collection=name, texts=["fast"], limit=20)).results[0].hits
    dense_scores = {hit.id: hit.score for hit in dense}
    text_scores = {hit.id: hit.score for hit in text}

    result = driver.ask(Search(collection=name, vectors=one, texts=["fast"], **options)).results[0]
    assert result.strategy == "hybrid"
    scores = [hit.score for hit in result.hits]
    assert scores == sorted(scores, reverse=True)
    assert {hit.id for hit in result.hits} >= dense_scores.keys()
    ranks = {hit.id: rank for rank, hit in enumerate(dense, 1)}
    for hit in result.hits:
        if hit.id in ranks:
            assert hit.dense_score == pytest.approx(dense_scores[hit.id], abs=1e-5)
        else:
            assert hit.dense_score is None
        dense_part = 1 / (60 + ranks[hit.id]) if hit.id in ranks else 0.0
        if hit.text_score is None:
            assert hit.score == pytest.approx(dense_part)
        else:
            # Words give many equal scores, so the rank there is known only to be one of the twenty.
            assert dense_part + 1 / 80 - 1e-9 <= hit.score <= dense_part + 1 / 61 + 1e-9

    weighted = driver.ask(
        Search(collection=name, vectors=one, texts=["33"], fusion="weighted", dense_weight=0.25, **options)
    ).results[0]
    low, high = dense[-1].score, dense[0].score
    for hit in weighted.hits:
        scaled = (dense_scores[hit.id] - low) / (high - low) if hit.id in dense_scores else 0.0
        words = 0.75 if hit.id == "p33" else 0.0  # the only one with that word
        assert hit.score == pytest.approx(0.25 * scaled + words, abs=1e-4)
    best = driver.ids(Search(collection=name, vectors=one, texts=["33"], fusion="weighted", dense_weight=0.1, limit=1))
    assert best == ["p33"]
    assert text_scores


def check_groups(driver: Driver, name: str) -> None:
    filled(driver, name)
    search = Search(collection=name, vectors=QUERIES[:1].tobytes(), group_by="meta.level", group_size=2, limit=3)
    result = driver.ask(search).results[0]
    assert result.hits == []
    wanted: dict[int, list[str]] = {}
    for point_id, _ in oracle(QUERIES[0]):
        wanted.setdefault(IDS.index(point_id) % 4, []).append(point_id)
    assert [(group.value, [hit.id for hit in group.hits]) for group in result.groups] == [
        (value, ids[:2]) for value, ids in list(wanted.items())[:3]
    ]
    # Groups that the first hits do not fill.
    result = driver.ask(
        Search(collection=name, vectors=QUERIES[1].tobytes(), group_by="colour", group_size=10, limit=2, offset=1)
    ).results[0]
    by_colour: dict[str, list[str]] = {}
    for point_id, _ in oracle(QUERIES[1]):
        by_colour.setdefault(COLOURS[IDS.index(point_id) % len(COLOURS)], []).append(point_id)
    assert [(group.value, [hit.id for hit in group.hits]) for group in result.groups] == [
        (value, ids[:10]) for value, ids in list(by_colour.items())[1:3]
    ]
    # A field that some lack, with values of one point each.
    result = driver.ask(
        Search(collection=name, vectors=QUERIES[:1].tobytes(), group_by="extra", limit=100, with_payload=False)
    ).results[0]
    ranked = [point_id for point_id, _ in oracle(QUERIES[0]) if IDS.index(point_id) % 7]
    assert [[hit.id for hit in group.hits] for group in result.groups] == [[point_id] for point_id in ranked]
    assert {hit.payload for group in result.groups for hit in group.hits} == {""}


def check_snapshots(driver: Driver, name: str) -> None:
    """Snapshots work, or are refused as a whole."""
    filled(driver, name)
    try:
        made = driver.ask(ops.CreateSnapshot(collection=name))
    except Unimplemented:
        with pytest.raises(Unimplemented, match="napshot"):
            driver.ask(ops.ListSnapshots(collection=name))
        return
    driver.ask(ops.DeletePoints(collection=name, ids=IDS[:30]))
    assert made.snapshot in [s.snapshot for s in driver.ask(ops.ListSnapshots(collection=name)).snapshots]
    driver.ask(ops.RestoreSnapshot(collection=name, snapshot=made.snapshot, target=f"{name}-back"))
    assert driver.ask(ops.CountPoints(collection=f"{name}-back")).count == NUM_POINTS
    driver.ask(ops.DeleteSnapshot(collection=name, snapshot=made.snapshot))
    with pytest.raises(NotFound):
        driver.ask(ops.DeleteSnapshot(collection=name, snapshot=made.snapshot))


def check_many_at_once(driver: Driver, name: str) -> None:
    filled(driver, name)
    operations: list[Operation] = [
        Search(collection=name, vectors=QUERIES[index % 5][None].tobytes(), limit=5) for index in range(40)
    ]
    for index, answer in enumerate(driver.ask_all(operations)):
        wanted = [point_id for point_id, _ in oracle(QUERIES[index % 5])[:5]]
        assert [hit.id for hit in answer.results[0].hits] == wanted


CHECKS = {name.removeprefix("check_"): check for name, check in globals().items() if name.startswith("check_")}
