"""Scalars of proto3 JSON: from a JSON value, from text as in a query, and to a JSON value."""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

from vorta_gateway.json.descriptors import enum_of
from vorta_gateway.json.errors import JsonError, shown

__all__ = ["INTEGERS", "bytes_json", "decoder", "encoder", "is_float32", "text_decoder"]

Decode = Callable[[Any], Any]

_F = FieldDescriptor
_INTEGER = re.compile(r"-?\d{1,20}")
_FLOAT = re.compile(r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_MAX_FLOAT32 = float(np.finfo(np.float32).max)
# Rounds to the largest float32; what is larger rounds to infinity.
_FLOAT32_LIMIT = 3.4028235677973366e38
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_URL_SAFE = str.maketrans("-_", "+/")

_RANGES = {
    _F.TYPE_INT32: (-(2**31), 2**31 - 1),
    _F.TYPE_SINT32: (-(2**31), 2**31 - 1),
    _F.TYPE_SFIXED32: (-(2**31), 2**31 - 1),
    _F.TYPE_UINT32: (0, 2**32 - 1),
    _F.TYPE_FIXED32: (0, 2**32 - 1),
    _F.TYPE_INT64: (-(2**63), 2**63 - 1),
    _F.TYPE_SINT64: (-(2**63), 2**63 - 1),
    _F.TYPE_SFIXED64: (-(2**63), 2**63 - 1),
    _F.TYPE_UINT64: (0, 2**64 - 1),
    _F.TYPE_FIXED64: (0, 2**64 - 1),
}
INTEGERS = frozenset(_RANGES)
"""Field types of whole numbers."""

_WIDE = {_F.TYPE_INT64, _F.TYPE_SINT64, _F.TYPE_SFIXED64, _F.TYPE_UINT64, _F.TYPE_FIXED64}


def is_float32(field: FieldDescriptor) -> bool:
    """Whether a field holds 32-bit floats."""
    return bool(field.type == _F.TYPE_FLOAT)


def decoder(field: FieldDescriptor) -> Decode:
    """Makes a scalar or enum field's value from a JSON value; the function raises JsonError."""
    if field.type in _RANGES:
        return _integer_decoder(*_RANGES[field.type])
    if field.type == _F.TYPE_ENUM:
        return _enum_decoder(enum_of(field))
    return {
        _F.TYPE_STRING: _string,
        _F.TYPE_BYTES: _bytes,
        _F.TYPE_BOOL: _bool,
        _F.TYPE_DOUBLE: _double,
        _F.TYPE_FLOAT: _float,
    }[field.type]


def text_decoder(field: FieldDescriptor) -> Decode:
    """Makes a scalar or enum field's value from a query's or path's text; the function raises JsonError."""
    if field.type == _F.TYPE_BOOL:
        return _text_bool
    if field.type == _F.TYPE_ENUM:
        by_name = _enum_decoder(enum_of(field))
        return lambda text: by_name(int(text) if _INTEGER.fullmatch(text) else text)
    if field.type in (_F.TYPE_DOUBLE, _F.TYPE_FLOAT):
        decode = decoder(field)
        return lambda text: decode(text.strip())
    return decoder(field)


def encoder(field: FieldDescriptor, *, enum_numbers: bool = False) -> Callable[[Any], Any] | None:
    """Makes a JSON value of a scalar or enum field's value; None where it is one already."""
    if field.type in _WIDE:
        return str
    if field.type == _F.TYPE_ENUM:
        if enum_of(field).full_name == "google.protobuf.NullValue":
            return lambda _: None
        if enum_numbers:
            return None
        names = {number: value.name for number, value in enum_of(field).values_by_number.items()}
        return lambda number: names.get(number, number)
    if field.type == _F.TYPE_BYTES:
        return bytes_json
    if field.type == _F.TYPE_DOUBLE:
        return _double_json
    if field.type == _F.TYPE_FLOAT:
        return _float_json
    return None


def bytes_json(data: bytes) -> str:
    """Bytes as base64."""
    return base64.b64encode(data).decode()


def _string(value: Any) -> str:
    if type(value) is not str:
        raise JsonError(f"{shown(value)} is not a text")
    return value


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise JsonError(f"{shown(value)} is not true or false")
    return value


def _text_bool(text: str) -> bool:
    value = {"true": True, "1": True, "false": False, "0": False}.get(text.lower())
    if value is None:
        raise JsonError(f"{shown(text)} is not true or false")
    return value


def _bytes(value: Any) -> bytes:
    if type(value) is not str:
        raise JsonError(f"{shown(value)} is not base64 text")
    text = value.translate(_URL_SAFE).rstrip("=")
    try:
        return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except (binascii.Error, ValueError):
        raise JsonError(f"{shown(value)} is not base64") from None


def _integer_decoder(low: int, high: int) -> Decode:
    def decode(value: Any) -> int:
        if type(value) is int:
            number = value
        elif (type(value) is str and _INTEGER.fullmatch(value)) or (type(value) is float and value.is_integer()):
            number = int(value)
        else:
            raise JsonError(f"{shown(value)} is not a whole number")
        if not low <= number <= high:
            raise JsonError(f"{shown(value)} is outside {low} to {high}")
        return number

    return decode


def _enum_decoder(enum: EnumDescriptor) -> Decode:
    numbers = {value.name: value.number for value in enum.values}
    is_null = enum.full_name == "google.protobuf.NullValue"

    def decode(value: Any) -> int:
        if type(value) is str:
            number = numbers.get(value)
            if number is None:
                names = ", ".join(list(numbers)[:12])
                raise JsonError(f"{shown(value)} is none of {names}{', …' if len(numbers) > 12 else ''}")
            return number
        if type(value) is int and -(2**31) <= value < 2**31:
            return value
        if value is None and is_null:
            return 0
        raise JsonError(f"{shown(value)} is not a name or number of {enum.full_name}")

    return decode


def _double(value: Any) -> float:
    if type(value) is float:
        return value
    if type(value) is int:
        return float(value)
    if type(value) is str:
        if value in _SPECIAL:
            return _SPECIAL[value]
        if _FLOAT.fullmatch(value):
            number = float(value)
            if math.isfinite(number):
                return number
            raise JsonError(f"{shown(value)} is too large for a double")
    raise JsonError(f"{shown(value)} is not a number")


def _float(value: Any) -> float:
    number = _double(value)
    if abs(number) > _MAX_FLOAT32 and math.isfinite(number):
        if abs(number) >= _FLOAT32_LIMIT:
            raise JsonError(f"{shown(value)} is too large for a float")
        return math.copysign(_MAX_FLOAT32, number)
    return number


def _double_json(number: float) -> float | str:
    return number if math.isfinite(number) else _special(number)


def _float_json(number: float) -> Any:
    # The shortest text that is this 32-bit number, not the 64-bit one that Python sees.
    return np.float32(number) if math.isfinite(number) else _special(number)


def _special(number: float) -> str:
    if math.isnan(number):
        return "NaN"
    return "Infinity" if number > 0 else "-Infinity"
