"""The host of calls over a real socket, with a service that the test answers for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from vorta.errors import FailedPrecondition, Internal, InvalidArgument, ResourceExhausted, Unavailable
from vorta_server.engine.request import Finished, SamplingParams
from vorta_server.vectors import operation as op
from vorta_server.workers.call_host import Call, CallHost
from vorta_server.workers.channel import WorkerChannel
from vorta_server.workers.protocol import (
    Embed,
    EmbedReply,
    ModelCard,
    Prompt,
    Score,
    ScoreReply,
    Stats,
    Submit,
    VectorReply,
)
from vorta_server.workers.transport import WorkerTransport

CARD = ModelCard(model="calls", kind="embedding", architecture="Fake", precision="fp32", device="cpu", dimension=3)


class Service:
    """Answers by what the first text says; keeps "wait" calls until it is told."""

    def __init__(self) -> None:
        self.waiting: list[Call] = []
        self.cancelled: list[Call] = []
        self.together: list[int] = []
        self.num_new = 0
        self.is_awaited = threading.Event()
        self.is_closed = False

    @property
    def has_work(self) -> bool:
        return self.num_new > 0

    @property
    def num_pending(self) -> int:
        return len(self.waiting)

    def submit(self, call: Call) -> None:
        self.num_new += 1
        message = call.message
        if isinstance(message, Embed):
            match message.texts[0]:
                case "bad":
                    raise InvalidArgument("bad", field="inputs[0]")
                case "bug":
                    raise KeyError("bug")
                case "wait":
                    self.waiting.append(call)
                    return
                case "thread":
                    threading.Timer(0.02, call.reply, (EmbedReply(call_id=message.call_id, dimension=7),)).start()
                    return
                case "busy":  # until the calls behind it have come
                    self.is_awaited.wait(60)
                case "huge":
                    call.reply(EmbedReply(call_id=message.call_id, vectors=b"\0" * (65 << 20)))
                    return
            call.reply(EmbedReply(call_id=message.call_id, vectors=message.texts[0].encode(), dimension=1))
            call.reply(EmbedReply(call_id=message.call_id, vectors=b"a second answer"))
        elif isinstance(message, Score):
            call.reply(ScoreReply(call_id=message.call_id, scores=[0.5] * len(message.documents)))
        else:
            call.reply(VectorReply(call_id=message.call_id, result=op.Counted(count=3)))

    def cancel(self, call: Call) -> None:
        self.cancelled.append(call)
        if call in self.waiting:
            self.waiting.remove(call)

    def step(self) -> None:
        self.together.append(self.num_new)
        self.num_new = 0

    def stats(self) -> Stats:
        return Stats(running=len(self.waiting), waiting=0)

    def close(self) -> None:
        self.is_closed = True


class Hosted:
    """A host on a thread, and channels to it."""

    def __init__(self, folder: Path) -> None:
        self.service = Service()
        self.path = folder / "calls.sock"
        self.host = CallHost(service=self.service, card=CARD, transport=WorkerTransport(self.path))
        self.thread = threading.Thread(target=self.host.run)
        self.thread.start()

    async def connect(self, **options: Any) -> WorkerChannel:
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_unix_connection(lambda: WorkerChannel(**options), str(self.path))
        await channel.hello
        return channel


@pytest.fixture
async def hosted(tmp_path: Path) -> AsyncIterator[Hosted]:
    hosted = Hosted(tmp_path)
    yield hosted
    hosted.host.stop()
    await asyncio.to_thread(hosted.thread.join, 60)
    assert not hosted.thread.is_alive()


async def until(condition: Callable[[], object]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come to be")


def embed(*texts: str) -> Embed:
    return Embed(call_id=0, texts=list(texts))


async def test_calls_are_answered_each_with_its_own(hosted: Hosted) -> None:
    channel = await hosted.connect()
    assert (await channel.hello).card == CARD
    calls = [asyncio.create_task(channel.embed(embed(text))) for text in ("busy", *map(str, range(50)))]
    await asyncio.sleep(0.01)  # all of them are written
    hosted.service.is_awaited.set()
    replies = await asyncio.gather(*calls)
    assert [reply.vectors for reply in replies] == [b"busy", *(str(index).encode() for index in range(50))]
    assert max(hosted.service.together) > 1  # what came together was submitted together
    score = await channel.score(Score(call_id=0, query="q", documents=["a", "b"]))
    assert score.scores == [0.5, 0.5]
    assert (await channel.vector(op.CountPoints(collection="c"))) == op.Counted(count=3)
    assert (await channel.embed(embed("thread"))).dimension == 7


async def test_errors_come_back_as_they_were_raised(hosted: Hosted) -> None:
    channel = await hosted.connect()
    with pytest.raises(InvalidArgument) as caught:
        await channel.embed(embed("bad"))
    assert caught.value.field == "inputs[0]"
    with pytest.raises(Internal):
        await channel.embed(embed("bug"))
    with pytest.raises(ResourceExhausted) as too_large:
        await channel.embed(embed("huge"))
    assert too_large.value.reason == "MESSAGE_TOO_LARGE"
    assert (await channel.embed(embed("goes on"))).vectors == b"goes on"


async def test_what_only_generation_does_is_refused(hosted: Hosted) -> None:
    channel = await hosted.connect()
    with pytest.raises(FailedPrecondition) as caught:
        await channel.tokenize(Prompt(text="x"))
    assert caught.value.reason == "MODEL_KIND_MISMATCH"
    with pytest.raises(FailedPrecondition):
        await channel.detokenize([1], skip_special_tokens=True)
    end: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    channel.submit(Submit(request_id="r", prompt=Prompt(text="x"), sampling=SamplingParams()), end.set_result)
    finished = await asyncio.wait_for(end, 10)
    assert isinstance(finished, Finished)
    assert finished.failure is not None
    assert finished.failure.reason == "MODEL_KIND_MISMATCH"


async def test_cancelled_calls_and_lost_fronts_are_told_to_the_service(hosted: Hosted) -> None:
    channel, other = await hosted.connect(), await hosted.connect()
    first = asyncio.create_task(channel.embed(embed("wait")))
    second = asyncio.create_task(other.embed(embed("wait")))
    await until(lambda: len(hosted.service.waiting) == 2)
    first.cancel()
    await until(lambda: len(hosted.service.cancelled) == 1)
    other.close()
    with pytest.raises(Unavailable):
        await second
    await until(lambda: len(hosted.service.cancelled) == 2)
    assert hosted.service.waiting == []
    assert (await channel.embed(embed("goes on"))).vectors == b"goes on"


async def test_draining_answers_what_waits_and_ends(tmp_path: Path) -> None:
    hosted = Hosted(tmp_path)
    reports: list[Stats] = []
    channel = await hosted.connect(on_stats=reports.append)
    waiting = asyncio.create_task(channel.embed(embed("wait")))
    await until(lambda: hosted.service.waiting)
    await until(lambda: any(report.running for report in reports))
    channel.drain(2.0)
    with pytest.raises(Unavailable) as refused:
        await channel.embed(embed("late"))
    assert refused.value.reason == "DRAINING"
    with pytest.raises(Unavailable) as ended:
        await waiting
    assert ended.value.reason == "DRAINING"
    await asyncio.to_thread(hosted.thread.join, 60)
    assert hosted.service.is_closed
