"""Messages of every kind, for property tests."""

from __future__ import annotations

import math
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

F = FieldDescriptor
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    F.TYPE_STRING: TEXTS,
    F.TYPE_BYTES: st.binary(max_size=8),
    F.TYPE_BOOL: st.booleans(),
    F.TYPE_DOUBLE: st.floats(),
    # json_format cannot read the largest float that it writes, and writes subnormal ones with needless digits.
    F.TYPE_FLOAT: st.floats(width=32, allow_subnormal=False).filter(
        lambda number: not 3.4028e38 < abs(number) < math.inf
    ),
    **dict.fromkeys((F.TYPE_INT32, F.TYPE_SINT32, F.TYPE_SFIXED32), st.integers(-(2**31), 2**31 - 1)),
    **dict.fromkeys((F.TYPE_UINT32, F.TYPE_FIXED32), st.integers(0, 2**32 - 1)),
    **dict.fromkeys((F.TYPE_INT64, F.TYPE_SINT64, F.TYPE_SFIXED64), st.integers(-(2**63), 2**63 - 1)),
    **dict.fromkeys((F.TYPE_UINT64, F.TYPE_FIXED64), st.integers(0, 2**64 - 1)),
}
JSON = st.recursive(
    st.none() | st.booleans() | TEXTS | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor, depth: int = 3) -> Message:
    """Any message of a type."""
    message: Any = GetMessageClass(descriptor)()
    match descriptor.full_name:
        case "google.protobuf.Timestamp":
            message.seconds = draw(st.integers(-62_135_596_800, 253_402_300_799))
            message.nanos = draw(st.integers(0, 10**9 - 1) | st.integers(0, 999).map(lambda ms: ms * 10**6))
            return message
        case "google.protobuf.Duration":
            sign = draw(st.sampled_from((1, -1)))
            message.seconds = sign * draw(st.integers(0, 315_576_000_000))
            message.nanos = sign * draw(st.integers(0, 10**9 - 1))
            return message
        case "google.protobuf.FieldMask":
            message.paths.extend(
                draw(st.lists(st.from_regex(r"[a-z]+(_[a-z]+)*(\.[a-z]+)?", fullmatch=True), max_size=3))
            )
            return message
        case "google.protobuf.Value":
            json_format.ParseDict(draw(JSON), message)
            return message
        case "google.protobuf.Struct":
            json_format.ParseDict(draw(st.dictionaries(TEXTS, JSON, max_size=3)), message)
            return message
        case "google.protobuf.ListValue":
            json_format.ParseDict(draw(st.lists(JSON, max_size=3)), message)
            return message
    if not descriptor.fields:
        return message
    fields = draw(st.lists(st.sampled_from(list(descriptor.fields)), max_size=6, unique_by=lambda field: field.number))
    for field in fields:
        _set(draw, message, field, depth)
    return message


def _set(draw: st.DrawFn, message: Any, field: FieldDescriptor, depth: int) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        for _ in range(draw(st.integers(0, 2))):
            name = draw(SCALARS[key.type])
            if value.message_type is None:
                getattr(message, field.name)[name] = draw(_scalars(value))
            elif depth:
                getattr(message, field.name)[name].CopyFrom(draw(messages(value.message_type, depth - 1)))
    elif field.message_type is not None:
        if not depth:
            return
        if field.is_repeated:
            for _ in range(draw(st.integers(0, 2))):
                getattr(message, field.name).add().CopyFrom(draw(messages(field.message_type, depth - 1)))
        else:
            part = getattr(message, field.name)
            part.SetInParent()
            part.CopyFrom(draw(messages(field.message_type, depth - 1)))
    else:
        strategy = _scalars(field)
        if field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(strategy, max_size=3)))
        else:
            setattr(message, field.name, draw(strategy))


def _scalars(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.enum_type is None:
        return SCALARS[field.type]
    numbers = [value.number for value in field.enum_type.values]
    return st.sampled_from(numbers if field.enum_type.is_closed else [*numbers, 77])
