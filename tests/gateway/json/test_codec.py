"""The codec against `google.protobuf.json_format`, on messages of every kind of field."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from google.protobuf import any_pb2, duration_pb2, json_format, struct_pb2, timestamp_pb2
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.gateway.items import items_pb2
from tests.gateway.json.strategies import messages
from vorta.v1 import embedding_pb2, inference_pb2, vector_pb2
from vorta_gateway.json.codec import Codec, JsonOptions, loads
from vorta_gateway.json.errors import JsonError

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
