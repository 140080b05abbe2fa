"""Query parameters and path variables into a message's fields.

A parameter's name is a field's path, in snake case or in lowerCamelCase. Where two parts of a request could say
different things of one field, the request is refused rather than one of them believed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from vorta.errors import InvalidArgument
from vorta_gateway.json import scalars
from vorta_gateway.json.codec import Codec
from vorta_gateway.json.errors import JsonError
from vorta_gateway.json.wellknown import WRAPPERS
from vorta_gateway.rest.routes import TextField, is_text_message

__all__ = ["Binder", "split_query"]

_MAX_DEPTH = 32
_MAX_PARAMETERS = 1000
# Their text may stand in quotes, as their JSON does.
_QUOTED = {
    "google.protobuf.StringValue",
    "google.protobuf.BytesValue",
    "google.protobuf.Timestamp",
    "google.protobuf.Duration",
    "google.protobuf.FieldMask",
}

Convert = Callable[[str], Any]


def split_query(query: bytes) -> list[tuple[str, str]]:
    """The parameters of a query or a form, in order; a plus is a space. Raises InvalidArgument for broken ones."""
    if not query:
        return []
    parts = query.split(b"&")
    if len(parts) > _MAX_PARAMETERS:
        raise InvalidArgument(f"the query has {len(parts)} parameters, more than the {_MAX_PARAMETERS} that are taken")
    parameters: list[tuple[str, str]] = []
    for part in parts:
        if part:
            name, _, value = part.partition(b"=")
            parameters.append((_decoded(name), _decoded(value)))
    return parameters


def _decoded(data: bytes) -> str:
    data = data.replace(b"+", b" ")
    if b"%" in data:
        for part in data.split(b"%")[1:]:
            if len(part) < 2 or not all(chr(digit) in _HEXADECIMAL for digit in part[:2]):
                raise InvalidArgument("the query has a % that is not followed by two hexadecimal digits")
        data = unquote_to_bytes(data)
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidArgument("the query is not UTF-8") from None


_HEXADECIMAL = frozenset("0123456789abcdefABCDEF")


class Binder:
    """Binds texts to the fields of messages of one type.

    Args:
        descriptor: The messages' type.
        codec: For texts that are well-known messages.
    """

    def __init__(self, descriptor: Descriptor, codec: Codec) -> None:
        self._descriptor = descriptor
        self._codec = codec
        self._found: dict[str, TextField] = {}
        self._converts: dict[str, Convert] = {}

    def bind_path(self, message: Message, variable: TextField, text: str) -> None:
        """Sets the field of a path's variable. One that the body has set must have the same value."""
        parent = _parent(message, variable.fields)
        leaf = variable.leaf
        given = _is_set(parent, leaf)
        before = _copy(parent, leaf) if given else None
        self._set(parent, variable, text)
        if given and before != _copy(parent, leaf):
            raise InvalidArgument(f"{variable.path}: the path and the body say different things", field=variable.path)

    def bind_query(
        self,
        message: Message,
        parameters: Iterable[tuple[str, str]],
        *,
        bound: Collection[str] = (),
        body: str = "",
        ignored: Collection[str] = (),
    ) -> None:
        """Sets fields from parameters.

        Args:
            bound: Paths of the path's variables.
            body: The field that the body is.
            ignored: Parameters that are passed over.

        Raises:
            InvalidArgument: Names the parameter at fault.
        """
        seen: set[str] = set()
        for name, text in parameters:
            if name in ignored:
                continue
            target = self._find(name)
            path = target.path
            if path in bound:
                raise InvalidArgument(f"{name}: the path gives it", field=name)
            parent = _parent(message, target.fields)
            leaf = target.leaf
            if leaf.is_repeated:
                getattr(parent, leaf.name).append(self._convert(target, name, text))
                continue
            if path in seen:
                raise InvalidArgument(f"{name}: given twice", field=name)
            seen.add(path)
            oneof = leaf.containing_oneof
            if oneof is not None and len(oneof.fields) > 1:
                other = parent.WhichOneof(oneof.name)
                if other is not None and other != leaf.name:
                    raise InvalidArgument(f"{name}: {other} is given too, and only one of them can be", field=name)
            if body and target.fields[0].name == body and _is_set(parent, leaf):
                before = _copy(parent, leaf)
                self._set(parent, target, text, name)
                if before != _copy(parent, leaf):
                    raise InvalidArgument(f"{name}: the query and the body say different things", field=name)
            else:
                self._set(parent, target, text, name)

    def _set(self, parent: Any, target: TextField, text: str, name: str = "") -> None:
        value = self._convert(target, name or target.path, text)
        leaf = target.leaf
        if leaf.message_type is not None:
            getattr(parent, leaf.name).CopyFrom(value)
        else:
            setattr(parent, leaf.name, value)

    def _convert(self, target: TextField, name: str, text: str) -> Any:
        convert = self._converts.get(target.path)
        if convert is None:
            convert = self._converts[target.path] = self._converter(target.leaf)
        try:
            return convert(text)
        except JsonError as error:
            raise InvalidArgument(f"{name}: {error.why}", field=name) from None

    def _converter(self, leaf: FieldDescriptor) -> Convert:
        descriptor = leaf.message_type
        if descriptor is None:
            return scalars.text_decoder(leaf)
        make = GetMessageClass(descriptor)
        name = descriptor.full_name
        of_value = scalars.text_decoder(descriptor.fields_by_name["value"]) if name in WRAPPERS else None

        def convert(text: str) -> Message:
            if name in _QUOTED and len(text) > 1 and text[0] == text[-1] == '"':
                text = text[1:-1]
            message: Message = make()
            message.SetInParent()
            if of_value is not None:
                message.value = of_value(text)  # type: ignore[attr-defined]
            else:
                self._codec.fill(message, text)
            return message

        return convert

    def _find(self, name: str) -> TextField:
        target = self._found.get(name)
        if target is None:
            target = self._resolve(name)
            if len(self._found) < _MAX_PARAMETERS:
                self._found[name] = target
        return target

    def _resolve(self, name: str) -> TextField:
        parts = name.split(".")
        if len(parts) > _MAX_DEPTH + 2:
            raise InvalidArgument(f"{name[:80]}: deeper than {_MAX_DEPTH} messages", field=name[:80])
        fields: list[FieldDescriptor] = []
        message: Descriptor | None = self._descriptor
        for part in parts:
            found = _field(message, part) if message is not None else None
            if found is None:
                raise InvalidArgument(f"{name[:80]}: there is no such parameter", field=name[:80])
            if fields and fields[-1].is_repeated:
                raise InvalidArgument(f"{name}: {fields[-1].name} is a list of messages", field=name)
            fields.append(found)
            message = found.message_type
            if message is not None and is_text_message(message) and part is not parts[-1]:
                message = None
        if message is not None and (fields[-1].is_repeated or not is_text_message(message)):
            raise InvalidArgument(f"{name}: a message cannot be a query parameter", field=name)
        return TextField(".".join(found.name for found in fields), tuple(fields))


def _field(message: Descriptor, name: str) -> FieldDescriptor | None:
    return (
        message.fields_by_name.get(name) or message.fields_by_camelcase_name.get(name) or _by_json_name(message, name)
    )


def _by_json_name(message: Descriptor, name: str) -> FieldDescriptor | None:
    return next((found for found in message.fields if found.json_name == name), None)


def _parent(message: Any, fields: Sequence[FieldDescriptor]) -> Any:
    """The message that the last field is in, made present on the way."""
    for found in fields[:-1]:
        message = getattr(message, found.name)
        message.SetInParent()
    return message


def _is_set(parent: Any, leaf: FieldDescriptor) -> bool:
    if leaf.has_presence:
        return bool(parent.HasField(leaf.name))
    return bool(getattr(parent, leaf.name) != leaf.default_value)


def _copy(parent: Any, leaf: FieldDescriptor) -> Any:
    value = getattr(parent, leaf.name)
    return value.SerializeToString(deterministic=True) if leaf.message_type is not None else value
