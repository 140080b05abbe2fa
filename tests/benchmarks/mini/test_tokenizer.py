"""The shipped tokenizer."""

import json
from pathlib import Path

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import vorta_server
from vorta_bench.mini.chat import ASSISTANT_START, CHAT_TEMPLATE, SPECIAL_TOKENS, prompt_text, render
from vorta_bench.mini.tokenizer import train_tokenizer
from vorta_bench.tasks import TASKS, Message, generate

FOLDER = Path(vorta_server.__file__).parent / "models" / "vorta-mini"
TOKENIZER = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


@settings(deadline=None)  # the machine may be busy
@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


@settings(deadline=None)  # the machine may be busy
@given(st.integers(min_value=0))
def test_every_digit_is_a_token(number: int) -> None:
    assert TOKENIZER.encode(str(number)).tokens == list(str(number))


def test_special_tokens_come_first() -> None:
    assert [TOKENIZER.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2]
    assert TOKENIZER.get_vocab_size() == 4096


def test_a_name_has_the_same_tokens_everywhere() -> None:
    alone = TOKENIZER.encode("Belvaro").tokens
    for text in ('{"name": "Belvaro"}', "Who founded Belvaro?", "\nBelvaro"):
        tokens = TOKENIZER.encode(text).tokens
        assert any(tokens[i : i + len(alone)] == alone for i in range(len(tokens)))


def _template() -> jinja2.Template:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(CHAT_TEMPLATE)


@pytest.mark.parametrize("task", TASKS)
def test_template_equals_render(task: str) -> None:
    for case in generate(task, "train", 20, 5):
        if case.kind == "raw":
            continue
        messages = [{"role": message.role, "content": message.content} for message in case.messages]
        rendered = _template().render(messages=messages, tools=list(case.tools), add_generation_prompt=True)
        assert rendered == prompt_text(case)


def test_tools_join_the_system_message() -> None:
    messages = (Message(role="system", content="Be exact."), Message(role="user", content="Hi"))
    text = render(messages, ({"type": "function"},)) + ASSISTANT_START
    assert text == (
        '<|im_start|>system\nBe exact.\nTools:\n{"type": "function"}<|im_end|>\n'
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_fresh_tokenizer_can_write_any_byte() -> None:
    tokenizer = train_tokenizer(["a few words", "a few more 123"], vocab_size=300)
    text = "Ünïcode 日本 \x00 45"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
