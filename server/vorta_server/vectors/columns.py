"""Payload fields of one segment as arrays, made when a filter first asks for them.

A field's values are kept apart by kind, each kind as two arrays: the position (0 to rows − 1) of the point, ascending,
and the value. A point may have several entries or none, so lists and missing fields need no other way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from vorta_server.vectors.payloads import field_kinds, parse_moment, parse_place, values_at

__all__ = ["Column", "Columns"]

_DTYPES: dict[str, Any] = {
    "": np.int8,
    "keyword": np.int32,
    "integer": np.int64,
    "float": np.float64,
    "bool": np.bool_,
    "datetime": np.int64,
    "geo": np.float64,
}
_decode = msgspec.json.Decoder().decode
Array = npt.NDArray[Any]


class Column:
    """The values of one field in one segment.

    Attributes:
        num_rows: Positions below this have been read.
        codes: Numbers of the texts that keywords are kept as.
    """

    def __init__(self, path: str, declared: str | None) -> None:
        self.num_rows = 0
        self.codes: dict[str, int] = {}
        self._path = path
        self._declared = declared
        self._parts: dict[str, tuple[Array, Array]] = {}
        self._new: dict[str, tuple[list[int], list[Any]]] = {}

    def add(self, position: int, payload: Any) -> None:
        """Takes in a point's payload; positions ascend. Call `flush` before reading."""
        is_present = False
        for value in values_at(payload, self._path):
            is_present = True
            if not isinstance(value, list):
                for kind in field_kinds(value, self._declared) or ():
                    self._put(kind, position, value)
        if is_present:
            self._append("", position, 1)

    def flush(self, num_rows: int) -> None:
        """Makes what was added readable; positions below `num_rows` are complete."""
        for kind, (positions, values) in self._new.items():
            part = np.array(positions, np.int32), np.array(values, _DTYPES[kind])
            old = self._parts.get(kind)
            self._parts[kind] = (
                part if old is None else (np.concatenate([old[0], part[0]]), np.concatenate([old[1], part[1]]))
            )
        self._new = {}
        self.num_rows = num_rows

    def values(self, kind: str) -> tuple[Array, Array] | None:
        """Positions and values of a kind; None where there are none.

        Keywords are numbers of `codes`, datetimes microseconds, geo latitude and longitude in degrees, shape (n, 2).
        Kind "" has a position for every point that has the field.
        """
        return self._parts.get(kind)

    @property
    def num_bytes(self) -> int:
        """Memory, estimated."""
        return sum(a.nbytes + b.nbytes for a, b in self._parts.values()) + sum(len(t) + 120 for t in self.codes)

    def _put(self, kind: str, position: int, value: Any) -> None:
        if kind == "keyword":
            value = self.codes.setdefault(value, len(self.codes))
        elif kind == "text":
            return  # words are looked up in the database
        elif kind == "integer":
            value = int(value)
        elif kind == "float":
            try:
                value = float(value)
            except OverflowError:
                return
        elif kind == "datetime":
            value = parse_moment(value)
        elif kind == "geo":
            value = parse_place(value)
        self._append(kind, position, value)

    def _append(self, kind: str, position: int, value: Any) -> None:
        lists = self._new.get(kind)
        if lists is None:
            lists = self._new[kind] = ([], [])
        lists[0].append(position)
        lists[1].append(value)


class Columns:
    """The columns of one segment that have been asked for."""

    def __init__(self) -> None:
        self._columns: dict[str, Column] = {}

    def __getitem__(self, path: str) -> Column:
        return self._columns[path]

    def missing(self, paths: Iterable[str], num_rows: int) -> list[str]:
        """Those of the paths that are not read up to `num_rows`."""
        return [p for p in paths if p not in self._columns or self._columns[p].num_rows < num_rows]

    def install(self, columns: Mapping[str, Column]) -> None:
        """Takes columns that a thread has read."""
        self._columns.update(columns)

    def start_of(self, paths: Iterable[str]) -> int:
        """The position from which the payloads have to be read to complete these paths."""
        return min((self._columns[p].num_rows if p in self._columns else 0 for p in paths), default=0)

    def extend(
        self,
        paths: Iterable[str],
        types: Mapping[str, str],
        rows: npt.NDArray[np.int64],
        payloads: Iterable[tuple[int, str]],
    ) -> None:
        """Completes columns up to all of `rows`, from payloads that begin at the position `start_of(paths)` or before.

        Args:
            paths: Which.
            types: Declared types.
            rows: The segment's rows, ascending.
            payloads: Row and JSON text, ascending.
        """
        columns = [self._columns.setdefault(path, Column(path, types.get(path))) for path in paths]
        position_of = None
        for row, payload in payloads:
            if position_of is None:
                start = int(np.searchsorted(rows, row))
                position_of = {r: i for i, r in enumerate(rows[start:].tolist(), start)}
            position = position_of.get(row)
            if position is None:
                continue
            value = _decode(payload)
            for column in columns:
                if position >= column.num_rows:
                    column.add(position, value)
        for column in columns:
            column.flush(len(rows))

    @property
    def num_bytes(self) -> int:
        """Memory, estimated."""
        return sum(column.num_bytes for column in self._columns.values())
