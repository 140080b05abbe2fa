"""Finds the tool calls in an assistant's text.

Two notations are understood: Hermes and Qwen write `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, any number
of them among other text; Llama 3.1 answers with nothing but `{"name": …, "parameters": {…}}`, possibly behind
`<|python_tag|>`, several parted by semicolons. Text that only looks like a call stays text.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass

__all__ = ["ParsedText", "ToolCall", "parse_tool_calls"]

_HERMES = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_PYTHON_TAG = "<|python_tag|>"
_decoder = json.JSONDecoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that the model asks for. `arguments` is the JSON text of an object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedText:
    """The text without its tool calls, stripped at both ends when there are calls, and the calls in order."""

    content: str
    tool_calls: tuple[ToolCall, ...]


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def parse_tool_calls(
    text: str, *, tool_names: Collection[str] | None = None, make_id: Callable[[], str] = _new_id
) -> ParsedText:
    """Splits an assistant's finished text into content and tool calls. Never raises: what does not parse stays content.

    Args:
        text: All of the assistant's text.
        tool_names: The tools offered; a call of another name stays content. None accepts every name.
        make_id: Makes the id of a call.
    """
    calls: list[ToolCall] = []

    def take(match: re.Match[str]) -> str:
        call = _read_call(match.group(1).strip(), tool_names, make_id)
        if call is None:
            return match.group(0)
        calls.append(call)
        return ""

    if "<tool_call>" in text:
        content = _HERMES.sub(take, text)
        return ParsedText(content=content.strip() if calls else text, tool_calls=tuple(calls))
    body = text.strip().removeprefix(_PYTHON_TAG).strip()
    while body.startswith("{"):
        try:
            value, end = _decoder.raw_decode(body)
        except (ValueError, RecursionError):
            break
        call = _to_call(value, tool_names, make_id)
        if call is None:
            break
        calls.append(call)
        rest = body[end:].lstrip()
        if not rest:
            return ParsedText(content="", tool_calls=tuple(calls))
        if not rest.startswith(";"):
            break
        body = rest[1:].lstrip()
        if not body:
            return ParsedText(content="", tool_calls=tuple(calls))
    return ParsedText(content=text, tool_calls=())


def _read_call(text: str, tool_names: Collection[str] | None, make_id: Callable[[], str]) -> ToolCall | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return _to_call(value, tool_names, make_id)


def _to_call(value: object, tool_names: Collection[str] | None, make_id: Callable[[], str]) -> ToolCall | None:
    if not isinstance(value, dict):
        return None
    name = value.get("name")
    arguments = value.get("arguments", value.get("parameters"))
    if not isinstance(name, str) or not name or (tool_names is not None and name not in tool_names):
        return None
    if isinstance(arguments, str):  # some models write the object as a JSON string
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, dict):
        return None
    return ToolCall(id=make_id(), name=name, arguments=json.dumps(arguments, ensure_ascii=False))
