"""Limits and choices of the embedded vector store."""

from __future__ import annotations

import dataclasses
import os

__all__ = ["FaissConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaissConfig:
    """Limits and choices. The defaults suit a machine of a few cores.

    Attributes:
        max_batch_points: Points of one upsert, ids of one get or delete.
        max_payload_bytes: Of one payload's JSON text.
        max_payload_depth: Objects and lists within each other in a payload.
        max_fields: Distinct payload paths of a collection.
        max_filter_ids: Ids in all `has_id` tests of one filter.
        max_filter_conditions: Conditions of one filter, nested ones included.
        max_filter_depth: Filters within each other.
        max_limit: Hits, groups or points of one answer, and the largest offset.
        max_queries: Of one search.
        max_text_words: Words of a query that are looked for; later ones are left out.
        max_queued_writes: Writes that wait for the disk. More are refused.
        max_queued_bytes: Bytes of these.
        max_queued_reads: Operations of other kinds that wait.
        max_group_writes: Writes of one transaction.
        cache_bytes: For filter masks and gathered rows, of each collection.
        database_cache_bytes: Page cache of each database connection.
        device: "cpu", "cuda" for copies of vectors on a GPU, or "auto" for these where FAISS has one; see gpu.py.
        num_search_threads: For batches of queries; 0: as many as cores.
        num_build_threads: For building indexes; 0: half the cores.
        seal_rows: Unindexed rows from which an index is built of them.
        merge_ratio: Neighbouring segments up to this many times as large as what is new are merged with it.
        rebuild_dead_fraction: Share of dead rows from which a segment is rebuilt.
        scan_rows_per_width: Segments of up to this many rows for each of a search's width are compared with as a whole:
            a graph looks at about as many, at random places, and may miss some.
        auto_ivf_rows: Rows from which `auto` takes ivf_pq instead of hnsw.
        min_save_rows: Unindexed rows from which closing saves them as a segment.
        inline_column_rows: Payload columns of segments of up to this many rows are read at once, those of larger ones
            by a thread while the request waits.
        max_database_pages: SQLite's max_page_count for each collection; 0: no bound.
        busy_timeout_s: How long a database lock is waited for.
    """

    max_batch_points: int = 10_000
    max_payload_bytes: int = 1 << 20
    max_payload_depth: int = 64
    max_fields: int = 10_000
    max_filter_ids: int = 100_000
    max_filter_conditions: int = 1_000
    max_filter_depth: int = 16
    max_limit: int = 10_000
    max_queries: int = 1_024
    max_text_words: int = 256
    max_queued_writes: int = 1_024
    max_queued_bytes: int = 256 << 20
    max_queued_reads: int = 10_000
    max_group_writes: int = 64
    cache_bytes: int = 256 << 20
    database_cache_bytes: int = 32 << 20
    device: str = "auto"
    num_search_threads: int = 0
    num_build_threads: int = 0
    seal_rows: int = 4_096
    merge_ratio: float = 3.0
    rebuild_dead_fraction: float = 0.2
    scan_rows_per_width: int = 16
    auto_ivf_rows: int = 4_000_000
    min_save_rows: int = 20_000
    inline_column_rows: int = 20_000
    max_database_pages: int = 0
    busy_timeout_s: float = 30.0

    @property
    def search_threads(self) -> int:
        """Threads of a batch."""
        return self.num_search_threads or os.cpu_count() or 1

    @property
    def build_threads(self) -> int:
        """Threads of a build."""
        return self.num_build_threads or max(1, (os.cpu_count() or 2) // 2)
