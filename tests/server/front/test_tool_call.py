"""Tool calls in text."""

from __future__ import annotations

import pytest
from vorta_server.front.tool_call import assistant_message


def test_calls_are_taken_out_with_their_arguments_as_written():
    text = (
        '<tool_call>\n{"name": "f", "arguments": {"a": 1.50, "b": [true]}}\n</tool_call>\n'
        '<tool_call>{"name": "g"}</tool_call>'
    )
    message = assistant_message(text, id_prefix="c")
    assert [(call.id, call.name, call.arguments) for call in message.tool_calls] == [
        ("c-0", "f", '{"a": 1.50, "b": [true]}'),
        ("c-1", "g", "{}"),
    ]
    assert message.content == ""


@pytest.mark.parametrize(
    "text",
    [
        "no call, and spaces stay  ",
        "<tool_call>not json</tool_call>",
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "f"',
        "</tool_call><tool_call>",
    ],
)
def test_what_is_no_call_stays_as_it_is(text):
    message = assistant_message(text, id_prefix="c")
    assert message.content == text
    assert not message.tool_calls
