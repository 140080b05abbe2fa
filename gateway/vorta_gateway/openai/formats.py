"""What an answer must be: OpenAI's response_format and tool_choice, and vLLM's names for the same."""

from __future__ import annotations

from typing import Any

from vorta_gateway.json.codec import dumps
from vorta_gateway.json.errors import shown
from vorta_gateway.openai.fields import refuse

__all__ = ["FORMAT_FIELDS", "response_format", "schema_format", "tool_choice"]

# By the name in vLLM's structured_outputs; guided_… are its older names.
_GUIDED = ("json", "regex", "choice", "grammar")
_OPTIONS = (*_GUIDED, "json_object")

FORMAT_FIELDS = frozenset({"response_format", "structured_outputs", *(f"guided_{name}" for name in _GUIDED)})


def response_format(body: dict[str, Any]) -> dict[str, Any]:
    """The contract's response_format as a field, or no field. Raises StatusError."""
    asked = _asked(body)
    if len(asked) > 1:
        raise refuse(next(iter(asked)), f"{', '.join(list(asked)[1:])} is given too, and only one of them can be")
    return {"response_format": made} if (made := next(iter(asked.values()), None)) is not None else {}


def schema_format(schema: Any, field: str) -> dict[str, Any]:
    """The contract's format of a JSON Schema, an object or its text."""
    if isinstance(schema, str):
        return {"json_schema": schema}
    if not isinstance(schema, dict | bool):
        raise refuse(field, f"{shown(schema)} is not a JSON Schema")
    return {"json_schema": dumps(schema).decode()}


def tool_choice(body: dict[str, Any]) -> dict[str, Any]:
    """The contract's tool_choice as a field, or no field. Raises StatusError."""
    choice = body.get("tool_choice", "auto")
    if choice in ("auto", "none"):
        return {}
    made: dict[str, Any] = {"mode": "TOOL_CHOICE_MODE_REQUIRED"}
    if choice != "required":
        function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise refuse("tool_choice", f'{shown(choice)} is neither "auto", "none", "required" nor a function')
        made["name"] = function["name"]
    if not body.get("tools"):
        raise refuse("tool_choice", "there are no tools to call")
    return {"tool_choice": made}


def _asked(body: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The contract's formats by the names of the fields that ask for them."""
    asked: dict[str, dict[str, Any]] = {}
    openai = _openai(body.get("response_format"))
    if openai is not None:
        asked["response_format"] = openai
    for name in _GUIDED:
        field = f"guided_{name}"
        if field in body:
            asked[field] = _guided(name, body[field], field)
    options = body.get("structured_outputs", {})
    if not isinstance(options, dict):
        raise refuse("structured_outputs", "not an object")
    for name, value in options.items():
        field = f"structured_outputs.{name[:80]}"
        if name not in _OPTIONS:
            raise refuse(field, "there is no such parameter")
        if value is not None and value is not False:
            asked[field] = _guided(name, value, field)
    return asked


def _openai(value: Any) -> dict[str, Any] | None:
    kind = value.get("type") if isinstance(value, dict) else None
    if value is None or kind == "text":
        return None
    if kind == "json_object":
        return {"json_object": {}}
    if kind != "json_schema":
        raise refuse("response_format", f"{shown(value)} is of none of the types text, json_object and json_schema")
    named = value.get("json_schema")
    if not isinstance(named, dict) or named.get("schema") is None:
        raise refuse("response_format.json_schema", "an object with a schema is required")
    return schema_format(named["schema"], "response_format.json_schema.schema")


def _guided(name: str, value: Any, field: str) -> dict[str, Any]:
    if name == "json_object":
        return {"json_object": {}}
    if name == "json":
        return schema_format(value, field)
    if name == "choice":
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise refuse(field, f"{shown(value)} is not an array of texts")
        return {"choice": {"choices": value}}
    if not isinstance(value, str):
        raise refuse(field, f"{shown(value)} is not a text")
    return {name: value}
