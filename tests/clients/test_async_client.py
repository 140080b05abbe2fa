"""The asyncio client: what differs from its twin, and that nothing else does."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator

import pytest

import vorta
from tests.clients.conftest import FAST
from tests.clients.cutting_proxy import CuttingProxy
from tests.clients.fake_server import NUM_TOKENS, FakeServer, text_of
from vorta import errors


@pytest.fixture
async def client(server: FakeServer) -> AsyncIterator[vorta.AsyncClient]:
    async with vorta.AsyncClient(server.target, retry=FAST, timeout_s=20) as client:
        yield client


@pytest.fixture
async def proxied(proxy: CuttingProxy) -> AsyncIterator[vorta.AsyncClient]:
    async with vorta.AsyncClient(proxy.target, retry=FAST, timeout_s=20) as client:
        yield client


def public_signatures(cls: type) -> dict[str, list[str]]:
    names = {"close": "aclose", "__enter__": "__aenter__", "__exit__": "__aexit__"}
    return {
        names.get(name, name): [str(parameter) for parameter in inspect.signature(member).parameters.values()]
        for name, member in vars(cls).items()
        if callable(member) and (not name.startswith("_") or name in (*names, *names.values(), "__init__"))
    }


def test_the_twins_have_the_same_methods() -> None:
    assert public_signatures(vorta.AsyncClient) == public_signatures(vorta.Client)
    collection = public_signatures(vorta.AsyncCollection)
    collection["__init__"] = [text.replace("AsyncTransport", "Transport") for text in collection["__init__"]]
    assert collection == public_signatures(vorta.Collection)
    for asynchronous, sync in (
        (vorta.AsyncStream, vorta.Stream),
        (vorta.AsyncAnswerStream, vorta.AnswerStream),
        (vorta.AsyncResultStream, vorta.ResultStream),
    ):
        assert set(public_signatures(asynchronous)) == set(public_signatures(sync))


async def test_every_call(client: vorta.AsyncClient, server: FakeServer) -> None:
    assert (await client.generate("hello", max_tokens=3)).text == text_of("hello", 3)
    answer = await client.chat("hi", tools=[vorta.Tool(name="clock")])
    assert answer.message is not None
    assert answer.message.tool_calls[0].name == "clock"
    tokens = await client.tokenize("ab")
    assert await client.detokenize(tokens.token_ids) == "ab"
    (model,) = await client.models()
    assert await client.model("tiny") == model
    assert (await client.load_model("x", source="/y")).source == "/y"
    assert (await client.unload_model("tiny")).state is vorta.ModelState.UNLOADED
    assert (await client.server_info()).default_model == "tiny"
    assert await client.health() is vorta.HealthStatus.SERVING
    with pytest.raises(errors.NotFound):
        await client.cancel("unknown")
    with pytest.raises(TypeError, match="max_token"):
        await client.generate("hello", max_token=3)  # type: ignore[call-arg]


async def test_errors_and_retries(client: vorta.AsyncClient, server: FakeServer) -> None:
    server.fail_next("Generate", *[errors.Unavailable("loading", retry_delay_s=0.001)] * 3)
    assert (await client.generate("hello")).text == text_of("hello")
    server.fail_next("Generate", *[errors.Unavailable("loading", retry_delay_s=0.001)] * 4)
    with pytest.raises(errors.Unavailable, match="loading"):
        await client.generate("hello")
    assert len(server.calls["Generate"]) == 8
    with pytest.raises(errors.InvalidArgument) as caught:
        await client.generate("")
    assert (caught.value.reason, caught.value.field) == ("MISSING_FIELD", "prompt")
    with pytest.raises(errors.DeadlineExceeded):
        await client.generate("block", timeout_s=0.05)


async def test_cancelling_the_task_cancels_the_call(client: vorta.AsyncClient, server: FakeServer) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await client.generate("block")


async def test_stream(client: vorta.AsyncClient, server: FakeServer) -> None:
    async with client.stream_chat("hello", max_tokens=4) as stream:
        events = [event async for event in stream]
    assert [event.index for event in events] == [0, 1, 2, 3, 4, 5]
    assert [text async for text in client.stream_generate("hi", max_tokens=2).texts()] == [" hi0", " hi1"]
    assert await client.stream_generate("hello", request_id="r").result() == await client.generate(
        "hello", request_id="r"
    )
    assert not server.calls["CancelGenerate"]


@pytest.mark.parametrize("cut_at", [[0], [1], [3, 7], [NUM_TOKENS + 1], [0, 1, 2, 3, 4, 5]])
async def test_cut_stream_equals_the_uncut_one(
    proxied: vorta.AsyncClient, proxy: CuttingProxy, server: FakeServer, cut_at: list[int]
) -> None:
    left = list(cut_at)

    def cut(request_id: str, index: int) -> None:
        if left and index == left[0]:
            left.pop(0)
            proxy.cut()

    server.on_event = cut
    stream = proxied.stream_generate("hello", request_id="cut")
    events = [event async for event in stream]
    assert proxy.num_cuts == len(cut_at)
    assert [event.index for event in events] == [entry["index"] for entry in server.logs["cut"]]
    assert "".join(event.text for event in events) == text_of("hello")
    assert len(server.calls["StreamGenerate"]) == 1


async def test_stream_whose_start_never_arrived(
    proxied: vorta.AsyncClient, proxy: CuttingProxy, server: FakeServer
) -> None:
    proxy.is_refusing = True
    stream = proxied.stream_generate("hello")
    asyncio.get_running_loop().call_later(0.05, setattr, proxy, "is_refusing", False)
    assert (await stream.result()).text == text_of("hello")
    assert len(server.calls["StreamGenerate"]) == 1


async def test_an_interrupted_reader_loses_nothing(client: vorta.AsyncClient, server: FakeServer) -> None:
    server.on_event = lambda request_id, index: (index > 2 and server.block.wait(10)) and None
    texts = []
    async with client.stream_generate("hello") as stream:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                texts += [event.text async for event in stream]
        server.block.set()
        texts += [event.text async for event in stream]
    assert stream.finished is not None
    assert (await stream.result()).text == text_of("hello")


async def test_an_interrupted_reader_without_a_window_ends(client: vorta.AsyncClient, server: FakeServer) -> None:
    server.on_event = lambda request_id, index: (index > 2 and server.block.wait(10)) and None
    stream = client.stream_generate("hello", resume_window_s=0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await stream.result()
    assert [event async for event in stream] == []


async def test_closing_early_cancels(client: vorta.AsyncClient, server: FakeServer) -> None:
    server.on_event = lambda request_id, index: (index > 3 and server.cancelled[request_id].wait(10)) and None
    async with client.stream_generate("hello") as stream:
        async for event in stream:
            if event.index == 2:
                break
    assert server.calls["CancelGenerate"][0].request_id == stream.request_id
    await stream.aclose()
    assert len(server.calls["CancelGenerate"]) == 1
    assert [event async for event in stream] == []


async def test_a_stream_that_was_never_read_sends_nothing(client: vorta.AsyncClient, server: FakeServer) -> None:
    async with client.stream_generate("hello"):
        pass
    assert not server.calls


async def test_cancel_ends_the_stream_with_an_event(client: vorta.AsyncClient, server: FakeServer) -> None:
    server.on_event = lambda request_id, index: (index > 3 and server.cancelled[request_id].wait(10)) and None
    stream = client.stream_generate("hello")
    await anext(stream)
    await stream.cancel()
    assert (await stream.result()).finish_reason is vorta.FinishReason.CANCELLED


async def test_closing_from_another_task_ends_the_reader(client: vorta.AsyncClient, server: FakeServer) -> None:
    server.on_event = lambda request_id, index: (index > 1 and server.block.wait(10)) and None
    stream = client.stream_generate("hello")
    await anext(stream)

    async def read() -> list[vorta.Event]:
        return [event async for event in stream]

    reader = asyncio.create_task(read())
    await asyncio.sleep(0.05)
    await stream.aclose()
    assert all(isinstance(event, vorta.Delta) for event in await reader)
    server.block.set()


async def test_cut_stream_that_the_server_forgot(
    proxied: vorta.AsyncClient, proxy: CuttingProxy, server: FakeServer
) -> None:
    def cut(request_id: str, index: int) -> None:
        if index == 3:
            server.block.wait(10)
            server.forget = True
            proxy.cut()

    server.on_event = cut
    stream = proxied.stream_generate("hello")
    assert isinstance(await anext(stream), vorta.Started)
    server.block.set()
    with pytest.raises(errors.Unavailable, match="cannot be resumed: no such request"):
        await stream.result()
    assert [event async for event in stream] == []


async def test_resume_by_id(client: vorta.AsyncClient) -> None:
    async with client.stream_generate("hello") as stream:
        head = [await anext(stream) for _ in range(4)]
        tail = [event async for event in client.resume(stream.request_id, stream.next_index)]
        assert "".join(event.text for event in [*head, *tail]) == text_of("hello")


async def test_closed_client(server: FakeServer) -> None:
    client = vorta.AsyncClient(server.target)
    await client.aclose()
    with pytest.raises(errors.Cancelled, match="closed"):
        await client.generate("hello")
    with pytest.raises(errors.Cancelled, match="closed"):
        client.stream_generate("hello")


async def test_many_streams_at_once(client: vorta.AsyncClient) -> None:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(client.stream_generate(f"p{i}").result()) for i in range(8)]
    assert [task.result().text for task in tasks] == [text_of(f"p{i}") for i in range(8)]
