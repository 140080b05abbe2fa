"""Filters as the wire has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format

from vorta.errors import InvalidArgument
from vorta.filters import Filter
from vorta.v1 import vector_pb2

_LARGEST_EXACT = 2**53


def filter_message(value: Filter | Mapping[str, Any]) -> vector_pb2.Filter:
    """A filter's message. Raises TypeError for what is no filter, InvalidArgument (field filter) for a bad one."""
    if isinstance(value, Filter):
        mapping = value.to_dict()
    elif isinstance(value, Mapping):
        mapping = dict(value)
    else:
        raise TypeError(f"filter must be a Filter or a mapping, not {type(value).__name__}")
    _refuse_inexact(mapping)
    try:
        return json_format.ParseDict(mapping, vector_pb2.Filter())
    except (json_format.ParseError, TypeError, ValueError, AttributeError) as exc:
        raise InvalidArgument(f"filter: {exc}", field="filter") from None


def _refuse_inexact(value: Any) -> None:
    """Numbers travel as doubles: a larger whole number would arrive as its neighbour, and match that one's points."""
    if isinstance(value, Mapping):
        for entry in value.values():
            _refuse_inexact(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            _refuse_inexact(entry)
    elif isinstance(value, int) and abs(value) > _LARGEST_EXACT:
        raise InvalidArgument(f"filter: {value} is beyond 2**53 and cannot be sent exactly", field="filter")
