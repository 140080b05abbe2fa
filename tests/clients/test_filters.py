"""Filters: the builder, mappings, and the wire."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from vorta._filter_message import filter_message
from vorta.errors import InvalidArgument
from vorta.filters import AnyOf, DatetimeRange, Exists, Filter, GeoRadius, HasId, Match, Range, Text
from vorta.v1 import vector_pb2

NAMES = st.text("abcxyz.", min_size=1, max_size=8)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.text(max_size=8) | st.integers(-(2**53), 2**53) | st.booleans()
BOUNDS = st.fixed_dictionaries({}, optional=dict.fromkeys(["gt", "gte", "lt", "lte"], NUMBERS))
MOMENTS = st.datetimes(timezones=st.just(UTC))
MOMENT_BOUNDS = st.fixed_dictionaries({}, optional=dict.fromkeys(["gt", "gte", "lt", "lte"], MOMENTS))
SIMPLE = st.one_of(
    st.builds(Match, NAMES, SCALARS),
    st.builds(AnyOf, NAMES, st.lists(SCALARS, max_size=3)),
    st.builds(lambda name, bounds: Range(name, **bounds), NAMES, BOUNDS),
    st.builds(lambda name, bounds: DatetimeRange(name, **bounds), NAMES, MOMENT_BOUNDS),
    st.builds(Exists, NAMES, st.booleans()),
    st.builds(Text, NAMES, st.text(min_size=1, max_size=8)),
    st.builds(GeoRadius, NAMES, st.floats(-90, 90), st.floats(-180, 180), st.floats(1, 1e6)),
    st.builds(HasId, st.lists(st.text(max_size=4), max_size=3)),
)


def filters(conditions: st.SearchStrategy[Any]) -> st.SearchStrategy[Filter]:
    lists = st.lists(conditions, max_size=3)
    return st.builds(Filter, lists, lists, lists)


FILTERS = filters(st.recursive(SIMPLE, filters, max_leaves=6))


@given(FILTERS)
def test_builder_mapping_and_message_are_the_same(value: Filter) -> None:
    message = filter_message(value)
    assert filter_message(value.to_dict()) == message
    mapping = json_format.MessageToDict(message, preserving_proto_field_name=True)
    assert filter_message(mapping) == message
    assert filter_message(json_format.MessageToDict(message)) == message
    assert vector_pb2.Filter.FromString(message.SerializeToString()) == message


@given(FILTERS)
def test_no_condition_is_lost(value: Filter) -> None:
    def count(message: vector_pb2.Filter) -> int:
        entries = [*message.must, *message.should, *message.must_not]
        assert all(entry.WhichOneof("test") for entry in entries)
        return sum(count(entry.filter) if entry.HasField("filter") else 1 for entry in entries)

    def count_of(value: Filter) -> int:
        entries = [*value.must, *value.should, *value.must_not]
        return sum(count_of(entry) if isinstance(entry, Filter) else 1 for entry in entries)

    assert count(filter_message(value)) == count_of(value)


def test_values_keep_their_kinds() -> None:
    value = Filter(
        must=[Match("lang", "en"), Match("draft", False), Match("year", 0), {"field": "x", "exists": True}],
        should=[Range("size", gte=0, lt=2.5)],
        must_not=[DatetimeRange("time", gt=datetime(2024, 1, 2, tzinfo=UTC), lte="2025-01-01T00:00:00Z")],
    )
    message = filter_message(value)
    kinds = [entry.match.WhichOneof("kind") for entry in message.must]
    assert kinds == ["string_value", "bool_value", "number_value", None]
    assert message.must[3].exists
    bounds = message.should[0].range
    assert (bounds.HasField("gte"), bounds.HasField("gt"), bounds.lt) == (True, False, 2.5)
    assert message.must_not[0].datetime_range.gt == "2024-01-02T00:00:00+00:00"
    assert message.must_not[0].datetime_range.gte == ""


@pytest.mark.parametrize(
    "value",
    [
        {"all": []},
        {"must": [{"field": "a", "equals": 1}]},
        {"must": [{"field": "a", "match": 1, "exists": True}]},
        {"must": [{"field": "a", "range": {"gte": "x"}}]},
        {"must": 3},
        {"must": [{"field": "a", "match": 2**53 + 1}]},
        Filter(must=[AnyOf("a", [-(2**60)])]),
        Filter(must=[DatetimeRange("a", gt=datetime(2024, 1, 2))]),
    ],
)
def test_bad_filters_name_the_field(value: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        filter_message(value)
    assert caught.value.field == "filter"


def test_what_is_no_filter() -> None:
    with pytest.raises(TypeError, match="filter must be"):
        filter_message("lang = en")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must takes conditions"):
        filter_message(Filter(must=["lang"]))  # type: ignore[list-item]
