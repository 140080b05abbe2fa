"""Asks a vector backend and waits for its answers; points to ask about, and what the right answers are."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from vorta.errors import VortaError
from vorta_server.vectors import operation as ops
from vorta_server.vectors.operation import (
    Collection,
    IndexConfig,
    Operation,
    Search,
    Ticket,
    VectorBackend,
)

DIMENSION = 8
NUM_POINTS = 60
COLOURS = ["red", "green", "blue", "Größe", " red "]


class Driver:
    """Asks a backend and waits."""

    def __init__(self, backend: VectorBackend) -> None:
        self.backend = backend

    def ask(self, operation: Operation, *, timeout_s: float = 60.0) -> Any:
        """The answer; raises the error."""
        return self.ask_all([operation], timeout_s=timeout_s)[0]

    def ask_all(self, operations: list[Operation], *, timeout_s: float = 60.0) -> list[Any]:
        """Answers of operations submitted together; raises the first error."""
        answers: dict[int, Any] = {}
        done = threading.Event()

        def deliver_to(index: int) -> Callable[[Any], None]:
            def deliver(answer: Any) -> None:
                assert index not in answers, "a ticket was answered twice"
                answers[index] = answer
                if len(answers) == len(operations):
                    done.set()

            return deliver

        for index, operation in enumerate(operations):
            self.backend.submit(Ticket(operation, deliver_to(index), deadline_s=time.monotonic() + timeout_s))
        end_s = time.monotonic() + timeout_s
        while not done.is_set():
            if self.backend.has_work:
                self.backend.step()
            else:
                done.wait(0.001)
            assert time.monotonic() < end_s, f"no answer to {operations}"
        for answer in answers.values():
            if isinstance(answer, VortaError):
                raise answer
        return [answers[index] for index in range(len(operations))]

    def ids(self, search: Search) -> list[str]:
        """Ids of a single query's hits."""
        return [hit.id for hit in self.ask(search).results[0].hits]


def payload_of(index: int) -> dict[str, Any]:
    """A point's payload; every seventh has none of the optional fields."""
    payload: dict[str, Any] = {
        "number": index,
        "price": index / 4,
        "colour": COLOURS[index % len(COLOURS)],
        "is_even": index % 2 == 0,
        "title": f"point {index} of {'fast' if index % 3 == 0 else 'slow'} search",
        "when": f"2026-01-{index % 28 + 1:02d}T12:00:00Z",
        "place": {"lat": 50.0 + index / 100, "lon": 8.0},
        "meta": {"level": index % 4},
    }
    if index % 7:
        payload["tags"] = ["odd", "x"] if index % 2 else ["even"]
        payload["extra"] = f"e{index}"
    return payload


IDS = [f"p{index:02d}" for index in range(NUM_POINTS)]
PAYLOADS = [json.dumps(payload_of(index), ensure_ascii=False) for index in range(NUM_POINTS)]
VECTORS = np.random.default_rng(7).normal(size=(NUM_POINTS, DIMENSION)).astype("<f4")
QUERIES = np.random.default_rng(8).normal(size=(5, DIMENSION)).astype("<f4")
SCHEMA = {
    "number": "integer",
    "price": "float",
    "colour": "keyword",
    "is_even": "bool",
    "when": "datetime",
    "place": "geo",
    "tags": "keyword",
}


def collection(name: str, **changes: Any) -> Collection:
    """A small exact collection."""
    values: dict[str, Any] = {
        "name": name,
        "dimension": DIMENSION,
        "index": IndexConfig(kind="flat"),
        "text_fields": ["title"],
        "schema": SCHEMA,
    }
    return Collection(**(values | changes))


def filled(driver: Driver, name: str, **changes: Any) -> None:
    """Makes a collection of all points."""
    driver.ask(ops.CreateCollection(collection=collection(name, **changes)))
    driver.ask(ops.UpsertPoints(collection=name, ids=IDS, vectors=VECTORS.tobytes(), payloads=PAYLOADS))


def oracle(query: np.ndarray, distance: str = "cosine", allowed: Callable[[int], bool] = lambda _: True) -> list[Any]:
    """Ids and scores by brute force, best first."""
    vectors, query = VECTORS.astype(np.float64), query.astype(np.float64)
    if distance == "l2":
        scores = ((vectors - query) ** 2).sum(axis=1)
    else:
        scores = vectors @ query
        if distance == "cosine":
            scores = scores / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    order = np.argsort(scores if distance == "l2" else -scores, kind="stable")
    return [(IDS[i], float(scores[i])) for i in order if allowed(int(i))]
