"""How a filtered search of a segment is done: by comparing with the rows that pass, or through its index.

A graph finds filtered rows only among those it visits, so the rarer they are the wider it must look, while comparing
costs what there is to compare. Both are estimated from measured times.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from vorta_server.vectors.index import Matrix, Selector, scan
from vorta_server.vectors.segment import Segment

__all__ = ["CostModel", "FilterView", "ViewCache", "filtered_width"]

_WIDTH_FACTOR = 1.5
_CALIBRATION_ROWS = 4_096
_CALIBRATION_RUNS = 3
_MIN_NOTED_ROWS = 1_000
_MIN_NOTED_WIDTH = 32
_BYTES_PER_SECOND = 1.0e10
_GATHER_BYTES_PER_SECOND = 5.0e9
_EF_SECONDS = 2.0e-6
_WEIGHT = 0.2


def filtered_width(ef: int, k: int, selectivity: float) -> int:
    """HNSW's width that leaves enough rows that pass: the unfiltered one, or what k hits take at this selectivity.

    A recall of 0.95 takes about k / selectivity (measured from 1 % to 90 % on real vectors); this is half as
    much again.
    """
    return max(ef, math.ceil(_WIDTH_FACTOR * k / max(selectivity, 1e-9)))


class CostModel:
    """Seconds of the parts of a search, as measured.

    Args:
        dimension: Numbers of a vector, for the first guesses.
    """

    def __init__(self, dimension: int) -> None:
        self.scan_row_s = 4 * dimension / _BYTES_PER_SECOND
        self.gather_row_s = 4 * dimension / _GATHER_BYTES_PER_SECOND
        self.ef_s = _EF_SECONDS * max(0.25, dimension / 384)
        self.probe_s = 2.0e-5

        self._is_calibrated = False

    def calibrate(self, segment: Segment, query: Matrix, distance: str) -> None:
        """Measures scan and graph once on a segment with an index: a guess that keeps a way from being taken is never
        mended by measuring what is taken.
        """
        if self._is_calibrated or segment.index is None:
            return
        self._is_calibrated = True
        rows = segment.vectors[:_CALIBRATION_ROWS]
        self.scan_row_s = _fastest(lambda: scan(query, rows, 10, distance)) / len(rows)
        if segment.kind != "ivf_pq":
            index = segment.index
            self.ef_s = _fastest(lambda: index.search(query, 10, ef=64, probes=0)) / 64

    def note(self, name: str, units: float, seconds: float) -> None:
        """Takes in a measurement: seconds for so many units of `name`. Of few units it says little of each."""
        if units >= (_MIN_NOTED_WIDTH if name in ("ef_s", "probe_s") else _MIN_NOTED_ROWS):
            old = getattr(self, name)
            # One slow moment of a busy machine must not turn the choice around.
            measured = min(seconds / units, 4 * old)
            setattr(self, name, old + _WEIGHT * (measured - old))

    def exact_s(self, num_rows: int, num_queries: int, *, is_gathered: bool) -> float:
        """Comparing with so many rows."""
        return num_rows * (self.scan_row_s * num_queries + (0.0 if is_gathered else self.gather_row_s))

    def graph_s(self, width: int, num_queries: int) -> float:
        """Searching a graph."""
        return self.ef_s * width * num_queries

    def cells_s(self, probes: int, num_queries: int) -> float:
        """Looking at cells."""
        return self.probe_s * probes * num_queries


def _fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest of a few runs."""
    seconds = []
    for _ in range(_CALIBRATION_RUNS):
        start_s = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start_s)
    return min(seconds)


@dataclasses.dataclass(eq=False)
class FilterView:
    """What one filter lets through of one segment.

    Attributes:
        mask: Which of the first `num_rows` rows pass, the dead not taken out.
        num_rows: Rows of the segment when it was made.
    """

    mask: npt.NDArray[np.bool_]
    num_rows: int
    _segment: Segment
    _num_dead: int = -1
    _positions: npt.NDArray[np.int64] | None = None
    _selector: Selector | None = None
    _gathered: Matrix | None = None

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        """Of living rows that pass, ascending."""
        if self._positions is None or self._num_dead != self._segment.num_dead:
            self._num_dead = self._segment.num_dead
            self._positions = np.flatnonzero(self.mask & self._segment.alive[: self.num_rows])
            self._selector = self._gathered = None
        return self._positions

    @property
    def count(self) -> int:
        """Living rows that pass."""
        return len(self.positions)

    @property
    def selector(self) -> Selector:
        """Of `positions`."""
        positions = self.positions
        if self._selector is None:
            mask = np.zeros(self.num_rows, np.bool_)
            mask[positions] = True
            self._selector = Selector(np.packbits(mask, bitorder="little"))
        return self._selector

    @property
    def gathered(self) -> Matrix | None:
        """Vectors of `positions`, if they are at hand."""
        return self._gathered if self._num_dead == self._segment.num_dead else None

    def gather(self) -> Matrix:
        """Vectors of `positions`, shape (count, dimension), kept."""
        positions = self.positions
        if self._gathered is None:
            self._gathered = self._segment.vectors[positions]
        return self._gathered

    @property
    def num_bytes(self) -> int:
        """Memory."""
        bits = self._selector.bits if self._selector is not None else None
        parts = (self.mask, self._positions, self._gathered, bits)
        return 200 + sum(part.nbytes for part in parts if part is not None)


class ViewCache:
    """Views of filters that were used lately, within a number of bytes.

    A view of a segment stays valid as long as the segment: rows never change, and the dead are looked up. That of a
    growing one is made again when there are more rows.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._views: OrderedDict[tuple[int, bytes], FilterView] = OrderedDict()
        self._sizes: dict[tuple[int, bytes], int] = {}
        self.num_bytes = 0

    def get(self, segment: Segment, key: bytes) -> FilterView | None:
        """The view of a filter's key, None when there is none of all the segment's rows."""
        view = self._views.get((segment.uid, key))
        if view is None or view.num_rows != segment.num_rows:
            return None
        self._views.move_to_end((segment.uid, key))
        return view

    def make(self, segment: Segment, key: bytes, mask: npt.NDArray[np.bool_]) -> FilterView:
        """Makes a view of a mask of all the segment's rows, and keeps it."""
        view = FilterView(mask, segment.num_rows, segment)
        self._views[(segment.uid, key)] = view
        return view

    def settle(self, segment: Segment, key: bytes) -> None:
        """Counts a view's bytes again after use, and lets the oldest go when there are too many."""
        entry = (segment.uid, key)
        view = self._views.get(entry)
        if view is None:
            return
        size = view.num_bytes
        self.num_bytes += size - self._sizes.get(entry, 0)
        self._sizes[entry] = size
        while self.num_bytes > self._max_bytes and self._views:
            self._forget(next(iter(self._views)))

    def drop_segments(self, uids: set[int]) -> None:
        """Forgets the views of segments."""
        for entry in [entry for entry in self._views if entry[0] in uids]:
            self._forget(entry)

    def _forget(self, entry: tuple[int, bytes]) -> None:
        del self._views[entry]
        self.num_bytes -= self._sizes.pop(entry, 0)
