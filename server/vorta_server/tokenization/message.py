"""Checks a conversation and turns it into what chat templates see.

The message types are structural: any object with these attributes will do, so that this package knows no wire format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from vorta.errors import InvalidArgument

__all__ = ["ROLES", "MessageLike", "ToolCallLike", "ToolSpecLike", "message_dicts", "tool_dicts"]

ROLES = ("system", "developer", "user", "assistant", "tool")


class ToolCallLike(Protocol):
    """A tool call of an assistant message; `arguments` is JSON text."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def arguments(self) -> str: ...


class MessageLike(Protocol):
    """One message of a conversation."""

    @property
    def role(self) -> str: ...
    @property
    def content(self) -> str: ...
    @property
    def tool_calls(self) -> Sequence[ToolCallLike]: ...
    @property
    def tool_call_id(self) -> str: ...
    @property
    def name(self) -> str: ...


class ToolSpecLike(Protocol):
    """A function that the model may call; `parameters` is a JSON Schema."""

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def parameters(self) -> Mapping[str, Any]: ...


def message_dicts(messages: Sequence[MessageLike], *, continue_final_message: bool = False) -> list[dict[str, Any]]:
    """The conversation as templates see it: tool calls in OpenAI's shape, their arguments as objects.

    Raises:
        InvalidArgument: A message is wrong; the field is its path, such as `messages[2].role`.
    """
    if not messages:
        raise InvalidArgument("A conversation needs at least one message.", reason="MISSING_FIELD", field="messages")
    result: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        path = f"messages[{index}]"
        if message.role not in ROLES:
            raise InvalidArgument(
                f"{path}.role is {message.role!r}; it must be one of {', '.join(ROLES)}.",
                field=f"{path}.role",
            )
        if not message.content and not _may_be_empty(message):
            raise InvalidArgument(f"{path}.content is empty.", reason="MISSING_FIELD", field=f"{path}.content")
        if message.tool_calls and message.role != "assistant":
            raise InvalidArgument(
                f"{path}.tool_calls: only an assistant's message has tool calls.", field=f"{path}.tool_calls"
            )
        entry: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.name:
            entry["name"] = message.name
        if message.tool_call_id:
            entry["tool_call_id"] = message.tool_call_id
        if message.tool_calls:
            entry["tool_calls"] = [
                _call_dict(call, f"{path}.tool_calls[{i}]") for i, call in enumerate(message.tool_calls)
            ]
        result.append(entry)
    if continue_final_message and (messages[-1].role == "tool" or not messages[-1].content.strip()):
        path = f"messages[{len(messages) - 1}].content"
        raise InvalidArgument(f"{path}: the last message has no text to continue.", field=path)
    return result


def _may_be_empty(message: MessageLike) -> bool:
    return message.role == "tool" or (message.role == "assistant" and bool(message.tool_calls))


def _call_dict(call: ToolCallLike, path: str) -> dict[str, Any]:
    if not call.name:
        raise InvalidArgument(f"{path}.name is empty.", reason="MISSING_FIELD", field=f"{path}.name")
    try:
        arguments = json.loads(call.arguments) if call.arguments.strip() else {}
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{path}.arguments is not JSON: {error}", field=f"{path}.arguments") from error
    if not isinstance(arguments, dict):
        raise InvalidArgument(f"{path}.arguments must be a JSON object.", field=f"{path}.arguments")
    entry: dict[str, Any] = {"type": "function", "function": {"name": call.name, "arguments": arguments}}
    if call.id:
        entry["id"] = call.id
    return entry


def tool_dicts(tools: Sequence[ToolSpecLike]) -> list[dict[str, Any]]:
    """Tool declarations in OpenAI's shape.

    Raises:
        InvalidArgument: A tool has no name, or two share one; the field is its path, such as `tools[0].name`.
    """
    seen: set[str] = set()
    result: list[dict[str, Any]] = []
    for index, tool in enumerate(tools):
        path = f"tools[{index}].name"
        if not tool.name:
            raise InvalidArgument(f"{path} is empty.", reason="MISSING_FIELD", field=path)
        if tool.name in seen:
            raise InvalidArgument(f"{path}: the name {tool.name!r} is used twice.", field=path)
        seen.add(tool.name)
        function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
        result.append({"type": "function", "function": function})
    return result
