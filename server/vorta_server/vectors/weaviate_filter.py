"""Filters in Weaviate's terms. Imports the weaviate package: import this module only where that is installed."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from weaviate.classes.query import Filter as Where
from weaviate.classes.query import GeoCoordinate
from weaviate.collections.classes.filters import FilterReturn

from vorta.errors import InvalidArgument
from vorta_server.vectors.operation import Condition, Filter, Range
from vorta_server.vectors.weaviate_schema import FIELDS, encode_name, keyword_token, object_uuid, property_name

__all__ = ["NOTHING", "Fields", "translate"]

NOTHING: FilterReturn = Where.by_id().equal(uuid.UUID(int=0))
"""No object passes: no point's UUID is zero."""

Fields: TypeAlias = Mapping[str, Collection[str]]
"""Which kinds of values each payload field has or is declared to have."""

_Part: TypeAlias = FilterReturn | bool
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TESTS = ("match", "any_of", "range", "datetime_range", "exists", "text", "geo_radius", "has_id", "filter")
_MAX_DEPTH = 16
_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1


def translate(filter_: Filter | None, fields: Fields, *, name: str = "filter") -> FilterReturn | None:
    """The filter in Weaviate's terms; None where all points pass. Needs Weaviate 1.33 or newer for `must_not`.

    Of a list of numbers or moments one item may satisfy the lower bound and another the upper one; our other backend
    asks one item for both.

    Args:
        filter_: What points must be.
        fields: Fields known of the collection.
        name: Names the filter in errors.

    Raises:
        InvalidArgument: FILTER_FIELD_UNKNOWN, FIELD_TYPE_MISMATCH, or INVALID_FIELD for a malformed condition.
    """
    part = True if filter_ is None else _filter(filter_, fields, name, 0)
    if part is True:
        return None
    return NOTHING if part is False else part


def _filter(filter_: Filter, fields: Fields, name: str, depth: int) -> _Part:
    if depth > _MAX_DEPTH:
        raise InvalidArgument(f"{name} is nested deeper than {_MAX_DEPTH}.", field=name)

    def parts(clause: str, conditions: list[Condition]) -> list[_Part]:
        return [_condition(item, fields, f"{name}.{clause}[{i}]", depth) for i, item in enumerate(conditions)]

    all_parts = parts("must", filter_.must)
    all_parts += [_not(part) for part in parts("must_not", filter_.must_not)]
    if filter_.should:
        all_parts.append(_any(parts("should", filter_.should)))
    return _all(all_parts)


def _all(parts: list[_Part]) -> _Part:
    if any(part is False for part in parts):
        return False
    left = [part for part in parts if not isinstance(part, bool)]
    return (left[0] if len(left) == 1 else Where.all_of(left)) if left else True


def _any(parts: list[_Part]) -> _Part:
    if any(part is True for part in parts):
        return True
    left = [part for part in parts if not isinstance(part, bool)]
    return (left[0] if len(left) == 1 else Where.any_of(left)) if left else False


def _not(part: _Part) -> _Part:
    return not part if isinstance(part, bool) else Where.not_(part)


def _condition(condition: Condition, fields: Fields, name: str, depth: int) -> _Part:
    tests = [test for test in _TESTS if getattr(condition, test) is not None]
    if len(tests) != 1:
        raise InvalidArgument(f"{name} must have exactly one test.", field=name)
    test = tests[0]
    if (test in ("has_id", "filter")) is bool(condition.field):
        what = "takes no field" if condition.field else "needs a field"
        raise InvalidArgument(f"{name}: {test} {what}.", field=f"{name}.field")
    if condition.filter is not None:
        return _filter(condition.filter, fields, f"{name}.filter", depth + 1)
    if condition.has_id is not None:
        ids = [object_uuid(point_id) for point_id in condition.has_id]
        return Where.by_id().contains_any(ids) if ids else False
    return _FieldTest(condition.field, fields, name).part(condition)


class _FieldTest:
    """A test of one field, over the properties that its values may be in."""

    def __init__(self, path: str, fields: Fields, name: str) -> None:
        self._path = path
        self._name = name
        self._kinds = fields.get(path, ())
        if not self._kinds and not any(known.startswith(f"{path}.") for known in fields):
            raise InvalidArgument(
                f"{name}: no point has the field {path!r} and no schema declares it.",
                reason="FILTER_FIELD_UNKNOWN",
                field=name,
                metadata={"payload_field": path},
            )

    def part(self, condition: Condition) -> _Part:
        if condition.match is not None:
            return self._equal(condition.match)
        if condition.any_of is not None:
            return _any([self._equal(value) for value in condition.any_of])
        if condition.range is not None:
            return self._range(condition.range)
        if condition.datetime_range is not None:
            return self._datetime_range(condition.datetime_range)
        if condition.exists is not None:
            present = Where.by_property(FIELDS).equal(encode_name(self._path))
            return present if condition.exists else Where.not_(present)
        if condition.text is not None:
            # Weaviate splits the text as it split the values, and asks for all of the words.
            if not any(char.isalnum() for char in condition.text):
                raise InvalidArgument(f"{self._name}.text has no words.", field=f"{self._name}.text")
            return self._by("text", lambda name: Where.by_property(name).equal(str(condition.text)))
        place = condition.geo_radius
        assert place is not None
        if not (-90 <= place.latitude <= 90 and -180 <= place.longitude <= 180 and 0 < place.radius_m < math.inf):
            raise InvalidArgument(f"{self._name}.geo_radius is no circle on the earth.", field=self._name)
        centre = GeoCoordinate(latitude=place.latitude, longitude=place.longitude)
        return self._by(
            "geo", lambda name: Where.by_property(name).within_geo_range(coordinate=centre, distance=place.radius_m)
        )

    def _equal(self, value: str | int | bool) -> _Part:
        if isinstance(value, bool):
            return self._by("bool", lambda name: Where.by_property(name).equal(value))
        if isinstance(value, str):
            return self._by("keyword", lambda name: Where.by_property(name).equal(keyword_token(value)))
        parts: list[_Part] = []
        if "integer" in self._kinds and _INT64_MIN <= value <= _INT64_MAX:
            parts.append(self._by("integer", lambda name: Where.by_property(name).equal(value)))
        if "float" in self._kinds:
            parts.append(self._by("float", lambda name: Where.by_property(name).equal(float(value))))
        self._check_kind("integer", "float")
        return _any(parts)

    def _range(self, bounds: Range) -> _Part:
        self._check_kind("integer", "float")
        limits = _limits(bounds, f"{self._name}.range")
        parts: list[_Part] = []
        if "integer" in self._kinds:
            parts.append(self._by("integer", lambda name: _all([_integer_bound(name, *limit) for limit in limits])))
        if "float" in self._kinds:
            parts.append(
                self._by(
                    "float", lambda name: _all([_bound(name, operator, float(value)) for operator, value in limits])
                )
            )
        return _any(parts)

    def _datetime_range(self, bounds: Range) -> _Part:
        limits = _limits(bounds, f"{self._name}.datetime_range")
        try:
            moments = [(operator, _EPOCH + timedelta(seconds=value)) for operator, value in limits]
        except OverflowError:
            raise InvalidArgument(f"{self._name}.datetime_range is out of range.", field=self._name) from None
        return self._by("datetime", lambda name: _all([_bound(name, operator, moment) for operator, moment in moments]))

    def _by(self, kind: str, make: Callable[[str], _Part]) -> _Part:
        self._check_kind(kind)
        name = property_name(kind, self._path)
        if name is None:
            raise InvalidArgument(f"{self._name}: {self._path!r} is too long to be filtered by.", field=self._name)
        return make(name)

    def _check_kind(self, *kinds: str) -> None:
        if not any(kind in self._kinds for kind in kinds):
            raise InvalidArgument(
                f"{self._name}: {self._path!r} has no values of type {' or '.join(kinds)}.",
                reason="FIELD_TYPE_MISMATCH",
                field=self._name,
                metadata={"payload_field": self._path, "type": ",".join(sorted(self._kinds)) or "object"},
            )


def _limits(bounds: Range, name: str) -> list[tuple[str, float]]:
    limits = [
        (operator, value) for operator in ("gt", "gte", "lt", "lte") if (value := getattr(bounds, operator)) is not None
    ]
    if not limits:
        raise InvalidArgument(f"{name} has no bound.", field=name)
    if not all(math.isfinite(value) for _, value in limits):
        raise InvalidArgument(f"{name} has a bound that is no number.", field=name)
    return limits


def _bound(name: str, operator: str, value: float | int | datetime) -> FilterReturn:
    by = Where.by_property(name)
    if operator == "gt":
        return by.greater_than(value)
    if operator == "gte":
        return by.greater_or_equal(value)
    if operator == "lt":
        return by.less_than(value)
    return by.less_or_equal(value)


def _integer_bound(name: str, operator: str, value: float) -> _Part:
    """The bound as the nearest whole number that divides the same integers."""
    whole = math.floor(value) if operator in ("gt", "lte") else math.ceil(value)
    if whole < _INT64_MIN:
        return _bound(name, "gte", _INT64_MIN) if operator in ("gt", "gte") else False
    if whole > _INT64_MAX:
        return _bound(name, "lte", _INT64_MAX) if operator in ("lt", "lte") else False
    return _bound(name, operator, whole)
