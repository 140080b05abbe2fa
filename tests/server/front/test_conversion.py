"""Every field of a request: what is refused, by which name, and what absence means."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.front.scripted import MAX_MODEL_LEN, VOCAB_SIZE, model_card
from vorta.errors import FailedPrecondition, InvalidArgument
from vorta.v1 import common_pb2, inference_pb2
from vorta_server.front import conversion

CARD = model_card()
GENERATE = inference_pb2.GenerateRequest
CHAT = inference_pb2.ChatRequest
USER = common_pb2.ChatMessage(role="user", content="hi")


def params(request, cap=None):
    return conversion.sampling_params(request, CARD, max_tokens_cap=cap)


BAD_FIELDS = [
    ("max_tokens", {"max_tokens": 0}),
    ("max_tokens", {"max_tokens": -1}),
    ("min_tokens", {"min_tokens": -1}),
    ("min_tokens", {"min_tokens": 5, "max_tokens": 4}),
    ("temperature", {"temperature": -1.0}),
    ("temperature", {"temperature": math.nan}),
    ("temperature", {"temperature": math.inf}),
    ("temperature", {"temperature": 100.5}),
    ("top_p", {"top_p": 0.0}),
    ("top_p", {"top_p": 1.5}),
    ("top_p", {"top_p": math.nan}),
    ("top_k", {"top_k": -1}),
    ("min_p", {"min_p": -0.1}),
    ("min_p", {"min_p": 1.1}),
    ("presence_penalty", {"presence_penalty": 2.5}),
    ("frequency_penalty", {"frequency_penalty": -2.5}),
    ("repetition_penalty", {"repetition_penalty": 0.0}),
    ("repetition_penalty", {"repetition_penalty": 11.0}),
    ("logit_bias", {"logit_bias": {VOCAB_SIZE: 1.0}}),
    ("logit_bias", {"logit_bias": {-1: 1.0}}),
    ("logit_bias", {"logit_bias": {1: 101.0}}),
    ("logit_bias", {"logit_bias": {1: math.nan}}),
    ("logit_bias", {"logit_bias": dict.fromkeys(range(1025), 0.0)}),
    ("stop", {"stop": ["x"] * 17}),
    ("stop[1]", {"stop": ["x", ""]}),
    ("stop[0]", {"stop": ["é" * 513]}),
    ("stop_token_ids", {"stop_token_ids": [1] * 65}),
    ("stop_token_ids[1]", {"stop_token_ids": [1, VOCAB_SIZE]}),
    ("n", {"n": 0}),
    ("n", {"n": 1000}),
    ("logprobs", {"logprobs": -1}),
    ("logprobs", {"logprobs": 21}),
    ("prompt_logprobs", {"prompt_logprobs": 21}),
]


@pytest.mark.parametrize(("field", "values"), BAD_FIELDS, ids=[f"{f}-{i}" for i, (f, _) in enumerate(BAD_FIELDS)])
@pytest.mark.parametrize("message", [GENERATE, CHAT, inference_pb2.StreamGenerateRequest])
def test_bad_sampling_field_is_named(message, field, values):
    with pytest.raises(InvalidArgument) as caught:
        params(message(**values))
    assert caught.value.reason == "INVALID_FIELD"
    assert caught.value.field == field
    assert field in caught.value.message


def test_absent_fields_take_the_models_defaults():
    sampling = params(GENERATE())
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 7)
    assert sampling.max_tokens is None
    assert (sampling.n, sampling.seed, sampling.logprobs, sampling.min_tokens) == (1, None, None, 0)
    assert sampling.skip_special_tokens
    assert not sampling.ignore_eos


def test_zero_is_not_absent():
    sampling = params(GENERATE(temperature=0, top_k=0, seed=0, logprobs=0, skip_special_tokens=False))
    assert (sampling.temperature, sampling.top_k, sampling.seed, sampling.logprobs) == (0, 0, 0, 0)
    assert not sampling.skip_special_tokens


def test_max_tokens_above_the_servers_cap():
    assert params(GENERATE(max_tokens=10), cap=10).max_tokens == 10
    with pytest.raises(InvalidArgument, match="at most 10") as caught:
        params(GENERATE(max_tokens=11), cap=10)
    assert caught.value.field == "max_tokens"


@pytest.mark.parametrize("value", [-1001, 1001])
def test_priority_out_of_range(value):
    with pytest.raises(InvalidArgument) as caught:
        conversion.priority(GENERATE(priority=value))
    assert caught.value.field == "priority"


@pytest.mark.parametrize("value", [-1.0, 301.0, math.nan])
def test_resume_window_out_of_range(value):
    with pytest.raises(InvalidArgument) as caught:
        conversion.resume_window_s(inference_pb2.StreamGenerateRequest(resume_window_s=value))
    assert caught.value.field == "resume_window_s"


@pytest.mark.parametrize(
    ("request_id", "field_reason"),
    [("x" * 129, "INVALID_FIELD"), ("a b", "INVALID_FIELD"), ("é", "INVALID_FIELD"), ("", "MISSING_FIELD")],
)
def test_bad_request_id(request_id, field_reason):
    with pytest.raises(InvalidArgument) as caught:
        conversion.checked_request_id(request_id, required=True)
    assert (caught.value.reason, caught.value.field) == (field_reason, "request_id")


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({}, "MISSING_FIELD", "prompt"),
        ({"prompt": ""}, "MISSING_FIELD", "prompt"),
        ({"prompt": "a", "prompt_token_ids": [1]}, "CONFLICTING_FIELDS", "prompt_token_ids"),
        ({"prompt_token_ids": [1, -1]}, "INVALID_FIELD", "prompt_token_ids[1]"),
        ({"prompt_token_ids": [VOCAB_SIZE]}, "INVALID_FIELD", "prompt_token_ids[0]"),
        ({"prompt_token_ids": [1] * MAX_MODEL_LEN}, "CONTEXT_LENGTH_EXCEEDED", "prompt_token_ids"),
        ({"prompt_token_ids": [1] * 100, "max_tokens": 29}, "CONTEXT_LENGTH_EXCEEDED", "max_tokens"),
    ],
)
def test_bad_prompt(fields, reason, field):
    with pytest.raises(InvalidArgument) as caught:
        conversion.text_prompt(GENERATE(**fields), CARD)
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_prompts():
    assert conversion.text_prompt(GENERATE(prompt="a"), CARD).text == "a"
    prompt = conversion.text_prompt(GENERATE(prompt_token_ids=[1] * 100, max_tokens=28), CARD)
    assert prompt.token_ids == [1] * 100
    assert prompt.text is None


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({}, "MISSING_FIELD", "messages"),
        ({"messages": [{"content": "x"}]}, "MISSING_FIELD", "messages[0].role"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "INVALID_FIELD", "messages[0].role"),
        ({"messages": [USER, {"role": "user"}]}, "MISSING_FIELD", "messages[1].content"),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [{"name": "f"}]}]},
            "INVALID_FIELD",
            "messages[0].tool_calls",
        ),
        ({"messages": [USER], "tools": [{"name": "f"}] * 129}, "INVALID_FIELD", "tools"),
        ({"messages": [USER], "tools": [{"name": "f"}, {"name": "a b"}]}, "INVALID_FIELD", "tools[1].name"),
        (
            {"messages": [USER], "continue_final_message": True, "add_generation_prompt": True},
            "CONFLICTING_FIELDS",
            "continue_final_message",
        ),
    ],
)
def test_bad_chat(fields, reason, field):
    with pytest.raises(InvalidArgument) as caught:
        conversion.chat_prompt(CHAT(**fields), CARD)
    assert (caught.value.reason, caught.value.field) == (reason, field)


@pytest.mark.parametrize(
    ("fields", "opens", "continues"),
    [
        ({}, True, False),
        ({"add_generation_prompt": False}, False, False),
        ({"continue_final_message": True}, False, True),
        ({"continue_final_message": True, "add_generation_prompt": False}, False, True),
    ],
)
def test_whose_turn_it_is(fields, opens, continues):
    prompt = conversion.chat_prompt(CHAT(messages=[USER], **fields), CARD)
    assert (prompt.add_generation_prompt, prompt.continue_final_message) == (opens, continues)


def test_chat_needs_a_template():
    with pytest.raises(FailedPrecondition) as caught:
        conversion.chat_prompt(CHAT(messages=[USER]), model_card(has_chat_template=False))
    assert caught.value.reason == "MODEL_KIND_MISMATCH"


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({}, "MISSING_FIELD", "text"),
        ({"text": "a", "messages": [USER]}, "CONFLICTING_FIELDS", "messages"),
    ],
)
def test_bad_tokenize(fields, reason, field):
    with pytest.raises(InvalidArgument) as caught:
        conversion.tokenize_prompt(inference_pb2.TokenizeRequest(**fields), CARD)
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_tokenize_of_empty_text_and_of_messages():
    prompt = conversion.tokenize_prompt(inference_pb2.TokenizeRequest(text=""), CARD)
    assert (prompt.text, prompt.add_special_tokens) == ("", True)
    request = inference_pb2.TokenizeRequest(messages=[USER], add_generation_prompt=False)
    assert not conversion.tokenize_prompt(request, CARD).add_generation_prompt


@given(
    temperature=st.floats(width=32),
    top_p=st.floats(width=32),
    top_k=st.integers(-(2**31), 2**31 - 1),
    n=st.integers(-(2**31), 2**31 - 1),
    max_tokens=st.integers(-(2**31), 2**31 - 1),
)
def test_any_values_are_taken_in_range_or_refused_by_name(temperature, top_p, top_k, n, max_tokens):
    request = GENERATE(temperature=temperature, top_p=top_p, top_k=top_k, n=n, max_tokens=max_tokens)
    try:
        sampling = params(request)
    except InvalidArgument as error:
        refused = error.field
    else:
        refused = None
        assert 0 <= sampling.temperature <= 100
        assert 0 < sampling.top_p <= 1
        assert sampling.top_k >= 0
        assert 1 <= sampling.n <= 64
        assert sampling.max_tokens >= 1
    assert refused in (None, "temperature", "top_p", "top_k", "n", "max_tokens")
