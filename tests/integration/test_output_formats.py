"""Formats of outputs through `vorta serve` with vorta-mini: gRPC, the SDK, REST, the openai package, Ollama."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import jsonschema_rs
import openai
import pytest
from pydantic import BaseModel

import vorta
from tests.integration.served import Served, error_of, serving
from vorta.errors import InvalidArgument
from vorta.v1 import common_pb2, inference_pb2


class Person(BaseModel):
    name: str
    age: int


PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
ASK: Any = [{"role": "user", "content": "Extract as JSON: Anna is 30 years old"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 12}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "The time"}},
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("formats")) as server:
        yield server


@pytest.fixture
def url(served: Served) -> str:
    return f"http://127.0.0.1:{served.http_port}"


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="vk_test", max_retries=0) as made:
        yield made


@pytest.fixture
def sdk(served: Served) -> Iterator[vorta.Client]:
    with vorta.Client(f"127.0.0.1:{served.grpc_port}") as made:
        yield made


# gRPC


def test_every_sequence_is_of_the_format(served: Served) -> None:
    request = inference_pb2.GenerateRequest(prompt="a person:", max_tokens=200, n=4, temperature=1.5, seed=5)
    request.response_format.json_schema = json.dumps(PERSON)
    reply = served.inference.Generate(request, timeout=60)
    assert len(reply.sequences) == 4
    for sequence in reply.sequences:
        assert sequence.finish_reason == common_pb2.FINISH_REASON_STOP
        jsonschema_rs.validate(PERSON, json.loads(sequence.text))
    assert len({sequence.text for sequence in reply.sequences}) > 1
    again = served.inference.Generate(request, timeout=60)
    assert [sequence.text for sequence in again.sequences] == [sequence.text for sequence in reply.sequences]


def test_a_stream_ends_by_itself_where_nothing_can_follow(served: Served) -> None:
    request = inference_pb2.StreamChatRequest(ignore_eos=True, min_tokens=20, max_tokens=50, logprobs=2)
    request.messages.add(role="user", content="a number?")
    request.response_format.regex = "[0-9]{3}"
    events = list(served.inference.StreamChat(request, timeout=60))
    assert re.fullmatch("[0-9]{3}", "".join(event.delta.text for event in events))
    end = events[-1].finished
    assert (end.finish_reason, end.HasField("stop_match")) == (common_pb2.FINISH_REASON_STOP, False)
    # Log probabilities are among what the format allows.
    for event in events:
        for score in event.delta.logprobs:
            assert all(other.token.isdigit() for other in score.top)


def test_a_text_cut_short_is_the_beginning_of_one(served: Served) -> None:
    request = inference_pb2.GenerateRequest(prompt="json:", max_tokens=5, temperature=0)
    request.response_format.json_object.SetInParent()
    reply = served.inference.Generate(request, timeout=60)
    assert reply.finish_reason == common_pb2.FINISH_REASON_LENGTH
    assert reply.text.startswith("{")


def test_formats_and_free_texts_run_beside_each_other(sdk: vorta.Client) -> None:
    asked: list[dict[str, Any]] = [
        {"json_schema": PERSON},
        {},
        {"choice": ["red", "green"]},
        {"regex": "x{2,5}y"},
        {"grammar": 'root ::= "<" [a-z]+ ">"', "max_tokens": 40},
        {"json_schema": PERSON, "temperature": 1.2, "seed": 1},
    ]
    options = [{"max_tokens": 100, "temperature": 0, **entry} for entry in asked]
    alone = [sdk.generate("Once upon a time", **entry).text for entry in options]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda entry: sdk.generate("Once upon a time", **entry).text, options * 4))
    assert together == alone * 4
    jsonschema_rs.validate(PERSON, json.loads(alone[0]))
    assert alone[2] in ("red", "green")
    assert re.fullmatch("x{2,5}y", alone[3])
    assert alone[4].startswith("<")
    jsonschema_rs.validate(PERSON, json.loads(alone[5]))


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({}, "response_format"),
        ({"json_schema": "{"}, "response_format.json_schema"),
        ({"json_schema": "[]"}, "response_format.json_schema"),
        ({"json_schema": ""}, "response_format.json_schema"),
        ({"json_schema": '{"type": "nonsense"}'}, "response_format.json_schema"),
        ({"json_schema": '{"a":' * 70 + "1" + "}" * 70}, "response_format.json_schema"),
        ({"json_schema": "[" * 100_000}, "response_format.json_schema"),
        ({"json_schema": json.dumps({"description": "x" * 140_000})}, "response_format.json_schema"),
        ({"regex": "("}, "response_format.regex"),
        ({"regex": "a" * 20_000}, "response_format.regex"),
        ({"grammar": "start: nowhere"}, "response_format.grammar"),
        ({"choice": {"choices": []}}, "response_format.choice.choices"),
        ({"choice": {"choices": ["a", ""]}}, "response_format.choice.choices[1]"),
    ],
)
def test_what_is_no_format_is_refused_by_its_field(served: Served, wanted: dict[str, Any], field: str) -> None:
    request = inference_pb2.GenerateRequest(prompt="x", response_format=common_pb2.ResponseFormat(**wanted))
    error = error_of(served.inference.Generate, request)
    assert isinstance(error, InvalidArgument)
    assert error.metadata["field"] == field
    stream = inference_pb2.StreamGenerateRequest.FromString(request.SerializeToString())
    assert error_of(served.inference.StreamGenerate, stream).metadata["field"] == field


def test_a_tool_choice_that_cannot_be_is_refused_by_its_field(sdk: vorta.Client) -> None:
    tools = [{"name": "now"}]
    for options, field in (
        ({"tool_choice": "required"}, "tools"),
        ({"tool_choice": "other", "tools": tools}, "tool_choice.name"),
        ({"tool_choice": "now", "tools": tools, "json_object": True}, "response_format"),
        ({"tool_choice": "now", "tools": [{"name": "now", "parameters": {"type": "x"}}]}, "tools[0].parameters"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            sdk.chat("x", **options)  # type: ignore[arg-type]
        assert caught.value.metadata["field"] == field


# SDK


def test_the_sdk_takes_schemas_of_every_kind(sdk: vorta.Client) -> None:
    for schema in (PERSON, json.dumps(PERSON)):
        jsonschema_rs.validate(PERSON, json.loads(sdk.chat("Anna is 30.", json_schema=schema, max_tokens=80).text))
    asked = "Extract as JSON: Anna is 30 years old"
    assert Person.model_validate_json(sdk.chat(asked, json_schema=Person, max_tokens=80, temperature=0).text)
    assert sdk.chat("?", choice=["yes", "no"]).text in ("yes", "no")


def test_the_sdk_names_the_tool_to_call(sdk: vorta.Client) -> None:
    tools = [{"name": "now"}, {"name": "add", "parameters": {"type": "object", "properties": {"a": {"const": 1}}}}]
    reply = sdk.chat("What time is it?", tools=tools, tool_choice="now")
    assert reply.message is not None
    assert [(call.name, call.arguments) for call in reply.message.tool_calls] == [("now", "{}")]
    free = sdk.chat("What time is it?", tools=tools, tool_choice="none", temperature=0)
    assert free.text == sdk.chat("What time is it?", temperature=0).text


# REST


def test_rest(url: str) -> None:
    body = {"prompt": "a person:", "max_tokens": 100, "response_format": {"json_schema": json.dumps(PERSON)}}
    reply = httpx.post(f"{url}/v1/inference", json=body, timeout=60).json()
    jsonschema_rs.validate(PERSON, json.loads(reply["text"]))
    choice = {"prompt": "?", "response_format": {"choice": {"choices": ["yes", "no"]}}}
    assert httpx.post(f"{url}/v1/inference", json=choice, timeout=60).json()["text"] in ("yes", "no")
    bad = httpx.post(f"{url}/v1/inference", json={"prompt": "?", "response_format": {"regex": "("}}, timeout=60)
    assert bad.status_code == 400
    assert bad.json()["details"][1]["field_violations"][0]["field"] == "response_format.regex"


# OpenAI


def test_openai_parses_the_answer(client: openai.OpenAI) -> None:
    reply = client.chat.completions.parse(model="vorta-mini", messages=ASK, response_format=Person, temperature=0)
    assert reply.choices[0].message.parsed == Person(name="Anna", age=30)
    assert reply.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("strict", [True, False])
def test_openai_json_schema_in_a_stream(client: openai.OpenAI, strict: bool) -> None:
    stream = client.chat.completions.create(
        model="vorta-mini",
        messages=ASK,
        stream=True,
        n=2,
        temperature=1,
        response_format={"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON, "strict": strict}},
    )
    texts = ["", ""]
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    for text in texts:
        jsonschema_rs.validate(PERSON, json.loads(text))


def test_openai_json_object(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="vorta-mini", messages=ASK, response_format={"type": "json_object"}, temperature=0, max_tokens=200
    )
    assert isinstance(json.loads(reply.choices[0].message.content or ""), dict)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}], ids=["required", "named"]
)
def test_openai_tool_choice(client: openai.OpenAI, choice: Any, stream: bool) -> None:
    asked: dict[str, Any] = {
        "model": "vorta-mini",
        "messages": [{"role": "user", "content": "What is the weather in Rome?"}],
        "tools": TOOLS,
        "tool_choice": choice,
        "temperature": 0,
    }
    if stream:
        chunks = list(client.chat.completions.create(**asked, stream=True))
        calls = [call for chunk in chunks for part in chunk.choices for call in part.delta.tool_calls or ()]
        assert not any(part.delta.content for chunk in chunks for part in chunk.choices)
    else:
        reply = client.chat.completions.create(**asked)
        calls = reply.choices[0].message.tool_calls
        assert reply.choices[0].message.content is None
        assert reply.choices[0].finish_reason == "tool_calls"
    assert calls
    for call in calls:
        assert call.function.name in ("get_weather", "now")
        arguments = json.loads(call.function.arguments)
        assert arguments == {} if call.function.name == "now" else list(arguments) == ["city"]
    if choice != "required":
        assert [call.function.name for call in calls] == ["get_weather"]


@pytest.mark.parametrize(
    ("extra", "pattern"),
    [
        ({"guided_regex": "[a-c]{3}"}, "[a-c]{3}"),
        ({"guided_choice": ["up", "down"]}, "up|down"),
        ({"guided_json": {"enum": [7]}}, "7"),
        ({"guided_json": '{"enum": [7]}'}, "7"),
        ({"guided_grammar": 'root ::= "q"'}, "q"),
        ({"structured_outputs": {"regex": "[a-c]{3}"}}, "[a-c]{3}"),
        ({"structured_outputs": {"json": {"enum": [7]}}}, "7"),
        ({"structured_outputs": {"choice": ["up", "down"], "json": None}}, "up|down"),
        ({"structured_outputs": {"grammar": 'start: "q"'}}, "q"),
        ({"structured_outputs": {"json_object": True, "regex": None}}, r"\{(.|\n)*"),
    ],
)
def test_vllms_names(client: openai.OpenAI, extra: dict[str, Any], pattern: str) -> None:
    chat = client.chat.completions.create(model="vorta-mini", messages=ASK, extra_body=extra, max_tokens=20)
    assert re.fullmatch(pattern, chat.choices[0].message.content or "")
    completion = client.completions.create(model="vorta-mini", prompt="x", extra_body=extra, max_tokens=20)
    assert re.fullmatch(pattern, completion.choices[0].text)


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 1}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "x"}}}},
            "response_format.json_schema",
        ),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_regex"),
        ({"guided_choice": "b"}, "guided_choice"),
        ({"guided_regex": 1}, "guided_regex"),
        ({"structured_outputs": {"xml": "x"}}, "structured_outputs.xml"),
        ({"structured_outputs": []}, "structured_outputs"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice.name"),
    ],
)
def test_openai_refuses_by_name(client: openai.OpenAI, extra: dict[str, Any], param: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="vorta-mini", messages=ASK, extra_body=extra, stream=stream)
        assert caught.value.param == param


# Ollama


def test_ollama(url: str) -> None:
    body = {"model": "vorta-mini", "messages": ASK, "stream": False, "options": {"temperature": 0}}
    reply = httpx.post(f"{url}/api/chat", json={**body, "format": PERSON}, timeout=60).json()
    assert json.loads(reply["message"]["content"]) == {"name": "Anna", "age": 30}
    prompt = {"model": "vorta-mini", "prompt": ASK[0]["content"], "format": "json", "stream": False}
    reply = httpx.post(f"{url}/api/generate", json={**prompt, "options": {"temperature": 0}}, timeout=60).json()
    assert isinstance(json.loads(reply["response"]), dict)
    for bad in ("xml", 1):
        assert httpx.post(f"{url}/api/chat", json={**body, "format": bad}, timeout=60).status_code == 400
