"""The sync client against a scripted server."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
import vorta
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vorta import errors

from tests.clients.cutting_proxy import CuttingProxy
from tests.clients.fake_server import NUM_TOKENS, FakeServer, text_of, tokens_of

FAST = vorta.RetryPolicy(initial_backoff_s=0.001, max_backoff_s=0.05, budget_tokens=0)


@pytest.fixture
def client(server: FakeServer) -> Iterator[vorta.Client]:
    with vorta.Client(server.target, retry=FAST, timeout_s=20) as client:
        yield client


@pytest.fixture
def proxied(proxy: CuttingProxy) -> Iterator[vorta.Client]:
    with vorta.Client(proxy.target, retry=FAST, timeout_s=20) as client:
        yield client


def test_generate(client: vorta.Client, server: FakeServer) -> None:
    got = client.generate("hello", max_tokens=3, temperature=0.0, stop="x", logit_bias={5: -1.0}, top_k=None)
    assert got.text == str(got) == text_of("hello", 3)
    assert got.token_ids == tuple(token for token, _ in tokens_of("hello", 3))
    assert (got.finish_reason, got.stop_match) == ("stop", vorta.StopMatch(token_id=2))
    assert (got.usage.completion_tokens, got.tokens_per_second, got.timings.ttft_s) == (3, 200.0, 0.01)
    (request,) = server.calls["Generate"]
    assert (request.max_tokens, request.stop, dict(request.logit_bias)) == (3, ["x"], {5: -1.0})
    assert request.HasField("temperature")
    assert request.temperature == 0
    assert not request.HasField("top_k")


def test_generate_from_token_ids(client: vorta.Client, server: FakeServer) -> None:
    client.generate([1, 2, 3])
    assert server.calls["Generate"][0].prompt_token_ids == [1, 2, 3]


def test_api_key_is_sent(server: FakeServer) -> None:
    with vorta.Client(server.target, api_key="vk_1") as client:
        client.server_info()
        assert "vk_1" not in repr(client)
    assert server.metadata[0]["authorization"] == "Bearer vk_1"


def test_unknown_keyword_is_named(client: vorta.Client) -> None:
    with pytest.raises(TypeError, match=r"generate\(\) got an unknown keyword 'max_token'; it takes .*max_tokens"):
        client.generate("hello", max_token=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("options", "error", "name"),
    [
        ({"max_tokens": "three"}, TypeError, "max_tokens"),
        ({"max_tokens": 2**40}, errors.InvalidArgument, "max_tokens"),
        ({"stop_token_ids": [2**40]}, errors.InvalidArgument, "stop_token_ids"),
        ({"stop": 3}, TypeError, "stop"),
        ({"logit_bias": [1]}, TypeError, "logit_bias"),
    ],
)
def test_bad_value_is_named(
    client: vorta.Client, options: dict[str, object], error: type[Exception], name: str
) -> None:
    with pytest.raises(error, match=name):
        client.generate("hello", **options)  # type: ignore[arg-type]


def test_text_that_is_not_unicode_is_refused(client: vorta.Client) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        client.generate("\ud800")
    assert caught.value.field == "prompt"


def test_prompt_of_bytes_is_refused(client: vorta.Client) -> None:
    with pytest.raises(TypeError, match="prompt"):
        client.generate(b"hello")


def test_server_error_arrives_whole(client: vorta.Client) -> None:
    with pytest.raises(errors.InvalidArgument, match="prompt is empty") as caught:
        client.generate("")
    assert (caught.value.reason, caught.value.field) == ("MISSING_FIELD", "prompt")


def test_chat_with_tools(client: vorta.Client, server: FakeServer) -> None:
    weather = {"name": "weather", "parameters": {"type": "object", "required": ["city"], "maximum": 3}}
    got = client.chat(
        [vorta.ChatMessage("system", "be brief"), {"role": "user", "content": "hi"}],
        tools=[vorta.Tool(name="clock"), weather, {"type": "function", "function": weather}],
        max_tokens=2,
        continue_final_message=True,
    )
    assert got.text == text_of("hi", 2)
    assert got.message is not None
    assert [call.name for call in got.message.tool_calls] == ["clock", "weather", "weather"]
    (request,) = server.calls["Chat"]
    assert [message.role for message in request.messages] == ["system", "user"]
    assert request.tools[1].parameters["required"][0] == "city"
    assert request.tools[1] == request.tools[2]
    assert request.continue_final_message


def test_chat_takes_back_its_own_answers(client: vorta.Client, server: FakeServer) -> None:
    got = client.chat("hi", tools=[vorta.Tool(name="clock")])
    assert got.message is not None
    openai = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "id": "1",
              "function": {"name": "f", "arguments": "{}"}}]}  # fmt: skip
    client.chat([got.message, openai, {"role": "tool", "content": "12:00", "tool_call_id": "c1"}])
    request = server.calls["Chat"][1]
    assert request.messages[0].tool_calls[0].name == "clock"
    assert request.messages[1].tool_calls[0].name == "f"


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([{"role": "user", "text": "hi"}], r"messages\[0\] has an unknown key 'text'"),
        ([3], r"messages\[0\] must be"),
        ([{"role": 3}], r"messages\[0\].role cannot be 3"),
    ],
)
def test_bad_message_is_named(client: vorta.Client, messages: list[object], match: str) -> None:
    with pytest.raises(TypeError, match=match):
        client.chat(messages)  # type: ignore[arg-type]


def test_stream(client: vorta.Client, server: FakeServer) -> None:
    with client.stream_generate("hello", max_tokens=4) as stream:
        events = list(stream)
    assert [type(event) for event in events] == [vorta.Started, *[vorta.Delta] * 4, vorta.Finished]
    assert "".join(event.text for event in events) == text_of("hello", 4)
    assert [event.index for event in events] == [0, 1, 2, 3, 4, 5]
    assert stream.finished is events[-1]
    assert not server.calls["CancelGenerate"]
    request = server.calls["StreamGenerate"][0]
    assert (request.resume_window_s, request.request_id) == (10, stream.request_id)


def test_stream_result_equals_generate(client: vorta.Client) -> None:
    whole = client.generate("hello", request_id="r")
    assert client.stream_generate("hello", request_id="r").result() == whole
    stream = client.stream_generate("hello", request_id="r")
    next(stream)
    next(stream)
    assert stream.result() == whole
    assert list(stream) == []


def test_stream_chat_and_texts(client: vorta.Client) -> None:
    assert list(client.stream_chat("hi", max_tokens=2).texts()) == [" hi0", " hi1"]


@pytest.mark.parametrize("merge", [1, 5])
@pytest.mark.parametrize("cut_at", [[0], [1], [3, 7], [NUM_TOKENS + 1], [0, 1, 2, 3, 4, 5]])
def test_cut_stream_equals_the_uncut_one(
    proxied: vorta.Client, proxy: CuttingProxy, server: FakeServer, cut_at: list[int], merge: int
) -> None:
    server.merge = merge
    whole = proxied.stream_generate("hello", request_id="whole").result()
    left = set(cut_at)

    def cut(request_id: str, index: int) -> None:
        if left and index >= min(left):
            left.discard(min(left))
            proxy.cut()

    server.on_event = cut
    stream = proxied.stream_generate("hello", request_id="cut")
    events = list(stream)
    assert proxy.num_cuts == len(cut_at)
    assert [event.index for event in events] == [entry["index"] for entry in server.logs["cut"]]
    got = stream._progress.generation()
    assert (got.text, got.token_ids, got.usage) == (whole.text, whole.token_ids, whole.usage)
    assert len(server.calls["StreamGenerate"]) == 2
    assert server.calls["ResumeGenerate"]
    assert not server.calls["CancelGenerate"]


def test_stream_whose_start_never_arrived(proxied: vorta.Client, proxy: CuttingProxy, server: FakeServer) -> None:
    proxy.is_refusing = True
    stream = proxied.stream_generate("hello")
    threading.Timer(0.05, lambda: setattr(proxy, "is_refusing", False)).start()
    assert stream.result().text == text_of("hello")
    assert len(server.calls["StreamGenerate"]) == 1


def test_cut_stream_without_a_window_fails(proxied: vorta.Client, proxy: CuttingProxy, server: FakeServer) -> None:
    server.on_event = lambda request_id, index: proxy.cut() if index == 3 else None
    stream = proxied.stream_generate("hello", resume_window_s=0)
    with pytest.raises(errors.Unavailable) as caught:
        list(stream)
    assert caught.value.reason == "CONNECTION_FAILED"
    assert not server.calls["ResumeGenerate"]
    assert list(stream) == []


def test_cut_stream_that_the_server_forgot(proxied: vorta.Client, proxy: CuttingProxy, server: FakeServer) -> None:
    ready = threading.Event()

    def cut(request_id: str, index: int) -> None:
        if index == 3:
            ready.wait(10)
            server.forget = True
            proxy.cut()

    server.on_event = cut
    stream = proxied.stream_generate("hello")
    assert isinstance(next(stream), vorta.Started)
    ready.set()
    with pytest.raises(errors.Unavailable, match="cannot be resumed: no such request") as caught:
        list(stream)
    assert isinstance(caught.value.__cause__, errors.NotFound)


def test_resuming_has_an_end(proxied: vorta.Client, proxy: CuttingProxy, server: FakeServer) -> None:
    def cut(request_id: str, index: int) -> None:
        if index == 3:
            proxy.is_refusing = True
            proxy.cut()

    server.on_event = cut
    with pytest.raises(errors.Unavailable):
        proxied.stream_generate("hello").result()


def test_resume_by_id(client: vorta.Client, server: FakeServer) -> None:
    with client.stream_generate("hello") as stream:
        head = [next(stream) for _ in range(4)]
        tail = list(client.resume(stream.request_id, stream.next_index))
    assert "".join(event.text for event in [*head, *tail]) == text_of("hello")


def test_resume_of_an_unknown_request(client: vorta.Client) -> None:
    with pytest.raises(errors.NotFound):
        list(client.resume("unknown"))


def test_closing_early_cancels(client: vorta.Client, server: FakeServer) -> None:
    gate = threading.Event()
    server.on_event = lambda request_id, index: (index > 3 and gate.wait(10)) and None
    with client.stream_generate("hello") as stream:
        for event in stream:
            if event.index == 2:
                break
    assert server.calls["CancelGenerate"][0].request_id == stream.request_id
    gate.set()
    stream.close()
    assert len(server.calls["CancelGenerate"]) == 1
    assert list(stream) == []


def test_a_dropped_stream_is_cancelled(client: vorta.Client, server: FakeServer) -> None:
    server.on_event = lambda request_id, index: (index > 3 and server.cancelled[request_id].wait(10)) and None
    for event in client.stream_generate("hello", request_id="dropped"):
        if event.index == 2:
            break
    assert server.cancelled["dropped"].wait(10)


def test_a_stream_dropped_after_its_client_is_silent(server: FakeServer) -> None:
    server.on_event = lambda request_id, index: (index > 1 and server.block.wait(10)) and None
    client = vorta.Client(server.target)
    stream = client.stream_generate("hello")
    next(stream)
    client.close()
    del stream
    server.block.set()


def test_closing_from_another_thread_ends_the_reader(client: vorta.Client, server: FakeServer) -> None:
    server.on_event = lambda request_id, index: (index > 1 and server.block.wait(10)) and None
    stream = client.stream_generate("hello")
    next(stream)
    threading.Timer(0.05, stream.close).start()
    assert all(isinstance(event, vorta.Delta) for event in stream)
    assert stream.finished is None
    server.block.set()


def test_cancel_ends_the_stream_with_an_event(client: vorta.Client, server: FakeServer) -> None:
    server.on_event = lambda request_id, index: (index > 3 and server.cancelled[request_id].wait(10)) and None
    stream = client.stream_generate("hello")
    next(stream)
    stream.cancel()
    assert list(stream)[-1] == stream.finished
    assert stream.finished is not None
    assert stream.finished.finish_reason is vorta.FinishReason.CANCELLED
    stream.cancel()
    assert len(server.calls["CancelGenerate"]) == 1


def test_cancel_by_id_of_an_unknown_request(client: vorta.Client) -> None:
    with pytest.raises(errors.NotFound):
        client.cancel("unknown")


@pytest.mark.parametrize(
    ("reason", "request_error", "error", "name"),
    [
        ("FINISH_REASON_DEADLINE", None, errors.DeadlineExceeded, "DEADLINE_EXCEEDED"),
        ("FINISH_REASON_DRAINING", None, errors.Unavailable, "DRAINING"),
        ("FINISH_REASON_ERROR", None, errors.Internal, "INTERNAL"),
        (
            "FINISH_REASON_ERROR",
            {"reason": "WORKER_DIED", "message": "gone", "retryable": True},
            errors.Unavailable,
            "WORKER_DIED",
        ),
    ],
)
def test_a_request_that_did_not_run_to_its_end_raises(
    client: vorta.Client,
    server: FakeServer,
    reason: str,
    request_error: dict[str, object] | None,
    error: type[errors.VortaError],
    name: str,
) -> None:
    from vorta.v1 import common_pb2

    server.finish_reason = common_pb2.FinishReason.Value(reason)
    server.stream_error = common_pb2.RequestError(**request_error) if request_error else None
    stream = client.stream_generate("hello")
    seen = []
    with pytest.raises(error) as caught:
        seen.extend(stream)
    assert caught.value.reason == name
    assert stream.finished is not None
    assert stream.finished.usage.completion_tokens == NUM_TOKENS


def test_idempotent_calls_are_retried(client: vorta.Client, server: FakeServer) -> None:
    server.fail_next("Generate", *[errors.Unavailable("loading", retry_delay_s=0.001)] * 3)
    assert client.generate("hello").text == text_of("hello")
    assert len(server.calls["Generate"]) == 4


def test_retries_have_an_end(client: vorta.Client, server: FakeServer) -> None:
    server.fail_next("Generate", *[errors.Unavailable("loading")] * 9)
    with pytest.raises(errors.Unavailable, match="loading"):
        client.generate("hello")
    assert len(server.calls["Generate"]) == 4


def test_other_errors_are_not_retried(client: vorta.Client, server: FakeServer) -> None:
    server.fail_next("Generate", errors.ResourceExhausted("full", retry_delay_s=0.001))
    with pytest.raises(errors.ResourceExhausted):
        client.generate("hello")
    assert len(server.calls["Generate"]) == 1


def test_streams_are_not_retried(client: vorta.Client, server: FakeServer) -> None:
    server.fail_next("StreamGenerate", errors.Unavailable("loading", retry_delay_s=0.001))
    with pytest.raises(errors.Unavailable, match="loading"):
        list(client.stream_generate("hello"))
    assert len(server.calls["StreamGenerate"]) == 1


def test_a_wait_that_passes_the_deadline_is_not_begun(client: vorta.Client, server: FakeServer) -> None:
    server.fail_next("Generate", errors.Unavailable("loading", retry_delay_s=3000))
    with pytest.raises(errors.Unavailable):
        client.generate("hello", timeout_s=10)


def test_deadline(client: vorta.Client, server: FakeServer) -> None:
    with pytest.raises(errors.DeadlineExceeded):
        client.generate("block", timeout_s=0.05)
    server.on_event = lambda request_id, index: (index > 1 and server.block.wait(10)) and None
    stream = client.stream_generate("hello", timeout_s=0.3)
    with pytest.raises(errors.DeadlineExceeded):
        list(stream)


def test_nobody_listens() -> None:
    with vorta.Client("localhost:1", retry=FAST) as client, pytest.raises(errors.Unavailable) as caught:
        client.generate("hello")
    assert caught.value.reason == "CONNECTION_FAILED"


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan")])
def test_bad_timeout(client: vorta.Client, timeout_s: float) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        client.generate("hello", timeout_s=timeout_s)
    assert caught.value.field == "timeout_s"


def test_bad_arguments_of_the_client() -> None:
    with pytest.raises(errors.InvalidArgument, match="target"):
        vorta.Client("")
    with pytest.raises(errors.InvalidArgument, match="api_key"):
        vorta.Client(api_key="with\nnewline")


def test_closed_client(server: FakeServer) -> None:
    client = vorta.Client(server.target)
    client.close()
    client.close()
    with pytest.raises(errors.Cancelled, match="closed"):
        client.generate("hello")
    with pytest.raises(errors.Cancelled, match="closed"):
        client.stream_generate("hello")


def test_tls(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    subprocess.run([openssl, *words.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    server = FakeServer(credentials)
    try:
        for tls in (certificate.read_bytes(), grpc.ssl_channel_credentials(certificate.read_bytes())):
            with vorta.Client(server.target, tls=tls) as client:
                assert client.generate("hello").text == text_of("hello")
        with vorta.Client(server.target, tls=True, retry=FAST) as client, pytest.raises(errors.Unavailable):
            client.generate("hello")
    finally:
        server.close()


def test_tokens(client: vorta.Client) -> None:
    got = client.tokenize("ab")
    assert (got.token_ids, got.tokens, got.count, got.max_model_len) == ((97, 98), ("a", "b"), 2, 99)
    assert client.tokenize([{"role": "user", "content": "xyz"}]).count == 3
    assert client.detokenize(got.token_ids) == "ab"


def test_administration(client: vorta.Client, server: FakeServer) -> None:
    (model,) = client.models()
    assert model == client.model("tiny")
    assert (model.kind, model.state, model.parameter_count) == ("generation", "serving", 5_000_000)
    assert model.load is not None
    assert model.load.kv_use == 0.25
    assert client.load_model("big/one", source="/x", max_model_len=64).model == "big/one"
    assert server.calls["LoadModel"][0].max_model_len == 64
    assert client.unload_model("tiny", grace_s=0).state is vorta.ModelState.UNLOADED
    assert server.calls["UnloadModel"][0].HasField("grace_s")
    info = client.server_info()
    assert info.start_time == datetime.fromtimestamp(1_700_000_000, UTC)
    assert info.services == ("vorta.v1.AdminService",)
    with pytest.raises(errors.NotFound) as caught:
        client.model("no")
    assert caught.value.metadata == {"model": "no"}


def test_health(client: vorta.Client) -> None:
    assert client.health() is vorta.HealthStatus.SERVING
    assert client.health("sick") is vorta.HealthStatus.NOT_SERVING
    with pytest.raises(errors.NotFound):
        client.health("unknown")


@given(failures=st.lists(st.sampled_from(["retry", "fatal"]), max_size=4))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_first_error_that_is_not_worth_repeating_is_raised(
    client: vorta.Client, server: FakeServer, failures: list[str]
) -> None:
    kinds = {"retry": errors.Unavailable("again"), "fatal": errors.Internal("broken")}
    server._failures["Tokenize"] = [kinds[kind] for kind in failures]
    server.calls["Tokenize"].clear()
    fatal_at = failures.index("fatal") if "fatal" in failures else 4
    expected = min(fatal_at + 1, len(failures) + 1, 4)
    outcome: type[Exception] | None = None
    try:
        client.tokenize("x")
    except errors.VortaError as error:
        outcome = type(error)
    gives_up = errors.Unavailable if len(failures) == 4 else None
    assert outcome is (errors.Internal if fatal_at < 4 else gives_up)
    assert len(server.calls["Tokenize"]) == expected
