"""Vector search: over gRPC against raw FAISS and an empty RPC, against other embedded stores, filtered, and writing.

    python -m vorta_bench.search wire     --out results/search_wire.json
    python -m vorta_bench.search peers    --peer-python PEERS/bin/python --rows 20000 --out results/search_peers.json
    python -m vorta_bench.search filters  --out results/search_filters.json
    python -m vorta_bench.search upserts  --out results/search_upserts.json
    python -m vorta_bench.search start    --rows 1000000 --out results/search_start.json

Vectors are those of the default model, 100,000 of 384 numbers where nothing else is said. `wire`: batches of searches
against FAISS's HNSW in process, and single searches of 16 clients against an RPC of the same message sizes that does
nothing, by turns. `peers`: the same searches in chromadb, lancedb, qdrant-edge and milvus-lite in process. `filters`:
recall and time at six selectivities against comparing with all that passes and against the graph with a selector.
`upserts`: batches of 500 over a stream, each answered when it is on disk, and memory for each point. `start`: opening a
collection of random vectors from its saved segments.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import faiss
import grpc
import numpy as np
import numpy.typing as npt

from vorta.v1 import vector_pb2 as pb
from vorta.v1 import vector_pb2_grpc
from vorta_bench.embedding import InProcess
from vorta_bench.passages import passages
from vorta_bench.wire import free_port, serving
from vorta_server.vectors import operation as op
from vorta_server.vectors.faiss_backend import FaissBackend
from vorta_server.vectors.faiss_config import FaissConfig
from vorta_server.vectors.planning import CostModel

Matrix = npt.NDArray[np.float32]
DIMENSION = 384
NUM_QUERIES = 1000
NUM_CLIENTS = 16
K = 10
BATCH = 64
_COUNTS = {"lancedb": 200, "milvus-lite": 8}  # searches of a round of those that are slow
SELECTIVITIES = (0.001, 0.01, 0.1, 0.3, 0.5, 0.9)


def real_vectors(work: Path, rows: int) -> tuple[Matrix, Matrix]:
    """Vectors of the default model: of `rows` pieces of eight words of Python's documentation, and of 1,000 others."""
    file = work / f"vectors-{rows}.npy"
    if not file.exists():
        work.mkdir(parents=True, exist_ok=True)
        texts = passages([8] * (rows + NUM_QUERIES), seed=9)
        engine = InProcess("int8", work / "artifacts")
        parts = [engine.embed(texts[start : start + 4096]) for start in range(0, len(texts), 4096)]
        np.save(file, np.concatenate(parts))
    every: Matrix = np.load(file)
    return every[:-NUM_QUERIES], every[-NUM_QUERIES:]


def nearest(queries: Matrix, vectors: Matrix, k: int = K) -> npt.NDArray[np.int64]:
    """The true neighbours by inner product, [queries, k]."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    found: npt.NDArray[np.int64] = index.search(queries, k)[1]
    return found


def recall(found: list[list[int]], wanted: npt.NDArray[np.int64]) -> float:
    """Share of the true neighbours that were found."""
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, wanted.tolist(), strict=True)]))


def raw_hnsw(vectors: Matrix) -> Any:
    """FAISS's HNSW as a collection has it by default."""
    index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 100
    index.add(vectors)
    return index


class Store:
    """A `FaissBackend` in this process, driven as the worker drives it."""

    def __init__(self, folder: Path, config: FaissConfig | None = None) -> None:
        self.backend = FaissBackend(folder, config)

    def ask(self, *operations: op.Operation) -> list[Any]:
        """The answers of operations submitted together."""
        answers: dict[int, Any] = {}

        def ask_one(number: int, operation: op.Operation) -> None:
            self.backend.submit(op.Ticket(operation, lambda answer: answers.update({number: answer})))

        for number, operation in enumerate(operations):
            ask_one(number, operation)
        while len(answers) < len(operations):
            if self.backend.has_work:
                self.backend.step()
            else:
                time.sleep(0.0001)
        for answer in answers.values():
            if isinstance(answer, Exception):
                raise answer
        return [answers[number] for number in range(len(operations))]

    def fill(self, vectors: Matrix, payloads: list[str] | None = None, **definition: Any) -> None:
        """Makes the collection "c" of these vectors and waits until they are indexed."""
        self.ask(op.CreateCollection(collection=op.Collection(name="c", dimension=vectors.shape[1], **definition)))
        for start in range(0, len(vectors), 5000):
            part = vectors[start : start + 5000]
            self.ask(
                op.UpsertPoints(
                    collection="c",
                    ids=[str(index) for index in range(start, start + len(part))],
                    vectors=part.tobytes(),
                    payloads=payloads[start : start + len(part)] if payloads else [],
                )
            )
        while self.ask(op.GetCollection(collection="c"))[0].stats.is_building:
            time.sleep(0.05)

    def search(self, queries: Matrix, **options: Any) -> list[list[int]]:
        """Positions of the hits."""
        search = op.Search(
            collection="c", vectors=queries.tobytes(), limit=K, with_payload=False, columns=True, **options
        )
        return [[int(point_id) for point_id in result.ids] for result in self.ask(search)[0].results]


# Over gRPC


async def _fill(address: str, vectors: Matrix, batch: int = 500) -> dict[str, float]:
    """Streams the vectors into a new collection "c"; seconds until all were answered, and until all were indexed."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = vector_pb2_grpc.VectorServiceStub(channel)
        await stub.CreateCollection(pb.CreateCollectionRequest(collection="c", dimension=vectors.shape[1]))

        async def batches() -> Any:
            for start in range(0, len(vectors), batch):
                part = vectors[start : start + batch]
                points = [
                    pb.Point(id=str(start + index), vector_packed=row.tobytes()) for index, row in enumerate(part)
                ]
                yield pb.StreamUpsertRequest(collection="c", points=points)

        start_s = time.perf_counter()
        written = 0
        async for answer in stub.StreamUpsert(batches()):
            written += answer.count
        answered_s = time.perf_counter() - start_s
        assert written == len(vectors)
        while True:
            stats = (await stub.GetCollectionStats(pb.GetCollectionStatsRequest(collection="c"))).stats
            if not stats.is_building:
                break
            await asyncio.sleep(0.2)
        return {
            "answered_s": answered_s,
            "indexed_s": time.perf_counter() - start_s,
            "memory_bytes": stats.memory_bytes,
            "vector_bytes": stats.vector_bytes,
            "num_unindexed": stats.num_unindexed,
        }


def _request(query: Matrix, ef: int) -> pb.SearchRequest:
    return pb.SearchRequest(
        collection="c", vector_packed=query.tobytes(), limit=K, with_payload=False, compact=True, ef_search=ef
    )


async def _singles(address: str, queries: Matrix, clients: int, ef: int) -> tuple[float, list[list[int]]]:
    """Searches a second of so many clients, and what they found."""
    found: list[list[int]] = [[] for _ in queries]
    async with grpc.aio.insecure_channel(address) as channel:
        stub = vector_pb2_grpc.VectorServiceStub(channel)
        requests = [_request(query, ef) for query in queries]
        left = iter(range(len(queries)))

        async def client() -> None:
            for index in left:
                reply = await stub.Search(requests[index])
                found[index] = [int(hit.id) for hit in reply.hits]

        await stub.Search(requests[0])
        start_s = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return len(queries) / (time.perf_counter() - start_s), found


async def _batches(address: str, queries: Matrix, ef: int, batch: int = BATCH) -> tuple[float, list[list[int]]]:
    """Searches a second in batches, two of them under way, and what they found."""
    found: list[list[int]] = [[] for _ in queries]
    async with grpc.aio.insecure_channel(address) as channel:
        stub = vector_pb2_grpc.VectorServiceStub(channel)
        starts = iter(range(0, len(queries), batch))

        async def client() -> None:
            for start in starts:
                part = [pb.SearchQuery(vector_packed=query.tobytes()) for query in queries[start : start + batch]]
                request = pb.BatchSearchRequest(
                    collection="c", queries=part, limit=K, with_payload=False, compact=True, ef_search=ef
                )
                reply = await stub.BatchSearch(request)
                for offset, result in enumerate(reply.results):
                    found[start + offset] = [int(hit.id) for hit in result.hits]

        start_s = time.perf_counter()
        await asyncio.gather(client(), client())
        return len(queries) / (time.perf_counter() - start_s), found


async def _serve_nothing(port: int, reply: bytes) -> None:
    """A server whose one method answers the same bytes to every request."""

    async def answer(_: bytes, __: Any) -> bytes:
        return reply

    server = grpc.aio.server()
    handler: Any = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("empty.Service", {"Call": handler})])
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


async def _empties(address: str, request: bytes, count: int, clients: int) -> float:
    """Empty RPCs a second."""
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.unary_unary("/empty.Service/Call")
        left = iter(range(count))

        async def client() -> None:
            for _ in left:
                await call(request)

        await call(request)
        start_s = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return count / (time.perf_counter() - start_s)


@contextmanager
def _empty_server(reply_bytes: int) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "vorta_bench.search", "nothing", "--port", str(port), "--bytes", str(reply_bytes)]
    process = subprocess.Popen(command)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            grpc.channel_ready_future(channel).result(timeout=30)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextmanager
def _server() -> Iterator[str]:
    with serving(["--runner", "fake", "--model", "m=fake"]) as server:
        yield server.address


def wire(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Batches against raw FAISS, single searches against an empty RPC."""
    vectors, queries = real_vectors(arguments.work, arguments.rows)
    wanted = nearest(queries, vectors)
    raw = raw_hnsw(vectors)
    rates: dict[str, list[float]] = {}
    recalls: dict[str, float] = {}
    with ExitStack() as stack:
        address = stack.enter_context(_server())
        print(asyncio.run(_fill(address, vectors)), flush=True)
        reply = pb.SearchResponse(hits=[pb.Hit(id="123456", score=0.5)] * K, strategy="index")
        empty = stack.enter_context(_empty_server(reply.ByteSize()))
        ef = _ef_for(raw, queries, wanted)
        request = _request(queries[0], ef).SerializeToString()
        many = np.tile(queries, (4, 1))

        def raw_batches() -> tuple[float, list[list[int]]]:
            faiss.omp_set_num_threads(2)
            params = faiss.SearchParametersHNSW(efSearch=ef)
            start_s = time.perf_counter()
            found: list[list[int]] = []
            for start in range(0, len(queries), BATCH):
                found += raw.search(queries[start : start + BATCH], K, params=params)[1].tolist()
            return len(queries) / (time.perf_counter() - start_s), found

        for number in range(arguments.rounds + 1):
            measures: dict[str, Callable[[], Any]] = {
                "raw FAISS HNSW, batches": raw_batches,
                "vorta over gRPC, batches": lambda: asyncio.run(_batches(address, queries, ef)),
                "empty RPC, 16 clients": lambda: asyncio.run(_empties(empty, request, 4000, NUM_CLIENTS)),
                "vorta over gRPC, 16 clients": lambda: asyncio.run(_singles(address, many, NUM_CLIENTS, ef)),
                "empty RPC, 1 client": lambda: asyncio.run(_empties(empty, request, 1000, 1)),
                "vorta over gRPC, 1 client": lambda: asyncio.run(_singles(address, queries, 1, ef)),
            }
            for name, measure in measures.items():
                result = measure()
                rate, found = result if isinstance(result, tuple) else (result, None)
                if found is not None:
                    recalls[name] = recall(found[: len(queries)], wanted)
                if number:
                    rates.setdefault(name, []).append(rate)
                    print(f"{name:30} {rate:8.0f}/s {recalls.get(name, 0):.3f}", flush=True)
    rows = [
        {
            "name": name,
            "per_s": round(statistics.median(values)),
            "recall": round(recalls[name], 4) if name in recalls else None,
        }
        for name, values in rates.items()
    ]
    for ours, theirs in (
        ("vorta over gRPC, batches", "raw FAISS HNSW, batches"),
        ("vorta over gRPC, 16 clients", "empty RPC, 16 clients"),
        ("vorta over gRPC, 1 client", "empty RPC, 1 client"),
    ):
        ratio = statistics.median([a / b for a, b in zip(rates[ours], rates[theirs], strict=True)])
        rows.append({"name": f"{ours} / {theirs}", "ratio": round(ratio, 3)})
    rows.append({"name": "rows", "count": len(vectors), "raw_ef": ef})
    return rows


def _ef_for(
    index: Any, queries: Matrix, wanted: npt.NDArray[np.int64], selector: Any = None, *, least: float = 0.95
) -> int:
    """The smallest width of a few that reaches a recall; 0 when none does."""
    for ef in (16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 2048):
        params = faiss.SearchParametersHNSW(efSearch=ef, sel=selector)
        if recall(index.search(queries, K, params=params)[1].tolist(), wanted) >= least:
            return ef
    return 0


def _one_by_one(queries: Matrix, search: Callable[[Matrix], Any]) -> tuple[float, list[Any]]:
    """Seconds of a search, and what all found."""
    start_s = time.perf_counter()
    found = [search(query[None]) for query in queries]
    return (time.perf_counter() - start_s) / len(queries), found


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
        folder = Path(__file__).resolve().parents[1]
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
    ef = _ef_for(raw_hnsw(vectors), queries, wanted, least=0.98)  # what qdrant-edge has at its width of 32
    rates: dict[str, list[float]] = {}
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        address = stack.enter_context(_server())
        filled = asyncio.run(_fill(address, vectors))
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
            note("vorta over gRPC, batches", *asyncio.run(_batches(address, queries, ef)), number > 0)
            for clients in (1, NUM_CLIENTS):
                found_by_us = asyncio.run(_singles(address, queries, clients, ef))
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


class _GraphAlways(CostModel):
    """Has every filtered search go through the graph."""

    def exact_s(self, num_rows: int, num_queries: int, *, is_gathered: bool) -> float:
        """More than anything."""
        return math.inf


def filters(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Recall and time of filtered searches, one at a time, against both ways of doing them."""
    vectors, queries = real_vectors(arguments.work, arguments.rows)
    queries = queries[:200]
    rng = np.random.default_rng(3)
    values = rng.permutation(len(vectors))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        store.fill(vectors, [f'{{"u": {value}}}' for value in values])
        raw = raw_hnsw(vectors)
        faiss.omp_set_num_threads(1)
        for share in SELECTIVITIES:
            passing = np.flatnonzero(values < share * len(vectors))
            gathered = np.ascontiguousarray(vectors[passing])
            wanted = passing[nearest(queries, gathered)]
            bits = np.packbits(values < share * len(vectors), bitorder="little")
            selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
            filter_ = op.Filter(must=[op.Condition(field="u", range=op.Range(lt=share * len(vectors)))])
            exact_index = faiss.IndexFlatIP(DIMENSION)
            exact_index.add(gathered)
            graph_ef = _ef_for(raw, queries, wanted, selector)
            params = faiss.SearchParametersHNSW(efSearch=graph_ef, sel=selector)

            times: dict[str, list[float]] = {
                "vorta": [],
                "vorta exact": [],
                "vorta graph": [],
                "exact": [],
                "graph": [],
            }
            found: list[list[int]] = []
            collection = store.backend._open["c"].collection
            costs, graph_costs = collection.costs, _GraphAlways(DIMENSION)
            store.search(queries[:10], filter=filter_)
            for _ in range(arguments.rounds):
                taken, found = _one_by_one(queries, lambda query, f=filter_: store.search(query, filter=f)[0])  # type: ignore[misc]
                times["vorta"].append(taken)
                taken, _ = _one_by_one(queries, lambda query, f=filter_: store.search(query, filter=f, exact=True)[0])  # type: ignore[misc]
                times["vorta exact"].append(taken)
                collection.costs = graph_costs
                taken, by_graph = _one_by_one(queries, lambda query, f=filter_: store.search(query, filter=f)[0])  # type: ignore[misc]
                times["vorta graph"].append(taken)
                collection.costs = costs
                times["exact"].append(_one_by_one(queries, lambda query, i=exact_index: i.search(query, K))[0])  # type: ignore[misc]
                if graph_ef:
                    taken, _ = _one_by_one(queries, lambda query, p=params: raw.search(query, K, params=p))  # type: ignore[misc]
                    times["graph"].append(taken)
            best = min(statistics.median(times["vorta exact"]), statistics.median(times["vorta graph"]))
            rows.append(
                {
                    "selectivity": share,
                    "recall": round(recall(found, wanted), 4),
                    "vorta_us": round(1e6 * statistics.median(times["vorta"])),
                    "vorta_exact_us": round(1e6 * statistics.median(times["vorta exact"])),
                    "vorta_graph_us": round(1e6 * statistics.median(times["vorta graph"])),
                    "vorta_graph_recall": round(recall(by_graph, wanted), 4),
                    "vorta_to_best": round(statistics.median(times["vorta"]) / best, 2),
                    "raw_exact_us": round(1e6 * statistics.median(times["exact"])),
                    "raw_graph_us": round(1e6 * statistics.median(times["graph"])) if times["graph"] else None,
                    "raw_graph_ef": graph_ef,
                }
            )
            print(rows[-1], flush=True)
        store.backend.close()
    return rows


def upserts(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A stream of batches over gRPC into a new collection, on the disk of `--work`."""
    vectors, _ = real_vectors(arguments.work, arguments.rows)
    rows = []
    for _ in range(arguments.rounds):
        with _server() as address:
            filled = asyncio.run(_fill(address, vectors))
        rows.append(
            {
                "rows": len(vectors),
                "points_per_s": round(len(vectors) / filled["answered_s"]),
                "indexed_after_s": round(filled["indexed_s"], 1),
                "memory_bytes_per_point": round(filled["memory_bytes"] / len(vectors)),
                "floor_bytes_per_point": 4 * DIMENSION,
            }
        )
        print(rows[-1], flush=True)
    return rows


def start(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Fills a store with random vectors of 128 numbers, closes it, and opens it again."""
    rng = np.random.default_rng(0)
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        store = Store(Path(folder))
        definition = op.Collection(name="c", dimension=128, index=op.IndexConfig(kind=arguments.index))
        store.ask(op.CreateCollection(collection=definition))
        for begin in range(0, arguments.rows, 10_000):
            part = rng.normal(size=(10_000, 128)).astype("<f4")
            ids = [f"point-{index}" for index in range(begin, begin + 10_000)]
            store.ask(op.UpsertPoints(collection="c", ids=ids, vectors=part.tobytes()))
        while store.ask(op.GetCollection(collection="c"))[0].stats.is_building:
            time.sleep(0.5)
        store.backend.close()
        for _ in range(arguments.rounds):
            start_s = time.perf_counter()
            store = Store(Path(folder))
            query = rng.normal(size=(1, 128)).astype("<f4")
            store.ask(op.Search(collection="c", vectors=query.tobytes()))
            opened_s = time.perf_counter() - start_s
            stats = store.ask(op.GetCollection(collection="c"))[0].stats
            rows.append(
                {"rows": stats.num_points, "index": stats.index_kind, "segments": stats.num_segments,
                 "opened_and_searched_s": round(opened_s, 2)}
            )  # fmt: skip
            print(rows[-1], flush=True)
            store.backend.close()
    return rows


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=["wire", "peers", "filters", "upserts", "start", "nothing"])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--index", default="flat", help="of `start` (default %(default)s)")
    parser.add_argument("--peer-python", help="interpreter with the other stores; needed by peers")
    parser.add_argument("--work", type=Path, default=Path("data/bench"), help="folder for vectors")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--bytes", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.scenario == "nothing":
        import uvloop

        uvloop.run(_serve_nothing(arguments.port, bytes(arguments.bytes)))
        return
    if arguments.scenario == "peers" and arguments.peer_python is None:
        parser.error("peers needs --peer-python")
    arguments.work = arguments.work.absolute()
    scenarios = {"wire": wire, "peers": peers, "filters": filters, "upserts": upserts, "start": start}
    rows = scenarios[arguments.scenario](arguments)
    if arguments.out is not None:
        document = {
            "command": " ".join(["python -m vorta_bench.search", *sys.argv[1:]]),
            "machine": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "rows": rows,
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
