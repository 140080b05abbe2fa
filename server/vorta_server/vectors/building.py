"""Which segments are to be built into one, and building it on the builder's thread."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from vorta_server.vectors.faiss_config import FaissConfig
from vorta_server.vectors.index import BuildStopped, build_index
from vorta_server.vectors.operation import Collection
from vorta_server.vectors.segment import IdTable, Segment
from vorta_server.vectors.segment_files import save_segment

__all__ = ["Build", "run_build", "wanted_build"]

_FLAT_SEAL_FACTOR = 16
_MIN_TRAIN_ROWS = 1_000


@dataclasses.dataclass(eq=False)
class Build:
    """Segments that become one.

    Attributes:
        sources: Neighbours that no longer grow.
        kind: Of the index; "flat" for none.
        folder: Of the segments.
        sequence: Of the last write when it began.
        progress: 0 to 1, written by the builder.
        is_stopped: Set to make the builder give up.
    """

    sources: list[Segment]
    kind: str
    definition: Collection
    folder: Path
    sequence: int
    rebuild_dead_fraction: float
    progress: float = 0.0
    is_stopped: bool = False

    def report(self, progress: float) -> None:
        """Notes how far it is; raises `BuildStopped` when told to stop."""
        if self.is_stopped:
            raise BuildStopped
        self.progress = progress


def wanted_build(
    segments: list[Segment], definition: Collection, config: FaissConfig, folder: Path, sequence: int
) -> Build | None:
    """The next thing to build, None for nothing.

    What is unindexed is sealed when there is enough of it, together with the segments before it that are not much
    larger: so there are few segments, whose sizes fall by the merge ratio, and a row is built in again only when a
    multiple of what is there has come. Segments with many dead rows are built anew.
    """
    is_flat = definition.index.kind == "flat"
    seal_rows = config.seal_rows * (_FLAT_SEAL_FACTOR if is_flat else 1)

    def is_open(segment: Segment) -> bool:
        return segment.name is None if is_flat else segment.index is None

    start = None
    for end, segment in enumerate([*segments, None]):
        if segment is not None and is_open(segment):
            start = end if start is None else start
        elif start is not None:
            # Between sealed segments there is one only after a damaged one was read from the database.
            rows = sum(s.num_alive for s in segments[start:end])
            if rows >= seal_rows:
                while start and segments[start - 1].num_rows <= config.merge_ratio * rows:
                    start -= 1
                    rows += segments[start].num_alive
                return _build(segments[start:end], definition, config, folder, sequence)
            start = None
    for segment in segments:
        if not is_open(segment) and segment.num_dead > config.rebuild_dead_fraction * segment.num_rows:
            return _build([segment], definition, config, folder, sequence)
    return None


def _build(sources: list[Segment], definition: Collection, config: FaissConfig, folder: Path, sequence: int) -> Build:
    kind = definition.index.kind
    rows = sum(segment.num_alive for segment in sources)
    if kind == "auto":
        kind = "ivf_pq" if rows >= config.auto_ivf_rows else "hnsw"
    if kind == "ivf_pq" and rows < _MIN_TRAIN_ROWS:
        kind = "hnsw"  # too few to learn cells and codes from
    return Build(sources, kind, definition, folder, sequence, config.rebuild_dead_fraction)


def run_build(build: Build) -> Segment | None:
    """Builds and saves; None when no row was left. On the builder's thread.

    Rows that die meanwhile are in the result, for the worker's thread to mark.
    """
    sources = build.sources
    first = sources[0]
    # The graph of a large first part is continued in a copy, unless it is full of dead rows.
    is_continued = (
        build.kind == "hnsw"
        and first.kind == "hnsw"
        and len(sources) > 1
        and first.num_dead <= build.rebuild_dead_fraction * first.num_rows
        and 2 * first.num_rows >= sum(segment.num_rows for segment in sources)
    )
    positions = [
        np.arange(segment.num_rows) if is_continued and segment is first else np.flatnonzero(segment.alive)
        for segment in sources
    ]
    pairs = list(zip(sources, positions, strict=True))
    rows = np.concatenate([segment.rows[part] for segment, part in pairs])
    if not len(rows):
        return None
    ids = IdTable.of([segment.ids[i] for segment, part in pairs for i in part.tolist()])
    vectors = np.concatenate([segment.vectors[part] for segment, part in pairs])
    build.report(0.0)
    index = None
    if build.kind != "flat":
        index = build_index(
            build.kind,
            vectors,
            build.definition.index,
            build.definition.distance,
            base=first.index if is_continued else None,
            report=build.report,
        )
    if index is not None and index.keeps_vectors:
        vectors = index.vectors
    return save_segment(
        build.folder, rows, ids, vectors, index, distance=build.definition.distance, sequence=build.sequence
    )
