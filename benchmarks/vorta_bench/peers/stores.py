"""Our vector search against other stores in process: the scenario `peers` of `vorta_bench.search`."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vorta_bench.vectors import (
    NUM_CLIENTS,
    NUM_QUERIES,
    K,
    Matrix,
    Store,
    batches,
    fill,
    nearest,
    raw_hnsw,
    real_vectors,
    recall,
    singles,
    vector_server,
    width_for,
)
from vorta_server.vectors import operation as op

__all__ = ["peers"]

_COUNTS = {"lancedb": 200, "milvus-lite": 8}  # searches of a round of those that are slow


def _together(store: Store, queries: Matrix, clients: int, ef: int) -> tuple[float, list[list[int]]]:
    """Searches a second of the store in this process, so many of them under way, and what they found."""
    searches = [
        op.Search(collection="c", vectors=query.tobytes(), limit=K, with_payload=False, columns=True, ef_search=ef)
        for query in queries
    ]
    start_s = time.perf_counter()
    answers: list[Any] = []
    for start in range(0, len(searches), clients):
        answers += store.ask(*searches[start : start + clients])
    rate = len(searches) / (time.perf_counter() - start_s)
    return rate, [[int(point_id) for point_id in answer.results[0].ids] for answer in answers]


class Peer:
    """Another store in a process of its own; see `vorta_bench.peers.vector_store`."""

    def __init__(self, python: str, engine: str, file: Path, rows: int) -> None:
        folder = Path(__file__).resolve().parents[2]
        command = [python, "-m", "vorta_bench.peers.vector_store", engine, str(file), str(rows)]
        environment = {"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin", "HOME": tempfile.gettempdir()}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.built = self._answer()

    def search(self, count: int, threads: int) -> dict[str, Any]:
        """Searches a second and what was found."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"count": count, "threads": threads}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError("the peer ended")


def peers(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Other stores in process against ours over gRPC, at equal rows; recall beside each figure."""
    every, queries = real_vectors(arguments.work, 100_000)
    vectors = every[: arguments.rows]
    file = arguments.work / "vectors-100000.npy"
    wanted = nearest(queries, vectors)
    ef = width_for(raw_hnsw(vectors), queries, wanted, least=0.98)  # what qdrant-edge has at its width of 32
    rates: dict[str, list[float]] = {}
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        address = stack.enter_context(vector_server())
        filled = asyncio.run(fill(address, vectors))
        found_peers: dict[str, Peer] = {}
        for engine in ("qdrant-edge", "chroma", "lancedb", "milvus-lite"):
            try:
                found_peers[engine] = Peer(arguments.peer_python, engine, file, arguments.rows)
                stack.callback(found_peers[engine].close)
                print(engine, found_peers[engine].built, flush=True)
            except (RuntimeError, OSError) as error:
                print(f"{engine} is left out: {error}", flush=True)
        recalls: dict[str, float] = {}
        store = Store(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        stack.callback(store.backend.close)
        store.fill(vectors)

        def note(name: str, rate: float, found: list[list[int]], is_warm: bool) -> None:
            recalls[name] = recall(found, wanted[: len(found)])
            if is_warm:
                rates.setdefault(name, []).append(rate)

        for number in range(arguments.rounds + 1):
            note("vorta over gRPC, batches", *asyncio.run(batches(address, queries, ef)), number > 0)
            for clients in (1, NUM_CLIENTS):
                found_by_us = asyncio.run(singles(address, queries, clients, ef))
                note(f"vorta over gRPC, {clients} clients", *found_by_us, number > 0)
                note(f"vorta in process, {clients} clients", *_together(store, queries, clients, ef), number > 0)
                for engine, peer in found_peers.items():
                    answer = peer.search(_COUNTS.get(engine, NUM_QUERIES), clients)
                    note(f"{engine}, {clients} clients", answer["per_s"], answer["found"], number > 0)
        for name, values in rates.items():
            engine, _, clients_text = name.partition(", ")
            row = {"name": name, "per_s": round(statistics.median(values)), "recall": round(recalls[name], 4)}
            if engine in found_peers:
                for ours in ("in process", "over gRPC"):
                    pairs = zip(rates[f"vorta {ours}, {clients_text}"], values, strict=True)
                    row[f"vorta_{ours.replace(' ', '_')}_times"] = round(statistics.median(a / b for a, b in pairs), 2)
                pairs = zip(rates["vorta over gRPC, batches"], values, strict=True)
                row["vorta_batches_over_gRPC_times"] = round(statistics.median(a / b for a, b in pairs), 2)
                row["points_per_s"] = round(arguments.rows / found_peers[engine].built["build_s"])
            elif engine == "vorta over gRPC":
                row["points_per_s"] = round(arguments.rows / filled["answered_s"])
            rows.append(row)
            print(row, flush=True)
    return rows
