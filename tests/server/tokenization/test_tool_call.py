"""Tool calls in text."""

from __future__ import annotations

import json
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vorta_server.tokenization.tool_call import ParsedText, ToolCall, parse_tool_calls

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
calls = st.lists(
    st.tuples(st.text(min_size=1, max_size=8), st.dictionaries(st.text(max_size=5), json_values, max_size=3)),
    max_size=4,
)


def parse(text: str, **options: object) -> ParsedText:
    numbers = count()
    return parse_tool_calls(text, make_id=lambda: f"c{next(numbers)}", **options)  # type: ignore[arg-type]


def test_hermes() -> None:
    text = 'Let me see. <tool_call>\n{"name": "f", "arguments": {"a": "ü"}}\n</tool_call>'
    text += '<tool_call>{"name": "g", "arguments": {}}'  # the last tag may be missing
    assert parse(text) == ParsedText(
        content="Let me see.",
        tool_calls=(
            ToolCall(id="c0", name="f", arguments='{"a": "ü"}'),
            ToolCall(id="c1", name="g", arguments="{}"),
        ),
    )


def test_llama() -> None:
    text = '<|python_tag|>{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}'
    assert [call.name for call in parse(text).tool_calls] == ["f", "g"]
    assert parse(text).content == ""


@pytest.mark.parametrize(
    "text",
    [
        "plain text",
        "",
        " kept as it is ",
        '{"name": "f"}',
        '{"name": "f", "parameters": {}} and so on',
        '{"name": "f", "parameters": {}}; {',
        '{"answer": 42}',
        "<tool_call>{not json}</tool_call>",
        '<tool_call>["name"]</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "x"}</tool_call>',
        "{" * 5000,
        '{"name":' * 50_000,
    ],
)
def test_what_only_looks_like_a_call_stays_text(text: str) -> None:
    assert parse(text) == ParsedText(content=text, tool_calls=())


def test_arguments_as_a_string_and_unknown_tools() -> None:
    text = '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>'
    assert parse(text).tool_calls[0].arguments == '{"a": 1}'
    assert parse(text, tool_names={"g"}) == ParsedText(content=text, tool_calls=())
    assert parse_tool_calls(text).tool_calls[0].id.startswith("call_")


@settings(deadline=None)
@given(calls)
def test_round_trip(items: list[tuple[str, dict[str, object]]]) -> None:
    bodies = [json.dumps({"name": name, "arguments": arguments}) for name, arguments in items]
    hermes = "text" + "".join(f"<tool_call>{body}</tool_call>" for body in bodies)
    if not any("tool_call>" in body for body in bodies):
        parsed = parse(hermes)
        assert parsed.content == "text"
        assert [(call.name, json.loads(call.arguments)) for call in parsed.tool_calls] == items
    if items:
        assert [call.name for call in parse(";".join(bodies)).tool_calls] == [name for name, _ in items]


@settings(deadline=None)
@given(st.text('<>/tool_cal{}"name:,argumets ;[]', max_size=80))
def test_never_raises(text: str) -> None:
    parse(text)
