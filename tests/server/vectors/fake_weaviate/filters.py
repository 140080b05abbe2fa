"""Evaluates Weaviate's filters as its inverted index would: over tokens, types compared strictly."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any

from weaviate.proto.v1 import base_pb2

from tests.server.vectors.fake_weaviate.state import Refused, Stored, WeaviateClass

_OPERATOR = base_pb2.Filters.Operator
_EARTH_RADIUS_M = 6_371_000.0


def tokenize(text: str, tokenization: str) -> list[str]:
    """Tokens of a text: `word` or `field`."""
    if tokenization == "field":
        return [text.strip()]
    return "".join(char.lower() if char.isalnum() else " " for char in text).split()


def passes(stored: Stored, target: WeaviateClass, filters: base_pb2.Filters) -> bool:
    """Whether an object passes."""
    name = _OPERATOR.Name(filters.operator)
    if name in ("OPERATOR_AND", "OPERATOR_OR"):
        if not filters.filters:
            raise Refused(422, "And/Or need operands")
        return (all if name == "OPERATOR_AND" else any)(passes(stored, target, part) for part in filters.filters)
    if name == "OPERATOR_NOT":
        if len(filters.filters) != 1:
            raise Refused(422, "Not needs one operand")
        return not passes(stored, target, filters.filters[0])
    if filters.target.property == "_id":
        return _passes_id(stored, name, filters)
    return _passes_property(stored, target, name, filters)


def _passes_id(stored: Stored, operator: str, filters: base_pb2.Filters) -> bool:
    wanted = list(filters.value_text_array.values) or [filters.value_text]
    is_in = stored.uuid in {str(uuid.UUID(text)) for text in wanted}
    if operator in ("OPERATOR_EQUAL", "OPERATOR_CONTAINS_ANY"):
        return is_in
    if operator in ("OPERATOR_NOT_EQUAL", "OPERATOR_CONTAINS_NONE"):
        return not is_in
    raise Refused(422, f"{operator} is not for ids")


def _passes_property(stored: Stored, target: WeaviateClass, operator: str, filters: base_pb2.Filters) -> bool:
    name = filters.target.property
    data_type = target.data_type(name)
    if data_type is None:
        raise Refused(422, f"no such prop with name '{name}' found in class '{target.schema['class']}'")
    if not target.property(name).get("indexFilterable"):
        raise Refused(422, f"Filtering by property '{name}' requires inverted index")
    value = stored.properties.get(name)
    if operator == "OPERATOR_WITHIN_GEO_RANGE":
        geo = filters.value_geo
        return value is not None and _metres(value, (geo.latitude, geo.longitude)) <= geo.distance
    base = data_type.removesuffix("[]")
    wanted = _wanted(filters, base, target.property(name).get("tokenization", ""))
    items = [] if value is None else value if isinstance(value, list) else [value]
    if base == "text":
        indexed: set[Any] = {t for item in items for t in tokenize(item, target.property(name)["tokenization"])}
    elif base == "date":
        indexed = {datetime.fromisoformat(item) for item in items}
    else:
        indexed = set(items)
    if operator == "OPERATOR_EQUAL":
        return bool(wanted) and all(item in indexed for item in wanted)
    if operator == "OPERATOR_CONTAINS_ANY":
        return any(item in indexed for item in wanted)
    compare = _COMPARISONS.get(operator)
    if compare is None or len(wanted) != 1:
        raise Refused(422, f"the fake knows no {operator} here")
    return any(compare(item, wanted[0]) for item in indexed)


_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "OPERATOR_GREATER_THAN": lambda a, b: a > b,
    "OPERATOR_GREATER_THAN_EQUAL": lambda a, b: a >= b,
    "OPERATOR_LESS_THAN": lambda a, b: a < b,
    "OPERATOR_LESS_THAN_EQUAL": lambda a, b: a <= b,
}


def _wanted(filters: base_pb2.Filters, base: str, tokenization: str) -> list[Any]:
    kind = filters.WhichOneof("test_value")
    expected = {"text": "text", "date": "text", "int": "int", "number": "number", "boolean": "boolean"}[base]
    if kind not in (f"value_{expected}", f"value_{expected}_array"):
        raise Refused(422, f"data type filter cannot use {kind!r} on type {base!r}")
    value = getattr(filters, kind)
    values = list(value.values) if kind.endswith("_array") else [value]
    if base == "date":
        return [datetime.fromisoformat(item) for item in values]
    if base == "text":
        return [token for item in values for token in tokenize(item, tokenization)]
    return values


def _metres(a: tuple[float, float], b: tuple[float, float]) -> float:
    lat1, lon1, lat2, lon2 = (math.radians(x) for x in (*a, *b))
    h = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return 2 * _EARTH_RADIUS_M * math.asin(math.sqrt(h))
