"""Filters mean the same in Weaviate's terms: random ones, evaluated as an inverted index does, against plain Python."""

from __future__ import annotations

import json
import math
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vorta.errors import InvalidArgument
from vorta_server.vectors.operation import Condition, Filter, GeoRadius, Range
from vorta_server.vectors.weaviate_schema import object_uuid, properties_of

pytest.importorskip("weaviate", reason='needs the extra "weaviate"')

from weaviate.collections.filters import _FilterToGRPC

from tests.server.vectors.fake_weaviate.filters import passes
from tests.server.vectors.fake_weaviate.state import State, Stored
from vorta_server.vectors.weaviate_catalog import _keyword_property, _typed_property, fields_of
from vorta_server.vectors.weaviate_filter import translate
from vorta_server.vectors.weaviate_schema import FIELDS, property_field

WORDS = ["red", " red", "RED", "", "a b", "Größe", "x" * 300]
MOMENTS = ["2026-01-01T00:00:00Z", "2026-01-01T01:00:00+01:00", "2026-06-01T00:00:00.5Z"]
BOUNDS = st.sampled_from([-1e30, -3.0, -0.5, 0.0, 1.0, 2.5, 3.0, 9007199254740993.0, 1e30])
# One item a field where there are ranges: of a list, Weaviate may take one item for each bound.
PLACES = {"lat": st.sampled_from([0.0, 0.01, 50.0]), "lon": st.sampled_from([0.0, 179.9])}
INNER = {"deep": st.integers(0, 2) | st.none(), "word": st.sampled_from(WORDS)}
PAYLOADS = st.fixed_dictionaries(
    {},
    optional={
        "word": st.sampled_from(WORDS) | st.lists(st.sampled_from(WORDS), max_size=3),
        "int": st.integers(-5, 5) | st.sampled_from([-(1 << 63), (1 << 63) - 1]),
        "num": st.sampled_from([-2.5, 0.0, 1.0, 2.5]) | st.integers(-3, 3),
        "flag": st.booleans(),
        "when": st.sampled_from(MOMENTS),
        "place": st.fixed_dictionaries(
            {"lat": st.sampled_from([0.0, 0.01, 50.0]), "lon": st.sampled_from([0.0, 179.9])}
        ),
        "text": st.lists(st.sampled_from(["The red fox", "red-hot", "fox", ""]), max_size=2),
        "in": st.fixed_dictionaries(
            {}, optional={"deep": st.integers(0, 2) | st.none(), "word": st.sampled_from(WORDS)}
        ),
    },
)
TYPES = {"text": "text"}


@st.composite
def ranges(draw: st.DrawFn, bounds: st.SearchStrategy[float]) -> Range:
    names = draw(st.lists(st.sampled_from(["gt", "gte", "lt", "lte"]), min_size=1, max_size=2, unique=True))
    return Range(**{name: draw(bounds) for name in names})


SECONDS = st.sampled_from([datetime.fromisoformat(text).timestamp() + d for text in MOMENTS for d in (-1, 0, 1)])
CONDITIONS = st.one_of(
    st.builds(Condition, field=st.sampled_from(["word", "in.word"]), match=st.sampled_from(WORDS)),
    st.builds(Condition, field=st.sampled_from(["int", "num", "in.deep"]), match=st.integers(-5, 5)),
    st.builds(Condition, field=st.just("flag"), match=st.booleans()),
    st.builds(Condition, field=st.just("word"), any_of=st.lists(st.sampled_from(WORDS), max_size=3)),
    st.builds(Condition, field=st.sampled_from(["int", "num"]), any_of=st.lists(st.integers(-3, 3), max_size=3)),
    st.builds(Condition, field=st.sampled_from(["int", "num"]), range=ranges(BOUNDS)),
    st.builds(Condition, field=st.just("when"), datetime_range=ranges(SECONDS)),
    st.builds(Condition, field=st.sampled_from(["word", "place", "in", "in.deep", "text"]), exists=st.booleans()),
    st.builds(Condition, field=st.just("text"), text=st.sampled_from(["red", "RED fox", "fox the", "hot", "blue"])),
    st.builds(
        Condition,
        field=st.just("place"),
        geo_radius=st.builds(
            GeoRadius,
            latitude=st.sampled_from([0.0, 50.0]),
            longitude=st.sampled_from([0.0, -179.9]),
            radius_m=st.sampled_from([1.0, 2_000.0, 30_000.0, 2e7]),
        ),
    ),
    st.builds(Condition, has_id=st.lists(st.sampled_from(["a", "b", "c"]), max_size=2)),
)
FILTERS = st.recursive(
    st.builds(
        Filter,
        must=st.lists(CONDITIONS, max_size=2),
        should=st.lists(CONDITIONS, max_size=2),
        must_not=st.lists(CONDITIONS, max_size=2),
    ),
    lambda inner: st.builds(
        Filter,
        must=st.lists(st.builds(Condition, filter=inner) | CONDITIONS, max_size=2),
        should=st.lists(st.builds(Condition, filter=inner) | CONDITIONS, max_size=2),
        must_not=st.lists(st.builds(Condition, filter=inner), max_size=1),
    ),
    max_leaves=3,
)


def values_at(value: Any, path: list[str]) -> list[Any]:
    """All values at a path, lists opened, nulls left out."""
    if isinstance(value, list):
        return [found for item in value for found in values_at(item, path)]
    if not path:
        return [] if value is None else [value]
    return values_at(value.get(path[0]), path[1:]) if isinstance(value, dict) else []


def within(value: float, bounds: Range) -> bool:
    return (
        (bounds.gt is None or value > bounds.gt)
        and (bounds.gte is None or value >= bounds.gte)
        and (bounds.lt is None or value < bounds.lt)
        and (bounds.lte is None or value <= bounds.lte)
    )


def metres(a: GeoRadius, b: dict[str, float]) -> float:
    """Along the sphere, by the chord."""

    def unit(lat: float, lon: float) -> tuple[float, float, float]:
        lat, lon = math.radians(lat), math.radians(lon)
        return math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)

    chord = math.dist(unit(a.latitude, a.longitude), unit(b["lat"], b["lon"]))
    return 2 * 6_371_000 * math.asin(min(1.0, chord / 2))


def holds(condition: Condition, point_id: str, payload: dict[str, Any]) -> bool:
    if condition.filter is not None:
        return agrees(condition.filter, point_id, payload)
    if condition.has_id is not None:
        return point_id in condition.has_id
    values = values_at(payload, condition.field.split("."))
    if condition.exists is not None:
        return _is_present(payload, condition.field.split(".")) is condition.exists
    if condition.match is not None:
        return any(_equal(value, condition.match) for value in values)
    if condition.any_of is not None:
        return any(_equal(value, wanted) for value in values for wanted in condition.any_of)
    if condition.range is not None:
        return any(within(value, condition.range) for value in values)
    if condition.datetime_range is not None:
        bounds = condition.datetime_range
        return any(within(datetime.fromisoformat(value).timestamp(), bounds) for value in values)
    if condition.text is not None:
        words = {word for value in values for word in value.lower().replace("-", " ").split()}
        return set(condition.text.lower().split()) <= words
    assert condition.geo_radius is not None
    return any(metres(condition.geo_radius, value) <= condition.geo_radius.radius_m for value in values)


def _is_present(value: Any, path: list[str]) -> bool:
    """Also an empty list is there."""
    return value is not None if not path else _is_present(value.get(path[0]), path[1:]) if value else False


def _equal(value: Any, wanted: Any) -> bool:
    return isinstance(value, bool) is isinstance(wanted, bool) and value == wanted


def agrees(filter_: Filter, point_id: str, payload: dict[str, Any]) -> bool:
    return (
        all(holds(condition, point_id, payload) for condition in filter_.must)
        and not any(holds(condition, point_id, payload) for condition in filter_.must_not)
        and (not filter_.should or any(holds(condition, point_id, payload) for condition in filter_.should))
    )


def stored(state: State, point_id: str, payload: dict[str, Any]) -> Stored:
    """The object, its class having the properties that it needs."""
    row = properties_of(point_id, json.dumps(payload, ensure_ascii=False), TYPES, field="p")
    target = state.classes["C"]
    for name in row:
        found = property_field(name)
        if found is not None and target.data_type(name) is None:
            state.add_property("C", _typed_property(found[1], found[0])._to_dict())
    properties = {
        name: [item.isoformat() for item in value] if name.startswith("d_") else value for name, value in row.items()
    }
    return Stored(str(object_uuid(point_id)), properties, {})


ALL_FIELDS = {
    "word": "x",
    "int": 1,
    "num": [1, 1.5],
    "flag": True,
    "when": MOMENTS[0],
    "place": {"lat": 0, "lon": 0},
    "text": "x",
    "in": {"deep": 1, "word": "x"},
}


def new_state() -> State:
    state = State()
    state.create({"class": "C", "properties": []})
    state.add_property("C", _keyword_property(FIELDS, _typed_property("keyword", "x").dataType)._to_dict())
    stored(state, "all", ALL_FIELDS)  # so that all fields are known
    return state


def known_fields(state: State) -> dict[str, set[str]]:
    from vorta_server.vectors.operation import Collection

    names = {prop["name"] for prop in state.classes["C"].schema["properties"]}
    return fields_of(Collection(name="c", dimension=1, text_fields=["text"]), names)


@settings(max_examples=300, deadline=None)
@given(FILTERS, st.lists(PAYLOADS, min_size=1, max_size=3))
def test_translation_agrees_with_plain_python(filter_: Filter, payloads: list[dict[str, Any]]) -> None:
    state = new_state()
    objects = [stored(state, point_id, payload) for point_id, payload in zip("abc", payloads, strict=False)]
    translated = translate(filter_, known_fields(state))
    message = None if translated is None else _FilterToGRPC.convert(translated)
    for item, point_id, payload in zip(objects, "abc", payloads, strict=False):
        is_in = message is None or passes(item, state.classes["C"], message)
        assert is_in is agrees(filter_, point_id, payload), payload


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        (Condition(field="nobody", match=1), "FILTER_FIELD_UNKNOWN"),
        (Condition(field="nobody", exists=False), "FILTER_FIELD_UNKNOWN"),
        (Condition(field="word", match=1), "FIELD_TYPE_MISMATCH"),
        (Condition(field="int", match="x"), "FIELD_TYPE_MISMATCH"),
        (Condition(field="word", range=Range(gt=1)), "FIELD_TYPE_MISMATCH"),
        (Condition(field="int", datetime_range=Range(gt=1)), "FIELD_TYPE_MISMATCH"),
        (Condition(field="word", text="x"), "FIELD_TYPE_MISMATCH"),
        (Condition(field="in", match="x"), "FIELD_TYPE_MISMATCH"),
        (Condition(field="int", range=Range()), "INVALID_FIELD"),
        (Condition(field="int", range=Range(gt=math.nan)), "INVALID_FIELD"),
        (Condition(field="when", datetime_range=Range(gt=1e20)), "INVALID_FIELD"),
        (Condition(field="text", text=" -!"), "INVALID_FIELD"),
        (Condition(field="place", geo_radius=GeoRadius(latitude=91, longitude=0, radius_m=1)), "INVALID_FIELD"),
        (Condition(field="place", geo_radius=GeoRadius(latitude=1, longitude=0, radius_m=0)), "INVALID_FIELD"),
        (Condition(field="int"), "INVALID_FIELD"),
        (Condition(field="int", match=1, exists=True), "INVALID_FIELD"),
        (Condition(match=1), "INVALID_FIELD"),
        (Condition(field="int", has_id=["a"]), "INVALID_FIELD"),
    ],
)
def test_bad_conditions_are_refused_by_name(condition: Condition, reason: str) -> None:
    filter_ = Filter(must=[Condition(filter=Filter(should=[Condition(has_id=["a"]), condition]))])
    with pytest.raises(InvalidArgument) as caught:
        translate(filter_, known_fields(new_state()))
    assert caught.value.reason == reason
    assert str(caught.value.field).startswith("filter.must[0].filter.should[1]")


def test_depth_is_bounded() -> None:
    filter_ = Filter()
    for _ in range(20):
        filter_ = Filter(must=[Condition(filter=filter_)])
    with pytest.raises(InvalidArgument, match="nested"):
        translate(filter_, {})
