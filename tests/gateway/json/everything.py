"""Message types with every kind of field, in proto3 and in proto2; made without a compiler."""

from __future__ import annotations

import functools
from typing import Any

from google.protobuf import any_pb2, empty_pb2, struct_pb2, wrappers_pb2
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

F = FieldDescriptorProto
SCALARS = [kind for kind in range(1, 19) if kind not in (F.TYPE_GROUP, F.TYPE_MESSAGE)]
KEYS = [kind for kind in SCALARS if kind not in (F.TYPE_DOUBLE, F.TYPE_FLOAT, F.TYPE_BYTES, F.TYPE_ENUM)]
_NUM_PLACES = 5


def _name(kind: int) -> str:
    return F.Type.Name(kind).removeprefix("TYPE_").lower()


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(part.capitalize() for part in others)


class _Builder:
    def __init__(self, syntax: str) -> None:
        self.package = f"vorta.test.{syntax}"
        self.file = FileDescriptorProto(name=f"{syntax}.proto", package=self.package, syntax=syntax)
        for module in (any_pb2, empty_pb2, struct_pb2, wrappers_pb2):
            self.file.dependency.append(module.DESCRIPTOR.name)
        enum = EnumDescriptorProto(name="Color")
        for number, name in ((0, "RED"), (1, "GREEN"), (-5, "BELOW"), (900, "FAR")):
            enum.value.add(name=name, number=number)
        self.file.enum_type.append(enum)
        self.message = DescriptorProto(name="Everything")
        self.is_proto3 = syntax == "proto3"

    def field(self, name: str, kind: int, *, label: int = F.LABEL_OPTIONAL, of: str = "", number: int = 0) -> Any:
        field = self.message.field.add(
            name=name,
            json_name=_camel(name),
            number=number or len(self.message.field) + 1,
            type=F.Type.ValueType(kind),
            label=F.Label.ValueType(label),
        )
        if kind == F.TYPE_ENUM and not of:
            of = f"{self.package}.Color"
        if of:
            field.type_name = f".{of}"
        return field

    def scalars(self) -> None:
        self.message.oneof_decl.add(name="choice")
        for kind in SCALARS:
            name = _name(kind)
            self.field(f"one_{name}", kind)
            self.field(f"many_{name}", kind, label=F.LABEL_REPEATED)
            if kind not in (F.TYPE_STRING, F.TYPE_BYTES):
                self.field(f"flipped_{name}", kind, label=F.LABEL_REPEATED).options.packed = not self.is_proto3
            self.field(f"choice_{name}", kind).oneof_index = 0
        if self.is_proto3:
            for kind in SCALARS:
                field = self.field(f"optional_{_name(kind)}", kind)
                field.proto3_optional = True
                field.oneof_index = len(self.message.oneof_decl)
                self.message.oneof_decl.add(name=f"_optional_{_name(kind)}")

    def messages(self) -> None:
        own = f"{self.package}.Everything"
        self.field("self", F.TYPE_MESSAGE, of=own)
        self.field("selves", F.TYPE_MESSAGE, of=own, label=F.LABEL_REPEATED)
        self.field("choice_self", F.TYPE_MESSAGE, of=own).oneof_index = 0
        for name in ("Value", "ListValue", "Struct", "Int64Value", "DoubleValue", "BytesValue", "Empty", "Any"):
            of = f"google.protobuf.{name}"
            self.field(f"a_{name.lower()}", F.TYPE_MESSAGE, of=of)
            self.field(f"all_{name.lower()}", F.TYPE_MESSAGE, of=of, label=F.LABEL_REPEATED)
        self.field("choice_value", F.TYPE_MESSAGE, of="google.protobuf.Value").oneof_index = 0
        self.field("nothing", F.TYPE_ENUM, of="google.protobuf.NullValue")
        self.field("nothings", F.TYPE_ENUM, of="google.protobuf.NullValue", label=F.LABEL_REPEATED)
        self.field("far", F.TYPE_INT32, number=100_000)
        self.field("farther", F.TYPE_STRING, number=536_870_911)

    def maps(self) -> None:
        values = [("double", F.TYPE_DOUBLE, ""), ("bytes", F.TYPE_BYTES, ""), ("enum", F.TYPE_ENUM, "")]
        values += [("self", F.TYPE_MESSAGE, f"{self.package}.Everything")]
        values += [("value", F.TYPE_MESSAGE, "google.protobuf.Value")]
        values += [("wrapper", F.TYPE_MESSAGE, "google.protobuf.Int64Value")]
        for key in KEYS:
            self.map(f"map_{_name(key)}", key, F.TYPE_INT64, "")
        for name, kind, of in values:
            self.map(f"map_to_{name}", F.TYPE_STRING, kind, of)
            self.map(f"map_int_to_{name}", F.TYPE_SINT32, kind, of)

    def map(self, name: str, key: int, value: int, of: str) -> None:
        entry = "".join(part.capitalize() for part in name.split("_")) + "Entry"
        if value == F.TYPE_ENUM:
            of = f"{self.package}.Color"
        nested = self.message.nested_type.add(name=entry)
        nested.options.map_entry = True
        nested.field.add(name="key", json_name="key", number=1, type=F.Type.ValueType(key), label=F.LABEL_OPTIONAL)
        nested.field.add(
            name="value",
            json_name="value",
            number=2,
            type=F.Type.ValueType(value),
            label=F.LABEL_OPTIONAL,
            type_name=f".{of}" if of else None,
        )
        number = 2000 + len(self.message.nested_type)
        of_entry = f"{self.package}.Everything.{entry}"
        self.field(name, F.TYPE_MESSAGE, of=of_entry, label=F.LABEL_REPEATED, number=number)

    def group(self) -> None:
        nested = self.message.nested_type.add(name="Old")
        nested.field.add(name="x", json_name="x", number=1, type=F.TYPE_INT32, label=F.LABEL_OPTIONAL)
        self.field("old", F.TYPE_GROUP, of=f"{self.package}.Everything.Old")


@functools.cache
def everything(syntax: str) -> Any:
    """The class of `Everything`."""
    builder = _Builder(syntax)
    builder.scalars()
    builder.messages()
    builder.maps()
    if syntax == "proto2":
        builder.group()
    builder.file.message_type.append(builder.message)
    pool = DescriptorPool()
    for module in (any_pb2, empty_pb2, struct_pb2, wrappers_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    pool.Add(builder.file)
    return GetMessageClass(pool.FindMessageTypeByName(f"{builder.package}.Everything"))
