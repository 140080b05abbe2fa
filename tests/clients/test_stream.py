"""The sync stream: events, resuming after cuts, cancelling, and what its end stands for."""

from __future__ import annotations

import threading

import pytest

import vorta
from tests.clients.cutting_proxy import CuttingProxy
from tests.clients.fake_server import NUM_TOKENS, FakeServer, text_of
from vorta import errors
from vorta.v1 import common_pb2


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


def test_stream_chat_with_tools_gives_the_message_of_chat(client: vorta.Client) -> None:
    tools = [vorta.Tool(name="clock")]
    message = client.stream_chat("hi", tools=tools).result().message
    assert message is not None
    assert [call.name for call in message.tool_calls] == ["clock"]
    assert message == client.chat("hi", tools=tools).message
    assert client.stream_chat("hi").result().message is None


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
    server.finish_reason = common_pb2.FinishReason.Value(reason)
    server.stream_error = common_pb2.RequestError(**request_error) if request_error else None
    stream = client.stream_generate("hello")
    seen = []
    with pytest.raises(error) as caught:
        seen.extend(stream)
    assert caught.value.reason == name
    assert stream.finished is not None
    assert stream.finished.usage.completion_tokens == NUM_TOKENS
