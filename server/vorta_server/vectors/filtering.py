"""Filters: checked and compiled once, then a mask of a segment's rows by numpy."""

from __future__ import annotations

import dataclasses
import math
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from vorta.errors import InvalidArgument
from vorta_server.vectors.columns import Column, Columns
from vorta_server.vectors.faiss_config import FaissConfig
from vorta_server.vectors.operation import Condition, Filter, GeoRadius, Range
from vorta_server.vectors.store import ReadStore, Rows

__all__ = ["CompiledFilter", "compile_filter", "match_all_words", "match_any_word", "words_of"]

Mask = npt.NDArray[np.bool_]
Test = Callable[["_Segment"], Mask]

_TESTS = ("match", "any_of", "range", "datetime_range", "exists", "text", "geo_radius", "has_id", "filter")
_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1
_EARTH_RADIUS_M = 6_371_008.8
_WORD = re.compile(r"[^\W_]+")


def words_of(text: str, max_words: int) -> list[str]:
    """Distinct words of a text, lower case, in order."""
    found = _WORD.findall(unicodedata.normalize("NFC", text).lower())
    return list(dict.fromkeys(found))[:max_words]


def match_any_word(words: list[str]) -> str:
    """A match of FTS5 for any of the words. Words have letters and digits alone, so quoting them is enough."""
    return " OR ".join(f'"{word}"' for word in words)


def match_all_words(column: int, words: list[str]) -> str:
    """A match of FTS5 for all of the words in one text field."""
    quoted = " AND ".join(f'"{word}"' for word in words)
    return f"f{column} : ({quoted})"


@dataclasses.dataclass(slots=True)
class _Segment:
    """What tests see of a segment."""

    rows: Rows
    columns: Columns
    found_rows: list[Rows]

    def empty(self) -> Mask:
        return np.zeros(len(self.rows), np.bool_)


@dataclasses.dataclass(slots=True)
class CompiledFilter:
    """A filter that was checked.

    Attributes:
        key: Equal for equal filters.
        paths: Payload fields whose columns are needed.
    """

    key: bytes
    paths: tuple[str, ...]
    _test: Test
    _lookups: list[Callable[[ReadStore], Rows]]

    def look_up(self, store: ReadStore) -> list[Rows]:
        """Rows that only the database can tell: those of ids and of words. Once for all segments."""
        return [np.sort(lookup(store)) for lookup in self._lookups]

    def mask(self, rows: Rows, columns: Columns, found_rows: list[Rows]) -> Mask:
        """Which rows of a segment pass, the dead not taken out.

        Args:
            rows: The segment's.
            columns: The segment's, complete for `paths`.
            found_rows: Of `look_up`.
        """
        return self._test(_Segment(rows, columns, found_rows))


def compile_filter(
    filter_: Filter, kinds: Mapping[str, set[str]], text_fields: list[str], config: FaissConfig
) -> CompiledFilter:
    """Checks a filter.

    Args:
        filter_: What points must be.
        kinds: The kinds of values that fields have had or are declared to have.
        text_fields: Fields whose words can be looked for.
        config: Limits.

    Raises:
        InvalidArgument: FILTER_FIELD_UNKNOWN, FIELD_TYPE_MISMATCH, or INVALID_FIELD for a malformed condition.
    """
    compiler = _Compiler(kinds, text_fields, config)
    test = compiler.filter(filter_, "filter", 0)
    return CompiledFilter(msgspec.msgpack.encode(filter_), tuple(sorted(compiler.paths)), test, compiler.lookups)


class _Compiler:
    def __init__(self, kinds: Mapping[str, set[str]], text_fields: list[str], config: FaissConfig) -> None:
        self.paths: set[str] = set()
        self.lookups: list[Callable[[ReadStore], Rows]] = []
        self._kinds = kinds
        self._text_fields = text_fields
        self._config = config
        self._num_conditions = 0
        self._num_ids = 0

    def filter(self, filter_: Filter, name: str, depth: int) -> Test:
        if depth > self._config.max_filter_depth:
            raise InvalidArgument(f"filter is nested deeper than {self._config.max_filter_depth}.", field=name)
        must, should, must_not = (
            [self._condition(item, f"{name}.{clause}[{i}]", depth) for i, item in enumerate(conditions)]
            for clause, conditions in (
                ("must", filter_.must),
                ("should", filter_.should),
                ("must_not", filter_.must_not),
            )
        )

        def test(segment: _Segment) -> Mask:
            mask = np.ones(len(segment.rows), np.bool_)
            for part in must:
                mask &= part(segment)
            for part in must_not:
                mask &= ~part(segment)
            if should:
                some = segment.empty()
                for part in should:
                    some |= part(segment)
                mask &= some
            return mask

        return test

    def _condition(self, condition: Condition, name: str, depth: int) -> Test:
        self._num_conditions += 1
        if self._num_conditions > self._config.max_filter_conditions:
            raise InvalidArgument(
                f"filter has more than {self._config.max_filter_conditions} conditions.", field="filter"
            )
        tests = [test for test in _TESTS if getattr(condition, test) is not None]
        if len(tests) != 1:
            raise InvalidArgument(f"{name} must have exactly one test.", field=name)
        if (tests[0] in ("has_id", "filter")) is bool(condition.field):
            what = "takes no field" if condition.field else "needs a field"
            raise InvalidArgument(f"{name}: {tests[0]} {what}.", field=f"{name}.field")
        if condition.filter is not None:
            return self.filter(condition.filter, f"{name}.filter", depth + 1)
        if condition.has_id is not None:
            return self._has_id(condition.has_id, f"{name}.has_id")
        return self._field_test(condition, name)

    def _has_id(self, ids: list[str], name: str) -> Test:
        self._num_ids += len(ids)
        if self._num_ids > self._config.max_filter_ids:
            raise InvalidArgument(f"filter has more than {self._config.max_filter_ids} ids.", field=name)
        for index, point_id in enumerate(ids):
            try:
                point_id.encode()
            except UnicodeEncodeError:
                raise InvalidArgument(f"{name}[{index}] is no text.", field=f"{name}[{index}]") from None
        return self._found(lambda store: np.fromiter(store.rows_of(ids).values(), np.int64))

    def _found(self, lookup: Callable[[ReadStore], Rows]) -> Test:
        number = len(self.lookups)
        self.lookups.append(lookup)

        def test(segment: _Segment) -> Mask:
            mask, found = segment.empty(), segment.found_rows[number]
            if len(found) and len(mask):
                at = np.searchsorted(segment.rows, found)
                at[at == len(mask)] = 0
                mask[at[segment.rows[at] == found]] = True
            return mask

        return test

    def _field_test(self, condition: Condition, name: str) -> Test:
        path = condition.field
        kinds = self._kinds.get(path, set())
        if path not in self._kinds and not any(known.startswith(f"{path}.") for known in self._kinds):
            shown = sorted(self._kinds)
            known = ", ".join(shown[:20]) + (" …" if len(shown) > 20 else "") if shown else "none"
            raise InvalidArgument(
                f"{name}: no point has the field {path!r} and no schema declares it. Known fields: {known}.",
                reason="FILTER_FIELD_UNKNOWN",
                field=f"{name}.field",
                metadata={"payload_field": path},
            )

        def need(*wanted: str) -> None:
            if kinds.isdisjoint(wanted):
                raise InvalidArgument(
                    f"{name}: {path!r} has no values of type {' or '.join(wanted)}.",
                    reason="FIELD_TYPE_MISMATCH",
                    field=name,
                    metadata={"payload_field": path, "type": ",".join(sorted(kinds - {""})) or "object"},
                )

        if condition.text is not None:
            need("text")
            words = words_of(condition.text, self._config.max_text_words)
            if not words:
                raise InvalidArgument(f"{name}.text has no words.", field=f"{name}.text")
            match = match_all_words(self._text_fields.index(path), words)
            return self._found(lambda store: store.text_rows(match))
        self.paths.add(path)
        if condition.exists is not None:
            wanted = condition.exists
            return lambda segment: _spread(segment, segment.columns[path].values(""), None) ^ (not wanted)
        if condition.match is not None:
            return self._equal(path, [condition.match], need)
        if condition.any_of is not None:
            return self._equal(path, condition.any_of, need)
        if condition.range is not None:
            need("integer", "float")
            return _range_test(path, condition.range, f"{name}.range")
        if condition.datetime_range is not None:
            need("datetime")
            return _datetime_test(path, condition.datetime_range, f"{name}.datetime_range")
        assert condition.geo_radius is not None
        need("geo")
        return _geo_test(path, condition.geo_radius, f"{name}.geo_radius")

    def _equal(self, path: str, values: list[str | int | bool], need: Callable[..., None]) -> Test:
        texts = [value for value in values if isinstance(value, str)]
        bools = {value for value in values if isinstance(value, bool)}
        numbers = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
        if texts:
            need("keyword")
        if bools:
            need("bool")
        if numbers:
            need("integer", "float")
        integers = np.array([n for n in numbers if _INT64_MIN <= n <= _INT64_MAX], np.int64)
        floats = np.array([float(n) for n in numbers if abs(n) < 1e300], np.float64)

        def test(segment: _Segment) -> Mask:
            column, mask = segment.columns[path], segment.empty()
            if texts:
                codes = [code for text in texts if (code := column.codes.get(text)) is not None]
                if codes:
                    mask |= _is_one_of(segment, column, "keyword", np.array(codes, np.int32))
            if bools:
                mask |= _is_one_of(segment, column, "bool", np.array(sorted(bools), np.bool_))
            if numbers:
                mask |= _is_one_of(segment, column, "integer", integers)
                mask |= _is_one_of(segment, column, "float", floats)
            return mask

        return test


def _spread(segment: _Segment, entries: tuple[Any, Any] | None, passes: Mask | None) -> Mask:
    mask = segment.empty()
    if entries is not None:
        mask[entries[0] if passes is None else entries[0][passes]] = True
    return mask


def _is_one_of(segment: _Segment, column: Column, kind: str, wanted: npt.NDArray[Any]) -> Mask:
    entries = column.values(kind)
    if entries is None or not len(wanted):
        return segment.empty()
    values = entries[1]
    return _spread(segment, entries, values == wanted[0] if len(wanted) == 1 else np.isin(values, wanted))


def _range_test(path: str, bounds: Range, name: str) -> Test:
    limits = _limits(bounds, name)

    def test(segment: _Segment) -> Mask:
        column, mask = segment.columns[path], segment.empty()
        if (integers := column.values("integer")) is not None:
            mask |= _spread(segment, integers, _within(integers[1], [_whole(*limit) for limit in limits]))
        if (floats := column.values("float")) is not None:
            mask |= _spread(segment, floats, _within(floats[1], limits))
        return mask

    return test


def _datetime_test(path: str, bounds: Range, name: str) -> Test:
    limits = [_whole(operator, round(seconds * 1_000_000)) for operator, seconds in _limits(bounds, name)]

    def test(segment: _Segment) -> Mask:
        entries = segment.columns[path].values("datetime")
        return segment.empty() if entries is None else _spread(segment, entries, _within(entries[1], limits))

    return test


def _geo_test(path: str, circle: GeoRadius, name: str) -> Test:
    if not (-90 <= circle.latitude <= 90 and -180 <= circle.longitude <= 180 and 0 < circle.radius_m < math.inf):
        raise InvalidArgument(f"{name} is no circle on the earth.", field=name)
    latitude, longitude = math.radians(circle.latitude), math.radians(circle.longitude)

    def test(segment: _Segment) -> Mask:
        entries = segment.columns[path].values("geo")
        if entries is None:
            return segment.empty()
        places = np.radians(entries[1])
        half_lat, half_lon = (places[:, 0] - latitude) / 2, (places[:, 1] - longitude) / 2
        chord = np.sin(half_lat) ** 2 + math.cos(latitude) * np.cos(places[:, 0]) * np.sin(half_lon) ** 2
        distance = 2 * _EARTH_RADIUS_M * np.arcsin(np.sqrt(np.clip(chord, 0.0, 1.0)))
        return _spread(segment, entries, distance <= circle.radius_m)

    return test


def _limits(bounds: Range, name: str) -> list[tuple[str, float]]:
    limits = [
        (operator, value) for operator in ("gt", "gte", "lt", "lte") if (value := getattr(bounds, operator)) is not None
    ]
    if not limits:
        raise InvalidArgument(f"{name} has no bound.", field=name)
    if not all(math.isfinite(value) for _, value in limits):
        raise InvalidArgument(f"{name} has a bound that is no number.", field=name)
    return limits


def _whole(operator: str, value: float) -> tuple[str, float]:
    """The bound as the whole number that divides the same integers; as a float64 it might not be exact."""
    whole = math.floor(value) if operator in ("gt", "lte") else math.ceil(value)
    if whole < _INT64_MIN:
        return ("gte", _INT64_MIN) if operator in ("gt", "gte") else ("lt", _INT64_MIN)
    if whole > _INT64_MAX:
        return ("lte", _INT64_MAX) if operator in ("lt", "lte") else ("gt", _INT64_MAX)
    return operator, whole


def _within(values: npt.NDArray[Any], limits: list[tuple[str, float]]) -> Mask:
    mask = np.ones(len(values), np.bool_)
    for operator, bound in limits:
        if operator == "gt":
            mask &= values > bound
        elif operator == "gte":
            mask &= values >= bound
        elif operator == "lt":
            mask &= values < bound
        else:
            mask &= values <= bound
    return mask
