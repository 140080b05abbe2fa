"""Output formats as grammars: what a request asks for in the notations that the matcher's library reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from vorta_server.tokenization.message import ToolSpecLike

__all__ = ["CallStyle", "FormatLike", "GrammarText", "grammar_text", "schema_text"]

# White space between the parts of JSON: a line's end and an indentation, but not what a model writes that has lost its
# way.
_WHITE_SPACE = r"[\x20\x09]{1,32}|\x0D?\x0A[\x20\x09]{0,32}"

CallStyle = Literal["hermes", "llama"]
"""How a model writes tool calls; `tool_call` reads both."""


class FormatLike(Protocol):
    """What the text must be. `kind` is json_object, json_schema, regex, choice, grammar or tool_call; `text` the
    schema, the expression, the grammar, or the one tool to call, empty for any."""

    @property
    def kind(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def choices(self) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarText:
    """A grammar as text.

    Attributes:
        notation: How it is written; "any" is Lark or GBNF.
        text: The grammar.
        field: The request's field that it comes from.
    """

    notation: Literal["json_schema", "regex", "lark", "any"]
    text: str
    field: str


def grammar_text(output_format: FormatLike, tools: Sequence[ToolSpecLike], style: CallStyle) -> GrammarText:
    """The grammar of a format.

    Args:
        output_format: Of sizes that were checked; schemas are JSON.
        tools: For calls.
        style: How this model writes calls.
    """
    match output_format.kind:
        case "json_object":
            return schema_text({"type": "object"}, "response_format.json_object")
        case "json_schema":
            return schema_text(json.loads(output_format.text), "response_format.json_schema")
        case "regex":
            return GrammarText(
                notation="regex", text=_without_anchors(output_format.text), field="response_format.regex"
            )
        case "choice":
            choices = " | ".join(json.dumps(choice) for choice in dict.fromkeys(output_format.choices))
            return GrammarText(notation="lark", text=f"start: {choices}", field="response_format.choice")
        case "grammar":
            return GrammarText(notation="any", text=output_format.text, field="response_format.grammar")
        case "tool_call":
            return GrammarText(notation="lark", text=_calls(output_format.text, tools, style), field="tools")
    raise ValueError(f"no such kind: {output_format.kind}")


def schema_text(schema: Mapping[str, Any] | bool, field: str) -> GrammarText:
    """The grammar of a JSON Schema."""
    return GrammarText(notation="json_schema", text=json.dumps(_with_white_space(schema)), field=field)


def _with_white_space(schema: Mapping[str, Any] | bool) -> Mapping[str, Any] | bool:
    if isinstance(schema, bool) or "x-guidance" in schema:
        return schema
    return {**schema, "x-guidance": {"whitespace_pattern": _WHITE_SPACE}}


def _without_anchors(regex: str) -> str:
    """The expression without `^` at its start and `$` at its end, which say nothing where all of a text must match."""
    regex = regex.removeprefix("^")
    if regex.endswith("$") and (len(regex) - len(regex[:-1].rstrip("\\"))) % 2:
        return regex[:-1]
    return regex


def _calls(name: str, tools: Sequence[ToolSpecLike], style: CallStyle) -> str:
    """Lark of one call of the named tool, or of one call or more of any."""
    offered = [tool for tool in tools if name in ("", tool.name)]
    key = "arguments" if style == "hermes" else "parameters"
    rules: list[str] = []
    for index, tool in enumerate(offered):
        head = json.dumps(f'{{"name": "{tool.name}", "{key}": ')
        rules += [
            f'call_{index}: {head} arguments_{index} "}}"',
            f"arguments_{index}: %json {json.dumps(_with_white_space(_parameters(tool)))}",
        ]
    bodies = " | ".join(f"call_{index}" for index in range(len(offered)))
    if style == "hermes":
        rules += [f"body: {bodies}", 'call: "<tool_call>" NEWLINE? body NEWLINE? "</tool_call>"', r'NEWLINE: "\n"']
        more = "(NEWLINE? call)*"
    else:
        rules.append(f"call: {bodies}")
        more = '("; " call)*'
    return "\n".join([f"start: call {'' if name else more}", *rules])


def _parameters(tool: ToolSpecLike) -> Mapping[str, Any]:
    """The schema of a tool's arguments, which are an object; a tool without one takes none."""
    if not tool.parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return {"type": "object", **tool.parameters}
