"""What a request's text must be: its response_format and tool_choice, checked as far as that goes without the model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NoReturn

from vorta.errors import InvalidArgument
from vorta.v1 import common_pb2
from vorta_server.front.conversion import ChatRequest, GenerationMessage
from vorta_server.workers.protocol import OutputFormat

__all__ = ["called_tools", "output_format"]

MAX_SCHEMA_BYTES = 128 * 1024
MAX_SCHEMA_DEPTH = 64
MAX_GRAMMAR_BYTES = 128 * 1024
MAX_REGEX_BYTES = 16 * 1024
MAX_CHOICES = 1024
MAX_CHOICE_BYTES = 4096


def output_format(request: GenerationMessage) -> OutputFormat | None:
    """What the text must be; None for any text. Raises InvalidArgument naming the field."""
    called = _tool_call(request) if isinstance(request, ChatRequest) else None
    if not request.HasField("response_format"):
        return called
    if called is not None:
        raise InvalidArgument(
            "response_format and a tool_choice that requires calls exclude each other",
            reason="CONFLICTING_FIELDS",
            field="response_format",
        )
    asked = request.response_format
    kind = asked.WhichOneof("format")
    if kind == "json_object":
        return OutputFormat(kind)
    if kind == "choice":
        return OutputFormat(kind, choices=_choices(asked.choice.choices))
    if kind == "json_schema":
        _check_schema(asked.json_schema)
    elif kind == "regex":
        _check_text("regex", asked.regex, MAX_REGEX_BYTES)
    elif kind == "grammar":
        _check_text("grammar", asked.grammar, MAX_GRAMMAR_BYTES)
    else:
        raise InvalidArgument("response_format names no format", reason="MISSING_FIELD", field="response_format")
    return OutputFormat(kind, text=getattr(asked, kind))


def called_tools(request: ChatRequest) -> list[str]:
    """Names of the tools whose calls are looked for in the text. A text of a format is none."""
    is_none = request.tool_choice.mode == common_pb2.TOOL_CHOICE_MODE_NONE
    return [] if is_none or request.HasField("response_format") else [tool.name for tool in request.tools]


def _tool_call(request: ChatRequest) -> OutputFormat | None:
    choice = request.tool_choice
    if choice.mode != common_pb2.TOOL_CHOICE_MODE_REQUIRED:
        if choice.mode not in common_pb2.ToolChoiceMode.values():
            _refuse("tool_choice.mode", f"has no value {choice.mode}")
        if choice.name:
            _refuse("tool_choice.name", "goes with the mode REQUIRED only")
        return None
    if not request.tools:
        raise InvalidArgument("tool_choice requires tools", reason="MISSING_FIELD", field="tools")
    if choice.name and choice.name not in {tool.name for tool in request.tools}:
        _refuse("tool_choice.name", f"is none of the tools: {choice.name[:64]}")
    return OutputFormat("tool_call", text=choice.name)


def _choices(choices: Sequence[str]) -> list[str]:
    field = "response_format.choice.choices"
    if not 1 <= len(choices) <= MAX_CHOICES:
        _refuse(field, f"must have 1 to {MAX_CHOICES} entries, got {len(choices)}")
    for position, choice in enumerate(choices):
        size = len(choice.encode())
        if not 1 <= size <= MAX_CHOICE_BYTES:
            _refuse(f"{field}[{position}]", f"must be 1 to {MAX_CHOICE_BYTES} bytes, got {size} bytes")
    return list(choices)


def _check_text(name: str, text: str, max_bytes: int) -> None:
    size = len(text.encode())
    if not 1 <= size <= max_bytes:
        _refuse(f"response_format.{name}", f"must be 1 to {max_bytes} bytes, got {size} bytes")


def _check_schema(text: str) -> None:
    field = "response_format.json_schema"
    _check_text("json_schema", text, MAX_SCHEMA_BYTES)
    try:
        schema = json.loads(text)
    except RecursionError:
        _refuse(field, f"is nested more than {MAX_SCHEMA_DEPTH} deep")
    except ValueError as error:
        _refuse(field, f"is not JSON: {error}")
    if not isinstance(schema, dict | bool):
        _refuse(field, "is not a JSON Schema, which is an object")
    if _depth(schema) > MAX_SCHEMA_DEPTH:
        _refuse(field, f"is nested more than {MAX_SCHEMA_DEPTH} deep")


def _depth(value: Any) -> int:
    """How deep objects and arrays are nested."""
    depth, level = 0, [value]
    while level := [entry for entry in level if isinstance(entry, dict | list)]:
        depth += 1
        level = [inner for entry in level for inner in (entry.values() if isinstance(entry, dict) else entry)]
    return depth


def _refuse(field: str, rule: str) -> NoReturn:
    raise InvalidArgument(f"{field} {rule}", reason="INVALID_FIELD", field=field)
