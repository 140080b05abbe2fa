"""The chat format of vorta-mini, as a Jinja template and as the same thing in Python for building the corpus fast."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from vorta_bench.tasks import Case, Message

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)
ASSISTANT_START = f"{TURN_START}assistant\n"

CHAT_TEMPLATE = (
    "{%- if tools %}"
    "{{- '<|im_start|>system\\n' }}"
    "{%- if messages and messages[0].role == 'system' %}{{- messages[0].content + '\\n' }}{%- endif %}"
    "{{- 'Tools:' }}"
    "{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{%- if not (tools and loop.first and message.role == 'system') %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def render(messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> str:
    """The text of the messages, without the generation prompt; equals CHAT_TEMPLATE."""
    turns = list(messages)
    text = ""
    if tools:
        system = turns.pop(0).content + "\n" if turns and turns[0].role == "system" else ""
        lines = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in tools)
        text = f"{TURN_START}system\n{system}Tools:{lines}{TURN_END}\n"
    return text + "".join(f"{TURN_START}{turn.role}\n{turn.content}{TURN_END}\n" for turn in turns)


def prompt_text(case: Case) -> str:
    """What the model is given for a case: the raw prompt, or the rendered chat with the generation prompt."""
    return case.prompt if case.kind == "raw" else render(case.messages, case.tools) + ASSISTANT_START
