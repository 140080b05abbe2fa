"""A process that writes to a store until it is killed: `python -m tests.server.vectors.kill_target FOLDER SEED LOG`.

Each write's points go into LOG before it is submitted ("try") and after it was answered ("done"), synced by nobody: the
log outlives the process, and power loss is SQLite's business.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from vorta_server.vectors import operation as op
from vorta_server.vectors.faiss_backend import FaissBackend
from vorta_server.vectors.faiss_config import FaissConfig

DIMENSION = 8
CONFIG = FaissConfig(seal_rows=64, min_save_rows=50, inline_column_rows=100, num_build_threads=1, num_search_threads=1)


def vector_of(point_id: str, version: int) -> np.ndarray:
    """The vector that a version of a point has."""
    rng = np.random.default_rng([int(point_id[1:]), version])
    return rng.normal(size=DIMENSION).astype("<f4")


def main() -> None:
    folder, seed, log = (
        Path(sys.argv[1]),
        int(sys.argv[2]),
        os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    )
    rng = random.Random(seed)
    backend = FaissBackend(folder, CONFIG)

    def note(*entry: Any) -> None:
        os.write(log, (json.dumps(entry) + "\n").encode())

    definition = op.Collection(name="c", dimension=DIMENSION, distance="l2")
    answers: list[Any] = []  # that it exists from the second time on is an answer too
    backend.submit(op.Ticket(op.CreateCollection(collection=definition), answers.append))
    while not answers:
        backend.step()
    number, running = seed * 1_000_000, 0
    print("ready", flush=True)  # noqa: T201
    while True:
        while running < 4:
            number += 1
            running += 1
            ids = [f"p{index}" for index in rng.sample(range(400), rng.randint(1, 20))]

            def answered(result: Any, number: int = number) -> None:
                nonlocal running
                running -= 1
                if isinstance(result, op.Written):
                    note("done", number, result.sequence)

            if rng.random() < 0.25:
                note("try", number, "delete", ids)
                write: op.Operation = op.DeletePoints(collection="c", ids=ids)
            else:
                note("try", number, "upsert", ids)
                vectors = np.stack([vector_of(point_id, number) for point_id in ids])
                payloads = [json.dumps({"version": number}) for _ in ids]
                write = op.UpsertPoints(collection="c", ids=ids, vectors=vectors.tobytes(), payloads=payloads)
            backend.submit(op.Ticket(write, answered))
        if backend.has_work:
            backend.step()
        else:
            time.sleep(0.0002)


if __name__ == "__main__":
    main()
