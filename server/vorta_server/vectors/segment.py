"""A run of rows with their vectors: growing, full, or sealed under an index."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vorta_server.vectors.columns import Columns
from vorta_server.vectors.gpu import GpuVectors
from vorta_server.vectors.index import Found, Matrix, Selector, VectorIndex, scan
from vorta_server.vectors.store import Rows

__all__ = ["IdTable", "Segment"]

_uids = itertools.count()


class IdTable:
    """Ids as UTF-8 in one piece of memory, or of a mapped file: a third of what Python's texts take.

    Args:
        data: All ids, one after the other.
        ends: Where each ends in `data`, int64.
    """

    def __init__(self, data: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]) -> None:
        self._bounds = np.concatenate([np.zeros(1, np.int64), ends])
        # Python takes pieces of a text or of bytes far faster than of an array. A text of ASCII has a byte a character.
        raw = data.tobytes()
        self._text: str | bytes = raw.decode() if raw.isascii() else raw

    @property
    def ends(self) -> npt.NDArray[np.int64]:
        """Where each ends in `data`."""
        return self._bounds[1:]

    @property
    def data(self) -> npt.NDArray[np.uint8]:
        """All ids, one after the other."""
        return np.frombuffer(self._text.encode() if isinstance(self._text, str) else self._text, np.uint8)

    @property
    def num_bytes(self) -> int:
        """Memory."""
        return len(self._text) + self._bounds.nbytes

    @classmethod
    def of(cls, ids: Sequence[str]) -> IdTable:
        """A table of ids."""
        parts = [point_id.encode() for point_id in ids]
        ends = np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)))
        return cls(np.frombuffer(b"".join(parts), np.uint8), ends)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __getitem__(self, position: int) -> str:
        return self.take(np.array([position]))[0]

    def take(self, positions: npt.NDArray[np.int64]) -> list[str]:
        """The ids at these positions."""
        starts, ends = self._bounds[positions].tolist(), self._bounds[positions + 1].tolist()
        text = self._text
        if isinstance(text, str):
            return [text[start:end] for start, end in zip(starts, ends, strict=True)]
        return [text[start:end].decode() for start, end in zip(starts, ends, strict=True)]


class Segment:
    """Rows, ascending, some of them dead. A position is a row's place in it.

    Only the worker's thread changes it. Rows are added at the end and vectors never change, so another thread may read
    what was there when it was told of them.

    Attributes:
        uid: Distinct from every other segment's.
        index: None where searches compare with every vector.
        name: Of its folder, None where it is not saved.
        columns: Payload fields that were asked for.
        num_dead: Rows that are no more.
        on_gpu: A copy of the vectors that all searches take while no row is dead; None for none.
    """

    def __init__(
        self,
        rows: Rows,
        ids: Sequence[str] | IdTable,
        vectors: Matrix,
        distance: str,
        *,
        index: VectorIndex | None = None,
        name: str | None = None,
        capacity: int = 0,
    ) -> None:
        self.uid = next(_uids)
        self.index = index
        self.name = name
        self.columns = Columns()
        self.num_dead = 0
        self.on_gpu: GpuVectors | None = None
        self.num_rows = len(rows)
        self._distance = distance
        self._capacity = max(capacity, len(rows))
        self._rows = rows
        self._ids: Any = ids
        self._vectors = vectors
        self._alive = np.ones(self._capacity, np.bool_)
        self._bits = np.full((self._capacity + 7) // 8, 0xFF, np.uint8)
        self._selector = Selector(self._bits)

    @classmethod
    def growing(cls, dimension: int, distance: str, capacity: int) -> Segment:
        """An empty one with room for some rows."""
        segment = cls(np.empty(0, np.int64), [], np.empty((0, dimension), np.float32), distance, capacity=capacity)
        segment._rows = np.empty(capacity, np.int64)
        segment._vectors = np.empty((capacity, dimension), np.float32)
        return segment

    @property
    def room(self) -> int:
        """How many rows can be added."""
        return self._capacity - self.num_rows

    @property
    def num_alive(self) -> int:
        """Rows that are not dead."""
        return self.num_rows - self.num_dead

    @property
    def rows(self) -> Rows:
        """Row numbers, shape (num_rows,)."""
        return self._rows[: self.num_rows]

    @property
    def vectors(self) -> Matrix:
        """Vectors as they are compared, shape (num_rows, dimension)."""
        return self._vectors[: self.num_rows]

    @property
    def alive(self) -> npt.NDArray[np.bool_]:
        """Which positions are not dead."""
        return self._alive[: self.num_rows]

    @property
    def ids(self) -> Sequence[str] | IdTable:
        """Ids by position; may go on after `num_rows`."""
        return self._ids  # type: ignore[no-any-return]

    def ids_at(self, positions: npt.NDArray[np.int64]) -> list[str]:
        """Ids by position."""
        if isinstance(self._ids, IdTable):
            return self._ids.take(positions)
        return [self._ids[position] for position in positions.tolist()]

    @property
    def kind(self) -> str:
        """Of the index."""
        return "flat" if self.index is None else self.index.kind

    @property
    def num_bytes(self) -> int:
        """Memory, estimated; mapped files count for nothing."""
        vectors = 0 if isinstance(self._vectors, np.memmap) else self._vectors.nbytes
        held = self.index.num_bytes if self.index is not None else vectors
        ids = self._ids.num_bytes if isinstance(self._ids, IdTable) else 80 * self.num_rows
        return held + ids + self._rows.nbytes + self._alive.nbytes + self.columns.num_bytes

    def add(self, first_row: int, ids: Sequence[str], vectors: Matrix) -> None:
        """Adds rows that follow each other; at most `room`."""
        part = slice(self.num_rows, self.num_rows + len(ids))
        self._rows[part] = np.arange(first_row, first_row + len(ids))
        self._vectors[part] = vectors
        self._ids.extend(ids)
        self.num_rows += len(ids)

    def kill(self, rows: Rows) -> int:
        """Marks those of the rows dead that are here; how many were alive."""
        if not self.num_rows or not len(rows):
            return 0
        positions = np.searchsorted(self.rows, rows)
        positions[positions == self.num_rows] = 0
        positions = positions[(self.rows[positions] == rows) & self._alive[positions]]
        self._alive[positions] = False
        np.bitwise_and.at(self._bits, positions >> 3, ~(np.uint8(1) << (positions & 7).astype(np.uint8)))
        self.num_dead += len(positions)
        return len(positions)

    def places_of(self, rows: Rows) -> npt.NDArray[np.int64]:
        """Positions of rows, all of which are here, dead or alive."""
        every = self.rows
        first = int(every[0])
        if int(every[-1]) - first == len(every) - 1:  # none is left out between them
            places: npt.NDArray[np.int64] = rows - first
            return places
        return np.searchsorted(every, rows)

    def position_of(self, row: int) -> int | None:
        """Where a living row is, None where it is not here."""
        if not self.num_rows:
            return None
        position = int(np.searchsorted(self.rows, row))
        is_here = position < self.num_rows and self._rows[position] == row and self._alive[position]
        return position if is_here else None

    def positions_of(self, rows: Rows) -> npt.NDArray[np.int64]:
        """Where rows are, −1 for those that are not here or dead."""
        if not self.num_rows:
            return np.full(len(rows), -1, np.int64)
        positions = np.searchsorted(self.rows, rows)
        positions[positions == self.num_rows] = 0
        return np.where((self.rows[positions] == rows) & self._alive[positions], positions, -1)

    def scan(self, queries: Matrix, k: int) -> Found:
        """Compares with all living rows."""
        if self._is_whole_on_gpu(k):
            assert self.on_gpu is not None
            return self.on_gpu.search(queries, k)
        return scan(queries, self.vectors, k, self._distance, self._selector if self.num_dead else None)

    def search(self, queries: Matrix, k: int, *, ef: int, probes: int) -> Found:
        """The best living rows, by the index where there is one."""
        if self.index is None or self._is_whole_on_gpu(k):
            return self.scan(queries, k)
        return self.index.search(queries, k, ef=ef, probes=probes, selector=self._selector if self.num_dead else None)

    def _is_whole_on_gpu(self, k: int) -> bool:
        return self.on_gpu is not None and not self.num_dead and k <= self.on_gpu.max_hits
