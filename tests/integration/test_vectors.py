"""VectorService against a real server: messages, the vector worker, SQLite and FAISS behind it."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Value

from tests.integration.served import Served, error_of, ports_of, serve_command, serving
from vorta.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from vorta.v1 import vector_pb2 as pb
from vorta.v1 import vector_pb2_grpc
from vorta.wire import error_from_rpc

MODELS = ("--runner", "fake", "--model", "m=fake", "--model", "e=fake-embedding")
ANIMALS = ["cat", "dog", "horse", "sparrow", "whale", "ant"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("vectors"), *MODELS, "--set", "vector.max_payload_bytes=4096") as served:
        yield served


def vector(index: int, dimension: int = 4) -> list[float]:
    return [float((index * 7 + position * 3) % 11 + 1) for position in range(dimension)]


def payload(index: int) -> dict[str, Any]:
    return {
        "number": index,
        "animal": ANIMALS[index % len(ANIMALS)],
        "text": f"the {ANIMALS[index % len(ANIMALS)]} number {index} sleeps",
        "when": f"2026-03-{index % 28 + 1:02d}T08:00:00Z",
        "place": {"lat": 48.0 + index / 10, "lon": 11.0},
        "is_big": index % 2 == 0,
    }


def filled(server: Served, name: str, count: int = 24, **options: Any) -> str:
    values: dict[str, Any] = {"dimension": 4, "distance": pb.DISTANCE_L2, "text_fields": ["text"]} | options
    server.vectors.CreateCollection(pb.CreateCollectionRequest(collection=name, **values), timeout=20)
    points = [pb.Point(id=f"p{i:02d}", vector=vector(i), payload_json=json.dumps(payload(i))) for i in range(count)]
    written = server.vectors.Upsert(pb.UpsertRequest(collection=name, points=points), timeout=20)
    assert (written.count, written.sequence) == (count, 1)
    return name


def ids(response: Any) -> list[str]:
    return [hit.id for hit in response.hits]


def nearest(index: int) -> list[str]:
    query = vector(index)
    order = sorted(range(24), key=lambda i: (sum((a - b) ** 2 for a, b in zip(vector(i), query, strict=True)), i))
    return [f"p{i:02d}" for i in order]


def test_a_collection_from_its_making_to_its_end(server: Served) -> None:
    request = pb.CreateCollectionRequest(
        collection="life",
        distance=pb.DISTANCE_DOT,
        index=pb.IndexOptions(kind=pb.INDEX_KIND_HNSW, m=16),
        text_fields=["title"],
        schema={"year": pb.FIELD_TYPE_INTEGER},
        description="of a test",
    )
    made = server.vectors.CreateCollection(request, timeout=20).collection
    assert made.dimension == 64  # the embedding model's
    assert (made.distance, made.index.kind, made.index.m) == (pb.DISTANCE_DOT, pb.INDEX_KIND_HNSW, 16)
    assert dict(made.schema) == {"year": pb.FIELD_TYPE_INTEGER, "title": pb.FIELD_TYPE_TEXT}
    got = server.vectors.GetCollection(pb.GetCollectionRequest(collection="life"), timeout=20).collection
    assert (got.description, list(got.text_fields), got.created_time_s > 0) == ("of a test", ["title"], True)
    stats = server.vectors.GetCollectionStats(pb.GetCollectionStatsRequest(collection="life"), timeout=20).stats
    assert (stats.num_points, stats.sequence) == (0, 0)
    listed = server.vectors.ListCollections(pb.ListCollectionsRequest(), timeout=20).collections
    assert "life" in [collection.collection for collection in listed]
    assert isinstance(error_of(server.vectors.CreateCollection, request), AlreadyExists)
    server.vectors.DeleteCollection(pb.DeleteCollectionRequest(collection="life"), timeout=20)
    error = error_of(server.vectors.GetCollection, pb.GetCollectionRequest(collection="life"))
    assert isinstance(error, NotFound)
    assert (error.reason, error.metadata["collection"]) == ("COLLECTION_NOT_FOUND", "life")


def test_points_by_id_pages_counts_and_deletes(server: Served) -> None:
    name = filled(server, "points")
    got = server.vectors.GetPoints(
        pb.GetPointsRequest(collection=name, ids=["p03", "nobody", "p01"], with_vector=True), timeout=20
    ).points
    assert [point.id for point in got] == ["p03", "p01"]
    assert list(got[0].vector) == vector(3)
    assert json_format.MessageToDict(got[0].payload) == payload(3)
    (compact,) = server.vectors.GetPoints(
        pb.GetPointsRequest(collection=name, ids=["p03"], with_vector=True, compact=True), timeout=20
    ).points
    assert json.loads(compact.payload_json) == payload(3)
    assert list(struct.unpack("<4f", compact.vector_packed)) == vector(3)
    found, token = [], ""
    while True:
        page = server.vectors.ScrollPoints(
            pb.ScrollPointsRequest(collection=name, page_token=token, limit=7, with_payload=False), timeout=20
        )
        found += [point.id for point in page.points]
        token = page.next_page_token
        if not token:
            break
    assert found == [f"p{i:02d}" for i in range(24)]
    big = pb.Filter(must=[pb.Condition(field="is_big", match={"bool_value": True})])  # type: ignore[arg-type]
    assert server.vectors.CountPoints(pb.CountPointsRequest(collection=name, filter=big), timeout=20).count == 12
    deleted = server.vectors.DeletePoints(pb.DeletePointsRequest(collection=name, ids=["p00", "x"]), timeout=20)
    assert (deleted.count, deleted.sequence) == (1, 2)
    assert server.vectors.DeletePoints(pb.DeletePointsRequest(collection=name, filter=big), timeout=20).count == 11
    assert server.vectors.CountPoints(pb.CountPointsRequest(collection=name), timeout=20).count == 12


def test_every_condition_passes_the_wire(server: Served) -> None:
    name = filled(server, "filters")

    def value(given: Any) -> Value:
        return json_format.ParseDict(given, Value())

    conditions = [
        (pb.Condition(field="animal", match=value("cat")), lambda p: p["animal"] == "cat"),
        (pb.Condition(field="number", match=value(7)), lambda p: p["number"] == 7),
        (
            pb.Condition(field="animal", any_of={"values": [value("ant"), value("dog")]}),
            lambda p: p["animal"] in ("ant", "dog"),
        ),
        (pb.Condition(field="number", range=pb.NumberRange(gt=3, lte=9)), lambda p: 3 < p["number"] <= 9),
        (
            pb.Condition(
                field="when",
                datetime_range=pb.DatetimeRange(gte="2026-03-05T08:00:00Z", lt="2026-03-08T10:00:00+02:00"),
            ),
            lambda p: "2026-03-05" <= p["when"][:10] < "2026-03-08",
        ),
        (pb.Condition(field="animal", exists=True), lambda p: True),
        (pb.Condition(field="text", text="cat sleeps"), lambda p: p["animal"] == "cat"),
        (
            pb.Condition(field="place", geo_radius=pb.GeoRadius(latitude=48.5, longitude=11, radius_m=12_000)),
            lambda p: abs(p["number"] - 5) <= 1,
        ),
        (pb.Condition(has_id=pb.IdList(ids=["p04", "p09"])), lambda p: p["number"] in (4, 9)),
        (
            pb.Condition(filter=pb.Filter(must_not=[pb.Condition(field="number", range=pb.NumberRange(gte=2))])),
            lambda p: p["number"] < 2,
        ),
    ]
    for condition, passes in conditions:
        wanted = {f"p{i:02d}" for i in range(24) if passes(payload(i))}
        request = pb.SearchRequest(
            collection=name, vector=vector(0), limit=100, filter=pb.Filter(must=[condition]), with_payload=False
        )
        assert set(ids(server.vectors.Search(request, timeout=20))) == wanted, condition


def test_searches_of_every_form(server: Served) -> None:
    name = filled(server, "search")
    by_vector = server.vectors.Search(pb.SearchRequest(collection=name, vector=vector(5), limit=5), timeout=20)
    assert by_vector.hits[0].id in ("p05", "p16")
    assert by_vector.hits[0].score == 0.0
    assert by_vector.strategy == "exact"
    assert json_format.MessageToDict(by_vector.hits[0].payload)["text"].startswith("the ")
    packed = struct.pack("<4f", *vector(5))
    same = server.vectors.Search(
        pb.SearchRequest(collection=name, vector_packed=packed, limit=5, compact=True, with_vector=True), timeout=20
    )
    assert ids(same) == ids(by_vector)
    assert json.loads(same.hits[0].payload_json)
    assert len(same.hits[0].vector_packed) == 16
    by_id = server.vectors.Search(pb.SearchRequest(collection=name, id="p05", limit=24), timeout=20)
    assert "p05" not in ids(by_id)
    assert len(by_id.hits) == 23
    batch = server.vectors.BatchSearch(
        pb.BatchSearchRequest(collection=name, queries=[pb.SearchQuery(vector=vector(i)) for i in range(9)], limit=3)
    )
    assert [result.hits[0].score for result in batch.results] == [0.0] * 9
    hybrid = server.vectors.HybridSearch(
        pb.HybridSearchRequest(
            collection=name, text="whale", vector=vector(0), limit=3, fusion=pb.FUSION_WEIGHTED, dense_weight=0.1
        ),
        timeout=20,
    )
    assert {json_format.MessageToDict(hit.payload)["animal"] for hit in hybrid.hits} == {"whale"}
    assert all(hit.HasField("text_score") for hit in hybrid.hits)
    groups = server.vectors.Search(
        pb.SearchRequest(collection=name, vector=vector(0), group_by="animal", group_size=2, limit=3), timeout=20
    )
    assert [len(group.hits) for group in groups.groups] == [2, 2, 2]
    assert len({group.value.string_value for group in groups.groups}) == 3


def test_texts_are_embedded_in_the_server(server: Served) -> None:
    server.vectors.CreateCollection(pb.CreateCollectionRequest(collection="texts", text_fields=["body"]), timeout=20)
    texts = ["the quick brown fox", "a slow green turtle", "the quick brown dog", "nothing of the kind"]
    points = [pb.Point(id=f"t{i}", text=text, payload_json='{"kind": "note"}') for i, text in enumerate(texts)]
    points.append(pb.Point(id="t4", text="embedded", payload_json='{"body": "kept as it is"}'))
    server.vectors.Upsert(pb.UpsertRequest(collection="texts", points=points), timeout=20)
    got = server.vectors.GetPoints(pb.GetPointsRequest(collection="texts", ids=["t0", "t4"]), timeout=20).points
    assert json_format.MessageToDict(got[0].payload) == {"kind": "note", "body": texts[0]}
    assert json_format.MessageToDict(got[1].payload) == {"body": "kept as it is"}
    found = server.vectors.Search(pb.SearchRequest(collection="texts", text="the quick brown fox", limit=2), timeout=20)
    assert ids(found) == ["t0", "t2"]
    batch = server.vectors.BatchSearch(
        pb.BatchSearchRequest(
            collection="texts", queries=[pb.SearchQuery(text=texts[1]), pb.SearchQuery(text=texts[3])], limit=1
        ),
        timeout=20,
    )
    assert [ids(result) for result in batch.results] == [["t1"], ["t3"]]
    hybrid = server.vectors.HybridSearch(pb.HybridSearchRequest(collection="texts", text="turtle", limit=1), timeout=20)
    assert ids(hybrid) == ["t1"]


def test_a_streamed_upsert_is_answered_batch_by_batch(server: Served) -> None:
    filled(server, "stream", count=1)

    def batches(bad_at: int) -> Iterator[pb.StreamUpsertRequest]:
        for index in range(12):
            points = [pb.Point(id=f"s{index}-{i}", vector=vector(i)) for i in range(10)]
            if index == bad_at:
                points[3].vector[1] = float("nan")
            yield pb.StreamUpsertRequest(collection="stream" if index == 0 else "", points=points)

    answers = list(server.vectors.StreamUpsert(batches(-1), timeout=30))
    assert [(answer.index, answer.count) for answer in answers] == [(index, 10) for index in range(12)]
    assert [answer.sequence for answer in answers] == list(range(2, 14))
    assert server.vectors.CountPoints(pb.CountPointsRequest(collection="stream"), timeout=20).count == 121
    answered = []
    with pytest.raises(grpc.RpcError) as caught:
        answered.extend(server.vectors.StreamUpsert(batches(6), timeout=30))
    error = error_from_rpc(caught.value)
    assert isinstance(error, InvalidArgument)
    assert "[3]" in str(error.field)
    end = pb.StreamUpsertRequest(collection="other", points=[pb.Point(id="a", vector=vector(0))])
    first = pb.StreamUpsertRequest(collection="stream", points=[pb.Point(id="a", vector=vector(0))])
    assert error_of(server.vectors.StreamUpsert, iter([first, end])).field == "collection"


def test_aliases_and_snapshots(server: Served) -> None:
    name = filled(server, "blue")
    filled(server, "green", count=3)
    swapped = server.vectors.SwapAlias(pb.SwapAliasRequest(alias="now", collection=name), timeout=20)
    assert (swapped.alias.collection, swapped.previous_collection) == (name, "")
    count = pb.CountPointsRequest(collection="now")
    assert server.vectors.CountPoints(count, timeout=20).count == 24
    swapped = server.vectors.SwapAlias(pb.SwapAliasRequest(alias="now", collection="green"), timeout=20)
    assert swapped.previous_collection == name
    assert server.vectors.CountPoints(count, timeout=20).count == 3
    aliases = server.vectors.ListAliases(pb.ListAliasesRequest(), timeout=20).aliases
    assert ("now", "green") in [(alias.alias, alias.collection) for alias in aliases]
    server.vectors.DeleteAlias(pb.DeleteAliasRequest(alias="now"), timeout=20)
    assert error_of(server.vectors.CountPoints, count).reason == "COLLECTION_NOT_FOUND"

    made = server.vectors.CreateSnapshot(pb.CreateSnapshotRequest(collection=name), timeout=20).snapshot
    assert (made.collection, made.num_points, made.size_bytes > 0) == (name, 24, True)
    server.vectors.DeletePoints(pb.DeletePointsRequest(collection=name, ids=["p01", "p02"]), timeout=20)
    listed = server.vectors.ListSnapshots(pb.ListSnapshotsRequest(collection=name), timeout=20).snapshots
    assert [snapshot.snapshot for snapshot in listed] == [made.snapshot]
    restore = pb.RestoreSnapshotRequest(collection=name, snapshot=made.snapshot)
    assert isinstance(error_of(server.vectors.RestoreSnapshot, restore), AlreadyExists)
    restore.replace = True
    restored = server.vectors.RestoreSnapshot(restore, timeout=20).collection
    assert (restored.collection, restored.stats.num_points) == (name, 24)
    delete = pb.DeleteSnapshotRequest(collection=name, snapshot=made.snapshot)
    server.vectors.DeleteSnapshot(delete, timeout=20)
    assert error_of(server.vectors.DeleteSnapshot, delete).reason == "SNAPSHOT_NOT_FOUND"


def test_bad_input_is_refused_by_name(server: Served) -> None:
    name = filled(server, "bad")
    cosine = filled(server, "bad-cosine", distance=pb.DISTANCE_COSINE)

    def upsert(**fields: Any) -> pb.UpsertRequest:
        return pb.UpsertRequest(collection=name, points=[pb.Point(**({"id": "n", "vector": vector(0)} | fields))])

    def where(**fields: Any) -> pb.SearchRequest:
        condition = pb.Condition(**fields)
        return pb.SearchRequest(collection=name, vector=vector(0), filter=pb.Filter(must=[condition]))

    deep = "[" * 200 + "]" * 200
    stub = server.vectors
    cases: list[tuple[Any, Any, str | None, str]] = [
        (stub.Upsert, upsert(vector=[1.0, 2.0]), None, "DIMENSION_MISMATCH"),
        (stub.Upsert, upsert(vector=[1.0, float("nan"), 0.0, 0.0]), "vectors[0]", "INVALID_FIELD"),
        (stub.Upsert, upsert(vector=[1.0, float("inf"), 0.0, 0.0]), "vectors[0]", "INVALID_FIELD"),
        (stub.Upsert, upsert(vector=[], vector_packed=b"abc"), "points[0].vector_packed", "INVALID_FIELD"),
        (stub.Upsert, upsert(vector_packed=b"\0" * 16), "points[0].vector_packed", "CONFLICTING_FIELDS"),
        (stub.Upsert, upsert(vector=[]), "points[0].vector", "MISSING_FIELD"),
        (stub.Upsert, upsert(text="both"), "points[0].text", "CONFLICTING_FIELDS"),
        (stub.Upsert, upsert(id=""), "ids[0]", "INVALID_FIELD"),
        (stub.Upsert, upsert(payload_json="{"), "payloads[0]", "INVALID_FIELD"),
        (stub.Upsert, upsert(payload_json=f'{{"a": {deep}}}'), "payloads[0]", "INVALID_FIELD"),
        (stub.Upsert, upsert(payload_json=json.dumps({"a": "x" * 5000})), "payloads[0]", "INVALID_FIELD"),
        (stub.Upsert, pb.UpsertRequest(collection=name), "points", "MISSING_FIELD"),
        (stub.Upsert, pb.UpsertRequest(points=upsert().points), "collection", "MISSING_FIELD"),
        (stub.Upsert, pb.UpsertRequest(collection=name, points=list(upsert().points) * 2), "ids[1]", "INVALID_FIELD"),
        (
            stub.Upsert,
            pb.UpsertRequest(collection=cosine, points=upsert(vector=[0.0] * 4).points),
            "vectors[0]",
            "INVALID_FIELD",
        ),
        (stub.Search, pb.SearchRequest(collection=name), "vector", "MISSING_FIELD"),
        (stub.Search, pb.SearchRequest(collection=name, vector=vector(0), text="x"), "text", "CONFLICTING_FIELDS"),
        (stub.Search, pb.SearchRequest(collection=name, vector=[1.0]), None, "DIMENSION_MISMATCH"),
        (stub.Search, pb.SearchRequest(collection=name, vector=vector(0), limit=0), "limit", "INVALID_FIELD"),
        (stub.Search, pb.SearchRequest(collection=name, vector=vector(0), limit=10_001), "limit", "INVALID_FIELD"),
        (stub.Search, pb.SearchRequest(collection=name, vector=vector(0), offset=-1), "offset", "INVALID_FIELD"),
        (stub.Search, pb.SearchRequest(collection=name, vector=vector(0), ef_search=0), "ef_search", "INVALID_FIELD"),
        (stub.Search, pb.SearchRequest(collection=name, text="y" * 70_000), "text", "INPUT_TOO_LONG"),
        (stub.Search, where(field="nobody", exists=True), "filter.must[0].field", "FILTER_FIELD_UNKNOWN"),
        (stub.Search, where(field="animal", range=pb.NumberRange(gt=1)), "filter.must[0]", "FIELD_TYPE_MISMATCH"),
        (stub.Search, where(field="number", match={"number_value": 1.5}), "filter.must[0].match", "INVALID_FIELD"),
        (stub.Search, where(field="number"), "filter.must[0]", "MISSING_FIELD"),
        (stub.Search, where(match={"string_value": "x"}), "filter.must[0].field", "MISSING_FIELD"),
        (
            stub.Search,
            where(field="when", datetime_range=pb.DatetimeRange(gt="soon")),
            "filter.must[0].datetime_range.gt",
            "INVALID_FIELD",
        ),
        (
            stub.Search,
            where(has_id=pb.IdList(ids=[str(i) for i in range(1_000_000)])),
            "filter.must[0].has_id",
            "INVALID_FIELD",
        ),
        (stub.HybridSearch, pb.HybridSearchRequest(collection=name), "text", "MISSING_FIELD"),
        (
            stub.HybridSearch,
            pb.HybridSearchRequest(collection=name, text="x", rrf_k=0, vector=vector(0)),
            "rrf_k",
            "INVALID_FIELD",
        ),
        (stub.BatchSearch, pb.BatchSearchRequest(collection=name), "queries", "INVALID_FIELD"),
        (
            stub.BatchSearch,
            pb.BatchSearchRequest(
                collection=name, queries=[pb.SearchQuery(vector=vector(0)), pb.SearchQuery(id="p01")]
            ),
            "queries[1]",
            "INVALID_FIELD",
        ),
        (stub.GetPoints, pb.GetPointsRequest(collection=name), "ids", "MISSING_FIELD"),
        (stub.DeletePoints, pb.DeletePointsRequest(collection=name), "ids", "MISSING_FIELD"),
        (stub.ScrollPoints, pb.ScrollPointsRequest(collection=name, limit=0), "limit", "INVALID_FIELD"),
        (stub.SwapAlias, pb.SwapAliasRequest(alias="-bad", collection=name), "alias", "INVALID_FIELD"),
        (stub.SwapAlias, pb.SwapAliasRequest(collection=name), "alias", "MISSING_FIELD"),
        (
            stub.CreateCollection,
            pb.CreateCollectionRequest(collection="a b", dimension=4),
            "collection",
            "INVALID_FIELD",
        ),
        (stub.CreateCollection, pb.CreateCollectionRequest(collection="x", dimension=0), "dimension", "INVALID_FIELD"),
    ]
    for call, request, field, reason in cases:
        error = error_of(call, request)
        assert isinstance(error, InvalidArgument), (request, error)
        assert error.reason == reason, (error.message, str(request)[:300])
        assert field is None or error.field == field, error.message
    for call, request in (
        (stub.Search, pb.SearchRequest(collection="nobody", vector=vector(0))),
        (stub.Upsert, pb.UpsertRequest(collection="nobody", points=upsert().points)),
        (stub.SwapAlias, pb.SwapAliasRequest(alias="a", collection="nobody")),
    ):
        assert error_of(call, request).reason == "COLLECTION_NOT_FOUND"
    too_big = pb.UpsertRequest(collection=name, points=[pb.Point(id="n", vector=[1.0] * 5_000_000)])
    assert isinstance(error_of(stub.Upsert, too_big), ResourceExhausted)
    assert server.vectors.CountPoints(pb.CountPointsRequest(collection=name), timeout=20).count == 24


def test_searches_and_writes_of_many_callers(server: Served) -> None:
    name = filled(server, "busy")
    errors: list[BaseException] = []

    def search() -> None:
        try:
            for index in range(24):
                found = server.vectors.Search(
                    pb.SearchRequest(collection=name, vector=vector(index), limit=2), timeout=20
                )
                assert found.hits[0].score == 0.0
        except BaseException as error:
            errors.append(error)

    def write(number: int) -> None:
        try:
            for index in range(20):
                point = pb.Point(id=f"w{number}-{index}", vector=[100.0 + number, 0, 0, float(index)])
                server.vectors.Upsert(pb.UpsertRequest(collection=name, points=[point]), timeout=20)
                query = pb.SearchRequest(collection=name, vector=point.vector, limit=1)
                assert ids(server.vectors.Search(query, timeout=20)) == [point.id]  # seen at once
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=search) for _ in range(6)]
    threads += [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert server.vectors.CountPoints(pb.CountPointsRequest(collection=name), timeout=20).count == 24 + 80


def test_what_was_answered_outlives_the_death_of_worker_and_server(tmp_path: Path) -> None:
    options = (*MODELS, "--set", "worker.restart_delay_s=0.2")
    answered: list[int] = []
    with serving(tmp_path, *options) as server:
        filled(server, "kept")

        def batches() -> Iterator[pb.StreamUpsertRequest]:
            index = 0
            while True:
                points = [pb.Point(id=f"k{index}-{i}", vector=vector(i)) for i in range(50)]
                yield pb.StreamUpsertRequest(collection="kept", points=points)
                index += 1

        (worker,) = [pid for pid, command in server.workers().items() if '"vector":{' in command]

        def take(answer: pb.StreamUpsertResponse) -> int:
            if answer.index == 20:
                os.kill(worker, signal.SIGKILL)
            return int(answer.index)

        with pytest.raises(grpc.RpcError) as caught:
            answered.extend(map(take, server.vectors.StreamUpsert(batches(), timeout=60)))
        error = error_from_rpc(caught.value)
        assert isinstance(error, Unavailable)
        assert error.is_retryable
        end = time.monotonic() + 30
        while True:
            try:
                count = server.vectors.CountPoints(pb.CountPointsRequest(collection="kept"), timeout=20).count
                break
            except grpc.RpcError:
                assert time.monotonic() < end
                time.sleep(0.1)
        assert len(answered) > 20
        assert count >= 24 + 50 * len(answered)
        assert (count - 24) % 50 == 0
    with serving(tmp_path, *options) as server:
        assert server.vectors.CountPoints(pb.CountPointsRequest(collection="kept"), timeout=20).count == count


def test_two_servers_do_not_share_a_data_folder(tmp_path: Path, server: Served) -> None:
    data = next(iter(argument for argument in server.process.args if str(argument).endswith("/data")))  # type: ignore[union-attr]
    name = filled(server, "shared")
    log = tmp_path / "log"
    command = serve_command(*MODELS, data_dir=Path(data))
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{ports_of(process, log)[0]}") as channel:
            stub = vector_pb2_grpc.VectorServiceStub(channel)
            end = time.monotonic() + 30
            while True:
                try:
                    stub.ListCollections(pb.ListCollectionsRequest(), timeout=10, wait_for_ready=True)
                except grpc.RpcError as problem:
                    error = error_from_rpc(problem)
                    if "open" in error.message:
                        break
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.1)
            assert "vectors" in error.message
    finally:
        process.terminate()
        process.wait(30)
    assert server.vectors.CountPoints(pb.CountPointsRequest(collection=name), timeout=20).count == 24


def test_a_server_without_a_store_says_so(tmp_path: Path) -> None:
    with serving(tmp_path, "--runner", "fake", "--model", "m=fake", "--set", "vector.backend=none") as server:
        error = error_of(server.vectors.ListCollections, pb.ListCollectionsRequest())
        assert isinstance(error, FailedPrecondition)
        assert error.reason == "VECTORS_DISABLED"
        create = pb.CreateCollectionRequest(collection="x")
        assert error_of(server.vectors.CreateCollection, create).reason == "MODEL_NOT_FOUND"
