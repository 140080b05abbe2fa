"""What comes together in one step, and what a reader sees while the writer is ahead of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.vectors.driver import Driver
from vorta.errors import DeadlineExceeded, NotFound, VortaError
from vorta_server.vectors import operation as op
from vorta_server.vectors.faiss_backend import FaissBackend
from vorta_server.vectors.faiss_config import FaissConfig
from vorta_server.vectors.operation import Condition, Filter, Range

DIMENSION = 4
CONFIG = FaissConfig(seal_rows=64, inline_column_rows=50, num_build_threads=1, num_search_threads=1)


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[FaissBackend]:
    backend = FaissBackend(tmp_path / "store", CONFIG)
    yield backend
    backend.close()


class Answers:
    """Submits without stepping, and keeps every answer that each ticket gets."""

    def __init__(self, backend: FaissBackend) -> None:
        self.backend = backend
        self.given: list[list[Any]] = []
        self.tickets: list[op.Ticket] = []

    def submit(self, operation: op.Operation, *, deadline_s: float | None = None) -> int:
        given: list[Any] = []
        ticket = op.Ticket(operation, given.append, deadline_s=deadline_s)
        self.given.append(given)
        self.tickets.append(ticket)
        self.backend.submit(ticket)
        return len(self.given) - 1

    def finish(self) -> list[Any]:
        end = time.monotonic() + 20
        while self.backend.num_pending:
            if self.backend.has_work:
                self.backend.step()
            else:
                time.sleep(0.001)
            assert time.monotonic() < end
        for _ in range(20):  # nothing may come after the answer
            self.backend.step()
            time.sleep(0.001)
        assert [len(given) for given in self.given] == [1] * len(self.given)
        return [given[0] for given in self.given]


def vectors(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype("<f4")


def fill(backend: FaissBackend, count: int, name: str = "c", **changes: Any) -> Driver:
    driver = Driver(backend)
    values: dict[str, Any] = {"name": name, "dimension": DIMENSION, "distance": "l2"}
    driver.ask(op.CreateCollection(collection=op.Collection(**(values | changes))))
    for start in range(0, count, 100):
        part = range(start, min(count, start + 100))
        driver.ask(
            op.UpsertPoints(
                collection=name,
                ids=[f"p{i}" for i in part],
                vectors=vectors(count)[part.start : part.stop].tobytes(),
                payloads=[json.dumps({"n": i}) for i in part],
            )
        )
    return driver


def search(seed: int = 1, **changes: Any) -> op.Search:
    return op.Search(**({"collection": "c", "vectors": vectors(1, seed).tobytes()} | changes))


def test_a_search_before_a_deletion_in_one_step_is_answered(backend: FaissBackend) -> None:
    fill(backend, 100)
    answers = Answers(backend)
    answers.submit(search())
    answers.submit(op.DeleteCollection(collection="c"))
    answers.submit(op.CreateCollection(collection=op.Collection(name="c", dimension=DIMENSION)))
    answers.submit(search())
    found, deleted, created, empty = answers.finish()
    assert len(found.results[0].hits) == 10
    assert isinstance(deleted, op.Done)
    assert created.stats.num_points == 0
    assert empty.results[0].hits == []


def test_what_waits_for_columns_or_in_the_lane_is_answered_once_when_the_collection_goes(backend: FaissBackend) -> None:
    driver = fill(backend, 600)
    while (stats := driver.ask(op.GetCollection(collection="c")).stats).is_building or not stats.num_segments:
        time.sleep(0.005)
    few = Filter(must=[Condition(field="n", range=Range(lt=5))])
    answers = Answers(backend)
    answers.submit(op.UpsertPoints(collection="c", ids=["x"], vectors=vectors(1).tobytes()))
    answers.submit(op.DeletePoints(collection="c", filter=few))
    answers.submit(op.DeletePoints(collection="c", filter=few, wait=False))
    answers.submit(op.UpsertPoints(collection="c", ids=["y"], vectors=vectors(1).tobytes(), wait=False))
    for _ in range(3):
        answers.submit(search(filter=few))
        answers.submit(op.CountPoints(collection="c", filter=few))
    answers.submit(op.DeleteCollection(collection="c"))
    given = answers.finish()
    kinds = VortaError | op.Written | op.Done | op.SearchResults | op.Counted
    assert all(isinstance(answer, kinds) for answer in given)
    assert driver.ask(op.ListCollections()).collections == []


def test_a_write_that_waited_past_its_deadline_is_not_begun(backend: FaissBackend) -> None:
    driver = fill(backend, 600)
    few = Filter(must=[Condition(field="n", range=Range(lt=5))])
    answers = Answers(backend)
    answers.submit(op.UpsertPoints(collection="c", ids=["x"], vectors=vectors(1).tobytes()))
    answers.submit(op.DeletePoints(collection="c", filter=few))  # waits for the one before
    late = answers.submit(op.DeletePoints(collection="c", ids=["p50"]), deadline_s=time.monotonic() + 0.02)
    gone = answers.submit(op.DeletePoints(collection="c", ids=["p60"]))
    last = answers.submit(op.DeletePoints(collection="c", ids=["p70"]))
    answers.tickets[gone].is_abandoned = True
    answers.given[gone].append(None)  # nobody waits, so no answer is an answer
    time.sleep(0.05)
    given = answers.finish()
    assert isinstance(given[late], DeadlineExceeded)
    assert given[last].count == 1
    left = driver.ask(op.GetPoints(collection="c", ids=["p50", "p60", "p70"])).points
    assert [point.id for point in left] == ["p50", "p60"]


def test_readers_see_whole_points_while_they_are_replaced(backend: FaissBackend) -> None:
    """A replaced point is found as it was or as it is, never without its payload and never missing."""
    driver = fill(backend, 100, text_fields=["text"])
    query = vectors(1, 7)
    every = Filter(must=[Condition(field="n", range=Range(gte=0))])
    versions = 0
    running: list[Any] = []

    def write() -> None:
        nonlocal versions
        versions += 1
        running.append(None)
        operation = op.UpsertPoints(
            collection="c",
            ids=[f"p{i}" for i in range(100)],
            vectors=vectors(100, versions).tobytes(),
            payloads=[json.dumps({"n": i, "text": "word", "version": versions}) for i in range(100)],
        )
        backend.submit(op.Ticket(operation, lambda _: running.pop()))

    write()
    while running:
        backend.step()
    for _ in range(150):
        while len(running) < 3:
            write()
        for request in (
            op.Search(collection="c", vectors=query.tobytes(), limit=200, with_vector=True),
            op.Search(collection="c", vectors=query.tobytes(), limit=200, filter=every, with_vector=True),
            op.Search(collection="c", texts=["word"], limit=200, with_vector=True),
        ):
            hits = driver.ask(request).results[0].hits
            assert len({hit.id for hit in hits}) == len(hits) == 100
            seen = {json.loads(hit.payload)["version"] for hit in hits}
            assert len(seen) == 1
            sent = dict(zip((f"p{i}" for i in range(100)), vectors(100, seen.pop()), strict=True))
            assert all(hit.vector == sent[hit.id].tobytes() for hit in hits)
        page = driver.ask(op.ScrollPoints(collection="c", filter=every, limit=200, with_vector=True)).points
        assert len(page) == 100
        assert all(point.payload and point.vector for point in page)
        got = driver.ask(op.GetPoints(collection="c", ids=["p3", "p99"], with_vector=True)).points
        assert [bool(point.payload and point.vector) for point in got] == [True, True]


def test_an_operation_on_what_was_deleted_before_it_is_refused(backend: FaissBackend) -> None:
    fill(backend, 100)
    answers = Answers(backend)
    answers.submit(op.DeleteCollection(collection="c"))
    answers.submit(search())
    answers.submit(op.CountPoints(collection="c"))
    _, *refused = answers.finish()
    assert all(isinstance(error, NotFound) and error.reason == "COLLECTION_NOT_FOUND" for error in refused)
