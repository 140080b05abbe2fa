"""From a client's arguments to the contract's requests; shared by the sync and the async client.

Keywords are checked against the request's descriptor, so a field added to the contract is a keyword at once.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from google.protobuf import struct_pb2
from google.protobuf.message import Message

from vorta._output_format import CHOICE_FIELD, FORMAT_FIELD, FORMAT_KEYWORDS, set_format, set_tool_choice
from vorta.errors import InvalidArgument
from vorta.result import ChatMessage, Tool, ToolCall
from vorta.v1 import common_pb2, inference_pb2

Prompt = str | Sequence[int]
MessageLike = ChatMessage | Mapping[str, Any]
Messages = str | Sequence[MessageLike]
ToolLike = Tool | Mapping[str, Any]

DEFAULT_RESUME_WINDOW_S = 10.0
"""For how long a stream's request outlives a broken connection when the caller does not say, in seconds."""

# Fields that have a parameter of their own, besides **sampling.
_OWN_FIELDS = frozenset({"model", "prompt", "prompt_token_ids", "messages", "tools", "resume_window_s"})

_M = TypeVar("_M", bound=Message)


def keywords_of(request_type: type[Message]) -> list[str]:
    """Names that a request of this type takes as keywords: its fields, and for its format what stands for it."""
    names = [field.name for field in request_type.DESCRIPTOR.fields if field.name not in _OWN_FIELDS]
    if FORMAT_FIELD in names:
        names.remove(FORMAT_FIELD)
        names += FORMAT_KEYWORDS
    return names


def generate_request(
    request_type: type[_M], prompt: Prompt, model: str | None, options: Mapping[str, Any], function: str
) -> _M:
    """A GenerateRequest or StreamGenerateRequest.

    Raises TypeError for an unknown keyword or a value of the wrong type, InvalidArgument for one that the field
    cannot hold; both name the field.
    """
    request = request_type()
    if isinstance(prompt, str):
        _set(request, "prompt", prompt)
    elif isinstance(prompt, Sequence) and not isinstance(prompt, (bytes, bytearray)):
        _set(request, "prompt_token_ids", prompt)
    else:
        raise TypeError(f"prompt must be a string or a sequence of token ids, not {type(prompt).__name__}")
    _fill(request, model, options, function)
    return request


def chat_request(
    request_type: type[_M],
    messages: Messages,
    tools: Sequence[ToolLike] | None,
    model: str | None,
    options: Mapping[str, Any],
    function: str,
) -> _M:
    """A ChatRequest or StreamChatRequest; raises as `generate_request`."""
    request = request_type()
    _add_conversation(request, messages, tools)
    _fill(request, model, options, function)
    return request


def tokenize_request(
    text: str | Sequence[MessageLike],
    tools: Sequence[ToolLike] | None,
    model: str | None,
    options: Mapping[str, Any],
) -> inference_pb2.TokenizeRequest:
    """A TokenizeRequest of plain text or of a conversation; raises as `generate_request`."""
    request = inference_pb2.TokenizeRequest()
    if isinstance(text, str):
        _set(request, "text", text)
    else:
        _add_conversation(request, text, tools)
    _fill(request, model, options, "tokenize")
    return request


def simple_request(request_type: type[_M], **values: Any) -> _M:
    """A request of these fields; None leaves a field out."""
    request = request_type()
    for name, value in values.items():
        if value is not None:
            _set(request, name, value)
    return request


def set_options(request: Message, options: Mapping[str, Any], known: Iterable[str], function: str) -> None:
    """Sets the fields that are not None. Raises TypeError for a keyword that is not among the known, naming them."""
    for name, value in options.items():
        if name not in known:
            raise TypeError(f"{function}() got an unknown keyword {name!r}; it takes {', '.join(known)}")
        if value is not None:
            _set(request, name, value)


def open_stream_request(request: Message, resume_window_s: float | None) -> str:
    """Makes a stream's request resumable and returns its id.

    The id is drawn here unless the caller gave one: so the request can be cancelled and resumed even when the
    connection broke before the server's first event.
    """
    window_s = DEFAULT_RESUME_WINDOW_S if resume_window_s is None else resume_window_s
    _set(request, "resume_window_s", window_s)
    fields: Any = request
    if not fields.request_id:
        fields.request_id = uuid.uuid4().hex
    return str(fields.request_id)


def _fill(request: Message, model: str | None, options: Mapping[str, Any], function: str) -> None:
    if model is not None:
        _set(request, "model", model)
    set_options(request, options, keywords_of(type(request)), function)


def _set(request: Message, name: str, value: Any) -> None:
    field: Any = request.DESCRIPTOR.fields_by_name.get(name)
    try:
        if field is None and name in FORMAT_KEYWORDS:
            set_format(request, name, value)
        elif name == CHOICE_FIELD:
            set_tool_choice(request, value)
        elif not field.is_repeated:
            setattr(request, name, enum_number(field, value) if field.enum_type is not None else value)
        elif _is_map(field):
            getattr(request, name).update(value)
        else:
            getattr(request, name).extend([value] if isinstance(value, str) else _items(value))
    except (ValueError, OverflowError) as exc:
        # Out of the integer's range, or text that is not Unicode (lone surrogates).
        raise InvalidArgument(f"{name}: {exc}", field=name) from None
    except (TypeError, AttributeError) as exc:
        raise TypeError(f"{name} cannot be {value!r:.100}: {exc}") from None


def enum_number(field: Any, value: Any) -> Any:
    """The number of an enum's value that is named as in Python: "left" for TRUNCATION_SIDE_LEFT.

    Raises InvalidArgument naming the field and the names that there are.
    """
    if not isinstance(value, str):
        raise TypeError(f"a string is needed, not {type(value).__name__}")
    values = field.enum_type.values
    prefix = values[0].name.removesuffix("UNSPECIFIED")
    numbers = {entry.name.removeprefix(prefix).lower(): entry.number for entry in values if entry.number}
    if value not in numbers:
        raise InvalidArgument(f"{field.name} must be one of {', '.join(numbers)}, not {value!r}", field=field.name)
    return numbers[str(value)]


def _items(value: Any) -> Any:
    # An array of numpy gives numpy integers, which the fields refuse; tolist gives Python's.
    return value.tolist() if hasattr(value, "tolist") else value


def _is_map(field: Any) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _add_conversation(request: Any, messages: Messages, tools: Sequence[ToolLike] | None) -> None:
    if isinstance(messages, str):
        messages = [ChatMessage("user", messages)]
    for place, message in enumerate(messages):
        request.messages.append(_chat_message(message, f"messages[{place}]"))
    for place, tool in enumerate(tools or ()):
        request.tools.append(_tool(tool, f"tools[{place}]"))


def _chat_message(message: MessageLike, place: str) -> common_pb2.ChatMessage:
    if isinstance(message, Mapping):
        calls = [_tool_call(call, place) for call in message.get("tool_calls") or ()]
        values = {**message, "tool_calls": calls, "content": message.get("content") or ""}
    elif isinstance(message, ChatMessage):
        values = {
            "role": message.role,
            "content": message.content,
            "tool_calls": [_tool_call(call, place) for call in message.tool_calls],
            "tool_call_id": message.tool_call_id,
            "name": message.name,
        }
    else:
        raise TypeError(f"{place} must be a ChatMessage or a mapping, not {type(message).__name__}")
    return _build(common_pb2.ChatMessage, values, place)


def _tool_call(call: ToolCall | Mapping[str, Any], place: str) -> common_pb2.ToolCall:
    if isinstance(call, ToolCall):
        values: dict[str, Any] = {"id": call.id, "name": call.name, "arguments": call.arguments}
    else:
        # OpenAI nests name and arguments below "function".
        values = {key: value for key, value in call.items() if key not in ("type", "function")}
        values.update(call.get("function") or {})
    return _build(common_pb2.ToolCall, values, f"{place}.tool_calls")


def _tool(tool: ToolLike, place: str) -> common_pb2.Tool:
    if isinstance(tool, Tool):
        values: dict[str, Any] = {"name": tool.name, "description": tool.description}
        parameters: Any = tool.parameters
    elif isinstance(tool, Mapping):
        flat = {key: value for key, value in tool.items() if key not in ("type", "function")}
        flat.update(tool.get("function") or {})
        parameters = flat.pop("parameters", None)
        values = flat
    else:
        raise TypeError(f"{place} must be a Tool or a mapping, not {type(tool).__name__}")
    if parameters:
        struct = struct_pb2.Struct()
        try:
            struct.update(parameters)
        except (TypeError, ValueError, AttributeError) as exc:
            raise TypeError(f"{place}.parameters must be a JSON object: {exc}") from None
        values["parameters"] = struct
    return _build(common_pb2.Tool, values, place)


def _build(message_type: type[_M], values: Mapping[str, Any], place: str) -> _M:
    known = message_type.DESCRIPTOR.fields_by_name
    for name in values:
        if name not in known:
            raise TypeError(f"{place} has an unknown key {name!r}; it takes {', '.join(known)}")
    message = message_type()
    for name, value in values.items():
        if value is None:
            continue
        try:
            if known[name].is_repeated:
                getattr(message, name).extend(value)
            elif known[name].message_type is not None:
                getattr(message, name).CopyFrom(value)
            else:
                setattr(message, name, value)
        except ValueError as exc:
            raise InvalidArgument(f"{place}.{name}: {exc}", field=f"{place}.{name}") from None
        except TypeError as exc:
            raise TypeError(f"{place}.{name} cannot be {value!r:.100}: {exc}") from None
    return message
