"""Another vector store behind lines of JSON: `python -m vorta_bench.peers.vector_store ENGINE VECTORS.npy ROWS`.

Builds its index of the first ROWS vectors, then answers {"count": n, "threads": t} with the searches a second of the
last 1,000 vectors of the file (n of them) and the positions that they found. Cosine, ten hits, no payloads, HNSW of 32
links.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

_K = 10
_QUERIES = 1000
_BATCH = 500

Search = Callable[[Any], list[int]]


def chroma(vectors: Any, folder: Path) -> Search:
    """chromadb, on the disk."""
    import chromadb

    client = chromadb.PersistentClient(str(folder))
    collection = client.create_collection(
        "points",
        configuration={"hnsw": {"space": "cosine", "max_neighbors": 32, "ef_construction": 100, "ef_search": 64}},
    )
    for start in range(0, len(vectors), _BATCH):
        part = vectors[start : start + _BATCH]
        collection.add(ids=[str(start + index) for index in range(len(part))], embeddings=part)
    return lambda query: [
        int(found) for found in collection.query(query_embeddings=query[None], n_results=_K, include=[])["ids"][0]
    ]


def lancedb(vectors: Any, folder: Path) -> Search:
    """lancedb with IVF_HNSW_SQ, its default for graphs."""
    import lancedb as lance

    table = lance.connect(str(folder)).create_table(
        "c", [{"id": index, "vector": row} for index, row in enumerate(vectors)]
    )
    table.create_index(metric="cosine", index_type="IVF_HNSW_SQ", num_partitions=1, m=32, ef_construction=100)
    return lambda query: [
        row["id"] for row in table.search(query).distance_type("cosine").ef(64).limit(_K).select(["id"]).to_list()
    ]


def qdrant_edge(vectors: Any, folder: Path) -> Search:
    """qdrant-edge, Qdrant's engine in process, optimized after the writes."""
    import qdrant_edge as edge

    parameters = edge.EdgeVectorParams(size=vectors.shape[1], distance=edge.Distance.Cosine)
    config = edge.EdgeConfig(vectors=parameters, hnsw_config=edge.HnswIndexConfig(32, 100, 100))
    folder.mkdir(parents=True, exist_ok=True)
    shard = edge.EdgeShard.create(str(folder), config)
    for start in range(0, len(vectors), _BATCH):
        part = vectors[start : start + _BATCH]
        points = [edge.Point(start + index, row.tolist(), {}) for index, row in enumerate(part)]
        shard.update(edge.UpdateOperation.upsert_points(points))
    shard.flush()
    shard.optimize()
    search_params = edge.SearchParams(hnsw_ef=32)

    def search(query: Any) -> list[int]:
        request = edge.SearchRequest(query=edge.Query.Nearest(query.tolist()), limit=_K, params=search_params)
        return [point.id for point in shard.search(request)]

    return search


def milvus_lite(vectors: Any, folder: Path) -> Search:
    """milvus-lite through its client."""
    from pymilvus import DataType, MilvusClient

    folder.mkdir(parents=True, exist_ok=True)
    client = MilvusClient(str(folder / "milvus.db"))
    schema = client.create_schema()
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
    index = client.prepare_index_params()
    index.add_index("vector", index_type="HNSW", metric_type="COSINE", params={"M": 32, "efConstruction": 100})
    client.create_collection("c", schema=schema, index_params=index)
    for start in range(0, len(vectors), _BATCH):
        part = vectors[start : start + _BATCH]
        client.insert("c", [{"id": start + index, "vector": row.tolist()} for index, row in enumerate(part)])
    client.load_collection("c")
    return lambda query: [
        hit["id"] for hit in client.search("c", [query.tolist()], limit=_K, search_params={"params": {"ef": 64}})[0]
    ]


def main() -> None:
    """Answers lines until there are no more."""
    engine, file, rows = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    every = np.load(file)
    vectors, queries = every[:rows], every[-_QUERIES:]
    engines = {"chroma": chroma, "lancedb": lancedb, "qdrant-edge": qdrant_edge, "milvus-lite": milvus_lite}
    with tempfile.TemporaryDirectory() as folder:
        start_s = time.perf_counter()
        search = engines[engine](vectors, Path(folder) / "store")
        search(queries[0])
        print(json.dumps({"build_s": time.perf_counter() - start_s}), flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            chosen = queries[: asked["count"]]
            start_s = time.perf_counter()
            if asked["threads"] == 1:
                found = [search(query) for query in chosen]
            else:
                with ThreadPoolExecutor(asked["threads"]) as pool:
                    found = list(pool.map(search, chosen))
            per_s = len(chosen) / (time.perf_counter() - start_s)
            print(json.dumps({"per_s": per_s, "found": found}), flush=True)


if __name__ == "__main__":
    main()
