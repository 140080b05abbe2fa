"""The messages that have a JSON form of their own, but for Any: times, masks, wrappers and JSON itself.

Each has a pair of functions: one fills a message from a JSON value (and raises JsonError), one makes a JSON value.
"""

from __future__ import annotations

import calendar
import math
import re
import time
from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from vorta_gateway.json.errors import JsonError, shown

__all__ = ["DECODERS", "ENCODERS", "MAX_DEPTH", "WRAPPERS", "camel_case"]

MAX_DEPTH = 32
"""How deep JSON may nest inside a Struct, Value or ListValue: each level is three of protobuf's hundred."""

WRAPPERS = frozenset(
    f"google.protobuf.{kind}Value"
    for kind in ("Bool", "Int32", "Int64", "UInt32", "UInt64", "Float", "Double", "String", "Bytes")
)
"""Messages whose JSON form is that of their one field, `value`."""

_TIMESTAMP = re.compile(r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:([Zz])|([+-])(\d\d):(\d\d))")
_DURATION = re.compile(r"(-?)(\d{1,12})(?:\.(\d{1,9}))?s")
_MIN_TIMESTAMP_S = -62_135_596_800  # 0001-01-01T00:00:00Z
_MAX_TIMESTAMP_S = 253_402_300_799  # 9999-12-31T23:59:59Z
_MAX_DURATION_S = 315_576_000_000
_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def _set_timestamp(message: Any, value: Any) -> None:
    match = _TIMESTAMP.fullmatch(value) if type(value) is str else None
    if match is None:
        raise JsonError(f"{shown(value)} is not an RFC 3339 time")
    year, month, day, hour, minute, second = map(int, match.group(1, 2, 3, 4, 5, 6))
    if not (1 <= month <= 12 and 1 <= day <= _days(year, month) and hour < 24 and minute < 60 and second < 60):
        raise JsonError(f"{shown(value)} is not a time that exists")
    seconds = calendar.timegm((max(year, 1), month, day, hour, minute, second))
    if match[9]:
        offset = int(match[10]) * 3600 + int(match[11]) * 60
        seconds += offset if match[9] == "-" else -offset
    if year == 0 or not _MIN_TIMESTAMP_S <= seconds <= _MAX_TIMESTAMP_S:
        raise JsonError(f"{shown(value)} is outside the years 1 to 9999")
    message.seconds = seconds
    message.nanos = int((match[7] or "").ljust(9, "0"))


def _days(year: int, month: int) -> int:
    return _DAYS[month - 1] + (month == 2 and calendar.isleap(year))


def _timestamp(message: Any) -> str:
    seconds: int = message.seconds
    if not _MIN_TIMESTAMP_S <= seconds <= _MAX_TIMESTAMP_S or not 0 <= message.nanos < 10**9:
        raise JsonError("the Timestamp is outside the years 1 to 9999")
    parts = time.gmtime(seconds)
    date = f"{parts.tm_year:04}-{parts.tm_mon:02}-{parts.tm_mday:02}"
    return f"{date}T{parts.tm_hour:02}:{parts.tm_min:02}:{parts.tm_sec:02}{_fraction(message.nanos)}Z"


def _set_duration(message: Any, value: Any) -> None:
    match = _DURATION.fullmatch(value) if type(value) is str else None
    if match is None:
        raise JsonError(f'{shown(value)} is not a duration, such as "1.5s"')
    seconds = int(match[2])
    if seconds > _MAX_DURATION_S:
        raise JsonError(f"{shown(value)} is longer than {_MAX_DURATION_S} s")
    sign = -1 if match[1] else 1
    message.seconds = sign * seconds
    message.nanos = sign * int((match[3] or "").ljust(9, "0"))


def _duration(message: Any) -> str:
    seconds, nanos = message.seconds, message.nanos
    if abs(seconds) > _MAX_DURATION_S or abs(nanos) >= 10**9 or seconds * nanos < 0:
        raise JsonError("the Duration is out of its range")
    sign = "-" if seconds < 0 or nanos < 0 else ""
    return f"{sign}{abs(seconds)}{_fraction(abs(nanos))}s"


def _fraction(nanos: int) -> str:
    """Nothing, or 3, 6 or 9 digits."""
    if not nanos:
        return ""
    if nanos % 1_000_000 == 0:
        return f".{nanos // 1_000_000:03}"
    if nanos % 1_000 == 0:
        return f".{nanos // 1_000:06}"
    return f".{nanos:09}"


def _set_mask(message: Any, value: Any) -> None:
    if type(value) is not str:
        raise JsonError(f"{shown(value)} is not a text of fields' paths")
    if value:
        message.paths.extend(map(_snake_case, value.split(",")))


def _snake_case(path: str) -> str:
    # The mapping takes lowerCamelCase. Names as they stand in the proto are taken too, as everywhere here.
    return re.sub(r"[A-Z]", lambda match: "_" + match.group().lower(), path)


def _mask(message: Any) -> str:
    return ",".join(map(camel_case, message.paths))


def camel_case(path: str) -> str:
    """A path of field names in lowerCamelCase. Raises JsonError where snake case could not be had back."""
    if re.search(r"[A-Z]|_(?![a-z])", path):
        raise JsonError(f"the path {shown(path)} of a FieldMask has no JSON form")
    return re.sub(r"_([a-z])", lambda match: match.group(1).upper(), path)


def _set_value(message: Any, value: Any, depth: int = MAX_DEPTH) -> None:
    kind = type(value)
    if kind is str:
        message.string_value = value
    elif kind is bool:
        message.bool_value = value
    elif kind is float or kind is int:
        message.number_value = value
    elif value is None:
        message.null_value = 0
    elif kind is dict:
        _set_struct(message.struct_value, value, depth)
    else:
        _set_list(message.list_value, value, depth)


def _set_struct(message: Any, value: Any, depth: int = MAX_DEPTH) -> None:
    if type(value) is not dict:
        raise JsonError(f"{shown(value)} is not an object")
    if depth == 0:
        raise JsonError(f"nested deeper than {MAX_DEPTH} levels")
    message.SetInParent()
    fields = message.fields
    for key, item in value.items():
        _set_value(fields[key], item, depth - 1)


def _set_list(message: Any, value: Any, depth: int = MAX_DEPTH) -> None:
    if type(value) is not list:
        raise JsonError(f"{shown(value)} is not an array")
    if depth == 0:
        raise JsonError(f"nested deeper than {MAX_DEPTH} levels")
    message.SetInParent()
    add = message.values.add
    for item in value:
        _set_value(add(), item, depth - 1)


def _value(message: Any) -> Any:
    kind = message.WhichOneof("kind")
    if kind == "string_value":
        return message.string_value
    if kind == "number_value":
        number: float = message.number_value
        if not math.isfinite(number):
            raise JsonError("a number of a Value must be finite")
        if number.is_integer() and abs(number) < 2**53:
            return int(number) if number or math.copysign(1.0, number) > 0 else number  # minus zero keeps its sign
        return number
    if kind == "bool_value":
        return message.bool_value
    if kind == "struct_value":
        return _struct(message.struct_value)
    if kind == "list_value":
        return _list(message.list_value)
    return None


def _struct(message: Any) -> dict[str, Any]:
    return {key: _value(item) for key, item in message.fields.items()}


def _list(message: Any) -> list[Any]:
    return [_value(item) for item in message.values]


def _set_empty(message: Message, value: Any) -> None:
    if type(value) is not dict:
        raise JsonError(f"{shown(value)} is not an object")
    for key in value:
        error = JsonError("there is no such field")
        error.within(key)
        raise error


DECODERS: dict[str, Callable[[Any, Any], None]] = {
    "google.protobuf.Timestamp": _set_timestamp,
    "google.protobuf.Duration": _set_duration,
    "google.protobuf.FieldMask": _set_mask,
    "google.protobuf.Value": _set_value,
    "google.protobuf.Struct": _set_struct,
    "google.protobuf.ListValue": _set_list,
    "google.protobuf.Empty": _set_empty,
}

ENCODERS: dict[str, Callable[[Any], Any]] = {
    "google.protobuf.Timestamp": _timestamp,
    "google.protobuf.Duration": _duration,
    "google.protobuf.FieldMask": _mask,
    "google.protobuf.Value": _value,
    "google.protobuf.Struct": _struct,
    "google.protobuf.ListValue": _list,
    "google.protobuf.Empty": lambda _: {},
}
