"""Points, hits and collections: frozen values, without grpc or protobuf."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from vorta._packed import Vector

__all__ = [
    "Alias",
    "CollectionInfo",
    "CollectionStats",
    "Distance",
    "FieldType",
    "Fusion",
    "Hit",
    "HitGroup",
    "IndexKind",
    "IndexOptions",
    "Point",
    "SearchResult",
    "Snapshot",
    "UpsertAck",
    "WriteResult",
]


class Distance(enum.StrEnum):
    """How like two vectors are."""

    UNSPECIFIED = "unspecified"
    COSINE = "cosine"
    """Cosine of the angle; greater is better."""
    DOT = "dot"
    """Dot product; greater is better."""
    L2 = "l2"
    """Squared Euclidean distance; less is better."""


class IndexKind(enum.StrEnum):
    """How vectors are indexed."""

    UNSPECIFIED = "unspecified"
    AUTO = "auto"
    """Chosen by size: flat, then HNSW, then IVF-PQ."""
    FLAT = "flat"
    """None: every search compares with every vector."""
    HNSW = "hnsw"
    """A graph over the vectors."""
    IVF_PQ = "ivf_pq"
    """Cells of product-quantised vectors, the best compared exactly."""
    SQ8 = "sq8"
    """Vectors in 8 bits a number, the best compared exactly."""


class FieldType(enum.StrEnum):
    """Type of a payload field."""

    UNSPECIFIED = "unspecified"
    KEYWORD = "keyword"
    """Text compared as a whole."""
    INTEGER = "integer"
    FLOAT = "float"
    BOOL = "bool"
    DATETIME = "datetime"
    """Moments, as RFC 3339 text."""
    GEO = "geo"
    """Places, as {"lat": degrees, "lon": degrees}."""
    TEXT = "text"
    """Text searched by words; the same as naming the field in text_fields."""


class Fusion(enum.StrEnum):
    """How two ranked lists become one."""

    UNSPECIFIED = "unspecified"
    RRF = "rrf"
    """Sum of 1 / (rrf_k + rank)."""
    WEIGHTED = "weighted"
    """Weighted sum of the scores of each list, each scaled to 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexOptions:
    """Options of an index; None is the server's default."""

    kind: IndexKind | str = IndexKind.AUTO
    m: int | None = None
    """HNSW: links a node, 4 to 128."""
    ef_construction: int | None = None
    """HNSW: width while building, 8 to 4,096."""
    ef_search: int | None = None
    """HNSW: width of a search, 1 to 4,096."""
    num_lists: int | None = None
    """IVF: cells."""
    num_probes: int | None = None
    """IVF: cells that a search looks at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionStats:
    """A collection's state."""

    num_points: int
    num_deleted: int
    """Rows of replaced and deleted points that are still in the index."""
    num_unindexed: int
    """Points that no index holds yet."""
    num_segments: int
    index_kind: IndexKind
    """What is in use now."""
    is_building: bool
    build_progress: float
    """0 to 1."""
    sequence: int
    """Number of the last write."""
    snapshot_sequence: int
    """Number of the last write that saved segments hold."""
    disk_bytes: int
    memory_bytes: int
    """Vectors, graphs, ids and payload columns, estimated."""
    vector_bytes: int
    """The least memory that the vectors need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionInfo:
    """A collection's definition and state."""

    name: str
    dimension: int
    distance: Distance
    index: IndexOptions
    text_fields: tuple[str, ...]
    schema: Mapping[str, FieldType]
    """Types of payload fields, declared or inferred."""
    embedding_model: str
    """Empty: the server's default."""
    description: str
    aliases: tuple[str, ...]
    created_time: datetime
    stats: CollectionStats


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """A second name of a collection."""

    alias: str
    collection: str
    previous_collection: str = ""
    """From `swap_alias`: where it pointed before; empty for a new alias."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A kept state of a collection."""

    snapshot: str
    collection: str
    """The collection that it was made of."""
    created_time: datetime
    num_points: int
    sequence: int
    """Number of the last write in it."""
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Point:
    """A point: to write with a vector or a text that the server embeds; as read, with what was asked for."""

    id: str
    """1 to 256 bytes."""
    vector: Vector | None = None
    """Numbers in any container, numpy's arrays too, or packed float32 bytes; as read, a list."""
    text: str | None = None
    """Written only. It is also put into the payload, under the collection's first text field or else "text"."""
    payload: Mapping[str, Any] | None = None
    """JSON values; datetimes are written as RFC 3339 text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteResult:
    """A write is on disk and visible (unless it was not waited for: then both are 0)."""

    count: int
    """Points written or deleted."""
    sequence: int
    """Number of the write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpsertAck:
    """One batch of a stream is on disk and visible."""

    index: int
    """Which batch, from 0."""
    count: int
    """Its points."""
    sequence: int
    """Number of the write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A point that was found."""

    id: str
    score: float
    """Cosine or dot product (greater is better), squared distance under l2 (less is better), or the fused score."""
    payload: Mapping[str, Any] = field(default_factory=dict)
    vector: list[float] | None = None
    """When asked for."""
    dense_score: float | None = None
    """Hybrid search: its score by vector; None when it was found by words alone."""
    text_score: float | None = None
    """Hybrid search: its BM25 score; None when it was found by vector alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HitGroup:
    """Hits that share a value of the group_by field, best first."""

    value: Any
    hits: tuple[Hit, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """What was found, best first. Iterating gives the hits."""

    hits: tuple[Hit, ...]
    """Empty when grouped."""
    groups: tuple[HitGroup, ...] = ()
    """By their best hit, when grouped."""
    strategy: str = ""
    """How it was found: exact, filtered_exact, index, filtered_index, text or hybrid."""

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, index: int) -> Hit:
        return self.hits[index]
