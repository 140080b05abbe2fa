"""How collections, ids and payloads are written down in Weaviate. Needs no weaviate package.

A collection is a Weaviate class, its definition JSON text in the class's description. An object's properties are:

    vortaId        the point's id, as it was given (the object's UUID is made from it, one way)
    vortaOrder     the id's UTF-8 bytes in hexadecimal: sorts as the bytes do, whatever the tokenizer or collation
    vortaPayload   the payload's JSON text, unchanged
    vortaFields    paths that are present and not null
    k_… i_… n_… b_… d_… g_… t_…
                   values of one payload field: keywords, integers, numbers, booleans, moments, a place, words

Every typed property but places is an array, so that a payload's list needs no second way. A field whose type nobody
declared may have several of them: there is no first value that decides for all.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from vorta.errors import InvalidArgument, VortaError
from vorta_server.vectors.operation import Collection, ScrollPoints

__all__ = [
    "FIELDS",
    "ID",
    "ORDER",
    "PAYLOAD",
    "PREFIXES",
    "Definition",
    "UnorderedScroll",
    "class_name",
    "collection_name",
    "decode_name",
    "encode_name",
    "keyword_token",
    "object_uuid",
    "order_key",
    "parse_moment",
    "properties_of",
    "property_field",
    "property_name",
]

ID = "vortaId"
ORDER = "vortaOrder"
PAYLOAD = "vortaPayload"
FIELDS = "vortaFields"

PREFIXES = {"keyword": "k", "integer": "i", "float": "n", "bool": "b", "datetime": "d", "geo": "g", "text": "t"}
_KINDS = {prefix: kind for kind, prefix in PREFIXES.items()}

_CLASS_PREFIX = "Vorta_"
_NAMESPACE = uuid.UUID("5f2d5f0c-6f0e-5c0a-9d67-2f2b1f8a7c11")
_MAX_PROPERTY_NAME = 230  # Weaviate allows 231
_MAX_KEYWORD_BYTES = 256
_INT64 = 1 << 63
_ENCODED = re.compile(r"(?:_[0-9a-f]{2})+")
_MOMENT = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})")


class Definition(msgspec.Struct, kw_only=True):
    """What a class's description holds."""

    vorta: int = 1
    collection: Collection
    created_s: float


class UnorderedScroll(ScrollPoints, tag="unordered_scroll", kw_only=True):
    """A scroll in Weaviate's own order, with `after` in its terms; takes no filter.

    For who reads everything: a page costs as much as its points, while an ordered one costs as much as all that come
    after it, because Weaviate sorts by texts without its index.
    """


def encode_name(text: str) -> str:
    """A text as lower-case letters, digits and '_': reversible, and distinct even where upper case counts for nothing.

    Weaviate refuses two classes that differ in case alone, and file systems may confuse them.
    """
    return "".join(
        char if char.isascii() and (char.islower() or char.isdigit()) else "".join(f"_{b:02x}" for b in char.encode())
        for char in text
    )


def decode_name(text: str) -> str:
    """The text that `encode_name` made this of."""
    return _ENCODED.sub(lambda found: bytes.fromhex(found[0].replace("_", "")).decode("utf-8", "replace"), text)


def class_name(collection: str) -> str:
    """Weaviate's name of a collection or an alias."""
    return _CLASS_PREFIX + encode_name(collection)


def collection_name(name: str) -> str | None:
    """The collection or alias of a Weaviate name; None for those that are not ours."""
    return decode_name(name.removeprefix(_CLASS_PREFIX)) if name.startswith(_CLASS_PREFIX) else None


def object_uuid(point_id: str) -> uuid.UUID:
    """The UUID of a point's object. Ids that look like UUIDs are hashed as well, so that no two ids can meet."""
    return uuid.uuid5(_NAMESPACE, point_id)


def order_key(point_id: str) -> str:
    """Sorts as the id's bytes do."""
    return point_id.encode().hex()


def property_name(kind: str, path: str) -> str | None:
    """The property of a field's values of one kind; None where Weaviate's longest name is too short for the path."""
    name = f"{PREFIXES[kind]}_{encode_name(path)}"
    return name if len(name) <= _MAX_PROPERTY_NAME else None


def property_field(name: str) -> tuple[str, str] | None:
    """Path and kind of a typed property; None for other properties."""
    prefix, separator, rest = name.partition("_")
    return (decode_name(rest), _KINDS[prefix]) if separator and prefix in _KINDS else None


def keyword_token(text: str) -> str:
    """How a keyword is indexed: quoted, since Weaviate trims what it indexes; long ones by their hash."""
    if len(text.encode()) > _MAX_KEYWORD_BYTES:
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    return json.dumps(text, ensure_ascii=False)


def parse_moment(text: str) -> datetime | None:
    """The moment of an RFC 3339 text, to the microsecond; None for other texts."""
    if not _MOMENT.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def properties_of(point_id: str, payload: str, types: Mapping[str, str], *, field: str) -> dict[str, Any]:
    """An object's properties.

    Args:
        point_id: The point's id.
        payload: A JSON object as text; empty for none.
        types: Declared types by path.
        field: Names the payload in errors.

    Raises:
        InvalidArgument: The payload is no JSON object (INVALID_FIELD), or a value is not of its field's declared type
            (FIELD_TYPE_MISMATCH).
    """
    row = _Row(types, field)
    if payload:
        try:
            parsed = json.loads(payload, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise InvalidArgument(f"{field} is not JSON: {error}", field=field) from None
        if not isinstance(parsed, dict):
            raise InvalidArgument(f"{field} is not a JSON object.", field=field)
        row.add_object("", parsed)
    return {
        **row.values,
        ID: point_id,
        ORDER: order_key(point_id),
        PAYLOAD: payload,
        FIELDS: sorted(encode_name(path) for path in row.paths),
    }


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class _Row:
    """Typed values of one payload."""

    def __init__(self, types: Mapping[str, str], field: str) -> None:
        self.values: dict[str, Any] = {}
        self.paths: set[str] = set()
        self._types = types
        self._field = field

    def add_object(self, path: str, value: dict[str, Any]) -> None:
        for key, item in value.items():
            self.add(f"{path}.{key}" if path else key, item)

    def add(self, path: str, value: Any) -> None:
        if value is None:
            return
        self.paths.add(path)
        if isinstance(value, list):
            for item in value:
                self.add(path, item)
            return
        declared = self._types.get(path)
        if declared is not None:
            self._add_declared(path, value, declared)
        elif isinstance(value, dict):
            if value.keys() == {"lat", "lon"} and _place(value) is not None:
                self._put("geo", path, value)
            else:
                self.add_object(path, value)
        elif isinstance(value, bool):
            self._put("bool", path, value)
        elif isinstance(value, int) and -_INT64 <= value < _INT64:
            self._put("integer", path, value)
        elif isinstance(value, int | float):
            self._put("float", path, value)
        else:
            self._put("keyword", path, value)
            if parse_moment(value) is not None:
                self._put("datetime", path, value)

    def _add_declared(self, path: str, value: Any, declared: str) -> None:
        fits = {
            "keyword": isinstance(value, str),
            "text": isinstance(value, str),
            "integer": _is_number(value) and value == math.floor(value) and -_INT64 <= value < _INT64,
            "float": _is_number(value),
            "bool": isinstance(value, bool),
            "datetime": isinstance(value, str) and parse_moment(value) is not None,
            "geo": _place(value) is not None,
        }[declared]
        if not fits:
            raise self._mismatch(path, declared)
        self._put(declared, path, value)
        if declared in ("text", "datetime"):  # equality works on these as well
            self._put("keyword", path, value)

    def _put(self, kind: str, path: str, value: Any) -> None:
        name = property_name(kind, path)
        if name is None:
            return
        if kind == "geo":
            # Weaviate has no list of places: of a payload's list the first is indexed.
            self.values.setdefault(name, _place(value))
            return
        if kind == "keyword":
            value = keyword_token(value)
        elif kind == "integer":
            value = int(value)
        elif kind == "float":
            try:
                value = float(value)
            except OverflowError:
                raise self._mismatch(path, "float") from None
        elif kind == "datetime":
            value = parse_moment(value)
        self.values.setdefault(name, []).append(value)

    def _mismatch(self, path: str, kind: str) -> VortaError:
        return InvalidArgument(
            f"{self._field}: {path} is not of type {kind}.",
            reason="FIELD_TYPE_MISMATCH",
            field=self._field,
            metadata={"payload_field": path, "type": kind},
        )


def _place(value: Any) -> tuple[float, float] | None:
    """Latitude and longitude, where they are those of a place."""
    if not isinstance(value, dict) or not _is_number(value.get("lat")) or not _is_number(value.get("lon")):
        return None
    lat, lon = float(value["lat"]), float(value["lon"])
    return (lat, lon) if -90 <= lat <= 90 and -180 <= lon <= 180 else None
