"""Bad input to a real server: each answers with a clear error that names the field, and the server goes on."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.integration.served import Served, error_of, serve_command, serving
from vorta.errors import (
    AlreadyExists,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    VortaError,
)
from vorta.v1 import common_pb2, inference_pb2
from vorta.wire import error_from_rpc

SLOW = ["--set", "worker.fake_step_s=0.02", "--set", "worker.fake_prefill_token_s=0.002"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    with serving(folder, "--runner", "fake", "--model", f"fake={folder}", "--max-model-len", "512", *SLOW) as server:
        yield server


def request(**fields: object) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(**{"prompt": "hello", "max_tokens": 3, **fields})


BAD_FIELDS = {
    "empty prompt": ({"prompt": ""}, "prompt"),
    "prompt over the context": ({"prompt": "x" * 512}, "prompt"),
    "prompt and max_tokens over the context": ({"prompt": "x" * 500, "max_tokens": 20}, "max_tokens"),
    "temperature -1": ({"temperature": -1.0}, "temperature"),
    "temperature NaN": ({"temperature": math.nan}, "temperature"),
    "top_p 0": ({"top_p": 0.0}, "top_p"),
    "n 0": ({"n": 0}, "n"),
    "n 1000": ({"n": 1000}, "n"),
    "stop list too long": ({"stop": ["a"] * 17}, "stop"),
    "stop string too long": ({"stop": ["a" * 1025]}, "stop"),
    "max_tokens 0": ({"max_tokens": 0}, "max_tokens"),
    "min_tokens over max_tokens": ({"min_tokens": 4}, "min_tokens"),
    "logprobs 21": ({"logprobs": 21}, "logprobs"),
    "priority out of range": ({"priority": 5000}, "priority"),
    "bias out of range": ({"logit_bias": {1: 101.0}}, "logit_bias"),
    "bias of an unknown token": ({"logit_bias": {100_000: 1.0}}, "logit_bias"),
    "request id with a blank": ({"request_id": "a b"}, "request_id"),
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_bad_field_is_named(served: Served, name: str) -> None:
    fields, field = BAD_FIELDS[name]
    error = error_of(served.inference.Generate, request(**fields))
    assert isinstance(error, InvalidArgument), error
    assert (error.field or "").startswith(field), error.metadata
    stream = inference_pb2.StreamGenerateRequest()
    stream.ParseFromString(request(**fields).SerializeToString())
    assert type(error_of(served.inference.StreamGenerate, stream)) is type(error)


def test_both_text_and_tokens(served: Served) -> None:
    error = error_of(served.inference.Generate, request(prompt_token_ids=[1]))
    assert isinstance(error, InvalidArgument)
    assert error.reason == "CONFLICTING_FIELDS"


def test_token_id_out_of_range(served: Served) -> None:
    for token_id in (-1, 100_000):
        error = error_of(served.inference.Generate, inference_pb2.GenerateRequest(prompt_token_ids=[1, token_id]))
        assert isinstance(error, InvalidArgument)
        assert (error.field or "").startswith("prompt_token_ids")


def test_tokens_that_are_no_utf8_become_replacement_characters(served: Served) -> None:
    reply = served.inference.Detokenize(inference_pb2.DetokenizeRequest(token_ids=[0xE2, 0x82, 0x41]), timeout=10)
    assert reply.text == "\ufffdA"
    generated = served.inference.Generate(
        inference_pb2.GenerateRequest(prompt_token_ids=[0xFF, 0xC3], max_tokens=2, echo=True), timeout=10
    )
    assert generated.text.startswith("\ufffd\ufffd")


def test_unknown_model(served: Served) -> None:
    error = error_of(served.inference.Generate, request(model="nobody"))
    assert isinstance(error, NotFound)
    assert (error.reason, error.metadata["model"]) == ("MODEL_NOT_FOUND", "nobody")


def test_prompt_of_10_mb(served: Served) -> None:
    error = error_of(served.inference.Generate, request(prompt="x" * 10_000_000))
    assert isinstance(error, InvalidArgument)
    assert error.reason == "CONTEXT_LENGTH_EXCEEDED"
    error = error_of(served.inference.Generate, request(prompt="x" * 17_000_000))
    assert isinstance(error, ResourceExhausted)


def test_bytes_that_are_no_message(served: Served) -> None:
    call = served.channel.unary_unary("/vorta.v1.InferenceService/Generate")
    error = error_of(call, b"\xff\xff\xff\xff")
    assert isinstance(error, InvalidArgument)
    assert error.reason == "MALFORMED_MESSAGE"


def test_deadline_too_short(served: Served) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        served.inference.Generate(request(max_tokens=400), timeout=0.3)
    assert isinstance(error_from_rpc(caught.value), DeadlineExceeded)
    until = time.monotonic() + 30
    while served.model().load.running_requests:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_cancel_of_an_unknown_id(served: Served) -> None:
    error = error_of(served.inference.CancelGenerate, inference_pb2.CancelGenerateRequest(request_id="nobody"))
    assert isinstance(error, NotFound)
    assert error.reason == "REQUEST_NOT_FOUND"


def test_id_in_use(served: Served) -> None:
    stream = served.inference.StreamGenerate(
        inference_pb2.StreamGenerateRequest(prompt="hello", max_tokens=480, request_id="twice")
    )
    next(stream)
    error = error_of(served.inference.Generate, request(request_id="twice"))
    assert isinstance(error, AlreadyExists)
    served.inference.CancelGenerate(inference_pb2.CancelGenerateRequest(request_id="twice"), timeout=10)
    assert [*stream][-1].finished.finish_reason == common_pb2.FINISH_REASON_CANCELLED


def test_resume_of_somebody_elses_or_an_expired_request(served: Served) -> None:
    mine = (("authorization", "Bearer vk_mine"),)
    stream = served.inference.StreamGenerate(
        inference_pb2.StreamGenerateRequest(prompt="hello", max_tokens=400, request_id="secret", resume_window_s=0.5),
        metadata=mine,
    )
    next(stream)
    stream.cancel()
    resume = inference_pb2.ResumeGenerateRequest(request_id="secret", next_index=0)
    theirs = error_of(served.inference.ResumeGenerate, resume, metadata=(("authorization", "Bearer vk_theirs"),))
    assert isinstance(theirs, NotFound)
    until = time.monotonic() + 30
    while True:
        time.sleep(1.0)  # longer than the window
        error = error_of(served.inference.ResumeGenerate, resume, metadata=mine)
        if isinstance(error, NotFound):
            break
        assert time.monotonic() < until


def _kill_worker_during(served: Served, fields: dict[str, object], *, wait_for_delta: bool) -> list[object]:
    pid = served.model().load.worker_pid
    stream = served.inference.StreamGenerate(
        inference_pb2.StreamGenerateRequest(**{"prompt": "hello", "max_tokens": 300, **fields}), timeout=60
    )
    events = []
    for event in stream:
        events.append(event)
        has_begun = event.HasField("delta") if wait_for_delta else event.HasField("started")
        if has_begun and pid:
            os.kill(pid, signal.SIGKILL)
            pid = 0
    return events


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_killed_worker_ends_its_requests_once_and_comes_back(served: Served, phase: str) -> None:
    served.wait_until_serving()
    before = served.model().load.restart_count
    prompt = "p" * 200 if phase == "prefill" else "d"
    events = _kill_worker_during(served, {"prompt": prompt}, wait_for_delta=phase == "decode")
    ends = [event for event in events if event.HasField("finished")]
    assert len(ends) == 1
    assert events[-1] is ends[0]
    finished = ends[0].finished
    assert finished.finish_reason == common_pb2.FINISH_REASON_ERROR
    assert (finished.error.reason, finished.error.retryable) == ("WORKER_DIED", True)
    until = time.monotonic() + 60
    while served.model().load.restart_count == before or not _answers(served):
        assert time.monotonic() < until
        time.sleep(0.1)


def _answers(served: Served) -> bool:
    try:
        return bool(served.inference.Generate(request(), timeout=10).text)
    except grpc.RpcError as error:
        problem = error_from_rpc(error)
    if not isinstance(problem, Unavailable):
        raise problem
    return False


def test_port_taken(served: Served, tmp_path: Path) -> None:
    arguments = ["--runner", "fake", "--model", f"fake={tmp_path}"]
    for name, ports in (
        ("grpc.port", {"grpc_port": served.grpc_port}),
        ("http.port", {"http_port": served.http_port}),
    ):
        command = serve_command(*arguments, data_dir=tmp_path / "data", **ports)
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 1
        assert name in ended.stderr
        assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["--set", "worker.threads=-1"], "worker.threads"),
        (["--set", "worker.nonsense=1"], "worker.nonsense"),
        (["--set", "grpc.port=70000"], "grpc.port"),
        (["--config", "no-such-file.toml"], "no-such-file.toml"),
    ],
)
def test_broken_settings_name_the_field(tmp_path: Path, arguments: list[str], field: str) -> None:
    command = serve_command(data_dir=tmp_path)
    ended = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode in (1, 2)
    assert field in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_server_still_serves(served: Served) -> None:
    served.wait_until_serving()
    assert isinstance(error_of(served.inference.Generate, request(model="nobody")), VortaError)
    assert served.inference.Generate(request(), timeout=30).usage.completion_tokens == 3
