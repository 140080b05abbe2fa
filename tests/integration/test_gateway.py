"""Every wire of `vorta serve` but gRPC, by the clients that people use."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import websocket

from tests.integration.served import STOP_TIMEOUT_S, Served, refusing_port, serving, wait_for
from vorta.v1 import inference_pb2


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    models = ("--model", "m=fake", "--model", "e=fake-embedding", "--model", "r=fake-rerank")
    with serving(tmp_path_factory.mktemp("gateway"), "--runner", "fake", *models) as server:
        yield server


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("slow")
    with serving(folder, "--runner", "fake", "--model", "m=fake", "--set", "worker.fake_step_s=0.02") as server:
        yield server


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, served: Served) -> Iterator[str]:
    """`vorta gateway` before the server."""
    with standing_alone(tmp_path_factory.mktemp("alone"), f"127.0.0.1:{served.grpc_port}") as url:
        yield url


@contextlib.contextmanager
def standing_alone(folder: Path, upstream: str, *arguments: str) -> Iterator[str]:
    command = [sys.executable, "-m", "vorta", "gateway", "--upstream", upstream, "--port", "0", *arguments]
    log = folder / "gateway.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stderr=output)
    try:
        yield wait_for(process, log, lambda: re.search(r"serving .* on (http://\S+)", log.read_text()))[1]
    finally:
        process.terminate()
        assert process.wait(STOP_TIMEOUT_S) == 0


@pytest.fixture(params=["in process", "alone"])
def url(request: pytest.FixtureRequest, served: Served) -> str:
    if request.param == "alone":
        return str(request.getfixturevalue("alone"))
    return f"http://127.0.0.1:{served.http_port}"


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="vk_test", max_retries=0) as made:
        yield made


HELLO: Any = [{"role": "user", "content": "hello"}]


# REST


def test_inference_over_rest_is_inference_over_grpc(url: str, served: Served) -> None:
    body = {"prompt": "What is machine learning?", "max_tokens": 100, "temperature": 0}
    reply = httpx.post(f"{url}/v1/inference", json=body)
    assert reply.status_code == 200
    assert reply.json()["tokens_per_second"] > 0
    request = inference_pb2.GenerateRequest(prompt=body["prompt"], max_tokens=100, temperature=0)
    same = served.inference.Generate(request)
    assert reply.json()["text"] == same.text
    assert reply.json()["usage"]["completion_tokens"] == 100
    assert reply.headers["x-request-id"] == reply.json()["request_id"]
    text = ""
    with httpx.stream(
        "POST", f"{url}/v1/inference:stream", json=body, headers={"accept": "application/x-ndjson"}
    ) as got:
        events = [json.loads(line)["result"] for line in got.iter_lines()]
    text = "".join(event.get("delta", {}).get("text", "") for event in events)
    assert text == same.text
    assert "started" in events[0]
    assert events[-1]["finished"]["finish_reason"] == "FINISH_REASON_LENGTH"


def test_errors_name_the_field(url: str) -> None:
    reply = httpx.post(f"{url}/v1/inference", json={"prompt": "x", "max_tokens": -1})
    error = reply.json()
    assert (reply.status_code, error["code"]) == (400, 3)
    assert {"field": "max_tokens"}.items() <= error["details"][1]["field_violations"][0].items()
    assert httpx.post(f"{url}/v1/inference", json={"prompt": "x", "max_token": 1}).status_code == 400
    assert httpx.post(f"{url}/v1/inference", json={"prompt": "x", "model": "nope"}).status_code == 404
    late = httpx.post(f"{url}/v1/inference", json={"prompt": "x"}, headers={"grpc-timeout": "1u"})
    assert (late.status_code, late.json()["code"]) == (504, 4)


def test_collections_over_rest(url: str) -> None:
    name = "rest-" + url.rpartition(":")[2]
    assert httpx.post(f"{url}/v1/collections", json={"collection": name, "dimension": 2}).status_code == 200
    points = [{"id": str(i), "vector": [i, 1], "payload": {"year": 2000 + i, "tags": ["a", i]}} for i in range(5)]
    reply = httpx.post(f"{url}/v1/collections/{name}/points", json={"points": points})
    assert reply.json()["count"] == "5"
    lines = "\n".join(json.dumps({"points": [point | {"id": f"s{point['id']}"}]}) for point in points)
    headers = {"content-type": "application/x-ndjson", "accept": "application/x-ndjson"}
    reply = httpx.post(f"{url}/v1/collections/{name}/points:stream", content=lines, headers=headers)
    assert sum(int(json.loads(line)["result"].get("count", 0)) for line in reply.text.splitlines()) == 5
    search = {"vector": [4, 1], "limit": 2, "filter": {"must": [{"field": "year", "range": {"gte": 2003}}]}}
    hits = httpx.post(f"{url}/v1/collections/{name}:search", json=search).json()["hits"]
    assert {hit["id"] for hit in hits} == {"4", "s4"}
    assert hits[0]["payload"] == {"year": 2004, "tags": ["a", 4]}
    assert httpx.get(f"{url}/v1/collections/{name}/stats").json()["stats"]["num_points"] == "10"
    assert httpx.delete(f"{url}/v1/collections/{name}").json() == {}
    assert httpx.get(f"{url}/v1/collections/{name}").status_code == 404


def test_rerank_has_the_fields_of_cohere_and_jina(url: str) -> None:
    body = {"model": "r", "query": "q", "documents": ["a", "bb", "ccc"], "top_n": 2, "return_documents": True}
    results = httpx.post(f"{url}/v1/rerank", json=body).json()["results"]
    assert len(results) == 2
    assert set(results[0]) >= {"relevance_score", "document"}
    assert results[0]["relevance_score"] >= results[1]["relevance_score"]


def test_what_describes_and_probes(served: Served, url: str) -> None:
    document = httpx.get(f"{url}/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    assert "/v1/collections/{collection}:search" in document["paths"]
    fields = document["components"]["schemas"]["vorta.v1.GenerateRequest"]["properties"]
    assert fields["max_tokens"]["description"].startswith("Most tokens to generate")
    assert "<title>Vorta API" in httpx.get(f"{url}/docs").text
    own = f"http://127.0.0.1:{served.http_port}"
    assert httpx.get(f"{own}/readyz").text == "ready\n"
    assert httpx.head(f"{own}/metrics").status_code == 200
    assert "vorta_" in httpx.get(f"{own}/metrics").text
    assert httpx.post(f"{own}/metrics").status_code == 405


# OpenAI


def test_chat_completions(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model="m", messages=HELLO, max_tokens=7, seed=3, logprobs=True, top_logprobs=2, n=2, user="me"
    )
    assert [choice.finish_reason for choice in reply.choices] == ["length", "length"]
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 14
    content = reply.choices[0].logprobs
    assert content is not None
    assert content.content is not None
    assert len(content.content) == 7
    assert len(content.content[0].top_logprobs) == 2
    again = client.chat.completions.create(model="m", messages=HELLO, max_tokens=7, seed=3, n=2)
    assert [choice.message.content for choice in again.choices] == [c.message.content for c in reply.choices]


def test_chat_completions_stream_what_they_answer_at_once(client: openai.OpenAI) -> None:
    once = client.chat.completions.create(model="m", messages=HELLO, max_tokens=20, temperature=0)
    stream = client.chat.completions.create(
        model="m", messages=HELLO, max_tokens=20, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == once.choices[0].message.content
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason] == ["length"]
    assert chunks[-1].usage is not None
    assert once.usage is not None
    assert chunks[-1].usage.completion_tokens == once.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_stop_and_parts_and_roles(client: openai.OpenAI) -> None:
    messages: Any = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]},
    ]
    plain = client.chat.completions.create(model="m", messages=messages, max_tokens=30, temperature=0)
    text = plain.choices[0].message.content
    assert text
    stopped = client.chat.completions.create(model="m", messages=messages, max_tokens=30, temperature=0, stop=text[3:5])
    assert stopped.choices[0].message.content == text[: text.index(text[3:5])]
    assert stopped.choices[0].finish_reason == "stop"


def test_completions(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="m", prompt=["ab", "cd"], max_tokens=5, n=2, temperature=0, logprobs=1)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.choices[0].text == reply.choices[1].text != reply.choices[2].text
    assert reply.choices[0].logprobs is not None
    tokens = client.completions.create(model="m", prompt=[97, 98], max_tokens=5, temperature=0)
    assert len(tokens.choices) == 1
    texts = ["", ""]
    for chunk in client.completions.create(model="m", prompt=["ab", "cd"], max_tokens=5, temperature=0, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [reply.choices[0].text, reply.choices[2].text]
    echoed = client.completions.create(model="m", prompt="ab", max_tokens=2, echo=True)
    assert echoed.choices[0].text.startswith("ab")


def test_embeddings(client: openai.OpenAI) -> None:
    floats = client.embeddings.create(model="e", input=["a", "b"], encoding_format="float")
    packed = client.embeddings.create(model="e", input=["a", "b"])  # base64, which the package decodes
    assert np.allclose([item.embedding for item in floats.data], [item.embedding for item in packed.data])
    assert floats.data[0].embedding != floats.data[1].embedding
    assert floats.usage.prompt_tokens > 0


def test_models(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {"m", "e", "r"}
    assert client.models.retrieve("m").owned_by == "vorta"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no/such")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"messages": HELLO, "temperature": -1}, "temperature"),
        ({"messages": HELLO, "temperature": "hot"}, "temperature"),
        ({"messages": HELLO, "max_tokens": 0}, "max_tokens"),
        ({"messages": HELLO, "top_logprobs": 1}, "top_logprobs"),
        ({"messages": HELLO, "n": 100000}, "n"),
        ({"messages": HELLO, "response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"messages": HELLO, "tool_choice": "required"}, "tool_choice"),
        ({"messages": HELLO, "tools": [{"type": "web"}]}, "tools[0]"),
        ({"messages": HELLO, "tempreature": 1}, "tempreature"),
    ],
)
def test_bad_requests_in_openais_shape(url: str, fields: dict[str, Any], param: str) -> None:
    for stream in (False, True):
        reply = httpx.post(f"{url}/v1/chat/completions", json={"model": "m", "stream": stream, **fields})
        assert reply.status_code == 400
        error = reply.json()["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", param)


def test_unknown_models_and_broken_bodies_in_openais_shape(client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nope", messages=HELLO)
    assert caught.value.code == "model_not_found"
    for body in (b"{", b"[]", b"\xff"):
        reply = httpx.post(f"{url}/v1/chat/completions", content=body)
        assert (reply.status_code, reply.json()["error"]["type"]) == (400, "invalid_request_error")
    assert httpx.get(f"{url}/v1/chat/completions").json()["error"]["type"] == "invalid_request_error"


def test_tools_are_offered(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    plain = client.chat.completions.create(model="m", messages=HELLO, max_tokens=12, temperature=0, tools=tools)
    stream = client.chat.completions.create(
        model="m", messages=HELLO, max_tokens=12, temperature=0, tools=tools, stream=True
    )
    text = "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)
    assert text == plain.choices[0].message.content


# Ollama


def test_ollama(url: str) -> None:
    options = {"num_predict": 9, "temperature": 0}
    body = {"model": "m", "messages": HELLO, "options": options}
    lines = [json.loads(line) for line in httpx.post(f"{url}/api/chat", json=body).text.splitlines()]
    once = httpx.post(f"{url}/api/chat", json=body | {"stream": False}).json()
    assert "".join(line["message"]["content"] for line in lines) == once["message"]["content"]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert (lines[-1]["done_reason"], lines[-1]["eval_count"]) == ("length", 9)
    body = {"model": "m", "prompt": "hello", "options": options, "stream": False}
    assert httpx.post(f"{url}/api/generate", json=body).json()["response"] == once["message"]["content"]
    assert httpx.post(f"{url}/api/generate", json=body | {"raw": True}).json()["eval_count"] == 9
    embedded = httpx.post(f"{url}/api/embed", json={"model": "e", "input": ["a", "b"]}).json()["embeddings"]
    assert len(embedded) == 2
    assert {model["name"] for model in httpx.get(f"{url}/api/tags").json()["models"]} == {"m", "e", "r"}
    assert "completion" in httpx.post(f"{url}/api/show", json={"model": "m"}).json()["capabilities"]
    assert httpx.get(f"{url}/api/version").json()["version"]
    wrong = httpx.post(f"{url}/api/chat", json={"model": "nope", "messages": HELLO})
    assert wrong.status_code == 404
    assert "nope" in wrong.json()["error"]


# WebSocket


class Socket:
    """A client of /v1/stream."""

    def __init__(self, url: str) -> None:
        self.socket = websocket.create_connection(url.replace("http", "ws") + "/v1/stream", timeout=20)
        self.waiting: dict[str | None, list[dict[str, Any]]] = {}

    def send(self, **message: Any) -> None:
        self.socket.send(json.dumps(message))

    def read(self, stream_id: str | None) -> dict[str, Any]:
        """The next message of a stream."""
        while not self.waiting.get(stream_id):
            message = json.loads(self.socket.recv())
            self.waiting.setdefault(message["id"], []).append(message)
        return self.waiting[stream_id].pop(0)

    def close(self) -> None:
        self.socket.close()

    def finish(self, stream_id: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The events of a stream, and the message that ended it."""
        events = []
        while "event" in (message := self.read(stream_id)):
            events.append(message["event"])
        return events, message


@pytest.fixture
def sock(url: str) -> Iterator[Socket]:
    with contextlib.closing(Socket(url)) as made:
        yield made


@pytest.fixture
def slow_sock(slow: Served) -> Iterator[Socket]:
    with contextlib.closing(Socket(f"http://127.0.0.1:{slow.http_port}")) as made:
        yield made


def test_streams_share_a_socket(sock: Socket, served: Served) -> None:
    for number in range(8):
        sock.send(id=str(number), generate={"prompt": f"p{number}", "max_tokens": 20, "temperature": 0})
    sock.send(id="chat", chat={"messages": HELLO, "max_tokens": 5})
    for number in range(8):
        events, end = sock.finish(str(number))
        assert end == {"id": str(number), "done": True}
        text = "".join(event.get("delta", {}).get("text", "") for event in events)
        request = inference_pb2.GenerateRequest(prompt=f"p{number}", max_tokens=20, temperature=0)
        assert text == served.inference.Generate(request).text
    assert sock.finish("chat")[1] == {"id": "chat", "done": True}


def test_wrong_messages_leave_the_socket_open(sock: Socket) -> None:
    for text in ("{", "[]", '{"generate":{}}', '{"id":""}', '{"id":"a"}', '{"id":"a","generate":{},"chat":{}}'):
        sock.socket.send(text)
        message = json.loads(sock.socket.recv())
        assert message["error"]["code"] == 3
    sock.send(id="a", nope={})
    assert sock.read("a")["error"]["code"] == 3
    sock.send(id="a", generate={"prompt": "x", "max_tokens": "many"})
    assert sock.read("a")["error"]["details"][1]["field_violations"][0]["field"] == "max_tokens"
    sock.send(id="a", generate={"prompt": "x", "max_tokens": -1})
    assert sock.read("a")["error"]["code"] == 3
    sock.send(id="a", cancel={})
    assert sock.read("a")["error"]["code"] == 5
    sock.send(id="a", generate={"prompt": "x", "max_tokens": 1})
    assert sock.finish("a")[1] == {"id": "a", "done": True}


def test_cancel_and_resume_over_a_socket(slow: Served, slow_sock: Socket) -> None:
    sock = slow_sock
    sock.send(id="a", generate={"prompt": "x", "max_tokens": 3000, "temperature": 0})
    sock.send(id="a", generate={"prompt": "x"})
    assert sock.finish("a")[1]["error"]["code"] == 6  # between events of the first, which goes on
    assert "event" in sock.read("a")
    sock.send(id="a", cancel={})
    assert sock.finish("a")[1]["error"]["code"] == 1
    request = {"prompt": "y", "max_tokens": 40, "temperature": 0}
    sock.send(id="b", generate={**request, "request_id": "resumed", "resume_window_s": 30})
    first = sock.read("b")["event"]
    assert first["started"]["request_id"] == "resumed"
    sock.close()
    with contextlib.closing(Socket(f"http://127.0.0.1:{slow.http_port}")) as other:
        other.send(id="b", resume={"request_id": "resumed", "next_index": "1"})
        events, end = other.finish("b")
    assert end == {"id": "b", "done": True}
    text = "".join(event.get("delta", {}).get("text", "") for event in events)
    whole = inference_pb2.GenerateRequest(prompt="y", max_tokens=40, temperature=0)
    assert text == slow.inference.Generate(whole).text


# Clients that go


def _running(served: Served) -> int:
    return served.model("m").load.running_requests


def _comes_to_run(served: Served, count: int) -> bool:
    for _ in range(600):
        if _running(served) == count:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("wire", ["rest", "rest stream", "openai", "openai stream", "grpc-web", "websocket"])
def test_a_client_that_goes_frees_its_request(slow: Served, wire: str) -> None:
    url = f"http://127.0.0.1:{slow.http_port}"
    body: dict[str, Any] = {"prompt": "x", "max_tokens": 3500}
    if wire == "websocket":
        with contextlib.closing(Socket(url)) as sock:
            sock.send(id="a", generate=body)
            sock.read("a")
    elif wire.endswith("stream"):
        path = "/v1/inference:stream" if wire.startswith("rest") else "/v1/completions"
        with httpx.stream(
            "POST",
            url + path,
            json=body | ({} if wire.startswith("rest") else {"stream": True}),
            headers={"accept": "text/event-stream"},
        ) as reply:
            lines = reply.iter_lines()
            next(lines)
            assert _comes_to_run(slow, 1)
    else:
        path = {"rest": "/v1/inference", "openai": "/v1/completions"}.get(wire)
        with contextlib.suppress(httpx.ReadTimeout):
            if path is not None:
                httpx.post(url + path, json=body, timeout=1)
            else:
                data = inference_pb2.GenerateRequest(prompt="x", max_tokens=3500).SerializeToString()
                httpx.post(
                    f"{url}/vorta.v1.InferenceService/Generate",
                    content=b"\0" + len(data).to_bytes(4, "big") + data,
                    headers={"content-type": "application/grpc-web+proto"},
                    timeout=1,
                )
            raise AssertionError("it was answered")
    assert _comes_to_run(slow, 0)


def test_many_wires_at_once(served: Served) -> None:
    url = f"http://127.0.0.1:{served.http_port}"
    body = {"prompt": "same", "max_tokens": 30, "temperature": 0}

    def ask(number: int) -> str:
        if number % 2:
            return str(httpx.post(f"{url}/v1/inference", json=body).json()["text"])
        return str(httpx.post(f"{url}/v1/completions", json=body).json()["choices"][0]["text"])

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(ask, range(64)))) == 1


def test_a_gateway_without_its_upstream_says_so(tmp_path: Path) -> None:
    with refusing_port() as port:
        command = [sys.executable, "-m", "vorta", "gateway", "--upstream", f"127.0.0.1:{port}", "--port", "0"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert "the upstream does not answer" in done.stderr


def test_a_stream_cancelled_as_it_begins_has_its_one_end(slow: Served, slow_sock: Socket) -> None:
    sock = slow_sock
    for number in range(20):
        name = f"s{number}"
        sock.send(id=name, generate={"prompt": "x", "max_tokens": 3000})
        sock.send(id=name, cancel={})  # often in the same packet
        _, end = sock.finish(name)
        assert end["error"]["code"] == 1
        sock.send(id=name, cancel={})
        assert sock.read(name)["error"]["code"] == 5  # and nothing came between
    assert _comes_to_run(slow, 0)
