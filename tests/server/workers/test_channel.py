"""The front's end of a worker's socket, against a scripted worker."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from tests.server.front import scripted
from tests.server.front.scripted import ScriptedWorker, stats
from vorta.errors import AlreadyExists, InvalidArgument, Unavailable
from vorta_server.engine.request import Finished, FinishReason, SamplingParams
from vorta_server.workers.channel import WorkerChannel
from vorta_server.workers.protocol import HEADER, Prompt, Submit, encode


@pytest.fixture
async def worker(tmp_path: Path):
    scripted_worker = ScriptedWorker(tmp_path / "w.sock")
    await scripted_worker.start()
    yield scripted_worker
    await scripted_worker.stop()


def submit(request_id="r", **sampling):
    return Submit(request_id=request_id, prompt=Prompt(text="x"), sampling=SamplingParams(**sampling))


async def events_of(channel, message):
    events = []
    end = asyncio.get_running_loop().create_future()

    def sink(event):
        events.append(event)
        if isinstance(event, Finished):
            end.set_result(None)

    channel.submit(message, sink)
    async with asyncio.timeout(60):
        await end
    return events


async def test_greeting_and_events_in_order(worker):
    channel = await worker.connect()
    assert channel.hello.result().card.model == "scripted"
    events = await events_of(channel, submit(max_tokens=3))
    assert [type(event).__name__ for event in events] == ["Started", "Delta", "Delta", "Delta", "Finished"]
    assert channel.num_requests == 0
    channel.close()


async def test_an_id_in_use_is_refused(worker):
    worker.script = scripted.hang
    channel = await worker.connect()
    channel.submit(submit(), lambda event: None)
    with pytest.raises(AlreadyExists):
        channel.submit(submit(), lambda event: None)
    channel.close()


async def test_cancel_is_answered_and_unknown_ids_cost_nothing(worker):
    worker.script = scripted.hang
    channel = await worker.connect()
    channel.cancel("nobody")
    task = asyncio.ensure_future(events_of(channel, submit()))
    await worker.wait_submitted()
    channel.cancel("r")
    events = await task
    assert events[-1].finish_reason is FinishReason.CANCELLED
    assert worker.cancelled == ["r"]
    channel.close()


async def test_a_death_ends_each_request_once_and_closes_the_channel(worker):
    worker.script = scripted.hang
    channel = await worker.connect()
    ends = {"a": [], "b": []}
    for request_id, got in ends.items():
        channel.submit(submit(request_id), lambda event, got=got: got.append(event))
    call = asyncio.ensure_future(channel.tokenize(Prompt(text="hang")))
    await worker.wait_submitted(2)
    await worker.stop()
    await channel.closed
    for got in ends.values():
        finished = [event for event in got if isinstance(event, Finished)]
        assert len(finished) == 1
        assert finished[0].failure.reason == "WORKER_DIED"
        assert finished[0].failure.retry_delay_s is not None
    with pytest.raises(Unavailable):
        await call
    assert not channel.is_open
    with pytest.raises(Unavailable) as caught:
        channel.submit(submit(), lambda event: None)
    assert caught.value.reason == "WORKER_DIED"
    with pytest.raises(Unavailable):
        await channel.tokenize(Prompt(text="x"))
    channel.cancel("a")
    channel.drain(1.0)
    channel.close()


async def test_calls_and_their_failures(worker):
    channel = await worker.connect()
    replies = await asyncio.gather(*(channel.tokenize(Prompt(text="x" * n)) for n in range(5)))
    assert [len(reply.token_ids) for reply in replies] == list(range(5))
    assert (await channel.detokenize([1, 2], skip_special_tokens=True)).text == "1 2"
    with pytest.raises(InvalidArgument) as caught:
        await channel.tokenize(Prompt(text="refuse"))
    assert caught.value.field == "text"
    channel.close()


async def test_stats_and_drain(worker):
    seen = []
    channel = await worker.connect(on_stats=seen.append)
    worker.send(stats(running=3))
    channel.drain(7.0)
    await channel.tokenize(Prompt(text="x"))
    assert [report.running for report in seen] == [3]
    assert worker.drained == [7.0]
    channel.close()


@pytest.mark.parametrize("data", [HEADER.pack(2**31), HEADER.pack(3) + b"abc", HEADER.pack(1) + b"\xc0"])
async def test_an_unreadable_message_closes_the_connection(worker, data):
    worker.script = scripted.hang
    channel = await worker.connect()
    got = []
    channel.submit(submit(), got.append)
    await worker.wait_submitted()
    worker.send_raw(data)
    async with asyncio.timeout(60):
        await channel.closed
    assert [event.failure.reason for event in got if isinstance(event, Finished)] == ["WORKER_DIED"]


async def test_what_a_sink_raises_is_not_taken_for_an_unreadable_message():
    channel = WorkerChannel(on_stats=lambda report: int("no number"))
    with pytest.raises(ValueError, match="no number"):
        channel.data_received(bytes(encode(stats())))


async def test_events_of_unknown_requests_are_dropped(worker):
    channel = await worker.connect()
    worker._open.add("ghost")
    worker.send_events(scripted.delta("ghost", "boo"), scripted.finished("ghost", 1))
    assert len(await events_of(channel, submit(max_tokens=1))) == 3
    channel.close()


async def test_a_worker_that_ends_before_its_greeting(tmp_path):
    async def hang_up(reader, writer):
        writer.close()

    server = await asyncio.start_unix_server(hang_up, str(tmp_path / "s"))
    loop = asyncio.get_running_loop()
    _, channel = await loop.create_unix_connection(WorkerChannel, str(tmp_path / "s"))
    with pytest.raises(Unavailable):
        await channel.hello
    server.close()
    with contextlib.suppress(Exception):
        await server.wait_closed()
