"""Answers from a collection, sync and async, against the scripted server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

import vorta
from tests.clients.conftest import FAST
from tests.clients.cutting_proxy import CuttingProxy
from tests.clients.fake_server import FakeServer
from vorta import errors
from vorta.v1 import common_pb2


@pytest.fixture
async def aclient(server: FakeServer) -> AsyncIterator[vorta.AsyncClient]:
    async with vorta.AsyncClient(server.target, retry=FAST, timeout_s=20) as client:
        yield client


def test_answer(client: vorta.Client, server: FakeServer) -> None:
    stream = client.answer(
        "why is it", "docs", model="m", limit=2, filter={"must": [{"field": "a", "match": 1}]}, temperature=0, stop="x"
    )
    assert (stream.hits, stream.text, stream.cited_ids, stream.finished) == ((), "", (), None)
    events = list(stream)
    kinds = [type(event).__name__ for event in events]
    assert kinds == ["AnswerHits", "Started", "Delta", "Delta", "Delta", "AnswerFinished"]
    assert [event.index for event in events] == [0, 1, 2, 3, 4, 5]
    assert stream.text == "".join(event.text for event in events) == "why is it "
    assert stream.hits[0].payload == {"text": "the sun", "year": 2020}
    assert (stream.cited_ids, stream.finished) == (("p1",), events[-1])
    answer = stream.result()
    assert (str(answer), answer.model, answer.finish_reason) == ("why is it ", "tiny", "stop")
    assert answer.cited_hits == answer.hits == stream.hits
    assert stream.started is not None
    assert stream.request_id == answer.request_id == stream.started.request_id
    (request,) = server.calls["StreamAnswer"]
    assert (request.question, request.collection, request.model, request.limit) == ("why is it", "docs", "m", 2)
    assert (request.HasField("temperature"), request.stop, len(request.filter.must)) == (True, ["x"], 1)


def test_answer_of_a_collection(client: vorta.Client, server: FakeServer) -> None:
    assert list(client.collection("docs").answer("why so", request_id="r").texts()) == ["why ", "so "]
    assert server.calls["StreamAnswer"][0].request_id == "r"
    with pytest.raises(TypeError, match=r"answer\(\) got an unknown keyword 'n'; it takes limit"):
        client.answer("q", "docs", n=2)  # type: ignore[call-arg]


@pytest.mark.parametrize("length", [0, 1, 3])
def test_an_answer_cut_off_is_an_error(client: vorta.Client, server: FakeServer, length: int) -> None:
    server.answer_length = length
    stream = client.answer("why is it", "docs")
    seen = []
    with pytest.raises(errors.Internal, match="without a finished event"):
        seen.extend(stream)
    assert len(seen) in (0, length)
    assert list(stream) == []
    with pytest.raises(errors.Internal, match="not ended"):
        stream.result()


def test_a_broken_connection_ends_the_answer(proxied: vorta.Client, proxy: CuttingProxy, server: FakeServer) -> None:
    server.on_event = lambda request_id, index: proxy.cut() if index == 3 else None
    with pytest.raises(errors.Unavailable) as caught:
        proxied.answer("why is it", "docs").result()
    assert caught.value.reason == "CONNECTION_FAILED"
    assert len(server.calls["StreamAnswer"]) == 1


def test_an_answer_is_not_sent_again(client: vorta.Client, server: FakeServer) -> None:
    server.fail_next("StreamAnswer", errors.Unavailable("loading"))
    with pytest.raises(errors.Unavailable, match="loading"):
        client.answer("q", "docs").result()
    assert len(server.calls["StreamAnswer"]) == 1


def test_a_request_that_did_not_run_to_its_end_raises(client: vorta.Client, server: FakeServer) -> None:
    server.finish_reason = common_pb2.FINISH_REASON_ERROR
    server.stream_error = common_pb2.RequestError(reason="WORKER_DIED", message="gone", retryable=True)
    stream = client.answer("why", "docs")
    with pytest.raises(errors.Unavailable, match="gone") as caught:
        list(stream)
    assert caught.value.reason == "WORKER_DIED"
    assert stream.finished is not None
    assert stream.text == "why "


def test_cancel(client: vorta.Client, server: FakeServer) -> None:
    server.on_event = lambda request_id, index: (index > 2 and server.cancelled[request_id].wait(20)) and None
    stream = client.answer("why is it", "docs")
    next(stream)
    stream.cancel()
    assert stream.result().finish_reason is vorta.FinishReason.CANCELLED
    stream.cancel()
    assert len(server.calls["CancelGenerate"]) == 1


def test_cancel_while_the_search_runs(client: vorta.Client, server: FakeServer) -> None:
    server.fail_next("CancelGenerate", errors.NotFound("no such request", reason="REQUEST_NOT_FOUND"))
    server.on_event = lambda request_id, index: server.block.wait(20) and None
    stream = client.answer("why", "docs")
    threading.Timer(0.05, stream.cancel).start()
    with pytest.raises(errors.Cancelled):
        list(stream)


def test_closing_early_ends_the_call(client: vorta.Client, server: FakeServer) -> None:
    active = threading.Event()
    server.on_event = lambda request_id, index: (index > 2 and active.wait(20)) and None
    with client.answer("why is it", "docs") as stream:
        next(stream)
    assert list(stream) == []
    stream.close()
    active.set()
    assert not server.calls["CancelGenerate"]


async def test_async_answer(aclient: vorta.AsyncClient, server: FakeServer) -> None:
    async with aclient.answer("why is it", "docs") as stream:
        events = [event async for event in stream]
    assert [event.index for event in events] == [0, 1, 2, 3, 4, 5]
    assert (stream.text, stream.cited_ids, stream.hits[0].id) == ("why is it ", ("p1",), "p1")
    assert (await stream.result()).text == "why is it "
    assert [text async for text in aclient.answer("a b", "docs").texts()] == ["a ", "b "]
    await stream.cancel()
    assert not server.calls["CancelGenerate"]


@pytest.mark.parametrize("length", [0, 3])
async def test_an_async_answer_cut_off_is_an_error(aclient: vorta.AsyncClient, server: FakeServer, length: int) -> None:
    server.answer_length = length
    stream = aclient.answer("why is it", "docs")
    with pytest.raises(errors.Internal, match="without a finished event"):
        await stream.result()
    assert [event async for event in stream] == []


async def test_async_failures(aclient: vorta.AsyncClient, server: FakeServer) -> None:
    server.fail_next("StreamAnswer", errors.NotFound("no docs", reason="COLLECTION_NOT_FOUND"))
    with pytest.raises(errors.NotFound, match="no docs"):
        await aclient.answer("q", "docs").result()
    server.finish_reason = common_pb2.FINISH_REASON_DEADLINE
    with pytest.raises(errors.DeadlineExceeded):
        await aclient.answer("q", "docs").result()


async def test_async_cancel(aclient: vorta.AsyncClient, server: FakeServer) -> None:
    server.on_event = lambda request_id, index: (index > 2 and server.cancelled[request_id].wait(20)) and None
    stream = aclient.answer("why is it", "docs")
    await stream.cancel()  # nothing was sent
    await anext(stream)
    await stream.cancel()
    assert (await stream.result()).finish_reason is vorta.FinishReason.CANCELLED
    assert len(server.calls["CancelGenerate"]) == 1


async def test_async_cancel_while_the_search_runs(aclient: vorta.AsyncClient, server: FakeServer) -> None:
    server.fail_next("CancelGenerate", errors.NotFound("no such request", reason="REQUEST_NOT_FOUND"))
    server.on_event = lambda request_id, index: (index > 0 and server.block.wait(20)) and None
    stream = aclient.answer("why", "docs")
    await anext(stream)
    reader: asyncio.Task[Any] = asyncio.create_task(stream.result())
    await asyncio.sleep(0)
    await stream.cancel()
    with pytest.raises(errors.Cancelled):
        await reader


async def test_an_interrupted_reader_ends_the_answer(aclient: vorta.AsyncClient, server: FakeServer) -> None:
    server.on_event = lambda request_id, index: (index > 0 and server.block.wait(20)) and None
    stream = aclient.answer("why", "docs")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await stream.result()
    assert [event async for event in stream] == []
    unread = aclient.answer("why", "docs")
    await unread.aclose()
    assert [event async for event in unread] == []
