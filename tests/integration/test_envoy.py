"""deploy/envoy/envoy.yaml, run: the same answers as the gateway's, from two replicas of which one may go."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from tests.integration.served import STOP_TIMEOUT_S, Served, serving, wait_for
from vorta.v1 import inference_pb2, inference_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def envoy(folder: Path, ports: list[int]) -> Iterator[str]:
    """Envoy with the deployment's file, before servers on these ports."""
    text = (ROOT / "deploy/envoy/envoy.yaml").read_text()
    endpoint = "              - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}\n"
    assert endpoint % 50051 in text
    text = text.replace(endpoint % 50051, "".join(endpoint % upstream for upstream in ports))
    for port in (8080, 9901):
        assert f"port_value: {port}}}" in text
        text = text.replace(f"port_value: {port}}}", "port_value: 0}")
    config, admin = folder / "envoy.yaml", folder / "admin"
    config.write_text(text)
    command = [
        str(Path(sys.executable).with_name("envoy")),
        "-c",
        str(config),
        "--disable-hot-restart",
        "-l",
        "warning",
        "--admin-address-path",
        str(admin),
    ]
    log = folder / "envoy.log"
    with log.open("wb") as output:
        process = subprocess.Popen([*command, "--concurrency", "1"], stderr=output, stdout=output, cwd=ROOT)
    try:
        yield wait_for(process, log, lambda: _serving_url(admin))
    finally:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)


def _serving_url(admin: Path) -> str:
    """Where Envoy serves; nothing until it does, which is when a replica's health is known to it."""
    try:
        [listener] = httpx.get(f"http://{admin.read_text()}/listeners?format=json").json()["listener_statuses"]
        url = f"http://127.0.0.1:{listener['local_address']['socket_address']['port_value']}"
        return url if httpx.get(f"{url}/v1/admin/server").status_code == 200 else ""
    except (OSError, httpx.HTTPError, KeyError, ValueError):
        return ""


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Served]]:
    with ExitStack() as stack:
        models = ("--runner", "fake", "--model", "m=fake", "--model", "e=fake-embedding")
        yield [
            stack.enter_context(serving(tmp_path_factory.mktemp(f"replica{number}"), *models)) for number in range(2)
        ]


@pytest.fixture(scope="module")
def url(replicas: list[Served], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with envoy(tmp_path_factory.mktemp("envoy"), [replica.grpc_port for replica in replicas]) as made:
        yield made


SAME: list[tuple[str, str, dict[str, Any] | None]] = [
    ("POST", "/v1/inference", {"prompt": "hello", "max_tokens": 12, "temperature": 0}),
    ("POST", "/v1/chat", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "temperature": 0}),
    ("POST", "/v1/embed", {"inputs": ["a", "b"], "normalize": False}),
    ("POST", "/v1/tokenize", {"text": "héllo"}),
    ("GET", "/v1/admin/models/m", None),
    ("GET", "/v1/admin/models/no/such", None),
    ("GET", "/v1/collections", None),
    ("POST", "/v1/collections", {"collection": "c", "dimension": -1}),
    ("POST", "/v1/inference", {"prompt": "x", "max_tokens": -1}),
    ("GET", "/v1/collections/none/stats", None),
]
# What differs between two calls of the same thing.
VARIES = {"request_id", "timings", "tokens_per_second", "load_time", "load", "worker_pid", "cached_prompt_tokens"}


def steady(value: Any) -> Any:
    if isinstance(value, float):
        return struct.pack("f", value)  # Envoy writes more digits of a 32-bit float than are needed
    if isinstance(value, dict):
        return {key: steady(item) for key, item in value.items() if key not in VARIES}
    return [steady(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("method", "path", "body"), SAME, ids=[f"{method} {path}" for method, path, _ in SAME])
def test_envoy_and_the_gateway_answer_alike(
    url: str, replicas: list[Served], method: str, path: str, body: dict[str, Any] | None
) -> None:
    theirs = httpx.request(method, url + path, json=body)
    ours = httpx.request(method, f"http://127.0.0.1:{replicas[0].http_port}{path}", json=body)
    assert theirs.status_code == ours.status_code
    # Envoy writes a detail's names in lowerCamelCase whatever the option says.
    text = theirs.text.replace("fieldViolations", "field_violations").replace("retryDelay", "retry_delay")
    assert steady(json.loads(text)) == steady(ours.json())


def test_streams_and_grpc_web_and_grpc(url: str, replicas: list[Served]) -> None:
    body = {"prompt": "hello", "max_tokens": 12, "temperature": 0}
    whole = replicas[0].inference.Generate(inference_pb2.GenerateRequest(**body)).text
    lines = httpx.post(f"{url}/v1/inference:stream", json=body).text.splitlines()
    assert "".join(json.loads(line).get("delta", {}).get("text", "") for line in lines) == whole
    with grpc.insecure_channel(url.removeprefix("http://")) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        stream = stub.StreamGenerate(inference_pb2.StreamGenerateRequest(**body), timeout=20)
        assert "".join(event.delta.text for event in stream) == whole
    data = inference_pb2.GenerateRequest(**body).SerializeToString()
    frame = b"\0" + len(data).to_bytes(4, "big") + data
    path = "/vorta.v1.InferenceService/Generate"
    headers = {"content-type": "application/grpc-web+proto"}
    for server in (url, f"http://127.0.0.1:{replicas[0].http_port}"):
        reply = httpx.post(server + path, content=frame, headers=headers)
        size = int.from_bytes(reply.content[1:5], "big")
        message = inference_pb2.GenerateResponse.FromString(reply.content[5 : 5 + size])
        assert message.text == whole
        assert reply.content[5 + size :].startswith(b"\x80")
        assert b"grpc-status:0\r\n" in reply.content[5 + size :]


def test_a_replica_that_goes_loses_no_request(tmp_path: Path, replicas: list[Served]) -> None:
    with ExitStack() as stack:
        models = ("--runner", "fake", "--model", "m=fake")
        going = stack.enter_context(serving(tmp_path, *models))
        url = stack.enter_context(envoy(tmp_path, [replicas[0].grpc_port, going.grpc_port]))
        body = {"prompt": "x", "max_tokens": 3}
        for number in range(60):
            if number == 20:
                going.process.terminate()  # drains: health says NOT_SERVING before the port closes
            assert httpx.post(f"{url}/v1/inference", json=body).status_code in (200, 503)
            time.sleep(0.02)
        until = time.monotonic() + 60
        while any(httpx.post(f"{url}/v1/inference", json=body).status_code != 200 for _ in range(20)):
            assert time.monotonic() < until, "Envoy goes on sending to who is gone"
