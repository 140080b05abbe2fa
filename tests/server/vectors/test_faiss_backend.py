"""The embedded store's own promises: limits, a full disk, snapshots, builds beside writes, closing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.vectors.driver import Driver
from vorta.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    VortaError,
)
from vorta_server.vectors import operation as op
from vorta_server.vectors.faiss_backend import FaissBackend
from vorta_server.vectors.faiss_config import FaissConfig
from vorta_server.vectors.operation import Condition, Filter

DIMENSION = 8
CONFIG = FaissConfig(seal_rows=64, min_save_rows=50, num_build_threads=1, num_search_threads=1)


def vectors(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype("<f4")


def ids(count: int, start: int = 0) -> list[str]:
    return [f"p{index:04d}" for index in range(start, start + count)]


def create(driver: Driver, name: str = "c", **changes: Any) -> None:
    values: dict[str, Any] = {"name": name, "dimension": DIMENSION, "distance": "l2"}
    driver.ask(op.CreateCollection(collection=op.Collection(**(values | changes))))


def upsert(driver: Driver, count: int = 100, *, name: str = "c", start: int = 0, seed: int = 1) -> None:
    payloads = [json.dumps({"n": index}) for index in range(count)]
    write = op.UpsertPoints(
        collection=name, ids=ids(count, start), vectors=vectors(count, seed).tobytes(), payloads=payloads
    )
    driver.ask(write)


def settled(driver: Driver, name: str = "c") -> op.CollectionStats:
    end = time.monotonic() + 30
    while (stats := driver.ask(op.GetCollection(collection=name)).stats).is_building or not stats.num_segments:
        assert time.monotonic() < end
        time.sleep(0.01)
    return stats


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[FaissBackend]:
    backend = FaissBackend(tmp_path / "store", CONFIG)
    yield backend
    backend.close()


@pytest.fixture
def driver(backend: FaissBackend) -> Driver:
    return Driver(backend)


# Limits


def test_values_out_of_range_name_their_field(tmp_path: Path) -> None:
    config = FaissConfig(
        max_payload_bytes=200, max_payload_depth=5, max_filter_ids=1000, max_fields=6, max_batch_points=50
    )
    backend = FaissBackend(tmp_path, config)
    driver = Driver(backend)
    create(driver)
    create(driver, "cosine", distance="cosine")
    one = vectors(1).tobytes()
    bad = vectors(2)
    bad[1, 3] = np.inf

    def write(**changes: Any) -> op.UpsertPoints:
        return op.UpsertPoints(**({"collection": "c", "ids": ["a"], "vectors": one} | changes))

    def where(condition: Condition) -> op.Search:
        return op.Search(collection="c", vectors=one, filter=Filter(must=[condition]))

    many_fields = json.dumps({f"f{index}": 1 for index in range(7)})
    cases: list[tuple[op.Operation, str, str]] = [
        (write(vectors=one[:-4]), "vectors[0]", "DIMENSION_MISMATCH"),
        (write(ids=["a", "b"], vectors=bad.tobytes()), "vectors[1]", "INVALID_FIELD"),
        (write(collection="cosine", vectors=b"\0" * 32), "vectors[0]", "INVALID_FIELD"),
        (write(ids=["a", "a"], vectors=one * 2), "ids[1]", "INVALID_FIELD"),
        (write(ids=["x" * 257]), "ids[0]", "INVALID_FIELD"),
        (write(ids=ids(51), vectors=vectors(51).tobytes()), "ids", "INVALID_FIELD"),
        (write(payloads=['{"a": "' + "x" * 300 + '"}']), "payloads[0]", "INVALID_FIELD"),
        (write(payloads=['{"a": [[[[[[1]]]]]]}']), "payloads[0]", "INVALID_FIELD"),
        (write(payloads=[many_fields]), "payloads", "INVALID_FIELD"),
        (where(Condition(field="none", match=1)), "filter.must[0].field", "FILTER_FIELD_UNKNOWN"),
        (where(Condition(has_id=ids(1001))), "filter.must[0].has_id", "INVALID_FIELD"),
        (op.Search(collection="c", vectors=one, limit=0), "limit", "INVALID_FIELD"),
        (op.Search(collection="c", vectors=one, limit=10_001), "limit", "INVALID_FIELD"),
        (op.ScrollPoints(collection="c", limit=10_001), "limit", "INVALID_FIELD"),
        (op.SwapAlias(alias="no/name", collection="c"), "alias", "INVALID_FIELD"),
        (op.GetPoints(collection="c", ids=[]), "ids", "MISSING_FIELD"),
        (op.CountPoints(collection=""), "collection", "MISSING_FIELD"),
    ]
    try:
        for operation, field, reason in cases:
            with pytest.raises(InvalidArgument) as caught:
                driver.ask(operation)
            assert (caught.value.field, caught.value.reason) == (field, reason)
        assert driver.ask(op.CountPoints(collection="c")).count == 0
    finally:
        backend.close()


def test_a_full_disk_keeps_nothing_of_the_write_and_everything_before(tmp_path: Path) -> None:
    backend = FaissBackend(tmp_path, FaissConfig(seal_rows=10_000, max_database_pages=40))
    driver = Driver(backend)
    create(driver, dimension=256)
    written = 0

    def fill() -> None:
        nonlocal written
        for batch in range(100):
            data = np.full((20, 256), batch + 1, "<f4").tobytes()
            driver.ask(op.UpsertPoints(collection="c", ids=ids(20, 20 * batch), vectors=data))
            written += 20

    try:
        with pytest.raises(ResourceExhausted) as caught:
            fill()
        assert caught.value.reason == "DISK_FULL"
        assert caught.value.is_retryable
        assert written
        assert driver.ask(op.CountPoints(collection="c")).count == written
        query = np.full(256, 1, "<f4").tobytes()
        assert len(driver.ids(op.Search(collection="c", vectors=query, limit=50))) == 50
        assert driver.ask(op.DeletePoints(collection="c", ids=ids(40))).count == 40
        data = np.full((5, 256), 7, "<f4").tobytes()
        driver.ask(op.UpsertPoints(collection="c", ids=ids(5), vectors=data))  # there is room again
        assert driver.ask(op.CountPoints(collection="c")).count == written - 35
    finally:
        backend.close()


def test_full_queues_refuse_and_every_ticket_is_answered_once(tmp_path: Path) -> None:
    backend = FaissBackend(tmp_path, FaissConfig(max_queued_writes=3, max_queued_reads=5))
    driver = Driver(backend)
    create(driver)
    answers: dict[int, list[Any]] = {}

    def submit(operation: op.Operation, **options: Any) -> op.Ticket:
        number = len(answers)
        answers[number] = []
        ticket = op.Ticket(operation, answers[number].append, **options)
        backend.submit(ticket)
        return ticket

    try:
        for index in range(50):
            submit(op.UpsertPoints(collection="c", ids=[f"w{index}"], vectors=vectors(1).tobytes()))
        for _ in range(10):
            submit(op.CountPoints(collection="c"))
        late = submit(op.CountPoints(collection="c"), deadline_s=time.monotonic() - 1)
        assert late
        end = time.monotonic() + 20
        while backend.num_pending:
            backend.step()
            assert time.monotonic() < end
        assert all(len(given) == 1 for given in answers.values())
        refused = [given[0] for given in answers.values() if isinstance(given[0], VortaError)]
        assert any(isinstance(error, DeadlineExceeded) for error in refused)
        assert sum(isinstance(error, ResourceExhausted) for error in refused) >= 5
        written = sum(isinstance(given[0], op.Written) for given in answers.values())
        assert 3 <= driver.ask(op.CountPoints(collection="c")).count == written
        abandoned = submit(op.CountPoints(collection="c"))
        abandoned.is_abandoned = True
        backend.step()
        assert backend.num_pending == 0
    finally:
        backend.close()


def test_closing_answers_what_is_under_way(tmp_path: Path) -> None:
    backend = FaissBackend(tmp_path, CONFIG)
    create(Driver(backend))
    answers: list[Any] = []
    for index in range(40):
        write = op.UpsertPoints(collection="c", ids=[f"w{index}"], vectors=vectors(1).tobytes())
        backend.submit(op.Ticket(write, answers.append))
    backend.submit(op.Ticket(op.CountPoints(collection="c"), answers.append))
    backend.close()
    backend.close()
    assert len(answers) == 41
    assert sum(isinstance(answer, op.Written) for answer in answers) == 40
    backend.submit(op.Ticket(op.ListCollections(), answers.append))
    assert isinstance(answers[-1], Unavailable)
    backend = FaissBackend(tmp_path, CONFIG)
    assert Driver(backend).ask(op.CountPoints(collection="c")).count == 40
    backend.close()


# Order of writes


def test_a_deletion_by_filter_sees_what_was_accepted_before_it_and_nothing_after(driver: Driver) -> None:
    create(driver, schema={"n": "integer"})
    write = op.UpsertPoints(
        collection="c", ids=ids(50), vectors=vectors(50).tobytes(), payloads=['{"n": 1}'] * 50, wait=False
    )
    delete = op.DeletePoints(collection="c", filter=Filter(must=[Condition(field="n", match=1)]))
    again = op.UpsertPoints(collection="c", ids=ids(3), vectors=vectors(3).tobytes(), payloads=['{"n": 1}'] * 3)
    accepted, deleted, written = driver.ask_all([write, delete, again])
    assert (accepted.sequence, deleted.count, written.count) == (0, 50, 3)
    assert [point.id for point in driver.ask(op.ScrollPoints(collection="c")).points] == ids(3)


# Builds


def test_builds_run_beside_writes_and_searches(backend: FaissBackend, driver: Driver) -> None:
    create(driver)
    data = vectors(3000)
    seen_building = False
    for start in range(0, 3000, 50):
        write = op.UpsertPoints(collection="c", ids=ids(50, start), vectors=data[start : start + 50].tobytes())
        driver.ask(write)
        stats = driver.ask(op.GetCollection(collection="c")).stats
        seen_building |= stats.is_building
        assert stats.num_points == start + 50
        newest = op.Search(collection="c", vectors=data[start + 49].tobytes(), limit=1)
        assert driver.ids(newest) == [f"p{start + 49:04d}"]
    assert seen_building
    stats = settled(driver)
    assert stats.num_segments <= 6
    assert stats.num_unindexed < 3000
    assert stats.memory_bytes >= stats.vector_bytes == 4 * DIMENSION * 3000
    # Deletions make a segment be built anew; none comes back.
    driver.ask(op.DeletePoints(collection="c", ids=ids(2000)))
    stats = settled(driver)
    found = driver.ids(op.Search(collection="c", vectors=data[0].tobytes(), limit=1000))
    assert sorted(found) == ids(1000, 2000)


def test_a_collection_can_be_deleted_while_it_is_built_and_written(tmp_path: Path, driver: Driver) -> None:
    for round_ in range(5):
        create(driver, "gone")
        upsert(driver, 900, name="gone")
        write = op.UpsertPoints(collection="gone", ids=["x"], vectors=vectors(1).tobytes())
        try:
            driver.ask_all([write, op.DeleteCollection(collection="gone"), op.CountPoints(collection="gone")])
        except NotFound:
            pass
        else:
            raise AssertionError(f"round {round_}: it was still there")
        assert driver.ask(op.ListCollections()).collections == []
    end = time.monotonic() + 20
    while list((tmp_path / "store" / "collections").iterdir()):
        driver.backend.step()
        assert time.monotonic() < end
        time.sleep(0.01)


def test_wake_is_called_when_a_thread_hands_something_back(tmp_path: Path) -> None:
    woken = threading.Event()
    backend = FaissBackend(tmp_path, CONFIG, wake=woken.set)
    create(Driver(backend))
    woken.clear()
    answers: list[Any] = []
    backend.submit(op.Ticket(op.UpsertPoints(collection="c", ids=["a"], vectors=vectors(1).tobytes()), answers.append))
    assert woken.wait(60)
    assert backend.has_work
    backend.step()
    assert isinstance(answers[0], op.Written)
    backend.close()


# Snapshots


def test_a_snapshot_is_restored_beside_and_in_place(tmp_path: Path, backend: FaissBackend, driver: Driver) -> None:
    create(driver, text_fields=["text"], description="kept")
    upsert(driver, 500)
    settled(driver)
    made = driver.ask(op.CreateSnapshot(collection="c"))
    assert (made.num_points, made.sequence, made.bytes > 0) == (500, 1, True)
    upsert(driver, 300, start=400, seed=2)  # replaces 100 and adds 200
    driver.ask(op.DeletePoints(collection="c", ids=ids(50)))
    settled(driver)
    info = driver.ask(op.RestoreSnapshot(collection="c", snapshot=made.snapshot, target="beside"))
    assert (info.collection.name, info.collection.description, info.stats.num_points) == ("beside", "kept", 500)
    first = vectors(500)
    for index in (0, 49, 420, 499):
        search = op.Search(collection="beside", vectors=first[index].tobytes(), limit=1)
        assert driver.ids(search) == [f"p{index:04d}"]
    assert driver.ask(op.GetPoints(collection="beside", ids=["p0650"])).points == []
    # Rows that the linked segments have and the snapshot has not are given out again: old vectors must not show.
    data = vectors(400, seed=3)
    driver.ask(op.UpsertPoints(collection="beside", ids=ids(400, 5000), vectors=data.tobytes()))
    settled(driver, "beside")
    for state in ("running", "restarted"):
        for index in (0, 399):
            search = op.Search(collection="beside", vectors=data[index].tobytes(), limit=1)
            assert driver.ids(search) == [f"p{5000 + index}"], state
        assert driver.ask(op.CountPoints(collection="beside")).count == 900
        if state == "running":
            backend.close()
            driver.backend = FaissBackend(tmp_path / "store", CONFIG)
    with pytest.raises(AlreadyExists):
        driver.ask(op.RestoreSnapshot(collection="c", snapshot=made.snapshot))
    driver.ask(op.SwapAlias(alias="now", collection="c"))
    info = driver.ask(op.RestoreSnapshot(collection="c", snapshot=made.snapshot, replace=True))
    assert (info.stats.num_points, info.aliases) == (500, ["now"])
    assert driver.ask(op.CountPoints(collection="now")).count == 500
    driver.ask(op.DeleteCollection(collection="c"))
    assert [s.snapshot for s in driver.ask(op.ListSnapshots()).snapshots] == [made.snapshot]  # it stays
    driver.ask(op.RestoreSnapshot(collection="c", snapshot=made.snapshot))
    assert driver.ask(op.CountPoints(collection="c")).count == 500
    driver.backend.close()


def test_a_damaged_snapshot_is_refused_and_changes_nothing(tmp_path: Path, driver: Driver) -> None:
    create(driver)
    upsert(driver, 100)
    made = driver.ask(op.CreateSnapshot(collection="c"))
    (path,) = (tmp_path / "store" / "snapshots").glob("c/*/data.sqlite")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    driver.ask(op.DeletePoints(collection="c", ids=ids(10)))
    for target, replace in (("", True), ("other", False)):
        with pytest.raises(FailedPrecondition) as caught:
            driver.ask(op.RestoreSnapshot(collection="c", snapshot=made.snapshot, target=target, replace=replace))
        assert caught.value.reason == "SNAPSHOT_INVALID"
    assert driver.ask(op.CountPoints(collection="c")).count == 90
    assert [info.collection.name for info in driver.ask(op.ListCollections()).collections] == ["c"]
    for bad in ("../c", "nobody"):
        with pytest.raises((InvalidArgument, NotFound)):
            driver.ask(op.RestoreSnapshot(collection="c", snapshot=bad, target="x"))


def test_snapshots_are_made_while_others_write(driver: Driver) -> None:
    create(driver)
    operations: list[op.Operation] = []
    for index in range(30):
        operations.append(op.UpsertPoints(collection="c", ids=[f"w{index}"], vectors=vectors(1).tobytes()))
        if index % 10 == 5:
            operations.append(op.CreateSnapshot(collection="c"))
    answers = driver.ask_all(operations)
    for made in [answer for answer in answers if isinstance(answer, op.SnapshotInfo)]:
        info = driver.ask(op.RestoreSnapshot(collection="c", snapshot=made.snapshot, target="copy", replace=True))
        assert info.stats.num_points == made.num_points == made.sequence


def test_searches_that_came_together_are_answered_each_for_itself(driver: Driver, backend: FaissBackend) -> None:
    create(driver, distance="cosine")
    upsert(driver, 200)
    settled(driver)
    queries = vectors(30, seed=3)
    wrong = {4: queries[:2].tobytes()[:40], 9: np.zeros((1, DIMENSION), "<f4").tobytes(), 11: queries[:1].tobytes()[4:]}
    searches = [
        op.Search(
            collection="c",
            vectors=wrong.get(index, queries[index : index + 1 + index % 3].tobytes()),
            limit=3,
            offset=index % 2,
            with_payload=False,
            columns=True,
        )
        for index in range(20)
    ]
    answers: dict[int, Any] = {}
    for index, search in enumerate(searches):
        backend.submit(op.Ticket(search, lambda answer, index=index: answers.setdefault(index, answer)))
    while len(answers) < len(searches):
        backend.step()
    for index, search in enumerate(searches):
        if index in wrong:
            assert isinstance(answers[index], InvalidArgument)
            with pytest.raises(InvalidArgument) as caught:
                driver.ask(search)
            assert answers[index].message == caught.value.message
            assert answers[index].metadata == caught.value.metadata
        else:
            assert len(answers[index].results) == 1 + index % 3
            assert answers[index] == driver.ask(search)
