"""Keywords of formats and of the choice of tools, as requests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vorta import _request
from vorta.errors import InvalidArgument
from vorta.v1 import common_pb2, inference_pb2

SCHEMA = {"type": "object", "description": "日本"}


class Model:
    """As pydantic's."""

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        return SCHEMA


def generate(**options: Any) -> inference_pb2.GenerateRequest:
    return _request.generate_request(inference_pb2.GenerateRequest, "x", None, options, "generate")


def chat(**options: Any) -> inference_pb2.ChatRequest:
    return _request.chat_request(inference_pb2.ChatRequest, "x", None, None, options, "chat")


@pytest.mark.parametrize("schema", [SCHEMA, Model, json.dumps(SCHEMA)])
def test_schemas_of_every_kind(schema: Any) -> None:
    assert json.loads(generate(json_schema=schema).response_format.json_schema) == SCHEMA


def test_other_formats() -> None:
    assert generate(json_object=True).response_format.WhichOneof("format") == "json_object"
    assert generate(regex="a+").response_format.regex == "a+"
    assert generate(grammar="start: x").response_format.grammar == "start: x"
    assert list(generate(choice=("a", "b")).response_format.choice.choices) == ["a", "b"]
    # An empty choice is for the server to refuse.
    assert generate(choice=[]).response_format.WhichOneof("format") == "choice"
    for absent in ({}, {"json_object": False}, {"regex": None}, {"json_schema": None, "choice": None}):
        assert not generate(**absent).HasField("response_format")


@pytest.mark.parametrize(
    "options",
    [
        {"json_object": 1},
        {"json_schema": object()},
        {"json_schema": {"a": float("nan")}},
        {"regex": b"a"},
        {"choice": "yes"},
        {"choice": [1]},
        {"grammar": 1},
    ],
)
def test_values_of_the_wrong_type_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(options))):
        generate(**options)


def test_two_formats_exclude_each_other() -> None:
    with pytest.raises(InvalidArgument, match="exclude each other") as caught:
        generate(regex="a", choice=["a"])
    assert caught.value.metadata["field"] == "choice"
    with pytest.raises(InvalidArgument, match="regex"):
        generate(regex="\ud800")


def test_choice_of_tools() -> None:
    modes = {
        "auto": common_pb2.TOOL_CHOICE_MODE_AUTO,
        "none": common_pb2.TOOL_CHOICE_MODE_NONE,
        "required": common_pb2.TOOL_CHOICE_MODE_REQUIRED,
    }
    for name, mode in modes.items():
        assert chat(tool_choice=name).tool_choice == common_pb2.ToolChoice(mode=mode)
    named = common_pb2.ToolChoice(mode=common_pb2.TOOL_CHOICE_MODE_REQUIRED, name="f")
    assert chat(tool_choice="f").tool_choice == named
    assert not chat(tool_choice=None).HasField("tool_choice")
    with pytest.raises(TypeError, match="tool_choice"):
        chat(tool_choice=1)
