"""One collection in memory: its segments and fields, and how writes, seals and merges change them.

All of it belongs to the worker's thread. The builder gets segments that no longer grow, and gives a new one back.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from pathlib import Path

import numpy as np

from vorta_server.vectors.building import Build, wanted_build
from vorta_server.vectors.checks import SMALLEST_SQUARE, read_vectors
from vorta_server.vectors.faiss_config import FaissConfig
from vorta_server.vectors.gpu import Gpu
from vorta_server.vectors.index import Matrix
from vorta_server.vectors.operation import Collection, CollectionStats
from vorta_server.vectors.payloads import PayloadReader, shown_type
from vorta_server.vectors.planning import CostModel, ViewCache
from vorta_server.vectors.segment import IdTable, Segment
from vorta_server.vectors.segment_files import load_segments, save_segment
from vorta_server.vectors.store import DATABASE, ReadStore, Rows
from vorta_server.vectors.writes import Change, Upsert

__all__ = ["SEGMENTS", "VectorCollection", "text_fields_of"]

SEGMENTS = "segments"

_MAX_BLOCK_ROWS = 65_536
_MIN_BLOCK_ROWS = 64
_MAX_BLOCK_BYTES = 128 << 20


def text_fields_of(definition: Collection) -> list[str]:
    """Fields whose words are searched: those named, and those of type text."""
    typed = [path for path, kind in definition.schema.items() if kind == "text" and path not in definition.text_fields]
    return [*definition.text_fields, *typed]


class VectorCollection:
    """A collection that is open.

    Args:
        folder: Its files.
        config: Limits.

    Attributes:
        definition: As it was made.
        text_fields: Fields whose words are searched.
        types: Declared types by path, text fields included.
        kinds: Kinds of values that fields have had or are declared to have.
        store: Reads of the database.
        segments: By rows.
        sequence: Of the last write that is applied.
        last_row: Of the rows that were applied.
        build: What the builder does for it.
    """

    def __init__(self, folder: Path, config: FaissConfig, gpu: Gpu | None = None) -> None:
        self.folder = folder
        self.config = config
        self._gpu = gpu
        self.store = ReadStore(self.database, config)
        try:
            meta = self.store.meta()
            self.definition = meta.definition
            self.created_s = meta.created_s
            self.sequence = meta.sequence
            self.last_row = meta.next_row - 1
            self.text_fields = text_fields_of(self.definition)
            self.types = self.definition.schema | dict.fromkeys(self.text_fields, "text")
            self.reader = PayloadReader(
                self.types,
                self.text_fields,
                max_bytes=config.max_payload_bytes,
                max_depth=config.max_payload_depth,
            )
            self.kinds = self.store.fields()
            for path, kind in self.types.items():
                self.kinds.setdefault(path, set()).update(
                    ("keyword", kind) if kind in ("text", "datetime") else (kind,)
                )
            self.views = ViewCache(config.cache_bytes)
            self.costs = CostModel(self.definition.dimension)
            self.build: Build | None = None
            self.segments: list[Segment] = []
            self._growing: Segment | None = None
            self._saved_sequence = 0
            self._load()
        except BaseException:
            self.store.close()
            raise

    @property
    def database(self) -> Path:
        """The database's file."""
        return self.folder / DATABASE

    @property
    def distance(self) -> str:
        """The definition's."""
        return self.definition.distance

    @property
    def num_points(self) -> int:
        """Living points."""
        return sum(segment.num_alive for segment in self.segments)

    @property
    def loose(self) -> list[Segment]:
        """Segments that no file holds."""
        return [segment for segment in self.segments if segment.name is None]

    def prepared(self, vectors: Matrix) -> Matrix:
        """Vectors as they are compared: float32 in C order, of length 1 under cosine."""
        if self.distance != "cosine":
            return np.ascontiguousarray(vectors, np.float32)
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        prepared: Matrix = vectors / lengths[:, None]
        return prepared

    def read_queries(self, vectors: bytes, count: int | None) -> Matrix:
        """Queries as they are compared, shape (queries, dimension); raises as `read_vectors` does."""
        dimension = self.definition.dimension
        if count is None and not len(vectors) % (4 * dimension):
            array = np.frombuffer(vectors, "<f4").reshape(-1, dimension)
            squares = np.einsum("ij,ij->i", array, array)
            # What is wrong with a vector shows in its square; few numbers are faster compared one by one.
            if all(SMALLEST_SQUARE <= square < math.inf for square in squares.tolist()):
                return array / np.sqrt(squares)[:, None] if self.distance == "cosine" else array
        return self.prepared(read_vectors(vectors, self.definition, "vectors", count=count))

    # Writes

    def apply(self, write: object, change: Change) -> None:
        """Takes a durable write into memory."""
        self.kill(change.dead_rows)
        if isinstance(write, Upsert):
            vectors = np.frombuffer(write.vectors, "<f4").reshape(len(write.ids), self.definition.dimension)
            self._append(change.first_row, write.ids, self.prepared(vectors))
            for path, kind in write.new_fields:
                self.kinds.setdefault(path, set()).add(kind)
            self.last_row = change.first_row + len(write.ids) - 1
        self.sequence = change.sequence

    def kill(self, rows: Rows) -> None:
        """Marks rows dead."""
        if not len(rows):
            return
        left = len(rows)
        first, last = rows.min(), rows.max()
        for segment in reversed(self.segments):
            if segment.num_rows and segment.rows[0] <= last and segment.rows[-1] >= first:
                left -= segment.kill(rows)
                if left == 0:
                    break

    def ids_of(self, rows: Rows) -> list[str]:
        """Ids of rows, all of which are here."""
        if len(self.segments) == 1:
            segment = self.segments[0]
            return segment.ids_at(segment.places_of(rows))
        ids = [""] * len(rows)
        for segment in self.segments:
            if segment.num_rows:
                here = np.flatnonzero((rows >= segment.rows[0]) & (rows <= segment.rows[-1]))
                if len(here):
                    found = segment.ids_at(segment.places_of(rows[here]))
                    for at, point_id in zip(here.tolist(), found, strict=True):
                        ids[at] = point_id
        return ids

    def locate(self, row: int) -> tuple[Segment, int] | None:
        """Where a living row is."""
        for segment in self.segments:
            if segment.num_rows and segment.rows[0] <= row <= segment.rows[-1]:
                position = segment.position_of(row)
                if position is not None:
                    return segment, position
        return None

    def _append(self, first_row: int, ids: list[str], vectors: Matrix) -> None:
        start = 0
        while start < len(ids):
            if self._growing is None or not self._growing.room:
                self._growing = Segment.growing(self.definition.dimension, self.distance, self._block_rows())
                self.segments.append(self._growing)
            end = min(len(ids), start + self._growing.room)
            self._growing.add(first_row + start, ids[start:end], vectors[start:end])
            start = end

    def _block_rows(self) -> int:
        """Rows of the next block: more when many wait for an index, so that there are not too many blocks."""
        waiting = sum(segment.num_rows for segment in self.segments if segment.index is None)
        rows = max(_MIN_BLOCK_ROWS, min(_MAX_BLOCK_ROWS, max(self.config.seal_rows, waiting // 4)))
        return max(_MIN_BLOCK_ROWS, min(rows, _MAX_BLOCK_BYTES // (4 * self.definition.dimension)))

    # Indexes

    def start_build(self) -> Build | None:
        """What should be built now; None for nothing. The segments it takes grow no more."""
        if self.build is not None:
            return None
        build = wanted_build(self.segments, self.definition, self.config, self.folder / SEGMENTS, self.sequence)
        if build is not None:
            if self._growing in build.sources:
                self._growing = None
            self.build = build
        return build

    def install(self, build: Build, made: Segment | None) -> list[Path]:
        """Puts what was built in the place of its sources; None when no row was left. Returns folders to delete."""
        self.build = None
        at = self.segments.index(build.sources[0])
        assert self.segments[at : at + len(build.sources)] == build.sources
        if made is not None:
            for source in build.sources:
                made.kill(source.rows[~source.alive])
            self._saved_sequence = max(self._saved_sequence, build.sequence)
            self._upload(made)
        self.segments[at : at + len(build.sources)] = [made] if made is not None else []
        self.views.drop_segments({source.uid for source in build.sources})
        return [self.folder / SEGMENTS / source.name for source in build.sources if source.name is not None]

    def save_loose(self) -> None:
        """Saves what no file holds where that makes the next start faster. For closing."""
        loose = self.loose
        if sum(segment.num_alive for segment in loose) < max(1, self.config.min_save_rows):
            return
        first = self.segments.index(loose[0])
        if self.segments[first:] != loose:
            return
        rows = np.concatenate([segment.rows[segment.alive] for segment in loose])
        ids = IdTable.of([segment.ids[i] for segment in loose for i in np.flatnonzero(segment.alive).tolist()])
        vectors = np.concatenate([segment.vectors[segment.alive] for segment in loose])
        save_segment(self.folder / SEGMENTS, rows, ids, vectors, None, distance=self.distance, sequence=self.sequence)

    def close(self) -> None:
        """Ends reads."""
        self.store.close()

    # State

    def shown_definition(self) -> Collection:
        """The definition with the types of inferred fields."""
        schema = {path: shown_type(kinds) for path, kinds in sorted(self.kinds.items()) if kinds - {""}}
        return Collection(
            name=self.definition.name,
            dimension=self.definition.dimension,
            distance=self.definition.distance,
            index=self.definition.index,
            text_fields=self.definition.text_fields,
            schema=schema | self.types,
            embedding_model=self.definition.embedding_model,
            description=self.definition.description,
        )

    def stats(self) -> CollectionStats:
        """The state."""
        sealed = [segment for segment in self.segments if segment.name is not None]
        is_flat = self.definition.index.kind == "flat"
        unindexed = 0 if is_flat else sum(s.num_alive for s in self.segments if s.index is None)
        largest = max(sealed, key=lambda segment: segment.num_rows, default=None)
        return CollectionStats(
            num_points=self.num_points,
            num_deleted=sum(segment.num_dead for segment in self.segments),
            num_unindexed=unindexed,
            num_segments=len(sealed),
            index_kind="flat" if largest is None else largest.kind,
            is_building=self.build is not None,
            build_progress=0.0 if self.build is None else self.build.progress,
            sequence=self.sequence,
            snapshot_sequence=self._saved_sequence if self.loose else self.sequence,
            disk_bytes=_disk_bytes(self.folder),
            memory_bytes=sum(segment.num_bytes for segment in self.segments) + self.views.num_bytes,
            vector_bytes=4 * self.definition.dimension * self.num_points,
        )

    # Start

    def _load(self) -> None:
        living = self.store.all_rows()
        loaded = load_segments(self.folder / SEGMENTS, self.distance, self.definition.dimension)
        self._saved_sequence = max((manifest.sequence for _, manifest in loaded), default=0)
        missing = np.ones(len(living), np.bool_)
        for segment, _ in loaded:
            here = np.isin(segment.rows, living, assume_unique=True, kind="sort")
            segment.kill(segment.rows[~here])
            if not segment.num_alive:
                shutil.rmtree(self.folder / SEGMENTS / str(segment.name), ignore_errors=True)
                continue
            self._upload(segment)
            self.segments.append(segment)
            missing[np.searchsorted(living, segment.rows[here])] = False
        # Blocks never reach over a sealed segment, so that segments stay in the order of rows.
        starts = [int(segment.rows[0]) for segment in self.segments]
        left = living[missing]
        for part in np.split(left, np.searchsorted(left, starts)):
            self._growing = None
            self._read_rows(part)
        self.segments.sort(key=lambda segment: int(segment.rows[0]))
        if self.segments and self.segments[-1] is not self._growing:
            self._growing = None

    def _upload(self, segment: Segment) -> None:
        """Copies what no longer grows to the GPU, if there is one."""
        if self._gpu is not None and not segment.num_dead:
            segment.on_gpu = self._gpu.upload(segment.vectors, self.distance)

    def _read_rows(self, rows: Rows) -> None:
        for start in range(0, len(rows), 1024):
            found = list(self.store.points_of(rows[start : start + 1024]))
            width = 4 * self.definition.dimension
            for _, _, data in found:
                if len(data) != width:
                    raise self.store.corrupt("a vector has the wrong length")
            vectors = self.prepared(np.frombuffer(b"".join(v for _, _, v in found), "<f4").reshape(len(found), -1))
            # Rows have gaps where points were deleted: what follows each other goes in at once.
            numbers = np.array([row for row, _, _ in found], np.int64)
            for part in np.split(np.arange(len(found)), np.flatnonzero(np.diff(numbers) != 1) + 1):
                if len(part):
                    self._append(
                        int(numbers[part[0]]), [found[i][1] for i in part.tolist()], vectors[part[0] : part[-1] + 1]
                    )


def _disk_bytes(folder: Path) -> int:
    """Bytes of the files in a folder, which the builder's thread may be renaming or deleting."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total
