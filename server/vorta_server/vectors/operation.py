"""What can be asked of a vector backend, and what it answers: plain values, independent of wire and backend.

Vectors are float32 in C order, little-endian, as bytes; ids are texts of 1 to 256 bytes; payloads are JSON objects as
text. A backend checks every value again and raises errors of `vorta.errors` that name the field as the contract does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from vorta.errors import VortaError

__all__ = [
    "AliasInfo",
    "Aliases",
    "Collection",
    "CollectionInfo",
    "CollectionStats",
    "Collections",
    "Condition",
    "CountPoints",
    "Counted",
    "CreateCollection",
    "CreateSnapshot",
    "DeleteAlias",
    "DeleteCollection",
    "DeletePoints",
    "DeleteSnapshot",
    "Done",
    "Filter",
    "GeoRadius",
    "GetCollection",
    "GetPoints",
    "Group",
    "Hit",
    "IndexConfig",
    "ListAliases",
    "ListCollections",
    "ListSnapshots",
    "Operation",
    "Page",
    "Point",
    "Points",
    "Range",
    "RestoreSnapshot",
    "Result",
    "ScrollPoints",
    "Search",
    "SearchResult",
    "SearchResults",
    "SnapshotInfo",
    "Snapshots",
    "SwapAlias",
    "Ticket",
    "UpsertPoints",
    "VectorBackend",
    "Written",
]


class Range(msgspec.Struct, array_like=True, kw_only=True):
    """Bounds of a number. All that are set must hold."""

    gt: float | None = None
    gte: float | None = None
    lt: float | None = None
    lte: float | None = None


class GeoRadius(msgspec.Struct, array_like=True, kw_only=True):
    """Places at most `radius_m` metres from a centre, along the sphere; degrees."""

    latitude: float
    longitude: float
    radius_m: float


class Condition(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Exactly one of the tests is set. A list in the payload passes when one of its items does.

    Attributes:
        field: Path in the payload, parts joined by dots.
        match: Equal to this text, integer or boolean.
        any_of: Equal to one of these.
        range: A number within bounds.
        datetime_range: A moment within bounds, each seconds since 1970 UTC.
        exists: Present and not null (True), or not (False).
        text: Has all of these words (the collection's text fields only; BM25's tokens).
        geo_radius: A place, {"lat": …, "lon": …} in the payload, within a circle.
        has_id: The point's id is one of these; `field` is empty.
        filter: A nested filter; `field` is empty.
    """

    field: str = ""
    match: str | int | bool | None = None
    any_of: list[str | int | bool] | None = None
    range: Range | None = None
    datetime_range: Range | None = None
    exists: bool | None = None
    text: str | None = None
    geo_radius: GeoRadius | None = None
    has_id: list[str] | None = None
    filter: Filter | None = None


class Filter(msgspec.Struct, kw_only=True, omit_defaults=True):
    """All of `must`, none of `must_not`, and at least one of `should` where there are any."""

    must: list[Condition] = []
    should: list[Condition] = []
    must_not: list[Condition] = []


class IndexConfig(msgspec.Struct, kw_only=True):
    """How vectors are indexed.

    Attributes:
        kind: "auto", "flat", "hnsw", "ivf_pq" or "sq8". Auto: flat while small, then hnsw, then ivf_pq by size.
        m: HNSW's links a node.
        ef_construction: HNSW's width while it is built.
        ef_search: HNSW's default width of a search.
        num_lists: IVF's cells; 0 for 4 × √rows.
        num_probes: IVF's cells looked at by default; 0 for what reaches a recall of 0.95 by measurement.
    """

    kind: str = "auto"
    m: int = 32
    ef_construction: int = 100
    ef_search: int = 64
    num_lists: int = 0
    num_probes: int = 0


class Collection(msgspec.Struct, kw_only=True):
    """A collection's definition, fixed when it is made.

    Attributes:
        name: 1 to 64 letters, digits, '_' or '-', beginning with a letter or digit.
        dimension: Of every vector, 1 to 65,536.
        distance: "cosine", "dot" or "l2".
        index: How vectors are indexed.
        text_fields: Payload fields whose text BM25 searches. Empty: no text search.
        schema: Types of payload fields: keyword, integer, float, bool, datetime, geo or text. Others are inferred.
        embedding_model: Model that turns texts into vectors for this collection; empty for the server's default.
        description: For people.
    """

    name: str
    dimension: int
    distance: str = "cosine"
    index: IndexConfig = msgspec.field(default_factory=IndexConfig)
    text_fields: list[str] = []
    schema: dict[str, str] = {}
    embedding_model: str = ""
    description: str = ""


class Point(msgspec.Struct, array_like=True, kw_only=True):
    """One point; `vector` is empty where it was not asked for, `payload` (JSON text) too."""

    id: str
    vector: bytes = b""
    payload: str = ""


# Operations


class CreateCollection(msgspec.Struct, tag="create_collection", kw_only=True):
    """Answered by `CollectionInfo`. AlreadyExists (COLLECTION_ALREADY_EXISTS) for a name or alias that is taken."""

    collection: Collection


class GetCollection(msgspec.Struct, tag="get_collection", kw_only=True):
    """Answered by `CollectionInfo`, statistics included. `collection` may be an alias, as everywhere."""

    collection: str


class ListCollections(msgspec.Struct, tag="list_collections", kw_only=True):
    """Answered by `Collections`, ordered by name."""


class DeleteCollection(msgspec.Struct, tag="delete_collection", kw_only=True):
    """Deletes a collection (not by an alias), and its aliases. Answered by `Done`."""

    collection: str


class SwapAlias(msgspec.Struct, tag="swap_alias", kw_only=True):
    """Points an alias to a collection at once, making it if need be. Answered by `AliasInfo`, `previous` included."""

    alias: str
    collection: str


class DeleteAlias(msgspec.Struct, tag="delete_alias", kw_only=True):
    """Answered by `Done`."""

    alias: str


class ListAliases(msgspec.Struct, tag="list_aliases", kw_only=True):
    """Answered by `Aliases`."""


class CreateSnapshot(msgspec.Struct, tag="create_snapshot", kw_only=True):
    """Keeps the collection as it is now. Answered by `SnapshotInfo`."""

    collection: str


class ListSnapshots(msgspec.Struct, tag="list_snapshots", kw_only=True):
    """Of a collection, or of all for an empty name. Answered by `Snapshots`, newest first."""

    collection: str = ""


class DeleteSnapshot(msgspec.Struct, tag="delete_snapshot", kw_only=True):
    """Answered by `Done`."""

    collection: str
    snapshot: str


class RestoreSnapshot(msgspec.Struct, tag="restore_snapshot", kw_only=True):
    """Makes `target` (default: the snapshot's own collection) what the snapshot holds.

    A collection of that name is replaced when `replace` is set, else AlreadyExists. A damaged snapshot is refused
    (FailedPrecondition, SNAPSHOT_INVALID) and changes nothing. Answered by `CollectionInfo`.
    """

    collection: str
    snapshot: str
    target: str = ""
    replace: bool = False


class UpsertPoints(msgspec.Struct, tag="upsert", kw_only=True):
    """Inserts points, replacing those whose ids exist, all or nothing. Answered by `Written`.

    Attributes:
        ids: Distinct.
        vectors: float32, len(ids) × dimension.
        payloads: JSON objects as text, one for each id; an empty list for none at all.
        wait: True: answered when it is durable and visible. False: when it is accepted, with `sequence` 0.
    """

    collection: str
    ids: list[str]
    vectors: bytes
    payloads: list[str] = []
    wait: bool = True


class DeletePoints(msgspec.Struct, tag="delete_points", kw_only=True):
    """Deletes by ids or by filter (exactly one). Unknown ids are ignored. Answered by `Written` (count deleted)."""

    collection: str
    ids: list[str] = []
    filter: Filter | None = None
    wait: bool = True


class GetPoints(msgspec.Struct, tag="get_points", kw_only=True):
    """Points by id, in that order; absent ones are left out. Answered by `Points`."""

    collection: str
    ids: list[str]
    with_payload: bool = True
    with_vector: bool = False


class ScrollPoints(msgspec.Struct, tag="scroll", kw_only=True):
    """A page of points ordered by id. Answered by `Page`.

    Attributes:
        after: Ids greater than this; empty for the first page.
        limit: 1 to 10,000.
    """

    collection: str
    filter: Filter | None = None
    after: str = ""
    limit: int = 100
    with_payload: bool = True
    with_vector: bool = False


class CountPoints(msgspec.Struct, tag="count", kw_only=True):
    """Answered by `Counted`, exact."""

    collection: str
    filter: Filter | None = None


class Search(msgspec.Struct, tag="search", kw_only=True, omit_defaults=True):
    """One or several searches with equal options. Answered by `SearchResults`, one for each query.

    A query is a vector; or a point's id (its vector; the point itself is not among the hits); or, with a text beside
    it, both (hybrid): the best of each are fused. A text alone is BM25 search.

    Attributes:
        vectors: float32, queries × dimension; empty for text-only or id queries.
        ids: Of points whose vectors are the queries, instead of `vectors`.
        texts: For BM25, one for each query; empty for vector search.
        limit: 1 to 10,000 hits (or groups).
        offset: Hits to skip, 0 to 10,000.
        score_threshold: Only hits at least (for l2: at most) this good. None: all.
        exact: Compare with every vector instead of using the index.
        ef_search, num_probes: Instead of the collection's.
        fusion: "rrf" or "weighted".
        dense_weight: Of the vector side under weighted fusion, 0 to 1; the text side has the rest.
        rrf_k: Of reciprocal-rank fusion.
        num_candidates: Taken from each side before fusing; 0 for max(100, 4 × (limit + offset)).
        group_by: A payload field; hits are grouped by its value, points without it are left out. Empty: no groups.
        group_size: Most hits of a group.
        columns: Hits may come as columns, where nothing but ids and scores is asked for.
    """

    collection: str
    vectors: bytes = b""
    ids: list[str] = []
    texts: list[str] = []
    limit: int = 10
    offset: int = 0
    filter: Filter | None = None
    score_threshold: float | None = None
    exact: bool = False
    ef_search: int = 0
    num_probes: int = 0
    with_payload: bool = True
    with_vector: bool = False
    fusion: str = "rrf"
    dense_weight: float = 0.5
    rrf_k: int = 60
    num_candidates: int = 0
    group_by: str = ""
    group_size: int = 3
    columns: bool = False


Operation = (
    CreateCollection
    | GetCollection
    | ListCollections
    | DeleteCollection
    | SwapAlias
    | DeleteAlias
    | ListAliases
    | CreateSnapshot
    | ListSnapshots
    | DeleteSnapshot
    | RestoreSnapshot
    | UpsertPoints
    | DeletePoints
    | GetPoints
    | ScrollPoints
    | CountPoints
    | Search
)

# Results


class Done(msgspec.Struct, tag="done"):
    """It is done."""


class CollectionStats(msgspec.Struct, kw_only=True):
    """A collection's state.

    Attributes:
        num_points: Living points.
        num_deleted: Rows of replaced and deleted points still in the index.
        num_unindexed: Living points found by exact scan, because no index holds them yet.
        num_segments: Sealed segments.
        index_kind: What `auto` has chosen so far.
        is_building: Whether an index is being built.
        build_progress: 0 to 1 while one is.
        sequence: Of the last durable write.
        snapshot_sequence: Of the last write that the saved segments hold.
        disk_bytes: Files.
        memory_bytes: Vectors, graphs, ids and payload columns in memory, estimated.
        vector_bytes: The floor: 4 × dimension × num_points.
    """

    num_points: int = 0
    num_deleted: int = 0
    num_unindexed: int = 0
    num_segments: int = 0
    index_kind: str = "flat"
    is_building: bool = False
    build_progress: float = 0.0
    sequence: int = 0
    snapshot_sequence: int = 0
    disk_bytes: int = 0
    memory_bytes: int = 0
    vector_bytes: int = 0


class CollectionInfo(msgspec.Struct, tag="collection_info", kw_only=True):
    """A collection. `schema` in it has inferred fields too."""

    collection: Collection
    stats: CollectionStats
    aliases: list[str] = []
    created_s: float = 0.0


class Collections(msgspec.Struct, tag="collections", kw_only=True):
    """All collections."""

    collections: list[CollectionInfo]


class AliasInfo(msgspec.Struct, tag="alias", kw_only=True):
    """An alias, and what it pointed to before; empty for a new one."""

    alias: str
    collection: str
    previous: str = ""


class Aliases(msgspec.Struct, tag="aliases", kw_only=True):
    """All aliases, ordered."""

    aliases: list[AliasInfo]


class SnapshotInfo(msgspec.Struct, tag="snapshot", kw_only=True):
    """A kept state of a collection."""

    snapshot: str
    collection: str
    created_s: float
    num_points: int
    sequence: int
    bytes: int


class Snapshots(msgspec.Struct, tag="snapshots", kw_only=True):
    """Kept states."""

    snapshots: list[SnapshotInfo]


class Written(msgspec.Struct, tag="written", kw_only=True):
    """A write: how many points it wrote or deleted, and its sequence."""

    count: int
    sequence: int


class Points(msgspec.Struct, tag="points", kw_only=True):
    """Points by id."""

    points: list[Point]


class Page(msgspec.Struct, tag="page", kw_only=True):
    """Points, and where the next page begins; empty at the end."""

    points: list[Point]
    next_after: str = ""


class Counted(msgspec.Struct, tag="counted", kw_only=True):
    """A number of points."""

    count: int


class Hit(msgspec.Struct, array_like=True, kw_only=True):
    """A point that was found.

    Attributes:
        score: Cosine or dot product (greater is better), squared Euclidean distance under l2 (less is better), BM25
            (greater is better) for text search, or the fused score (greater is better).
        dense_score, text_score: Under hybrid search the scores of both sides, None where the point was not found there.
    """

    id: str
    score: float
    payload: str = ""
    vector: bytes = b""
    dense_score: float | None = None
    text_score: float | None = None


class Group(msgspec.Struct, array_like=True, kw_only=True):
    """Hits that share a value of the `group_by` field."""

    value: str | int | bool
    hits: list[Hit]


class SearchResult(msgspec.Struct, array_like=True, kw_only=True):
    """Of one query, best first: hits, or groups when grouped.

    `strategy` tells how it was found: "exact", "filtered_exact", "index", "filtered_index", "text" or "hybrid". Instead
    of hits there may be columns, when the search allows them: `ids`, and `scores` as float32 bytes.
    """

    hits: list[Hit] = []
    groups: list[Group] = []
    strategy: str = ""
    ids: list[str] = []
    scores: bytes = b""


class SearchResults(msgspec.Struct, tag="search_results", kw_only=True):
    """One for each query, in order."""

    results: list[SearchResult]


Result = (
    Done
    | CollectionInfo
    | Collections
    | AliasInfo
    | Aliases
    | SnapshotInfo
    | Snapshots
    | Written
    | Points
    | Page
    | Counted
    | SearchResults
)


class Ticket:
    """One operation under way. Exactly one of `finish` and `fail` is called, once, on any thread.

    Attributes:
        operation: What is asked.
        deadline_s: `time.monotonic()` by which an answer is of use; None for no such time.
        is_abandoned: Set when nobody waits any more; work that has not begun can be left out (writes that were begun
            are finished all the same).
    """

    __slots__ = ("_deliver", "deadline_s", "is_abandoned", "operation")

    def __init__(
        self,
        operation: Operation,
        deliver: Callable[[Result | VortaError], None],
        *,
        deadline_s: float | None = None,
    ) -> None:
        self.operation = operation
        self.deadline_s = deadline_s
        self.is_abandoned = False
        self._deliver = deliver

    def finish(self, result: Result) -> None:
        """Answers."""
        self._deliver(result)

    def fail(self, error: VortaError) -> None:
        """Answers with an error."""
        self._deliver(error)


class VectorBackend(Protocol):
    """Answers operations. `submit`, `step` and `close` are called by one thread, the worker's."""

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do now."""
        ...

    @property
    def num_pending(self) -> int:
        """Operations without an answer so far."""
        ...

    def submit(self, ticket: Ticket) -> None:
        """Takes an operation: answers it, refuses it (ResourceExhausted when the queue is full) or keeps it for `step`.

        What came in together is submitted before the next `step`, so that searches can be computed as one batch.
        """
        ...

    def step(self) -> None:
        """Does what waits for the worker's thread: batched searches, commits that became durable, built indexes."""
        ...

    def close(self) -> None:
        """Finishes accepted writes, stops threads, saves what saves time at the next start. Idempotent."""
        ...
