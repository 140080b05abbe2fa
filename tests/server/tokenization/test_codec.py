"""Prompts of every kind, and what is refused."""

from __future__ import annotations

import pytest

from vorta.errors import FailedPrecondition, InvalidArgument
from vorta_server.tokenization.codec import Codec
from vorta_server.tokenization.tokenizer import Tokenizer
from vorta_server.workers.protocol import ChatMessage, Prompt, ToolCall, ToolSpec


@pytest.fixture
def codec(byte_level: Tokenizer) -> Codec:
    return Codec(byte_level, vocab_size=byte_level.vocab_size + 8, max_model_len=64)


def test_text_token_ids_and_messages(codec: Codec, byte_level: Tokenizer) -> None:
    assert codec.encode(Prompt(text="hello")) == byte_level.encode("hello")
    assert codec.encode(Prompt(token_ids=[5, 6])) == [5, 6]
    token_ids = codec.encode(Prompt(messages=[ChatMessage("user", "hi")]))
    assert byte_level.decode(token_ids, False) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    continued = Prompt(messages=[ChatMessage("assistant", "hi")], continue_final_message=True)
    assert byte_level.decode(codec.encode(continued), False) == "<|im_start|>assistant\nhi"


def test_tools_and_calls_reach_the_template(byte_level: Tokenizer) -> None:
    codec = Codec(byte_level, vocab_size=byte_level.vocab_size, max_model_len=1000)
    prompt = Prompt(
        messages=[
            ChatMessage("user", "weather?"),
            ChatMessage("assistant", "", [ToolCall("1", "weather", '{"city": "Köln"}')]),
            ChatMessage("tool", "", tool_call_id="1", name="weather"),
        ],
        tools=[ToolSpec("weather", "The weather.", {"type": "object"})],
    )
    text = byte_level.decode(codec.encode(prompt), False)
    assert '{"type": "function", "function": {"name": "weather", "description"' in text
    assert '<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>' in text


def message(role: str = "user", content: str = "x", **fields: object) -> ChatMessage:
    return ChatMessage(role, content, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        (Prompt(), "prompt"),
        (Prompt(text=""), "prompt"),
        (Prompt(text="\ud800"), "prompt"),
        (Prompt(token_ids=[]), "prompt_token_ids"),
        (Prompt(token_ids=[1, -1]), "prompt_token_ids[1]"),
        (Prompt(token_ids=[1, 2, 10**6]), "prompt_token_ids[2]"),
        (Prompt(token_ids=[1] * 64), "prompt_token_ids"),
        (Prompt(messages=[]), "messages"),
        (Prompt(messages=[message(), message(), message("robot")]), "messages[2].role"),
        (Prompt(messages=[message(content="")]), "messages[0].content"),
        (Prompt(messages=[message("assistant", "")]), "messages[0].content"),
        (Prompt(messages=[message(tool_calls=[ToolCall("", "f", "{}")])]), "messages[0].tool_calls"),
        (
            Prompt(messages=[message("assistant", tool_calls=[ToolCall("", "f", "{")])]),
            "messages[0].tool_calls[0].arguments",
        ),
        (
            Prompt(messages=[message("assistant", tool_calls=[ToolCall("", "f", "[]")])]),
            "messages[0].tool_calls[0].arguments",
        ),
        (Prompt(messages=[message("assistant", tool_calls=[ToolCall("", "", "")])]), "messages[0].tool_calls[0].name"),
        (Prompt(messages=[message("tool", "x")], continue_final_message=True), "messages[0].content"),
        (Prompt(messages=[message()], tools=[ToolSpec("", "", {})]), "tools[0].name"),
        (Prompt(messages=[message()], tools=[ToolSpec("a", "", {}), ToolSpec("a", "", {})]), "tools[1].name"),
    ],
)
def test_bad_prompts_name_their_field(codec: Codec, prompt: Prompt, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        codec.encode(prompt)
    assert caught.value.field == field


def test_prompts_beyond_the_context(codec: Codec) -> None:
    for prompt in (
        Prompt(text="word " * 2_000_000),
        Prompt(text="z" * 100),
        Prompt(messages=[message(content="word " * 2_000_000)]),
        Prompt(token_ids=[1] * 64),
    ):
        with pytest.raises(InvalidArgument) as caught:
            codec.encode(prompt)
        assert caught.value.reason == "CONTEXT_LENGTH_EXCEEDED"


def test_decode(codec: Codec, byte_level: Tokenizer) -> None:
    token_ids = byte_level.encode("héllo<|im_end|>")
    assert codec.decode(token_ids, True) == "héllo"
    assert codec.decode(token_ids, False) == "héllo<|im_end|>"
    assert codec.token_text(token_ids[-1]) == "<|im_end|>"
    with pytest.raises(InvalidArgument) as caught:
        codec.decode([1, 10**7], True)
    assert caught.value.field == "token_ids[1]"


def test_messages_for_a_model_without_a_template(sentencepiece: Tokenizer) -> None:
    with pytest.raises(FailedPrecondition):
        Codec(sentencepiece, vocab_size=500, max_model_len=10).encode(Prompt(messages=[message()]))
