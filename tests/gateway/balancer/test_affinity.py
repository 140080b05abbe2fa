"""Prompts, their blocks, and who has them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gateway.balancer.replicas import INFERENCE, METHODS, call_of
from vorta.v1 import common_pb2, inference_pb2
from vorta_gateway.balancer.affinity import PrefixIndex, Prompt, VortaAffinityKey, hash_blocks
from vorta_gateway.balancer.config import AffinityConfig
from vorta_gateway.balancer.demand import DemandReader


def chain(text: str, model: str = "m", max_blocks: int = 100) -> tuple[int, ...]:
    return hash_blocks(Prompt(model=model, text=text, max_tokens=None), block_characters=4, max_blocks=max_blocks)


def message(role: str, content: str) -> common_pb2.ChatMessage:
    return common_pb2.ChatMessage(role=role, content=content)


def prompt_of(name: str, request: Any) -> Prompt | None:
    return VortaAffinityKey().prompt(METHODS[INFERENCE + name], request)


def test_equal_beginnings_are_equal_blocks() -> None:
    first, second = chain("aaaabbbbcccc"), chain("aaaabbbbdddd")
    assert len(first) == 3
    assert first[:2] == second[:2]
    assert first[2] != second[2]
    assert chain("xxxxbbbb")[1] != first[1]  # a block counts with all before it
    assert chain("aaaa", model="other") != chain("aaaa")
    assert len(chain("aaaabb")) == 1  # whole blocks only
    assert chain("aaaabbbbcccc", max_blocks=2) == first[:2]


def test_an_index_gives_up_what_was_sent_longest_ago() -> None:
    index = PrefixIndex(4)
    index.add(chain("aaaabbbb"))
    index.add(chain("ccccdddd"))
    assert index.match(chain("aaaabbbbcccc")) == 2
    index.add(chain("aaaabbbb"))
    index.add(chain("eeee"))
    assert len(index) == 4
    assert index.match(chain("aaaabbbb")) == 2
    assert index.match(chain("ccccdddd")) == 1  # its end went first
    index.add(chain("abcdefghijklmnopqrstuvwxyz"))
    assert len(index) == 4
    assert index.match(chain("abcdefghijklmnopqrstuvwxyz")) == 4


@pytest.mark.parametrize("name", ["Chat", "StreamChat"])
def test_the_next_turn_of_a_conversation_begins_as_the_last_did(name: str) -> None:
    make: Any = METHODS[INFERENCE + name].request_type
    tools = [common_pb2.Tool(name="look", description="looks")]
    turns = [message("system", "Be brief."), message("user", "Hello?")]
    more = [*turns, message("assistant", "Hi."), message("user", "And now?")]
    first = prompt_of(name, make(model="m", messages=turns, tools=tools, max_tokens=5, n=2))
    second = prompt_of(name, make(model="m", messages=more, tools=tools))
    assert first is not None
    assert second is not None
    assert second.text.startswith(first.text)
    assert (first.max_tokens, second.max_tokens) == (10, None)
    other = prompt_of(name, make(model="m", messages=turns))
    assert other is not None
    assert not first.text.startswith(other.text[:10])  # other tools, another prompt


def test_roles_and_texts_do_not_run_together() -> None:
    texts = {
        getattr(prompt_of("Chat", inference_pb2.ChatRequest(messages=messages)), "text", None)
        for messages in (
            [message("user", "ab")],
            [message("user", "a"), message("user", "b")],
            [message("user", ""), message("user", "ab")],
            [message("assistant", "ab")],
        )
    }
    assert len(texts) == 4


def test_prompts_of_text_and_of_tokens() -> None:
    text = prompt_of("Generate", inference_pb2.GenerateRequest(model="m", prompt="abc"))
    assert text == Prompt(model="m", text="abc", max_tokens=None)
    tokens = prompt_of("Generate", inference_pb2.GenerateRequest(prompt_token_ids=[1, 2, 0xD800, -1]))
    assert tokens is not None
    assert len(tokens.text) == 4
    assert prompt_of("Generate", inference_pb2.GenerateRequest()) is None


def test_demands_are_read_from_messages_and_from_bytes() -> None:
    reader = DemandReader(AffinityConfig(block_characters=4), VortaAffinityKey())
    request = inference_pb2.GenerateRequest(prompt="a" * 400, max_tokens=50, request_id="r")
    by_message = reader.read(call_of(INFERENCE + "Generate"), request)
    assert by_message == reader.read(call_of(INFERENCE + "Generate"), request.SerializeToString())
    assert len(by_message.chain) == 100
    assert by_message.request_id == "r"
    assert by_message.prompt_work == pytest.approx(10)
    more = inference_pb2.GenerateRequest(prompt="a" * 400, max_tokens=60)
    assert reader.read(call_of(INFERENCE + "Generate"), more).work - by_message.work == 10


def test_what_has_no_prompt_or_is_malformed_has_no_affinity() -> None:
    reader = DemandReader(AffinityConfig(), VortaAffinityKey())
    tokenize = reader.read(call_of(INFERENCE + "Tokenize", x_request_id="r"), b"\x12\x03abc")
    assert (tokenize.chain, tokenize.request_id) == ((), "")
    malformed = reader.read(call_of(INFERENCE + "Generate", x_request_id="r"), b"\xff\xff")
    assert (malformed.chain, malformed.request_id) == ((), "r")
