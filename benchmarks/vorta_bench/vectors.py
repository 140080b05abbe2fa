"""What measurements of vector search share: real vectors, recall, the store in this process, and searches over gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
from vorta_bench.wire import serving
from vorta_server.vectors import operation as op
from vorta_server.vectors.faiss_backend import FaissBackend
from vorta_server.vectors.faiss_config import FaissConfig

Matrix = npt.NDArray[np.float32]
DIMENSION = 384
NUM_QUERIES = 1000
NUM_CLIENTS = 16
K = 10
BATCH = 64


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


def width_for(
    index: Any, queries: Matrix, wanted: npt.NDArray[np.int64], selector: Any = None, *, least: float = 0.95
) -> int:
    """The smallest width of a few that reaches a recall; 0 when none does."""
    for ef in (16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 2048):
        params = faiss.SearchParametersHNSW(efSearch=ef, sel=selector)
        if recall(index.search(queries, K, params=params)[1].tolist(), wanted) >= least:
            return ef
    return 0


# Over gRPC


async def fill(address: str, vectors: Matrix, batch: int = 500) -> dict[str, float]:
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


def search_request(query: Matrix, ef: int) -> pb.SearchRequest:
    return pb.SearchRequest(
        collection="c", vector_packed=query.tobytes(), limit=K, with_payload=False, compact=True, ef_search=ef
    )


async def singles(address: str, queries: Matrix, clients: int, ef: int) -> tuple[float, list[list[int]]]:
    """Searches a second of so many clients, and what they found."""
    found: list[list[int]] = [[] for _ in queries]
    async with grpc.aio.insecure_channel(address) as channel:
        stub = vector_pb2_grpc.VectorServiceStub(channel)
        requests = [search_request(query, ef) for query in queries]
        left = iter(range(len(queries)))

        async def client() -> None:
            for index in left:
                reply = await stub.Search(requests[index])
                found[index] = [int(hit.id) for hit in reply.hits]

        await stub.Search(requests[0])
        start_s = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return len(queries) / (time.perf_counter() - start_s), found


async def batches(address: str, queries: Matrix, ef: int, batch: int = BATCH) -> tuple[float, list[list[int]]]:
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


@contextmanager
def vector_server() -> Iterator[str]:
    with serving(["--runner", "fake", "--model", "m=fake"]) as server:
        yield server.address
