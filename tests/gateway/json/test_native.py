"""The native codec against the one in Python: what it does is equal, and all else it leaves."""

from __future__ import annotations

import json
import logging
import re
import shutil
import threading
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, struct_pb2, timestamp_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto, UninterpretedOption
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, EncodeError
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.gateway.items import items_pb2
from tests.gateway.json.everything import everything
from tests.gateway.json.strategies import JSON, TEXTS, messages
from vorta.v1 import embedding_pb2, inference_pb2, vector_pb2
from vorta_gateway.json import native
from vorta_gateway.json.codec import Codec, JsonOptions
from vorta_gateway.json.errors import JsonError

pytestmark = pytest.mark.skipif(native.load() is None, reason="there is no C++ compiler, or no Python.h")

TYPES: list[Any] = [
    everything("proto3"),
    everything("proto2"),
    items_pb2().Item,
    inference_pb2.ChatRequest,
    inference_pb2.StreamGenerateResponse,
    embedding_pb2.EmbedResponse,
    vector_pb2.SearchRequest,
    struct_pb2.Value,
]
OPTIONS = [
    JsonOptions(),
    JsonOptions(camel_case=True, always_print=True, enum_numbers=True),
    JsonOptions(ignore_unknown=True),
]
by_type = pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.DESCRIPTOR.full_name)
FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
_MAPPINGS: dict[Any, Any] = {}


def mapping(kind: Any, options: JsonOptions) -> Any:
    key = (kind, options)
    if key not in _MAPPINGS:
        chosen = {name: getattr(options, name) for name in JsonOptions.__slots__}
        _MAPPINGS[key] = native.make_mapping(native.load(), kind.DESCRIPTOR, **chosen)
    return _MAPPINGS[key]


def oracle(options: JsonOptions) -> Codec:
    return Codec(options, is_native=False)


def same_text(one: bytes, other: bytes) -> bool:
    """Equal JSON, with each number as whole, and of the same sign, as in the other."""
    return json.dumps(json.loads(one), sort_keys=True) == json.dumps(json.loads(other), sort_keys=True)


def canonical(message: Any) -> bytes:
    wire: bytes = message.SerializeToString(deterministic=True)
    return wire


def check_read(kind: Any, text: bytes, options: JsonOptions) -> bool:
    """Whether the native codec reads a text, after making sure that it then reads what the one in Python does."""
    wire = mapping(kind, options).read(text)
    if wire is None:
        return False
    wanted = kind()
    oracle(options).parse(wanted, text)  # raises JsonError if the text should have been refused
    assert canonical(kind.FromString(wire)) == canonical(wanted)
    return True


def check_write(kind: Any, wire: bytes, options: JsonOptions) -> bool:
    """Whether the native codec writes wire bytes, after making sure that it then writes what the one in Python does."""
    text = mapping(kind, options).write(wire)
    if text is None:
        return False
    assert same_text(text, oracle(options).text(kind.FromString(wire)))
    return True


def is_left(text: bytes) -> bool:
    """Whether there may be an Any or a group, which the native codec leaves."""
    return re.search(rb'"((a|all)_?any|old)"|@type', text, re.IGNORECASE) is not None


@by_type
@FUZZ
@given(data=st.data())
def test_it_writes_and_reads_messages(kind: Any, data: st.DataObject) -> None:
    message = data.draw(messages(kind.DESCRIPTOR))
    options = data.draw(st.sampled_from(OPTIONS))
    try:
        text = oracle(options).text(message)
    except JsonError:
        assert mapping(kind, options).write(message.SerializeToString()) is None
        return
    assert check_write(kind, message.SerializeToString(), options) or is_left(text)
    indent = data.draw(st.sampled_from((None, 1)))
    spaced = json.dumps(json.loads(text), indent=indent, ensure_ascii=data.draw(st.booleans())).encode()
    assert check_read(kind, spaced, options) or is_left(text)


@by_type
@FUZZ
@given(data=st.data())
def test_it_takes_broken_text_for_nothing_else(kind: Any, data: st.DataObject) -> None:
    message = data.draw(messages(kind.DESCRIPTOR, depth=2))
    try:
        text = oracle(OPTIONS[0]).text(message)
    except JsonError:
        text = b"{}"
    broken = data.draw(mutations(text, TOKENS))
    check_read(kind, broken, data.draw(st.sampled_from(OPTIONS)))


@by_type
@FUZZ
@given(data=st.data())
def test_it_takes_broken_wire_bytes_for_nothing_else(kind: Any, data: st.DataObject) -> None:
    message = data.draw(messages(kind.DESCRIPTOR, depth=2))
    broken = data.draw(mutations(message.SerializeToString(), BYTES))
    options = data.draw(st.sampled_from(OPTIONS))
    try:
        check_write(kind, broken, options)
    except DecodeError:
        pytest.fail(f"{broken!r} is malformed, and was written")


_TOKENS = '{ } [ ] : , " \\ null true false 0 -0 1e2 1.0 -1 1e400 "NaN" "1" "" {} [] é \\ud800 \\udc00 "@type":"x"'
TOKENS = [
    *(token.encode() for token in _TOKENS.split()),
    *(b"\\ud83d\\ude00", b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\0", b" "),
]
BYTES = [
    *(bytes([byte]) for byte in (0, 1, 7, 8, 10, 0x7F, 0x80, 0xFF)),
    *(b"\xff" * 9 + b"\x01", b"\x0a\x00", b"\x80\x00"),
]


@st.composite
def mutations(draw: st.DrawFn, data: bytes, parts: list[bytes]) -> bytes:
    """Bytes with parts cut out, put in, doubled or replaced."""
    made = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(made)))
        end = min(len(made), begin + draw(st.integers(0, 12)))
        match draw(st.integers(0, 4)):
            case 0:
                del made[begin:end]
            case 1:
                made[begin:end] = draw(st.sampled_from(parts))
            case 2:
                made[begin:begin] = made[begin:end]
            case 3:
                made[begin:end] = draw(st.binary(max_size=4))
            case 4:
                del made[begin:]
    return bytes(made)


_WORDS = r"""
0 -0 0.0 -0.0 1 -1 1.5 1e0 1e2 1E+2 10e-1 1e-2 01 +1 1. .5 - -a 1e 0x1 1_0 1e400 -1e400 1e-400 5e-324 0.1 1e-7
2147483647 2147483648 -2147483648 -2147483649 4294967295 4294967296 2147483647.0 4.294967295e9 9007199254740993
9223372036854775807 9223372036854775808 -9223372036854775808 -9223372036854775809 9223372036854775808.0
18446744073709551615 18446744073709551616 1.8446744073709552e19 123456789012345678901234567890
3.4028234663852886e38 3.4028235677973366e38 3.4028235677973365e38 1.7976931348623157e308
0.1234567890123456789012345678901234567890 1e0000000000000000000001 179769313486231580793728971405301e276
"0" "-0" "1" "-1" "007" "+1" "1.5" "1e2" "1." ".5" "." "-." "1e" "-.5e1" "NaN" "nan" "Infinity" "-Infinity" "inf"
"9223372036854775807" "9223372036854775808" "18446744073709551615" "99999999999999999999" "1e400" "1e-400" "٣"
"RED" "GREEN" "FAR" "red" "NULL_VALUE" "true" "" "A" "AA" "AAA" "AAAA" "AA==" "AA=" "A===" "-_-_" "+/+/" "AB" "AAB"
"AA==AA" "\u0041\u0041" "QQ\u003d=" "a_b" "aB,cD" "a,,b" "a," "a_B" "a__b" "é"
true false null tru nul nulll truefalse {} [] [null] {"":null} [1] [1,] [,1] {"a":1,} [[]] [{}]
"\ud83d\ude00" "\ud83d" "\ude00" "\ud83d\u0041" "\u00e9" "\x" "\u12" "\u0000" "\/\b\f\n\r\t"
"1970-01-01T00:00:00Z" "2024-02-29T23:59:59.123456789+23:59" "2023-02-29T00:00:00Z" "2000-01-01t00:00:00z"
"0001-01-01T00:00:00Z" "9999-12-31T23:59:59.999999999Z" "9999-12-31T23:59:59-00:01" "0000-01-01T00:00:00Z"
"1969-12-31T23:59:59.5Z" "2021-01-01T00:00:00.1234567890Z" "2021-01-01T00:00:00.Z" "2021-01-01T00:00:00+1:00"
"1s" "-1.5s" "1.s" "-0.5s" "315576000000s" "315576000001s" "1.1234567890s" "s" "-s"
{"a":{"b":[1,2.0,"x",null,true,{"c":-0.0}]},"a":{"d":1}} {"1":1,"2":2} {"01":"1","1":"2"} {"true":1,"false":"2"}
{"True":1} {"x":"AA==","y":"AQ=="} {"a":"RED","b":1,"c":900,"d":12}
"""
VALUES = [*_WORDS.split(), '"1 "', '" 1"', '"A A="', '"a\x7f"', '"tab\t"', '"\0"']


@pytest.mark.parametrize("kind", TYPES[:3], ids=lambda kind: kind.DESCRIPTOR.full_name)
@pytest.mark.parametrize("form", ["%s", "[%s,%s]", '{"1":%s}', '{"true":%s}'])
def test_every_field_with_every_value(kind: Any, form: str) -> None:
    # Of proto2, what differs.
    fields = [field for field in kind.DESCRIPTOR.fields if kind is not TYPES[1] or "enum" in field.name]
    for field, value in product(fields, VALUES):
        text = f'{{"{field.name}": {form.replace("%s", value)}}}'
        check_read(kind, text.encode(), OPTIONS[0])


@pytest.mark.parametrize("kind", [timestamp_pb2.Timestamp, struct_pb2.Value, struct_pb2.Struct, struct_pb2.ListValue])
def test_every_value_as_a_whole(kind: Any) -> None:
    assert sum(check_read(kind, value.encode(), OPTIONS[0]) for value in VALUES)
    for blank in (b"", b" ", b"\n\t"):
        assert mapping(kind, OPTIONS[0]).read(blank) is None


@FUZZ
@given(value=JSON, indent=st.sampled_from((None, 2)), is_ascii=st.booleans())
def test_any_json_is_a_value(value: Any, indent: int | None, is_ascii: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=is_ascii).encode()
    assert check_read(struct_pb2.Value, text, OPTIONS[0])
    wire = json_format.Parse(text, struct_pb2.Value()).SerializeToString()
    assert check_write(struct_pb2.Value, wire, OPTIONS[0])


@settings(FUZZ, max_examples=40)
@given(
    numbers=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20),
    texts=st.lists(st.from_regex(r"\A-?(0|[1-9]\d{0,25})(\.\d{1,25})?([eE][+-]?\d{1,3})?\Z"), max_size=20),
)
def test_numbers_are_read_and_written_as_by_orjson(numbers: list[float], texts: list[str]) -> None:
    kind = everything("proto3")
    for number in numbers:
        message = kind(one_double=number, a_value={"number_value": number})
        for name in ("one_float", "many_float"):
            if abs(number) < 3.4e38:
                check_read(kind, json.dumps({name: number if name[0] == "o" else [number]}).encode(), OPTIONS[0])
        if abs(number) < 3.4e38:
            message.one_float = number
        assert check_write(kind, message.SerializeToString(), OPTIONS[0])
        assert check_read(kind, json.dumps({"one_double": number, "many_double": [number]}).encode(), OPTIONS[0])
    for text in texts:
        check_read(kind, f'{{"one_double":{text},"one_float":"{text}","a_value":{text}}}'.encode(), OPTIONS[0])


@FUZZ
@given(texts=st.lists(TEXTS | st.text(max_size=40), max_size=5), is_ascii=st.booleans())
def test_texts(texts: list[str], is_ascii: bool) -> None:
    kind = everything("proto3")
    has_surrogates = any("\ud800" <= character <= "\udfff" for text in texts for character in text)
    body = json.dumps({"many_string": texts, "map_string": dict.fromkeys(texts, 1)}, ensure_ascii=is_ascii)
    assert check_read(kind, body.encode("utf-8", "surrogatepass"), OPTIONS[0]) is not has_surrogates
    if not has_surrogates:
        message = kind(many_string=texts, one_bytes="".join(texts).encode(), map_string=dict.fromkeys(texts, 1))
        assert check_write(kind, message.SerializeToString(), OPTIONS[0])


def test_what_comes_twice_is_left() -> None:
    kind = items_pb2().Item
    for text in (
        '{"n":1,"n":2}',
        '{"snake_case":"a","snakeCase":"b"}',
        '{"tags":["a"],"tags":["b"]}',
        '{"sub":{"id":"a"},"sub":{"n":1}}',
        '{"oa":"x","ob":1}',
        '{"n":1,"n":null}',
    ):
        assert mapping(kind, OPTIONS[0]).read(text.encode()) is None, text
    assert check_read(kind, b'{"oa":null,"ob":1}', OPTIONS[0])
    assert check_read(kind, b'{"m":{"k":"1","k":"2"}}', OPTIONS[0])
    assert check_read(kind, b'{"by_number":{"1":{"id":"a"},"1":{"n":"2"}}}', OPTIONS[0])
    wires = [b"\x10\x01\x10\x02", b"\x9a\x01\x01x\xa0\x01\x01", b"\x42\x00\x42\x00"]  # n, oa and ob, sub
    wires += [b"\x22\x01a\x10\x01\x22\x01b", b"\x92\x01\x03\x0a\x01k" * 2]  # tags around n, one key of m
    for wire in wires:
        kind.FromString(wire)
        assert mapping(kind, OPTIONS[0]).write(wire) is None, wire
        assert Codec().wire_text(kind, wire) is None


def test_many_keys_of_a_map() -> None:
    kind = items_pb2().Item
    entries = [b"\x92\x01\x06\x0a\x04%04d" % number for number in range(50)]
    assert check_write(kind, b"".join(entries), OPTIONS[0])
    assert mapping(kind, OPTIONS[0]).write(b"".join([*entries, entries[7]])) is None


def test_unusual_wire_bytes() -> None:
    kind = everything("proto3")
    two = everything("proto2")
    for wire in (
        two(many_int32=[1, -1], many_float=[1.5], many_enum=[1]).SerializeToString(),  # not packed
        kind(flipped_int32=[1, -1], one_int32=0).SerializeToString(),
        b"\x9a\xf4\x03\x02ab" + b"\xf8\xff\xff\xff\x0f\x05",  # numbers that are not known
        b"\x08" + b"\x80" * 9 + b"\x01",
    ):
        check_write(kind, wire, OPTIONS[0])
    number = next(field.number for field in kind.DESCRIPTOR.fields if field.name == "one_int32")
    tag = wire_tag(number, 0)
    assert check_write(kind, tag + b"\x00", OPTIONS[0])  # a default that was sent
    assert check_write(kind, tag + b"\xff" * 9 + b"\x01", OPTIONS[0])
    assert check_write(kind, tag + b"\x80\x80\x80\x80\x10", OPTIONS[0])  # 2**32: none of its bits count
    for broken in (b"\x00", tag, tag + b"\x80", tag + b"\xff" * 10, b"\x0b", b"\x0c", tag[:1]):
        assert mapping(kind, OPTIONS[0]).write(broken) is None


def wire_tag(number: int, wire_type: int) -> bytes:
    value = number << 3 | wire_type
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def test_depth() -> None:
    kind = items_pb2().Item
    for depth in (1, 30, 31, 32, 33, 62, 63, 64, 65, 100, 5000):
        check_read(kind, b'{"sub":' * depth + b"{}" + b"}" * depth, OPTIONS[0])
        for inner in (b"[", b'{"a":'):
            close = b"]" if inner == b"[" else b"}"
            check_read(struct_pb2.Value, inner * depth + b"1" + close * depth, OPTIONS[0])
            check_read(kind, b'{"nope":' + inner * depth + b"1" + close * depth + b"}", OPTIONS[2])
    assert check_read(kind, b'{"sub":' * 63 + b"{}" + b"}" * 63, OPTIONS[0])
    assert mapping(kind, OPTIONS[0]).read(b'{"sub":' * 64 + b"{}" + b"}" * 64) is None
    wire = b""
    for _ in range(200):
        wire = b"\x42" + wire_tag(len(wire), 0) if len(wire) < 16 else b"\x42" + varint(len(wire)) + wire
        assert mapping(kind, OPTIONS[0]).write(wire) is None or kind.FromString(wire)


def varint(value: int) -> bytes:
    return wire_tag(value >> 3, value & 7)


def test_lengths_of_every_size() -> None:
    for size in (0, 1, 126, 127, 128, 129, 16_383, 16_384, 70_000, 2_100_000):
        text = json.dumps({"sub": {"sub": {"title": "x" * size, "floats": [1] * (size // 4)}}}).encode()
        assert check_read(items_pb2().Item, text, OPTIONS[0])


def test_every_cut_of_a_text_and_of_wire_bytes() -> None:
    message = items_pb2().Item(
        id="é😀", n=-1, floats=[0.1, 1e30], ints=[1], m={"k": "v"}, sub={"tags": ["a"]}, v={"number_value": 0.5}, g=1e-9
    )
    text = oracle(OPTIONS[0]).text(message)
    wire = message.SerializeToString()
    read = [end for end in range(len(text) + 1) if check_read(type(message), text[:end], OPTIONS[0])]
    assert read == [len(text)]
    for end in range(len(wire) + 1):
        if mapping(type(message), OPTIONS[0]).write(wire[:end]) is not None:
            assert check_write(type(message), wire[:end], OPTIONS[0])


def test_the_codec_raises_what_it_raises_without() -> None:
    for text in (
        b'{"n":"x"}',
        b'{"items":[{},{"n":"x"}]}',
        b'{"nope":1}',
        b"{",
        b'"\xff"',
        b'{"oa":"x","ob":1}',
        b"[]",
    ):
        raised = []
        for is_native in (True, False):
            with pytest.raises(JsonError) as caught:
                Codec(is_native=is_native).parse(items_pb2().Item(), text)
            raised.append((caught.value.why, caught.value.path))
        assert raised[0] == raised[1]


def test_what_a_message_has_already_stays() -> None:
    item = items_pb2().Item(n=1, oa="x")
    Codec().parse(item, b'{"title":"t"}')
    assert (item.n, item.title) == (1, "t")
    with pytest.raises(JsonError, match="oa is given too"):
        Codec().parse(item, b'{"ob":1}')


def test_messages_that_protobuf_does_not_serialize() -> None:
    with pytest.raises(EncodeError):
        UninterpretedOption.NamePart().SerializeToString()
    assert Codec().text(UninterpretedOption.NamePart()) == b"{}"
    for is_native in (True, False):
        part = UninterpretedOption.NamePart()
        Codec(is_native=is_native).parse(part, b'{"name_part":"x"}')
        assert part.name_part == "x"


def test_a_well_known_type_that_is_not_as_it_is_known() -> None:
    file = FileDescriptorProto(name="google/protobuf/struct.proto", package="google.protobuf", syntax="proto3")
    file.message_type.add(name="Struct")
    pool = DescriptorPool()
    pool.Add(file)
    kind = GetMessageClass(pool.FindMessageTypeByName("google.protobuf.Struct"))
    with pytest.raises(ValueError, match="malformed"):
        mapping(kind, OPTIONS[0])
    assert Codec().wire_text(kind, b"") is None


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(native, "_path", lambda: tmp_path / "vorta_json.so")
    native.load.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, "vorta_gateway.json.native"):
            assert native.load() is None
            assert native.load() is None
        (record,) = caplog.records
        assert "no C++ compiler" in record.message
    finally:
        native.load.cache_clear()


def test_a_compiler_that_fails(tmp_path: Path) -> None:
    with pytest.raises(native.BuildError, match="failed"):
        native.build(tmp_path / "x.so", (*native.FLAGS, "-no-such-flag"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "broken.so").write_bytes(b"no library")
    with pytest.raises(ImportError):
        native.load_file(tmp_path / "broken.so")


def test_while_it_is_being_built_the_codec_is_the_one_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    module = native.load()
    may_end = threading.Event()
    background = native._Background()
    monkeypatch.setattr(native, "_background", background)
    monkeypatch.setattr(native, "_is_built", lambda: False)
    monkeypatch.setattr(native, "load", lambda: may_end.wait(30) and module)
    codec = Codec()
    message = items_pb2().Item(n=1)
    assert codec.text(message) == b'{"n":"1"}'
    assert codec.wire_text(type(message), message.SerializeToString()) is None
    may_end.set()
    assert background._thread is not None
    background._thread.join(30)
    assert codec.wire_text(type(message), message.SerializeToString()) == b'{"n":"1"}'
