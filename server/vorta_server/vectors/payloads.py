"""Payloads: reading JSON, checking and inferring the types of their fields, finding a field's values.

Every value has a kind, and a field may have values of several: a path whose first value was a number and a later one a
text answers both tests, each by the values of its kind. Kinds are keyword, integer, float, bool, datetime, geo, text.
A text that reads as a moment is a keyword and a datetime; a declared text or datetime is a keyword as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from vorta.errors import InvalidArgument

__all__ = ["KINDS", "PayloadReader", "field_kinds", "parse_moment", "parse_place", "shown_type", "values_at"]

KINDS = ("keyword", "integer", "float", "bool", "datetime", "geo", "text")

_INT64 = 1 << 63
_MOMENT = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SHOWN_ORDER = ("text", "datetime", "geo", "float", "integer", "bool", "keyword")

_decode = msgspec.json.Decoder().decode


def parse_moment(text: str) -> int | None:
    """Microseconds since 1970 UTC of an RFC 3339 text; None for other texts."""
    if len(text) < 20 or not _MOMENT.fullmatch(text):
        return None
    try:
        gone = datetime.fromisoformat(text.upper()) - _EPOCH
    except (ValueError, OverflowError):
        return None
    return (gone.days * 86_400 + gone.seconds) * 1_000_000 + gone.microseconds


def parse_place(value: Any) -> tuple[float, float] | None:
    """Latitude and longitude in degrees, where they are those of a place."""
    if not isinstance(value, dict):
        return None
    lat, lon = value.get("lat"), value.get("lon")
    if lat is None or lon is None or not _is_number(lat) or not _is_number(lon):
        return None
    return (float(lat), float(lon)) if -90 <= lat <= 90 and -180 <= lon <= 180 else None


def shown_type(kinds: set[str]) -> str:
    """The one type that is shown for a field of several kinds."""
    return next((kind for kind in _SHOWN_ORDER if kind in kinds), "keyword")


def values_at(payload: Any, path: str) -> Iterator[Any]:
    """The values at a path, items of lists one by one; nulls are left out, objects and lists themselves included.

    A key of the payload may hold dots itself.
    """
    if isinstance(payload, dict):
        if "." not in path:
            value = payload.get(path)
            if value is not None:
                yield from _items(value)
            return
        for key, item in payload.items():
            if key == path:
                if item is not None:
                    yield from _items(item)
            elif path.startswith(key) and path[len(key) : len(key) + 1] == ".":
                yield from values_at(item, path[len(key) + 1 :])
    elif isinstance(payload, list):
        for item in payload:
            yield from values_at(item, path)


def _items(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, list):
        for item in value:
            if item is not None:
                yield from _items(item)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def field_kinds(value: Any, declared: str | None) -> tuple[str, ...] | None:
    """The kinds that one value (no list) of a field counts as; empty for an object that is no place.

    Args:
        value: Not null, no list.
        declared: The field's declared type, None where it has none.

    Returns:
        None when the value is not of the declared type.
    """
    if declared is not None:
        return _declared_kinds(value, declared)
    if isinstance(value, str):
        return ("keyword", "datetime") if parse_moment(value) is not None else ("keyword",)
    if isinstance(value, bool):
        return ("bool",)
    if isinstance(value, int):
        return ("integer",) if -_INT64 <= value < _INT64 else ("float",)
    if isinstance(value, float):
        return ("float",)
    return ("geo",) if value.keys() == {"lat", "lon"} and parse_place(value) is not None else ()


def _declared_kinds(value: Any, declared: str) -> tuple[str, ...] | None:
    if declared == "keyword":
        return ("keyword",) if isinstance(value, str) else None
    if declared == "text":
        return ("text", "keyword") if isinstance(value, str) else None
    if declared == "bool":
        return ("bool",) if isinstance(value, bool) else None
    if declared == "datetime":
        return ("datetime", "keyword") if isinstance(value, str) and parse_moment(value) is not None else None
    if declared == "geo":
        return ("geo",) if parse_place(value) is not None else None
    if not _is_number(value):
        return None
    if declared == "integer":
        return ("integer",) if value == math.floor(value) and -_INT64 <= value < _INT64 else None
    try:
        float(value)
    except OverflowError:
        return None
    return ("float",)


class PayloadReader:
    """Reads and checks the payloads of one collection.

    Args:
        types: Declared types by path, text fields included.
        text_fields: Paths whose words are searched.
        max_bytes: Of one payload.
        max_depth: Objects and lists within each other.
    """

    def __init__(self, types: Mapping[str, str], text_fields: list[str], *, max_bytes: int, max_depth: int) -> None:
        self._types = types
        self._text_fields = text_fields
        self._max_bytes = max_bytes
        self._max_depth = max_depth

    def read(self, payload: str, field: str, seen: set[tuple[str, str]]) -> dict[str, Any]:
        """The payload as an object; kinds of its fields are added to `seen` as (path, kind), "" for mere presence.

        Raises:
            InvalidArgument: No JSON object, too large or too deep (INVALID_FIELD), or a value that is not of its
                field's declared type (FIELD_TYPE_MISMATCH).
        """
        if len(payload) * 4 > self._max_bytes and len(payload.encode("utf-8", "replace")) > self._max_bytes:
            raise InvalidArgument(f"{field} has more than {self._max_bytes} bytes.", field=field)
        try:
            parsed = _decode(payload)
        except RecursionError:
            raise InvalidArgument(f"{field} is nested deeper than {self._max_depth}.", field=field) from None
        except (msgspec.DecodeError, UnicodeEncodeError) as error:
            raise InvalidArgument(f"{field} is not JSON: {error}", field=field) from None
        if not isinstance(parsed, dict):
            raise InvalidArgument(f"{field} is not a JSON object.", field=field)
        self._note_object("", parsed, field, seen, 1)
        return parsed

    def texts(self, payload: dict[str, Any]) -> list[str]:
        """The text of every text field, texts of a list joined by line ends."""
        return [
            "\n".join(value for value in values_at(payload, path) if isinstance(value, str))
            for path in self._text_fields
        ]

    def _note_object(
        self, path: str, value: dict[str, Any], field: str, seen: set[tuple[str, str]], depth: int
    ) -> None:
        if depth > self._max_depth:
            raise InvalidArgument(f"{field} is nested deeper than {self._max_depth}.", field=field)
        for key, item in value.items():
            if item is not None:
                self._note(f"{path}.{key}" if path else key, item, field, seen, depth)

    def _note(self, path: str, value: Any, field: str, seen: set[tuple[str, str]], depth: int) -> None:
        if isinstance(value, list):
            if depth >= self._max_depth:
                raise InvalidArgument(f"{field} is nested deeper than {self._max_depth}.", field=field)
            seen.add((path, ""))
            for item in value:
                if item is not None:
                    self._note(path, item, field, seen, depth + 1)
            return
        declared = self._types.get(path)
        kinds = field_kinds(value, declared)
        if kinds is None:
            raise InvalidArgument(
                f"{field}: {path} is not of type {declared}.",
                reason="FIELD_TYPE_MISMATCH",
                field=field,
                metadata={"payload_field": path, "type": declared},
            )
        if kinds:
            for kind in kinds:
                seen.add((path, kind))
        else:
            seen.add((path, ""))
            self._note_object(path, value, field, seen, depth + 1)
