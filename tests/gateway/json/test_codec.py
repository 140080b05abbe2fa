"""The codec against `google.protobuf.json_format`, on messages of every kind of field."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from google.protobuf import any_pb2, duration_pb2, json_format, struct_pb2, timestamp_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.gateway.items import items_pb2
from vorta.v1 import embedding_pb2, inference_pb2, vector_pb2
from vorta_gateway.json.codec import Codec, JsonOptions, loads
from vorta_gateway.json.errors import JsonError

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
                getattr(message, field.name)[name] = draw(SCALARS[value.type])
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
        strategy = SCALARS.get(field.type)
        if strategy is None:
            assert field.enum_type is not None
            strategy = st.sampled_from([value.number for value in field.enum_type.values] + [77])
        if field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(strategy, max_size=3)))
        else:
            setattr(message, field.name, draw(strategy))


TYPES = [
    items_pb2().Item,
    inference_pb2.GenerateRequest,
    inference_pb2.StreamGenerateResponse,
    inference_pb2.ChatRequest,
    embedding_pb2.EmbedResponse,
    vector_pb2.SearchRequest,
    vector_pb2.SearchResponse,
]


def same(ours: Any, theirs: Any) -> bool:
    """Equal JSON; a number is equal to one that is the same 32-bit float."""
    return bool(json.loads(json.dumps(ours)) == json.loads(json.dumps(theirs)))


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.DESCRIPTOR.name)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_it_writes_and_reads_what_json_format_does(kind: Any, data: st.DataObject) -> None:
    message = data.draw(messages(kind.DESCRIPTOR))
    for camel_case, always_print, enum_numbers in ((False, False, False), (True, True, True)):
        options = JsonOptions(camel_case=camel_case, always_print=always_print, enum_numbers=enum_numbers)
        codec = Codec(options)
        theirs = json_format.MessageToDict(
            message,
            preserving_proto_field_name=not camel_case,
            always_print_fields_with_no_presence=always_print,
            use_integers_for_enums=enum_numbers,
        )
        text = codec.text(message)
        assert same(loads(text), theirs)
        back, wanted = kind(), json_format.ParseDict(theirs, kind())
        codec.parse(back, text)
        assert same_message(back, wanted)
        again = kind()
        codec.fill(again, theirs)
        assert same_message(again, wanted)


def same_message(one: Message, other: Message) -> bool:
    return one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


BROKEN = [
    ('{"n":"x"}', "n"),
    ('{"n":1.5}', "n"),
    ('{"n":true}', "n"),
    ('{"n":9223372036854775808}', "n"),
    ('{"u":-1}', "u"),
    ('{"u":18446744073709551616}', "u"),
    ('{"ints":[1,2147483648]}', "ints[1]"),
    ('{"ints":[1,true]}', "ints[1]"),
    ('{"ints":1}', "ints"),
    ('{"ints":[null]}', "ints[0]"),
    ('{"floats":[1,"x"]}', "floats[1]"),
    ('{"floats":[1e39]}', "floats[0]"),
    ('{"floats":[true]}', "floats[0]"),
    ('{"g":-3.5e38}', "g"),
    ('{"title":1}', "title"),
    ('{"tags":["a",null]}', "tags[1]"),
    ('{"ok":"true"}', "ok"),
    ('{"ok":1}', "ok"),
    ('{"b":"@"}', "b"),
    ('{"b":"A"}', "b"),
    ('{"b":1}', "b"),
    ('{"e":"NOPE"}', "e"),
    ('{"e":1.5}', "e"),
    ('{"es":[0,"NOPE"]}', "es[1]"),
    ('{"sub":[]}', "sub"),
    ('{"sub":{"sub":{"n":"x"}}}', "sub.sub.n"),
    ('{"items":[{},{"n":"x"}]}', "items[1].n"),
    ('{"items":[null]}', "items[0]"),
    ('{"items":{}}', "items"),
    ('{"m":[]}', "m"),
    ('{"m":{"k":1}}', "m.k"),
    ('{"by_number":{"x":{}}}', "by_number.x"),
    ('{"by_number":{"1":{"n":"x"}}}', "by_number.1.n"),
    ('{"by_flag":{"maybe":1}}', "by_flag.maybe"),
    ('{"oa":"x","ob":1}', "ob"),
    ('{"ts":"yesterday"}', "ts"),
    ('{"ts":"2021-01-01T00:00:00"}', "ts"),
    ('{"ts":"2021-13-01T00:00:00Z"}', "ts"),
    ('{"ts":"2021-01-01T25:00:00Z"}', "ts"),
    ('{"ts":"0001-01-01T00:00:00+01:00"}', "ts"),
    ('{"d":"1"}', "d"),
    ('{"d":"315576000001s"}', "d"),
    ('{"mask":1}', "mask"),
    ('{"s":[]}', "s"),
    ('{"l":{}}', "l"),
    ('{"times":["x"]}', "times[0]"),
    ('{"wi":"x"}', "wi"),
    ('{"f":"nan"}', "f"),
    ('{"f":"1e999"}', "f"),
    ('{"nope":1}', "nope"),
]


@pytest.mark.parametrize(("text", "path"), BROKEN, ids=[text for text, _ in BROKEN])
def test_errors_name_the_field(text: str, path: str) -> None:
    with pytest.raises(JsonError) as caught:
        Codec().parse(items_pb2().Item(), text.encode())
    assert caught.value.path == path
    assert caught.value.invalid_argument().field == path
    assert len(str(caught.value)) < 300


def test_lenient_forms_are_read() -> None:
    item = items_pb2().Item()
    text = (
        '{"n":"-5","u":7.0,"b":"-_8","f":"1.5","g":"-Infinity","e":1,"snakeCase":"x","wl":"9","sub":null,"tags":null,'
        '"ts":"2021-01-01t00:00:00.5+01:00","d":"-1.5s","v":null,"m":{"a":"b"},"by_flag":{"true":1}}'
    )
    Codec().parse(item, text.encode())
    assert (item.n, item.u, item.b, item.f, item.g, item.e) == (-5, 7, b"\xfb\xff", 1.5, -math.inf, 1)
    assert (item.snake_case, item.wl.value, item.HasField("sub"), list(item.tags)) == ("x", 9, False, [])
    assert item.ts == timestamp_pb2.Timestamp(seconds=1_609_455_600, nanos=500_000_000)
    assert item.d == duration_pb2.Duration(seconds=-1, nanos=-500_000_000)
    assert item.v == struct_pb2.Value(null_value=0)
    assert item.by_flag[True] == 1


def test_the_largest_float() -> None:
    item = items_pb2().Item()
    Codec().parse(item, b'{"g":3.4028234663852886e38,"floats":[3.4028235e38,-3.4028235e38]}')
    assert item.g == 3.4028234663852886e38
    assert list(item.floats) == [item.g, -item.g]


def test_any() -> None:
    codec = Codec()
    for packed in (items_pb2().Item(title="x"), duration_pb2.Duration(seconds=3)):
        message = any_pb2.Any()
        message.Pack(packed)
        value = codec.value(message)
        assert value == json_format.MessageToDict(message)
        back = any_pb2.Any()
        codec.fill(back, value)
        assert back == message
    for wrong in ({"value": 1}, {"@type": 1}, {"@type": "x/nobody.Knows"}, []):
        with pytest.raises(JsonError):
            codec.fill(any_pb2.Any(), wrong)
    unknown = any_pb2.Any(type_url="x/nobody.Knows", value=b"\x01")
    assert codec.value(unknown) == {"@type": "x/nobody.Knows", "value": "AQ=="}
    assert codec.value(any_pb2.Any()) == {}


def test_what_has_no_json_form() -> None:
    for item in (
        items_pb2().Item(ts=timestamp_pb2.Timestamp(seconds=2**40)),
        items_pb2().Item(d=duration_pb2.Duration(seconds=1, nanos=-1)),
        items_pb2().Item(v=struct_pb2.Value(number_value=math.nan)),
        items_pb2().Item(mask={"paths": ["UPPER"]}),
    ):
        with pytest.raises(JsonError):
            Codec().text(item)
