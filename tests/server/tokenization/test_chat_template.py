"""Chat templates: the environment that they run in, and their failures."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from vorta.errors import FailedPrecondition, InvalidArgument
from vorta_server.tokenization.chat_template import ChatTemplate

CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "Be <brief> & kind."},
    {"role": "user", "content": " Grüß dich "},
    {"role": "assistant", "content": "Hello wor"},
]
LLAMA_LIKE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' and not loop.first %}
        {{- raise_exception('system comes first') }}
    {%- endif %}
    {{- '<' + message.role + '>' + message.content | trim + '</>' }}
    {%- if message.role == 'stop' %}{% break %}{% endif %}
{%- endfor %}
{%- if tools is not none %}{{ tools | tojson(indent=2) }}{% endif %}
{%- if add_generation_prompt %}{% generation %}<assistant>{% endgeneration %}{% endif %}
"""
SPECIAL = {"bos_token": "<s>"}


def test_render() -> None:
    template = ChatTemplate(LLAMA_LIKE, special_tokens=SPECIAL)
    assert template.render(CONVERSATION) == (
        "<s><system>Be <brief> & kind.</><user>Grüß dich</><assistant>Hello wor</><assistant>"
    )
    assert template.render(CONVERSATION, add_generation_prompt=False).endswith("wor</>")


def test_continue_final_message() -> None:
    template = ChatTemplate(LLAMA_LIKE, special_tokens=SPECIAL)
    assert template.render(CONVERSATION, continue_final_message=True).endswith("<assistant>Hello wor")
    spaced = [*CONVERSATION[:2], {"role": "assistant", "content": " Hello "}]
    assert template.render(spaced, continue_final_message=True).endswith("<assistant>Hello")
    verbatim = ChatTemplate("{{ messages[-1].content }}|", special_tokens={})
    assert verbatim.render(spaced, continue_final_message=True) == " Hello "
    with pytest.raises(InvalidArgument) as caught:
        ChatTemplate("nothing", special_tokens={}).render(spaced, continue_final_message=True)
    assert caught.value.field == "messages"


def test_json_is_not_escaped_for_html() -> None:
    template = ChatTemplate("{{ messages | tojson }}", special_tokens={})
    assert json.loads(template.render(CONVERSATION)) == CONVERSATION
    assert "<brief> & kind" in template.render(CONVERSATION)
    assert "Grüß" in template.render(CONVERSATION)


def test_date_and_tool_template() -> None:
    template = ChatTemplate(
        {"default": "{{ strftime_now('%Y') }}", "tool_use": "tools:{{ tools | length }}"}, special_tokens={}
    )
    assert template.render(CONVERSATION) == str(datetime.now().year)
    assert template.render(CONVERSATION, tools=[{"type": "function"}]) == "tools:1"
    with pytest.raises(FailedPrecondition):
        ChatTemplate({"rag": "x"}, special_tokens={}).render(CONVERSATION)


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[9].content.x }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
    ],
)
def test_a_template_that_raises_names_the_messages(source: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        ChatTemplate(source, special_tokens={}).render(CONVERSATION)
    assert caught.value.field == "messages"


def test_a_template_that_is_not_jinja() -> None:
    with pytest.raises(FailedPrecondition, match="not valid"):
        ChatTemplate("{% for %}", special_tokens={})


@pytest.mark.reference
def test_renders_as_transformers_does(byte_level_folder: Path) -> None:
    pytest.importorskip("transformers")
    from transformers import PreTrainedTokenizerFast

    reference = PreTrainedTokenizerFast(tokenizer_file=str(byte_level_folder / "tokenizer.json"), bos_token="<s>")
    template = ChatTemplate(LLAMA_LIKE, special_tokens=SPECIAL)
    for options in ({}, {"add_generation_prompt": True}, {"continue_final_message": True}):
        expected = reference.apply_chat_template(CONVERSATION, chat_template=LLAMA_LIKE, tokenize=False, **options)
        assert template.render(CONVERSATION, **({"add_generation_prompt": False} | options)) == expected


def test_needs_no_transformers() -> None:
    code = (
        "import sys, vorta_server.tokenization.codec; sys.exit('transformers' in sys.modules or 'grpc' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
