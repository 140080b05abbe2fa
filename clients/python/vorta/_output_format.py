"""The keywords that say what the text must be, and the contract's ResponseFormat and ToolChoice of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message

from vorta.errors import InvalidArgument
from vorta.v1 import common_pb2

FORMAT_FIELD = "response_format"
FORMAT_KEYWORDS = ("json_object", "json_schema", "regex", "choice", "grammar")
"""Keywords that stand for the field, at most one of them in a call."""

CHOICE_FIELD = "tool_choice"
_MODES = {
    "auto": common_pb2.TOOL_CHOICE_MODE_AUTO,
    "none": common_pb2.TOOL_CHOICE_MODE_NONE,
    "required": common_pb2.TOOL_CHOICE_MODE_REQUIRED,
}


def set_format(request: Message, name: str, value: Any) -> None:
    """Sets the request's format from one of `FORMAT_KEYWORDS`.

    Raises TypeError for a value of the wrong type, InvalidArgument for a second format; both name the keyword.
    """
    made: Any = getattr(request, FORMAT_FIELD)
    other = made.WhichOneof("format")
    if other is not None:
        raise InvalidArgument(f"{name} and {other} exclude each other", reason="CONFLICTING_FIELDS", field=name)
    if name == "json_object":
        if not isinstance(value, bool):
            raise TypeError(f"json_object cannot be {value!r:.100}: a bool is needed")
        if value:
            made.json_object.SetInParent()
    elif name == "choice":
        if (
            isinstance(value, str)
            or not isinstance(value, Sequence)
            or not all(isinstance(item, str) for item in value)
        ):
            raise TypeError(f"choice cannot be {value!r:.100}: a sequence of strings is needed")
        made.choice.choices.extend(value)
        made.choice.SetInParent()
    else:
        text = _schema_text(value) if name == "json_schema" else value
        if not isinstance(text, str):
            raise TypeError(f"{name} cannot be {value!r:.100}: a string is needed")
        setattr(made, name, text)


def set_tool_choice(request: Message, value: Any) -> None:
    """Sets the request's tool choice: "auto", "none", "required", or the name of the tool to call."""
    if not isinstance(value, str):
        raise TypeError(f"{CHOICE_FIELD} cannot be {value!r:.100}: a string is needed")
    made: Any = getattr(request, CHOICE_FIELD)
    made.mode = _MODES.get(value, common_pb2.TOOL_CHOICE_MODE_REQUIRED)
    if value not in _MODES:
        made.name = value


def _schema_text(value: Any) -> Any:
    """JSON text of a schema: the text itself, a mapping, a bool, or a class with pydantic's model_json_schema."""
    if isinstance(value, str):
        return value
    make = getattr(value, "model_json_schema", None)
    try:
        return json.dumps(make() if callable(make) else value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as exc:
        raise TypeError(f"json_schema cannot be {value!r:.100}: {exc}") from None
