"""Collections and their points, sync and async, against the scripted server."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

import vorta
from tests.clients.conftest import FAST
from tests.clients.cutting_proxy import CuttingProxy
from tests.clients.fake_server import FakeServer
from tests.clients.fake_vectors import vector_of
from vorta import errors
from vorta.filters import Filter, Match
from vorta.v1 import vector_pb2

POINTS = [
    vorta.Point("a", [1.0, 2.0, 3.0], payload={"year": 2020, "tags": ["x"]}),
    {"id": "b", "vector": np.array([4, 5, 6], dtype=np.float32), "payload": {"time": datetime(2024, 1, 2, tzinfo=UTC)}},
    vorta.Point("c", text="three", payload={"year": np.int64(2021)}),
]


@pytest.fixture
async def aclient(server: FakeServer) -> AsyncIterator[vorta.AsyncClient]:
    async with vorta.AsyncClient(server.target, retry=FAST, timeout_s=20) as client:
        yield client


@pytest.fixture
def docs(client: vorta.Client, server: FakeServer) -> vorta.Collection:
    server.vectors.add("docs")
    return client.collection("docs")


@pytest.fixture
def adocs(aclient: vorta.AsyncClient, server: FakeServer) -> vorta.AsyncCollection:
    server.vectors.add("docs")
    return aclient.collection("docs")


def many(count: int) -> Iterator[vorta.Point]:
    return (vorta.Point(f"p{number:03}", [1.0, 2.0, 3.0]) for number in range(count))


def test_create_collection(client: vorta.Client, server: FakeServer) -> None:
    got = client.create_collection(
        "docs",
        3,
        distance="l2",
        index=vorta.IndexOptions(kind="hnsw", m=16),
        text_fields=["text"],
        schema={"year": "integer", "place": vorta.FieldType.GEO},
        embedding_model="e",
        description="d",
    )
    assert (got.name, got.dimension, got.distance, got.index.kind, got.index.m) == ("docs", 3, "l2", "hnsw", 16)
    assert (got.text_fields, got.schema) == (("text",), {"place": "geo", "year": "integer"})
    assert (got.index.ef_search, got.embedding_model, got.description) == (None, "e", "d")
    assert got.created_time == datetime.fromtimestamp(1_700_000_000, UTC)
    with pytest.raises(errors.AlreadyExists) as caught:
        client.create_collection("docs", index="auto")
    assert caught.value.reason == "COLLECTION_ALREADY_EXISTS"
    request = server.calls["CreateCollection"][1]
    assert request.index.kind == vector_pb2.INDEX_KIND_AUTO
    assert not request.HasField("dimension")
    client.create_collection("plain")
    assert [entry.name for entry in client.list_collections()] == ["docs", "plain"]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"distance": "far"}, "distance"),
        ({"index": "tree"}, "kind"),
        ({"schema": {"year": "number"}}, "schema"),
        ({"schema": {"year": 3}}, "schema"),
        ({"dimension": 2**40}, "dimension"),
    ],
)
def test_a_bad_definition_is_named(client: vorta.Client, options: Any, field: str) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        client.create_collection("docs", **options)
    assert caught.value.field == field


def test_administration(client: vorta.Client, server: FakeServer) -> None:
    client.create_collection("docs")
    client.collection("docs").upsert(POINTS)
    assert client.get_collection("docs").stats == client.collection_stats("docs")
    assert client.collection_stats("docs").num_points == 3
    assert client.collection_stats("docs").index_kind is vorta.IndexKind.FLAT
    assert client.swap_alias("live", "docs") == vorta.Alias(alias="live", collection="docs")
    assert client.swap_alias("live", "docs").previous_collection == "docs"
    assert client.list_aliases() == [vorta.Alias(alias="live", collection="docs")]
    assert client.collection("live").count() == 3
    client.delete_alias("live")
    with pytest.raises(errors.NotFound) as caught:
        client.delete_alias("live")
    assert caught.value.reason == "ALIAS_NOT_FOUND"
    snapshot = client.create_snapshot("docs")
    assert (snapshot.num_points, snapshot.created_time.year) == (3, 2023)
    assert client.list_snapshots("docs") == [snapshot]
    assert client.restore_snapshot("docs", snapshot.snapshot, target="copy", replace=False).name == "copy"
    assert server.calls["RestoreSnapshot"][0].HasField("replace")
    client.delete_snapshot("docs", snapshot.snapshot)
    with pytest.raises(errors.NotFound):
        client.restore_snapshot("docs", snapshot.snapshot)
    client.delete_collection("docs")
    with pytest.raises(errors.NotFound) as caught:
        client.get_collection("docs")
    assert (caught.value.reason, caught.value.metadata) == ("COLLECTION_NOT_FOUND", {"collection": "docs"})


def test_upsert_and_get(docs: vorta.Collection, server: FakeServer) -> None:
    assert docs.upsert(POINTS) == vorta.WriteResult(count=3, sequence=1)
    (request,) = server.calls["Upsert"]
    assert not any(point.vector or point.HasField("payload") for point in request.points)
    assert request.points[2].text == "three"
    got = docs.get(["c", "none", "a", "b"], with_vector=True)
    assert [point.id for point in got] == ["c", "a", "b"]
    assert [point.vector for point in got] == [vector_of("three"), [1, 2, 3], [4, 5, 6]]
    assert got[0].payload == {"text": "three", "year": 2021}
    assert got[1].payload == {"year": 2020, "tags": ["x"]}
    assert got[2].payload == {"time": "2024-01-02T00:00:00+00:00"}
    assert docs.get("a")[0].vector is None
    assert docs.get("a", with_payload=False)[0].payload == {}
    assert docs.upsert(vorta.Point("d", [1.0]), wait=False).count == 1
    assert server.calls["Upsert"][1].wait is False


@pytest.mark.parametrize(
    ("point", "error", "match"),
    [
        ({"id": "x", "vectors": [1]}, TypeError, r"points\[1\] has an unknown key 'vectors'"),
        (3, TypeError, r"points\[1\] must be a Point"),
        (vorta.Point(3), TypeError, r"points\[1\]\.id must be a string"),  # type: ignore[arg-type]
        (vorta.Point("x", "text"), TypeError, r"points\[1\]\.vector must be numbers"),  # type: ignore[arg-type]
        (vorta.Point("x", b"123"), errors.InvalidArgument, r"points\[1\]\.vector: 3 bytes"),
        (vorta.Point("x", text="\ud800"), errors.InvalidArgument, r"points\[1\]\.text"),
        (vorta.Point("x", payload={"a": float("nan")}), errors.InvalidArgument, r"points\[1\]\.payload"),
        (vorta.Point("x", payload={"a": object()}), TypeError, r"points\[1\]\.payload must be JSON"),
        (vorta.Point("x", payload={"a": datetime(2024, 1, 2)}), TypeError, r"points\[1\]\.payload must be JSON"),
        (vorta.Point("x", payload=[1]), TypeError, r"points\[1\]\.payload must be a mapping"),  # type: ignore[arg-type]
    ],
)
def test_a_bad_point_is_named(docs: vorta.Collection, point: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        docs.upsert([POINTS[0], point])
    with pytest.raises(error, match=match):
        list(docs.stream_upsert([POINTS[0], point], batch_size=1))


def test_writes_are_retried(docs: vorta.Collection, server: FakeServer) -> None:
    server.fail_next("Upsert", errors.Unavailable("again"))
    server.fail_next("DeletePoints", errors.Unavailable("again"))
    assert docs.upsert(POINTS).count == 3
    assert docs.delete(ids=["a", "none"]).count == 1
    server.fail_next("CreateCollection", errors.Unavailable("again"))
    with pytest.raises(errors.Unavailable):
        vorta.Client(server.target, retry=FAST).create_collection("new")


def test_delete_count_scroll(docs: vorta.Collection, server: FakeServer) -> None:
    docs.upsert(list(many(7)))
    docs.upsert(vorta.Point("z", [1.0], payload={"lang": "en"}))
    assert docs.count() == 8
    english = Filter(must=[Match("lang", "en")])
    assert docs.count(filter=english) == docs.count(filter=english.to_dict()) == 1
    assert [point.id for point in docs.scroll(page_size=3)] == [*(f"p{number:03}" for number in range(7)), "z"]
    assert len(server.calls["ScrollPoints"]) == 3
    scrolled = docs.scroll(filter=english, with_vector=True)
    assert len(server.calls["ScrollPoints"]) == 3
    assert [(point.id, point.vector, point.payload) for point in scrolled] == [("z", [1.0], {"lang": "en"})]
    server.fail_next("ScrollPoints", errors.Unavailable("again"))
    assert len(list(docs.scroll())) == 8
    assert docs.delete(filter=english).count == 1
    assert docs.count() == 7


@pytest.mark.parametrize("options", [{}, {"ids": ["a"], "filter": {}}])
def test_delete_takes_ids_or_a_filter(docs: vorta.Collection, options: Any) -> None:
    with pytest.raises(errors.InvalidArgument, match="either ids or a filter"):
        docs.delete(**options)


def test_search(docs: vorta.Collection, server: FakeServer) -> None:
    docs.upsert(POINTS)
    got = docs.search(
        np.array([1, 2, 3]), limit=2, offset=0, filter={"must": []}, score_threshold=0.1, exact=True, ef_search=9
    )
    assert [(hit.id, hit.score) for hit in got] == [("a", 1), ("b", 0.5)]
    assert (len(got), got[0].payload["year"], got[0].vector, got.strategy) == (2, 2020, None, "exact")
    (request,) = server.calls["Search"]
    assert request.vector_packed == vorta._packed.pack_vector([1, 2, 3], "")
    assert (request.compact, request.limit, request.HasField("offset"), request.HasField("filter")) == (
        True,
        2,
        True,
        True,
    )
    docs.search(text="sun")
    docs.search(id="a")
    assert [(entry.text, entry.id) for entry in server.calls["Search"][1:]] == [("sun", ""), ("", "a")]
    grouped = docs.search(text="sun", group_by="year", group_size=1)
    assert [(group.value, group.hits[0].id) for group in grouped.groups] == [(7, "a"), (7, "b"), (7, "c")]
    assert not grouped.hits


def test_batch_and_hybrid_search(docs: vorta.Collection, server: FakeServer) -> None:
    docs.upsert(POINTS)
    assert [len(result) for result in docs.batch_search(np.ones((2, 3), dtype=np.float32), limit=1)] == [1, 1]
    docs.batch_search(texts=["a", "b"], with_vector=True)
    docs.batch_search(ids=["a"])
    first, second, third = server.calls["BatchSearch"]
    assert [len(query.vector_packed) for query in first.queries] == [12, 12]
    assert [query.text for query in second.queries] == ["a", "b"]
    assert third.queries[0].id == "a"
    got = docs.hybrid_search("sun", vector=[1.0], fusion="weighted", dense_weight=0.3, rrf_k=2, num_candidates=50)
    assert [(hit.dense_score, hit.text_score) for hit in got] == [(0.0, None), (None, 3.0), (0.0, None)]
    (request,) = server.calls["HybridSearch"]
    assert (request.fusion, request.text, request.num_candidates) == (vector_pb2.FUSION_WEIGHTED, "sun", 50)
    assert got.strategy == "hybrid"


@pytest.mark.parametrize(
    ("method", "arguments", "error", "match"),
    [
        ("search", {}, errors.InvalidArgument, "one of vector, text and id"),
        ("search", {"text": "a", "id": "b"}, errors.InvalidArgument, "one of vector, text and id"),
        ("search", {"text": "a", "limits": 3}, TypeError, r"search\(\) got an unknown keyword 'limits'"),
        ("search", {"text": "a", "fusion": "rrf"}, TypeError, "fusion"),
        ("search", {"vector": "a"}, TypeError, "a text goes by the name `text`"),
        ("batch_search", {}, errors.InvalidArgument, "one of vectors, texts and ids"),
        ("batch_search", {"texts": "a"}, TypeError, "texts must be a sequence"),
        ("batch_search", {"vectors": [[]]}, errors.InvalidArgument, r"vectors\[0\]"),
        ("hybrid_search", {"text": "a", "fusion": "sum"}, errors.InvalidArgument, "rrf, weighted"),
        ("hybrid_search", {"text": "a", "filter": {"x": 1}}, errors.InvalidArgument, "filter"),
    ],
)
def test_bad_searches_are_named(
    docs: vorta.Collection, method: str, arguments: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        getattr(docs, method)(**arguments)


def test_payloads_of_servers_that_know_no_compact_form() -> None:
    from vorta import _vector_response

    hit = vector_pb2.Hit(id="a", vector=[1, 2])
    hit.payload.update({"n": 3, "x": 0.5, "none": None, "deep": {"list": [True, "t", {}]}})
    (got,) = _vector_response.hits([hit])
    assert got.payload == {"n": 3, "x": 0.5, "none": None, "deep": {"list": [True, "t", {}]}}
    assert isinstance(got.payload["n"], int)
    assert got.vector == [1.0, 2.0]
    with pytest.raises(errors.Internal, match="no JSON"):
        _vector_response.hits([vector_pb2.Hit(id="a", payload_json="{")])


def test_stream_upsert(docs: vorta.Collection, server: FakeServer) -> None:
    acks = list(docs.stream_upsert(many(7), batch_size=3))
    assert [(ack.index, ack.count, ack.sequence) for ack in acks] == [(0, 3, 1), (1, 3, 2), (2, 1, 3)]
    assert docs.count() == 7
    assert list(docs.stream_upsert([])) == []
    assert len(server.calls["StreamUpsert"]) == 3


def test_stream_upsert_takes_points_in_this_thread_and_not_too_many(docs: vorta.Collection, server: FakeServer) -> None:
    threads = set()
    num_taken = num_answered = 0
    ahead = []

    def points() -> Iterator[vorta.Point]:
        nonlocal num_taken
        for point in many(40):
            threads.add(threading.get_ident())
            num_taken += 1
            ahead.append(num_taken - num_answered)
            yield point

    for ack in docs.stream_upsert(points(), batch_size=2, max_in_flight=3):
        num_answered += ack.count
    assert num_answered == 40
    assert max(ahead) <= 8  # three batches unanswered, and the next one being made
    assert threads == {threading.get_ident()}


def test_stream_upsert_waits_for_the_server(docs: vorta.Collection, server: FakeServer) -> None:
    num_taken = 0

    def points() -> Iterator[vorta.Point]:
        nonlocal num_taken
        for point in many(100):
            num_taken += 1
            yield point

    server.vectors.on_batch = lambda index: server.block.wait(20) and None
    acks = docs.stream_upsert(points(), batch_size=1, max_in_flight=5)
    threading.Timer(0.1, server.block.set).start()
    next(acks)
    assert num_taken == 5
    acks.close()
    assert num_taken == 5


def test_stream_upsert_fails_in_the_middle(docs: vorta.Collection) -> None:
    points = [*many(4), vorta.Point("bad", [1.0]), vorta.Point("late", [1.0])]
    acks: list[vorta.UpsertAck] = []
    with pytest.raises(errors.InvalidArgument) as caught:
        acks.extend(docs.stream_upsert(points, batch_size=2))
    assert [ack.index for ack in acks] == [0, 1]
    assert caught.value.field == "points[0].id"
    assert docs.count() == 4


def test_stream_upsert_of_a_source_that_fails(docs: vorta.Collection) -> None:
    def points() -> Iterator[vorta.Point]:
        yield from many(2)
        raise KeyError("source")

    acks: list[vorta.UpsertAck] = []
    with pytest.raises(KeyError, match="source"):
        acks.extend(docs.stream_upsert(points(), batch_size=1, max_in_flight=1))
    assert [ack.index for ack in acks] == [0, 1]


@pytest.mark.parametrize("max_batches", [0, 2])
def test_a_server_that_ends_early_is_an_error(docs: vorta.Collection, server: FakeServer, max_batches: int) -> None:
    server.vectors.max_batches = max_batches
    with pytest.raises(errors.Internal, match=f"after {max_batches} of"):
        list(docs.stream_upsert(many(9), batch_size=1, max_in_flight=2))


def test_a_cut_stream_is_an_error(proxied: vorta.Client, proxy: CuttingProxy, server: FakeServer) -> None:
    server.vectors.add("docs")
    server.vectors.on_batch = lambda index: proxy.cut() if index == 2 else None
    with pytest.raises(errors.Unavailable) as caught:
        list(proxied.collection("docs").stream_upsert(many(9), batch_size=1))
    assert caught.value.reason == "CONNECTION_FAILED"


async def test_async_administration(aclient: vorta.AsyncClient, server: FakeServer) -> None:
    created = await aclient.create_collection("docs", 3, index="flat")
    assert created.index.kind is vorta.IndexKind.FLAT
    assert await aclient.list_collections() == [created]
    assert (await aclient.get_collection("docs")).name == "docs"
    assert (await aclient.collection_stats("docs")).num_points == 0
    await aclient.swap_alias("live", "docs")
    assert (await aclient.list_aliases())[0].alias == "live"
    await aclient.delete_alias("live")
    snapshot = await aclient.create_snapshot("docs")
    assert await aclient.list_snapshots("docs") == [snapshot]
    assert (await aclient.restore_snapshot("docs", "s0")).name == "docs"
    await aclient.delete_snapshot("docs", "s0")
    await aclient.delete_collection("docs")
    with pytest.raises(errors.NotFound):
        await aclient.get_collection("docs")


async def test_async_points(adocs: vorta.AsyncCollection, server: FakeServer) -> None:
    server.fail_next("Upsert", errors.Unavailable("again"))
    assert (await adocs.upsert(POINTS)).count == 3
    assert [point.vector for point in await adocs.get(["a", "b"], with_vector=True)] == [[1, 2, 3], [4, 5, 6]]
    assert [point.id async for point in adocs.scroll(page_size=2)] == ["a", "b", "c"]
    assert await adocs.count(filter={"must": [{"field": "year", "match": 2020}]}) == 1
    assert [hit.id for hit in await adocs.search(text="sun", limit=1)] == ["a"]
    assert len(await adocs.batch_search(ids=["a", "b"])) == 2
    assert [hit.dense_score for hit in await adocs.hybrid_search("sun", limit=1)] == [0.0]
    assert (await adocs.delete(ids=["a"])).count == 1
    assert [event.text async for event in adocs.answer("why so") if event.text] == ["why ", "so "]


async def test_async_stream_upsert(adocs: vorta.AsyncCollection, server: FakeServer) -> None:
    async def points() -> AsyncIterator[vorta.Point]:
        for point in many(5):
            yield point

    assert [ack.count async for ack in adocs.stream_upsert(points(), batch_size=2)] == [2, 2, 1]
    assert [ack.count async for ack in adocs.stream_upsert(many(5), batch_size=5)] == [5]
    assert [ack async for ack in adocs.stream_upsert([])] == []
    acks = adocs.stream_upsert([*many(2), vorta.Point("bad", [1.0])], batch_size=1, max_in_flight=2)
    assert [(await anext(acks)).index for _ in range(2)] == [0, 1]
    with pytest.raises(errors.InvalidArgument):
        await anext(acks)
    server.vectors.max_batches = 1
    with pytest.raises(errors.Internal, match="after 1 of"):
        [ack async for ack in adocs.stream_upsert(many(9), batch_size=1, max_in_flight=2)]


async def test_async_stream_upsert_waits_for_the_server(adocs: vorta.AsyncCollection, server: FakeServer) -> None:
    num_taken = 0

    def points() -> Iterator[vorta.Point]:
        nonlocal num_taken
        for point in many(100):
            num_taken += 1
            yield point

    server.vectors.on_batch = lambda index: server.block.wait(20) and None
    acks = adocs.stream_upsert(points(), batch_size=1, max_in_flight=5)
    threading.Timer(0.1, server.block.set).start()
    await anext(acks)
    assert num_taken == 5
    await acks.aclose()
    assert num_taken == 5
