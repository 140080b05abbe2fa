"""Filters: which points of a collection count.

    from vorta.filters import Filter, Match, Range

    recent = Filter(must=[Match("lang", "en"), Range("year", gte=2020)], must_not=[Match("draft", True)])
    client.collection("docs").search(text="solar power", filter=recent)

Wherever a filter is taken, so is a mapping equal to the JSON form of `vorta.v1.Filter`:
`{"must": [{"field": "lang", "match": "en"}]}`. Fields are names of the payload, parts joined by dots; of a list, one
item must pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from vorta.errors import InvalidArgument

__all__ = [
    "AnyOf",
    "Condition",
    "DatetimeRange",
    "Exists",
    "Filter",
    "GeoRadius",
    "HasId",
    "Match",
    "Range",
    "Text",
]

Scalar = str | int | bool


@dataclass(frozen=True, slots=True)
class Match:
    """The field equals a text, a whole number, or true or false."""

    field: str
    value: Scalar

    def to_dict(self) -> dict[str, Any]:
        """The JSON form of `vorta.v1.Condition`."""
        return {"field": self.field, "match": self.value}


@dataclass(frozen=True, slots=True)
class AnyOf:
    """The field equals one of these values."""

    field: str
    values: Sequence[Scalar]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form of `vorta.v1.Condition`."""
        return {"field": self.field, "any_of": list(self.values)}


@dataclass(frozen=True, slots=True)
class Range:
    """The field is a number within bounds; all that are given hold."""

    field: str
    gt: float | None = None
    gte: float | None = None
    lt: float | None = None
    lte: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form of `vorta.v1.Condition`."""
        bounds = {"gt": self.gt, "gte": self.gte, "lt": self.lt, "lte": self.lte}
        return {"field": self.field, "range": {name: bound for name, bound in bounds.items() if bound is not None}}


@dataclass(frozen=True, slots=True)
class DatetimeRange:
    """The field is a moment within bounds, each an aware datetime or RFC 3339 text; all that are given hold."""

    field: str
    gt: datetime | str | None = None
    gte: datetime | str | None = None
    lt: datetime | str | None = None
    lte: datetime | str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form of `vorta.v1.Condition`. Raises InvalidArgument for a datetime without a time zone."""
        bounds = {"gt": self.gt, "gte": self.gte, "lt": self.lt, "lte": self.lte}
        texts = {name: _moment(self.field, bound) for name, bound in bounds.items() if bound is not None}
        return {"field": self.field, "datetime_range": texts}


@dataclass(frozen=True, slots=True)
class Exists:
    """The field is present and not null; with False, it is not."""

    field: str
    is_present: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The JSON form of `vorta.v1.Condition`."""
        return {"field": self.field, "exists": self.is_present}


@dataclass(frozen=True, slots=True)
class Text:
    """The field, a text field of the collection, has all of these words."""

    field: str
    text: str

    def to_dict(self) -> dict[str, Any]:
        """The JSON form of `vorta.v1.Condition`."""
        return {"field": self.field, "text": self.text}


@dataclass(frozen=True, slots=True)
class GeoRadius:
    """The field is a place within a circle on the earth: a centre in degrees, a radius in metres."""

    field: str
    latitude: float
    longitude: float
    radius_m: float

    def to_dict(self) -> dict[str, Any]:
        """The JSON form of `vorta.v1.Condition`."""
        circle = {"latitude": self.latitude, "longitude": self.longitude, "radius_m": self.radius_m}
        return {"field": self.field, "geo_radius": circle}


@dataclass(frozen=True, slots=True)
class HasId:
    """The point's id is one of these."""

    ids: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form of `vorta.v1.Condition`."""
        return {"has_id": {"ids": list(self.ids)}}


@dataclass(frozen=True, slots=True)
class Filter:
    """All of `must` hold, none of `must_not`, and one of `should` at least where there are any.

    A filter is also a condition: put one into another's lists.
    """

    must: Sequence[Condition] = ()
    should: Sequence[Condition] = ()
    must_not: Sequence[Condition] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON form of `vorta.v1.Filter`."""
        lists = {"must": self.must, "should": self.should, "must_not": self.must_not}
        return {name: [_condition(entry, name) for entry in entries] for name, entries in lists.items() if entries}


Condition = Match | AnyOf | Range | DatetimeRange | Exists | Text | GeoRadius | HasId | Filter | Mapping[str, Any]
"""A test of a point, or a mapping equal to the JSON form of `vorta.v1.Condition`."""


def _condition(condition: Condition, name: str) -> dict[str, Any]:
    if isinstance(condition, Filter):
        return {"filter": condition.to_dict()}
    if isinstance(condition, Mapping):
        return dict(condition)
    if not hasattr(condition, "to_dict"):
        raise TypeError(f"{name} takes conditions and filters, not {condition!r:.100}")
    return condition.to_dict()


def _moment(field: str, bound: datetime | str) -> str:
    if isinstance(bound, str):
        return bound
    if bound.tzinfo is None:
        raise InvalidArgument(f"the bound of {field} needs a time zone: {bound!r}", field="filter")
    return bound.isoformat()
