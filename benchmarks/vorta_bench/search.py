"""Vector search: over gRPC against raw FAISS and an empty RPC, against other embedded stores, filtered, and writing.

    python -m vorta_bench.search wire     --out results/search_wire.json
    python -m vorta_bench.search graph    --out results/search_graph.json
    python -m vorta_bench.search peers    --peer-python PEERS/bin/python --rows 20000 --out results/search_peers.json
    python -m vorta_bench.search filters  --out results/search_filters.json
    python -m vorta_bench.search upserts  --out results/search_upserts.json
    python -m vorta_bench.search start    --rows 1000000 --out results/search_start.json

Vectors are those of the default model, 100,000 of 384 numbers where nothing else is said. `wire`: batches of searches
against FAISS's HNSW in process, and single searches of 16 clients against an RPC of the same message sizes that does
nothing, by turns. `graph`: our walk of a graph against FAISS's of the same one, in process. `peers`: the same searches
in chromadb, lancedb, qdrant-edge and milvus-lite in process. `filters`: recall and time at six selectivities against
comparing with all that passes and against the graph with a selector. `upserts`: batches of 500 over a stream, each
answered when it is on disk, and memory for each point. `start`: opening a collection of random vectors from its saved
segments.
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

from vorta.v1 import vector_pb2 as pb
from vorta_bench.peers.stores import peers
from vorta_bench.vectors import (
    BATCH,
    DIMENSION,
    NUM_CLIENTS,
    K,
    Matrix,
    Store,
    batches,
    fill,
    nearest,
    raw_hnsw,
    real_vectors,
    recall,
    search_request,
    singles,
    vector_server,
    width_for,
)
from vorta_bench.wire import free_port
from vorta_server.vectors import operation as op
from vorta_server.vectors.index import load_index
from vorta_server.vectors.planning import CostModel

WIDTHS = (16, 24, 32, 48, 64, 128, 256)
SELECTIVITIES = (0.001, 0.01, 0.1, 0.3, 0.5, 0.9)


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


def wire(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Batches against raw FAISS, single searches against an empty RPC."""
    vectors, queries = real_vectors(arguments.work, arguments.rows)
    wanted = nearest(queries, vectors)
    raw = raw_hnsw(vectors)
    rates: dict[str, list[float]] = {}
    recalls: dict[str, float] = {}
    with ExitStack() as stack:
        address = stack.enter_context(vector_server())
        print(asyncio.run(fill(address, vectors)), flush=True)
        reply = pb.SearchResponse(hits=[pb.Hit(id="123456", score=0.5)] * K, strategy="index")
        empty = stack.enter_context(_empty_server(reply.ByteSize()))
        ef = width_for(raw, queries, wanted)
        request = search_request(queries[0], ef).SerializeToString()
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
                "vorta over gRPC, batches": lambda: asyncio.run(batches(address, queries, ef)),
                "empty RPC, 16 clients": lambda: asyncio.run(_empties(empty, request, 4000, NUM_CLIENTS)),
                "vorta over gRPC, 16 clients": lambda: asyncio.run(singles(address, many, NUM_CLIENTS, ef)),
                "empty RPC, 1 client": lambda: asyncio.run(_empties(empty, request, 1000, 1)),
                "vorta over gRPC, 1 client": lambda: asyncio.run(singles(address, queries, 1, ef)),
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


def _one_by_one(queries: Matrix, search: Callable[[Matrix], Any]) -> tuple[float, list[Any]]:
    """Seconds of a search, and what all found."""
    start_s = time.perf_counter()
    found = [search(query[None]) for query in queries]
    return (time.perf_counter() - start_s) / len(queries), found


def graph(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One graph searched by FAISS and by our kernel, a thread each, in batches: time and recall at equal widths."""
    vectors, queries = real_vectors(arguments.work, arguments.rows)
    wanted = nearest(queries, vectors)
    raw = raw_hnsw(vectors)
    with tempfile.TemporaryDirectory() as folder:
        faiss.write_index(raw, f"{folder}/index")
        ours = load_index("hnsw", Path(folder) / "index", None, "dot")
    faiss.omp_set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for ef in WIDTHS:
        params = faiss.SearchParametersHNSW(efSearch=ef)

        def by_faiss(part: Matrix, params: Any = params) -> Any:
            return raw.search(part, K, params=params)[1]

        def by_kernel(part: Matrix, ef: int = ef) -> Any:
            return ours.search(part, K, ef=ef, probes=0)[1]

        times: dict[str, list[float]] = {"faiss": [], "vorta": []}
        recalls = {}
        for _ in range(arguments.rounds):
            for name, search in (("faiss", by_faiss), ("vorta", by_kernel)):
                start_s = time.perf_counter()
                found = np.concatenate([search(queries[at : at + BATCH]) for at in range(0, len(queries), BATCH)])
                times[name].append((time.perf_counter() - start_s) / len(queries))
                recalls[name] = round(recall(found.tolist(), wanted), 4)
        rows.append(
            {
                "ef": ef,
                "faiss_us": round(1e6 * statistics.median(times["faiss"]), 1),
                "vorta_us": round(1e6 * statistics.median(times["vorta"]), 1),
                "faiss_recall": recalls["faiss"],
                "vorta_recall": recalls["vorta"],
                "times": round(
                    statistics.median(a / b for a, b in zip(times["faiss"], times["vorta"], strict=True)), 2
                ),
            }
        )
        print(rows[-1], flush=True)
    rows.append({"bytes_per_point": round(ours.num_bytes / len(vectors)), "floor_bytes_per_point": 4 * DIMENSION})
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
            graph_ef = width_for(raw, queries, wanted, selector)
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
        with vector_server() as address:
            filled = asyncio.run(fill(address, vectors))
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
    parser.add_argument("scenario", choices=["wire", "graph", "peers", "filters", "upserts", "start", "nothing"])
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
    scenarios = {
        "wire": wire, "graph": graph, "peers": peers, "filters": filters, "upserts": upserts, "start": start
    }  # fmt: skip
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
