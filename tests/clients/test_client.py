"""The sync client against a scripted server."""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vorta
from tests.clients.conftest import FAST
from tests.clients.fake_server import FakeServer, text_of, tokens_of
from vorta import errors


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
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
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
