"""Messages from and to JSON values, by functions compiled once for each message type.

The proto3 JSON mapping (https://protobuf.dev/programming-guides/json/), as `google.protobuf.json_format` has it; a
property test holds the two together. orjson does the text. A decoder is a table from a field's names to a function
that sets it; an encoder a table from a field's number to its name and a function that makes its value, used on
`ListFields`, which protobuf's C part makes without looking at absent fields.

Whole messages from and to text are done by the native codec (`native.py`) where it is there; what that leaves, and
every error, is done here.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, EncodeError, Message
from google.protobuf.message_factory import GetMessageClass

from vorta_gateway.json import native, scalars, wellknown
from vorta_gateway.json.descriptors import descriptor_of, is_map, message_of
from vorta_gateway.json.errors import JsonError, shown

__all__ = ["Codec", "JsonOptions", "dumps", "loads"]

_F = FieldDescriptor
_ANY = "google.protobuf.Any"
_MAX_DEPTH = 64
_TYPE_URL = "type.googleapis.com/"

Setter = Callable[[Any, Any, int], None]
Fill = Callable[[Any, Any, int], None]
Make = Callable[[Any], Any]


def loads(data: bytes | str) -> Any:
    """A JSON value. Raises JsonError when the text is none, or not UTF-8."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise JsonError(f"not JSON: {error}") from None


def dumps(value: Any) -> bytes:
    """JSON text of what an encoder made."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


class JsonOptions:
    """How messages are written and read.

    Attributes:
        camel_case: Names in lowerCamelCase rather than as in the proto. Both are read always.
        always_print: Fields without presence are written at their defaults too.
        enum_numbers: Enums as numbers.
        ignore_unknown: Unknown fields are passed over rather than refused.
    """

    __slots__ = ("always_print", "camel_case", "enum_numbers", "ignore_unknown")

    def __init__(
        self,
        *,
        camel_case: bool = False,
        always_print: bool = False,
        enum_numbers: bool = False,
        ignore_unknown: bool = False,
    ) -> None:
        self.camel_case = camel_case
        self.always_print = always_print
        self.enum_numbers = enum_numbers
        self.ignore_unknown = ignore_unknown


class Codec:
    """Decoders and encoders of message types, made when they are first needed.

    Args:
        options: How messages are written and read.
        is_native: Whether the native codec is used where it can be.
    """

    def __init__(self, options: JsonOptions | None = None, *, is_native: bool = True) -> None:
        self.options = options or JsonOptions()
        self._is_native = is_native
        self._mappings: dict[type[Message], native.Mapping | None] = {}
        self._fills: dict[str, Fill] = {}
        self._makes: dict[str, Make] = {}
        self._field_setters: dict[str, dict[str, Setter]] = {}

    def fill(self, message: Message, value: Any) -> None:
        """Sets a message's fields from a JSON value. Raises JsonError, which says where."""
        self._fill(descriptor_of(message))(message, value, _MAX_DEPTH)

    def fill_field(self, message: Message, field: FieldDescriptor, value: Any) -> None:
        """Sets one field from a JSON value. Raises JsonError."""
        try:
            self._setters(descriptor_of(message))[field.name](message, value, _MAX_DEPTH)
        except JsonError as error:
            error.within(field.name)
            raise

    def parse(self, message: Message, data: bytes) -> None:
        """Sets a message's fields from JSON text; empty text sets none. Raises JsonError."""
        mapping = self._mapping(type(message))
        # What the message has already may contradict the text: the native codec would not see that.
        if mapping is not None and not message.ListFields():
            wire = mapping.read(data)
            if wire is not None:
                message.MergeFromString(wire)
                return
        if data.strip():
            self.fill(message, loads(data))

    def value(self, message: Message) -> Any:
        """A message as a JSON value, for `dumps`. Raises JsonError where it has none (a time out of range)."""
        return self._make(descriptor_of(message))(message)

    def field_value(self, message: Message, field: FieldDescriptor) -> Any:
        """One field as a JSON value, its default where it is absent."""
        value = getattr(message, field.name)
        _, convert = self._printer(field)
        return convert(value) if convert is not None else value

    def text(self, message: Message) -> bytes:
        """A message as JSON text. Raises JsonError, as `value` does."""
        mapping = self._mapping(type(message))
        if mapping is not None:
            text = mapping.write(_serialized(message))
            if text is not None:
                return text
        return dumps(self._make(descriptor_of(message))(message))

    def wire_text(self, kind: type[Message], data: bytes) -> bytes | None:
        """JSON text of a serialized message; None where the message has to be made first."""
        mapping = self._mapping(kind)
        return None if mapping is None else mapping.write(data)

    def _mapping(self, kind: type[Message]) -> native.Mapping | None:
        try:
            return self._mappings[kind]
        except KeyError:
            return self._new_mapping(kind)

    def _new_mapping(self, kind: type[Message]) -> native.Mapping | None:
        module, is_final = native.loaded() if self._is_native else (None, True)
        mapping = None
        if module is not None:
            options = {name: getattr(self.options, name) for name in JsonOptions.__slots__}
            try:
                mapping = native.make_mapping(module, descriptor_of(kind), **options)
            except ValueError:
                mapping = None  # a well-known type that is not as it is known
        if is_final:
            self._mappings[kind] = mapping
        return mapping

    # Decoding

    def _fill(self, descriptor: Descriptor) -> Fill:
        fill = self._fills.get(descriptor.full_name)
        if fill is None:
            fill = self._fills[descriptor.full_name] = self._compile_fill(descriptor)
        return fill

    def _compile_fill(self, descriptor: Descriptor) -> Fill:
        name = descriptor.full_name
        if name in wellknown.DECODERS:
            decode = wellknown.DECODERS[name]
            return lambda message, value, depth: decode(message, value)
        if name in wellknown.WRAPPERS:
            convert = scalars.decoder(descriptor.fields_by_name["value"])

            def fill_wrapper(message: Any, value: Any, depth: int) -> None:
                message.value = convert(value)

            return fill_wrapper
        if name == _ANY:
            return self._fill_any
        # A type may contain itself, so its setters are made when the first message comes.
        setters: dict[str, Setter] = {}
        ignore_unknown = self.options.ignore_unknown

        def fill(message: Any, value: Any, depth: int) -> None:
            if type(value) is not dict:
                raise JsonError(f"{shown(value)} is not an object")
            if depth == 0:
                raise JsonError(f"nested deeper than {_MAX_DEPTH} levels")
            if not setters:
                setters.update(self._setters(descriptor))
            for key, item in value.items():
                setter = setters.get(key)
                try:
                    if setter is not None:
                        setter(message, item, depth - 1)
                    elif not ignore_unknown:
                        raise JsonError("there is no such field")
                except JsonError as error:
                    error.within(key)
                    raise

        return fill

    def _setters(self, descriptor: Descriptor) -> dict[str, Setter]:
        setters = self._field_setters.get(descriptor.full_name)
        if setters is None:
            setters = {}
            for field in descriptor.fields:
                setter = self._setter(field)
                setters[field.name] = setters[field.json_name] = setter
            self._field_setters[descriptor.full_name] = setters
        return setters

    def _setter(self, field: FieldDescriptor) -> Setter:
        if field.is_repeated:
            if is_map(field):
                return self._map_setter(field)
            return self._list_setter(field)
        if field.message_type is not None:
            return self._message_setter(field)
        return _scalar_setter(field)

    def _message_setter(self, field: FieldDescriptor) -> Setter:
        name = field.name
        fill = self._fill(message_of(field))
        takes_null = message_of(field).full_name == "google.protobuf.Value"
        check_oneof = _oneof_check(field)

        def set_message(message: Any, value: Any, depth: int) -> None:
            if value is None and not takes_null:
                return
            if check_oneof is not None:
                check_oneof(message)
            part = getattr(message, name)
            part.SetInParent()
            fill(part, value, depth)

        return set_message

    def _list_setter(self, field: FieldDescriptor) -> Setter:
        name = field.name
        if field.message_type is not None:
            fill = self._fill(message_of(field))
            takes_null = message_of(field).full_name == "google.protobuf.Value"

            def set_messages(message: Any, value: Any, depth: int) -> None:
                if value is None:
                    return
                items = _array(value)
                add = getattr(message, name).add
                for index, item in enumerate(items):
                    try:
                        if item is None and not takes_null:
                            raise JsonError("null is not an object")
                        fill(add(), item, depth)
                    except JsonError as error:
                        error.within(f"[{index}]")
                        raise

            return set_messages
        convert = scalars.decoder(field)
        quick = _quick_list(field)

        def set_scalars(message: Any, value: Any, depth: int) -> None:
            if value is None:
                return
            items = _array(value)
            if quick is not None and quick(message, items):
                return
            converted = []
            for index, item in enumerate(items):
                try:
                    converted.append(convert(item))
                except JsonError as error:
                    error.within(f"[{index}]")
                    raise
            _guarded(getattr(message, name).extend, converted)

        return set_scalars

    def _map_setter(self, field: FieldDescriptor) -> Setter:
        name = field.name
        key_field = message_of(field).fields_by_name["key"]
        value_field = message_of(field).fields_by_name["value"]
        convert_key = scalars.text_decoder(key_field) if key_field.type == _F.TYPE_BOOL else scalars.decoder(key_field)
        value_type = value_field.message_type
        fill = self._fill(value_type) if value_type is not None else None
        convert_value = scalars.decoder(value_field) if value_type is None else None

        def set_map(message: Any, value: Any, depth: int) -> None:
            if value is None:
                return
            if type(value) is not dict:
                raise JsonError(f"{shown(value)} is not an object")
            entries = getattr(message, name)
            for key, item in value.items():
                try:
                    converted = convert_key(key)
                    if convert_value is not None:
                        _guarded(entries.__setitem__, converted, convert_value(item))
                    elif fill is not None:
                        fill(entries[converted], item, depth)
                except JsonError as error:
                    error.within(key)
                    raise

        return set_map

    def _fill_any(self, message: Any, value: Any, depth: int) -> None:
        if type(value) is not dict:
            raise JsonError(f"{shown(value)} is not an object")
        if not value:
            return
        url = value.get("@type")
        if type(url) is not str:
            raise JsonError('"@type" is missing')
        packed = _new_message(message, url.rpartition("/")[2])
        if packed is None:
            raise JsonError(f"the type {shown(url)} is not known here")
        rest = {key: item for key, item in value.items() if key != "@type"}
        if not _is_plain(descriptor_of(packed)):
            if set(rest) - {"value"}:
                raise JsonError(f'{shown(url)} has its value under "value" alone')
            self._fill(descriptor_of(packed))(packed, rest.get("value", {}), depth)
        else:
            self._fill(descriptor_of(packed))(packed, rest, depth)
        message.type_url = url
        message.value = packed.SerializeToString(deterministic=True)

    # Encoding

    def _make(self, descriptor: Descriptor) -> Make:
        make = self._makes.get(descriptor.full_name)
        if make is None:
            make = self._makes[descriptor.full_name] = self._compile_make(descriptor)
        return make

    def _compile_make(self, descriptor: Descriptor) -> Make:
        name = descriptor.full_name
        if name in wellknown.ENCODERS:
            return wellknown.ENCODERS[name]
        if name in wellknown.WRAPPERS:
            convert = scalars.encoder(descriptor.fields_by_name["value"])
            return (lambda message: message.value) if convert is None else (lambda message: convert(message.value))
        if name == _ANY:
            return self._make_any
        printers: dict[int, tuple[str, Make | None]] = {}

        def make(message: Any) -> dict[str, Any]:
            if not printers:
                printers.update({field.number: self._printer(field) for field in descriptor.fields})
            made: dict[str, Any] = {}
            for field, value in message.ListFields():
                printer = printers.get(field.number)
                if printer is None:
                    continue  # an extension
                key, convert = printer
                made[key] = value if convert is None else convert(value)
            return made

        if not self.options.always_print:
            return make

        def make_all(message: Any) -> dict[str, Any]:
            made = make(message)
            for field in descriptor.fields:
                key, convert = printers[field.number]
                if key not in made and (field.is_repeated or not field.has_presence):
                    value = getattr(message, field.name)
                    made[key] = value if convert is None else convert(value)
            return {
                printers[field.number][0]: made[key]
                for field in descriptor.fields
                if (key := printers[field.number][0]) in made
            }

        return make_all

    def _printer(self, field: FieldDescriptor) -> tuple[str, Make | None]:
        name = field.json_name if self.options.camel_case else field.name
        if field.is_repeated:
            if is_map(field):
                return name, self._map_printer(field)
            return name, self._list_printer(field)
        if field.message_type is not None:
            return name, self._make(message_of(field))
        return name, scalars.encoder(field, enum_numbers=self.options.enum_numbers)

    def _list_printer(self, field: FieldDescriptor) -> Make:
        if field.message_type is not None:
            make = self._make(message_of(field))

            def make_messages(messages: Any) -> list[Any]:
                return [make(message) for message in messages]

            return make_messages
        convert = scalars.encoder(field, enum_numbers=self.options.enum_numbers)
        if convert is None:
            return list
        if field.type in (_F.TYPE_FLOAT, _F.TYPE_DOUBLE):
            kind = np.float32 if scalars.is_float32(field) else np.float64

            def make_floats(values: Any) -> Any:
                floats = np.fromiter(values, kind, len(values))
                return floats if np.isfinite(floats).all() else [convert(value) for value in values]

            return make_floats
        return lambda values: [convert(value) for value in values]

    def _map_printer(self, field: FieldDescriptor) -> Make:
        key_field = message_of(field).fields_by_name["key"]
        _, convert = self._printer(message_of(field).fields_by_name["value"])
        as_key: Callable[[Any], str] = _bool_key if key_field.type == _F.TYPE_BOOL else str

        def make_map(entries: Any) -> dict[str, Any]:
            return {as_key(key): value if convert is None else convert(value) for key, value in entries.items()}

        return make_map

    def _make_any(self, message: Any) -> dict[str, Any]:
        if not message.type_url and not message.value:
            return {}
        packed = _new_message(message, message.type_url.rpartition("/")[2])
        if packed is not None:
            try:
                packed.ParseFromString(message.value)
            except DecodeError:
                packed = None
        if packed is None:
            # Not known here: kept, so that a reader who knows it can read it.
            return {"@type": message.type_url, "value": scalars.bytes_json(message.value)}
        made = self._make(descriptor_of(packed))(packed)
        if _is_plain(descriptor_of(packed)):
            return {"@type": message.type_url, **made}
        return {"@type": message.type_url, "value": made}


def _serialized(message: Message) -> bytes:
    """The wire bytes; none where protobuf makes none: the message is too deep, or lacks what it requires."""
    try:
        return message.SerializeToString()
    except EncodeError:
        return _MALFORMED


_MALFORMED = b"\xff"


def _is_plain(descriptor: Descriptor) -> bool:
    """Whether the JSON form is an object of the fields."""
    name = descriptor.full_name
    return name not in wellknown.DECODERS and name not in wellknown.WRAPPERS and name != _ANY


def _scalar_setter(field: FieldDescriptor) -> Setter:
    name = field.name
    convert = scalars.decoder(field)
    takes_null = field.enum_type is not None and field.enum_type.full_name == "google.protobuf.NullValue"
    check_oneof = _oneof_check(field)

    def set_scalar(message: Any, value: Any, depth: int) -> None:
        if value is None and not takes_null:
            return
        if check_oneof is not None:
            check_oneof(message)
        converted = convert(value)
        try:
            setattr(message, name, converted)
        except (ValueError, TypeError, UnicodeError) as error:
            raise JsonError(f"{shown(value)} does not fit: {error}") from None

    return set_scalar


def _oneof_check(field: FieldDescriptor) -> Callable[[Any], None] | None:
    oneof = field.containing_oneof
    if oneof is None or len(oneof.fields) == 1:
        return None
    oneof_name = oneof.name

    def check(message: Any) -> None:
        other = message.WhichOneof(oneof_name)
        if other is not None and other != field.name:
            raise JsonError(f"{other} is given too, and only one of them can be")

    return check


def _quick_list(field: FieldDescriptor) -> Callable[[Any, list[Any]], bool] | None:
    """Sets a list of numbers or texts as one, if all of them are of the plain type; False if they are not."""
    name = field.name
    if field.type == _F.TYPE_STRING:

        def set_texts(message: Any, items: list[Any]) -> bool:
            if set(map(type, items)) != {str}:
                return False
            _guarded(getattr(message, name).extend, items)
            return True

        return set_texts
    if field.type == _F.TYPE_FLOAT and field.is_packed:
        # Merged as wire bytes: a copy, where `extend` would look at each number.
        tag = _varint(field.number << 3 | 2)

        def set_floats(message: Any, items: list[Any]) -> bool:
            if not set(map(type, items)) <= {float, int}:
                return False
            floats = array("f", items)
            if not floats or max(floats) == _INFINITY or min(floats) == -_INFINITY:
                return False
            message.MergeFromString(tag + _varint(4 * len(floats)) + floats.tobytes())
            return True

        return set_floats
    if field.type in scalars.INTEGERS:

        def set_integers(message: Any, items: list[Any]) -> bool:
            if set(map(type, items)) != {int}:
                return False
            try:
                getattr(message, name).extend(items)
            except ValueError:
                return False  # one is out of range: found, and named, one by one
            return True

        return set_integers
    return None


_INFINITY = float("inf")


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _guarded(function: Callable[..., object], *arguments: Any) -> None:
    """Calls protobuf with values of the right type; what it still refuses is text that is not Unicode."""
    try:
        function(*arguments)
    except (ValueError, TypeError, UnicodeError) as error:
        raise JsonError(f"a value does not fit: {error}") from None


def _array(value: Any) -> list[Any]:
    if type(value) is not list:
        raise JsonError(f"{shown(value)} is not an array")
    return value


def _bool_key(key: bool) -> str:
    return "true" if key else "false"


def _new_message(message: Message, full_name: str) -> Any:
    """An empty message of a type, from the pool of the message that holds it or the default one; None if unknown."""
    for pool in (descriptor_of(message).file.pool, descriptor_pool.Default()):
        try:
            return GetMessageClass(pool.FindMessageTypeByName(full_name))()
        except KeyError:
            continue
    return None
