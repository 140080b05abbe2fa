"""Formats and tool choices of requests: what the worker is told, and what is refused before it hears of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.server.front.scripted import model_card
from vorta.errors import InvalidArgument
from vorta.v1 import common_pb2, inference_pb2
from vorta_server.front import conversion
from vorta_server.front.answer import answer_chat
from vorta_server.front.output_format import called_tools, output_format

REQUIRED, NONE = common_pb2.TOOL_CHOICE_MODE_REQUIRED, common_pb2.TOOL_CHOICE_MODE_NONE
TOOLS = [common_pb2.Tool(name="f"), common_pb2.Tool(name="g")]


def chat(**fields: Any) -> inference_pb2.ChatRequest:
    return inference_pb2.ChatRequest(messages=[common_pb2.ChatMessage(role="user", content="hi")], **fields)


def with_format(**fields: Any) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(prompt="x", response_format=common_pb2.ResponseFormat(**fields))


def told(request: Any) -> tuple[str, str, list[str]] | None:
    asked = output_format(request)
    return None if asked is None else (asked.kind, asked.text, asked.choices)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"json_object": {}}, ("json_object", "", [])),
        ({"json_schema": '{"type": "object"}'}, ("json_schema", '{"type": "object"}', [])),
        ({"json_schema": "true"}, ("json_schema", "true", [])),
        ({"regex": "a+"}, ("regex", "a+", [])),
        ({"choice": {"choices": ["a", "b"]}}, ("choice", "", ["a", "b"])),
        ({"grammar": "start: x"}, ("grammar", "start: x", [])),
    ],
)
def test_formats(fields: dict[str, Any], expected: tuple[str, str, list[str]]) -> None:
    assert told(with_format(**fields)) == expected


def test_no_format() -> None:
    assert output_format(inference_pb2.GenerateRequest(prompt="x")) is None
    assert output_format(chat(tools=TOOLS)) is None


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({}, "response_format", "MISSING_FIELD"),
        ({"json_schema": "nonsense"}, "response_format.json_schema", "INVALID_FIELD"),
        ({"json_schema": "3"}, "response_format.json_schema", "INVALID_FIELD"),
        ({"json_schema": " " * (128 * 1024 + 1)}, "response_format.json_schema", "INVALID_FIELD"),
        ({"json_schema": '{"a":[' * 33 + "1" + "]}" * 33}, "response_format.json_schema", "INVALID_FIELD"),
        ({"json_schema": "[" * 100_000}, "response_format.json_schema", "INVALID_FIELD"),
        ({"regex": ""}, "response_format.regex", "INVALID_FIELD"),
        ({"grammar": "x" * (128 * 1024 + 1)}, "response_format.grammar", "INVALID_FIELD"),
        ({"choice": {"choices": []}}, "response_format.choice.choices", "INVALID_FIELD"),
        ({"choice": {"choices": ["a"] * 1025}}, "response_format.choice.choices", "INVALID_FIELD"),
        ({"choice": {"choices": ["a" * 4097]}}, "response_format.choice.choices[0]", "INVALID_FIELD"),
    ],
)
def test_bad_formats_are_named(fields: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        output_format(with_format(**fields))
    assert (caught.value.metadata["field"], caught.value.reason) == (field, reason)


def test_depth_up_to_the_limit_is_taken() -> None:
    assert output_format(with_format(json_schema='{"a":[' * 32 + "1" + "]}" * 32)) is not None


def test_tool_choices() -> None:
    assert told(chat(tools=TOOLS, tool_choice={"mode": REQUIRED})) == ("tool_call", "", [])
    assert told(chat(tools=TOOLS, tool_choice={"mode": REQUIRED, "name": "g"})) == ("tool_call", "g", [])
    assert told(chat(tools=TOOLS, tool_choice={"mode": NONE})) is None


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tool_choice": {"mode": REQUIRED}}, "tools"),
        ({"tools": TOOLS, "tool_choice": {"mode": REQUIRED, "name": "h"}}, "tool_choice.name"),
        ({"tools": TOOLS, "tool_choice": {"name": "f"}}, "tool_choice.name"),
        ({"tools": TOOLS, "tool_choice": {"mode": 9}}, "tool_choice.mode"),
        ({"tools": TOOLS, "tool_choice": {"mode": REQUIRED}, "response_format": {"regex": "a"}}, "response_format"),
    ],
)
def test_bad_tool_choices_are_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        output_format(chat(**fields))
    assert caught.value.metadata["field"] == field


def test_which_tools_are_told_of_and_looked_for() -> None:
    def told_of(request: inference_pb2.ChatRequest) -> list[str]:
        return [tool.name for tool in conversion.chat_prompt(request, model_card()).tools]

    plain, none = chat(tools=TOOLS), chat(tools=TOOLS, tool_choice={"mode": NONE})
    formatted = chat(tools=TOOLS, response_format={"regex": "a"})
    assert [told_of(request) for request in (plain, none, formatted)] == [["f", "g"], [], ["f", "g"]]
    assert [called_tools(request) for request in (plain, none, formatted)] == [["f", "g"], [], []]


def test_grounded_answers_have_a_format_too() -> None:
    request = inference_pb2.StreamAnswerRequest(question="?", collection="c")
    assert not answer_chat(request, []).HasField("response_format")
    request.response_format.json_schema = json.dumps({"type": "object"})
    assert told(answer_chat(request, [])) == ("json_schema", '{"type": "object"}', [])
