"""The worker host over a real socket, with the engine on the fake runner."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.server.engine.fakes import BookedRunner, Letters, expected, make_engine
from tests.server.engine.test_constraint import Steps
from vorta.errors import InvalidArgument
from vorta_server.engine.engine import Engine
from vorta_server.engine.request import Delta, Event, Finished, FinishReason, SamplingParams, Started
from vorta_server.engine.runner import StepBatch, StepResult
from vorta_server.workers.host import WorkerHost
from vorta_server.workers.pacing import WritePacer
from vorta_server.workers.protocol import (
    Cancel,
    Detokenize,
    DetokenizeReply,
    Drain,
    FrameBuffer,
    FrontMessage,
    GenerationDefaults,
    Hello,
    ModelCard,
    OutputFormat,
    Prompt,
    Stats,
    Step,
    Submit,
    Tokenize,
    TokenizeReply,
    ToolSpec,
    WorkerMessage,
    decode_worker_message,
    encode,
)
from vorta_server.workers.transport import WorkerTransport

CARD = ModelCard(
    model="fake",
    kind="generation",
    architecture="Fake",
    precision="fp32",
    device="cpu",
    max_model_len=256,
    vocab_size=64,
    parameter_count=0,
    eos_token_ids=[0],
    has_chat_template=False,
    max_running_requests=4,
    kv_capacity_tokens=1024,
    defaults=GenerationDefaults(),
)


class LetterCodec(Letters):
    """One token per letter; '!' is refused, and a lock can hold the thread that tokenizes."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()

    def encode(self, prompt: Prompt) -> list[int]:
        if prompt.token_ids is not None:
            return prompt.token_ids
        text = prompt.text or ""
        if len(text) > 2048:
            self.gate.wait(60)
            return [1 + len(text) % 50] * 20
        if "!" in text:
            raise InvalidArgument("no '!' here", field="prompt")
        if "?" in text:
            raise RuntimeError("a bug")
        return [ord(letter) % 59 + 1 for letter in text]


class StepCompiler:
    """Formats whose text is the tokens, "3,4"; a lock can hold the thread that compiles."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.found: dict[str, Steps] = {}
        self.is_closed = False

    def find(self, output_format: OutputFormat, tools: Sequence[ToolSpec]) -> Steps | None:
        return self.found.get(output_format.text)

    def compile(self, output_format: OutputFormat, tools: Sequence[ToolSpec]) -> Steps:
        if (known := self.find(output_format, tools)) is not None:
            return known
        self.gate.wait(60)
        if output_format.text == "bad":
            raise InvalidArgument("no such format", field="response_format.regex")
        steps = [{int(token)} for token in output_format.text.split(",")]
        return self.found.setdefault(output_format.text, Steps(steps))

    def close(self) -> None:
        self.is_closed = True


class Front:
    """A front's end of the socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(path))
        self.socket.settimeout(60)
        self.frames = FrameBuffer()
        self.messages: list[WorkerMessage] = []

    def send(self, *messages: FrontMessage) -> None:
        self.socket.sendall(b"".join(bytes(encode(message)) for message in messages))

    def submit(self, request_id: str, text: str = "abc", *, regex: str | None = None, **options: object) -> None:
        sampling = SamplingParams(**{"temperature": 0.0, "max_tokens": 6, **options})
        asked = None if regex is None else OutputFormat("regex", text=regex)
        self.send(Submit(request_id=request_id, prompt=Prompt(text=text), sampling=sampling, output_format=asked))

    def until(self, condition: Callable[[WorkerMessage], bool]) -> WorkerMessage:
        for message in self.messages:
            if condition(message):
                return message
        while True:
            data = self.socket.recv(1 << 16)
            assert data, "the worker closed the connection"
            found = None
            for body in self.frames.feed(data):
                message = decode_worker_message(body)
                self.messages.append(message)
                if found is None and condition(message):
                    found = message
            if found is not None:
                return found

    def events(self, request_id: str) -> list[Event]:
        """All events of a request, its end included."""

        def has_end(message: WorkerMessage) -> bool:
            return isinstance(message, Step) and any(
                isinstance(event, Finished) and event.request_id == request_id for event in message.events
            )

        self.until(has_end)
        steps = [message for message in self.messages if isinstance(message, Step)]
        return [event for step in steps for event in step.events if event.request_id == request_id]


class Worker:
    """A host in a thread."""

    def __init__(self, folder: Path, **engine: int) -> None:
        self.path = folder / "w.sock"
        self.engine: Engine
        self.runner: BookedRunner
        self.engine, self.runner = make_engine(clock=time.monotonic, **engine)  # type: ignore[arg-type]
        self.codec = LetterCodec()
        self.formats = StepCompiler()
        self.host = WorkerHost(
            engine=self.engine,
            codec=self.codec,
            card=CARD,
            transport=WorkerTransport(self.path),
            formats=self.formats,
            pacer=WritePacer(interval_per_stream_s=0.0, max_interval_s=0.0, min_interval_s=0.01),
        )
        self.thread = threading.Thread(target=self.host.run)
        self.thread.start()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(tmp_path)
    yield worker
    worker.codec.gate.set()
    worker.formats.gate.set()
    worker.host.stop()
    worker.thread.join(60)
    assert not worker.thread.is_alive()
    assert worker.formats.is_closed


@pytest.fixture
def front(worker: Worker) -> Iterator[Front]:
    front = Front(worker.path)
    yield front
    front.socket.close()


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_hello_then_a_request_from_start_to_end(worker: Worker, front: Front) -> None:
    hello = front.until(lambda message: isinstance(message, Hello))
    assert isinstance(hello, Hello)
    assert hello.card == CARD
    front.submit("a", max_tokens=60)
    events = front.events("a")
    assert isinstance(events[0], Started)
    deltas = [event for event in events if isinstance(event, Delta)]
    tokens = [token for delta in deltas for token in delta.token_ids]
    assert tokens == expected(worker.runner, worker.codec.encode(Prompt(text="abc")), 60)
    assert len(deltas) < 60  # later tokens were merged
    assert len(deltas[0].token_ids) == 1  # the first one was not kept waiting
    assert isinstance(events[-1], Finished)


def test_a_refused_prompt_answers_with_its_error_alone(front: Front) -> None:
    front.submit("bad", "oh!")
    (end,) = front.events("bad")
    assert isinstance(end, Finished)
    assert end.failure is not None
    assert end.failure.metadata["field"] == "prompt"
    front.submit("bug", "what?")
    (end,) = front.events("bug")
    assert isinstance(end, Finished)
    assert end.failure is not None
    assert (end.failure.reason, "a bug" in end.failure.message) == ("INTERNAL", False)


def test_cancel_running_and_cancel_unknown(worker: Worker, front: Front) -> None:
    front.submit("a", max_tokens=200, ignore_eos=True)
    front.until(lambda message: isinstance(message, Step))
    front.send(Cancel("nobody"), Cancel("a", time.monotonic()))
    end = front.events("a")[-1]
    assert isinstance(end, Finished)
    assert end.finish_reason in (FinishReason.CANCELLED, FinishReason.LENGTH)
    wait_for(lambda: worker.engine.kv_used_tokens == 0)


def tokens_in(events: list[Event]) -> list[int]:
    return [token for event in events if isinstance(event, Delta) for token in event.token_ids]


def test_a_format_is_compiled_beside_the_loop_and_once(worker: Worker, front: Front) -> None:
    worker.formats.gate.clear()
    front.submit("bound", regex="7,8,9")
    front.submit("free")
    assert len(tokens_in(front.events("free"))) == 6
    front.submit("gone", regex="1")
    front.send(Cancel("gone"))
    (end,) = front.events("gone")
    assert isinstance(end, Finished)
    assert end.finish_reason is FinishReason.CANCELLED
    worker.formats.gate.set()
    assert tokens_in(front.events("bound")) == [7, 8, 9]
    worker.formats.gate.clear()
    front.submit("again", regex="7,8,9")  # known, so nothing is waited for
    assert tokens_in(front.events("again")) == [7, 8, 9]


def test_a_bad_format_answers_with_its_error_alone(front: Front) -> None:
    front.submit("bad", regex="bad")
    (end,) = front.events("bad")
    assert isinstance(end, Finished)
    assert end.failure is not None
    assert end.failure.metadata["field"] == "response_format.regex"


def test_a_long_prompt_is_tokenized_beside_the_loop_and_can_be_cancelled(worker: Worker, front: Front) -> None:
    worker.codec.gate.clear()
    front.submit("long", "x" * 5000)
    front.submit("short")
    assert isinstance(front.events("short")[-1], Finished)
    front.submit("gone", "y" * 5000)
    front.send(Cancel("gone"))
    (end,) = front.events("gone")
    assert isinstance(end, Finished)
    assert end.finish_reason is FinishReason.CANCELLED
    worker.codec.gate.set()
    end = front.events("long")[-1]
    assert isinstance(end, Finished)
    assert end.finish_reason is FinishReason.LENGTH


def test_a_lost_front_frees_its_requests_and_leaves_the_others(worker: Worker, front: Front) -> None:
    other = Front(worker.path)
    other.submit("theirs", max_tokens=240, ignore_eos=True)
    other.until(lambda message: isinstance(message, Step))
    other.socket.close()
    front.submit("ours")
    assert isinstance(front.events("ours")[-1], Finished)
    wait_for(lambda: worker.engine.num_requests == 0)
    assert worker.engine.kv_used_tokens == 0


def test_another_fronts_cancel_is_ignored(worker: Worker, front: Front) -> None:
    other = Front(worker.path)
    other.until(lambda message: isinstance(message, Hello))
    front.submit("a", max_tokens=100)
    other.send(Cancel("a"))
    end = front.events("a")[-1]
    assert isinstance(end, Finished)
    assert end.finish_reason is not FinishReason.CANCELLED
    other.socket.close()


def test_two_fronts_may_use_the_same_id(worker: Worker, front: Front) -> None:
    other = Front(worker.path)
    front.submit("same", "abc", max_tokens=30)
    other.submit("same", "xyz", max_tokens=30)
    for end, text in ((front, "abc"), (other, "xyz")):
        tokens = [token for event in end.events("same") if isinstance(event, Delta) for token in event.token_ids]
        assert tokens == expected(worker.runner, worker.codec.encode(Prompt(text=text)), 30)
    other.socket.close()


def test_tokenize_and_detokenize(front: Front) -> None:
    front.send(Tokenize(call_id=1, prompt=Prompt(text="ab")), Tokenize(call_id=2, prompt=Prompt(text="!")))
    good = front.until(lambda message: isinstance(message, TokenizeReply) and message.call_id == 1)
    bad = front.until(lambda message: isinstance(message, TokenizeReply) and message.call_id == 2)
    assert isinstance(good, TokenizeReply)
    assert isinstance(bad, TokenizeReply)
    assert len(good.token_ids) == len(good.tokens) == 2
    assert bad.failure is not None
    front.send(Detokenize(call_id=3, token_ids=[1, 2]))
    reply = front.until(lambda message: isinstance(message, DetokenizeReply))
    assert isinstance(reply, DetokenizeReply)
    assert reply.text == "bc"


def test_texts_that_wait_are_bounded(worker: Worker, front: Front) -> None:
    worker.codec.gate.clear()
    front.send(*(Tokenize(call_id=i, prompt=Prompt(text="x" * 5000)) for i in range(300)))
    refused = front.until(lambda message: isinstance(message, TokenizeReply) and message.failure is not None)
    assert isinstance(refused, TokenizeReply)
    assert refused.failure is not None
    assert refused.failure.reason == "QUEUE_FULL"
    worker.codec.gate.set()
    front.until(lambda message: isinstance(message, TokenizeReply) and message.call_id == 255)


def test_stats_beat(front: Front) -> None:
    front.submit("a")
    front.events("a")
    stats = front.until(lambda message: isinstance(message, Stats) and message.generated_token_count >= 6)
    assert isinstance(stats, Stats)
    assert stats.step_count > 0
    assert stats.rss_bytes > 0


def test_drain_finishes_what_runs_and_refuses_the_rest(worker: Worker, front: Front) -> None:
    front.submit("running", max_tokens=200)
    front.until(lambda message: isinstance(message, Step))
    late = Submit(request_id="late", prompt=Prompt(text="abc"), sampling=SamplingParams(max_tokens=3))
    front.send(Drain(grace_s=10.0), late)
    assert [
        event.failure.reason for event in front.events("late") if isinstance(event, Finished) and event.failure
    ] == ["DRAINING"]
    end = front.events("running")[-1]
    assert isinstance(end, Finished)
    assert end.finish_reason in (FinishReason.LENGTH, FinishReason.STOP)
    worker.thread.join(60)
    assert not worker.thread.is_alive()
    assert not worker.path.exists()


def test_drain_ends_with_draining_when_the_grace_is_over(tmp_path: Path) -> None:
    worker = Worker(tmp_path)

    def slow(batch: StepBatch) -> StepResult:
        time.sleep(0.02)
        return worker.runner.compute(batch)

    worker.runner.instead = slow
    front = Front(worker.path)
    front.submit("a", max_tokens=200, ignore_eos=True)
    front.until(lambda message: isinstance(message, Step))
    front.send(Drain(grace_s=0.1))
    end = front.events("a")[-1]
    assert isinstance(end, Finished)
    assert end.finish_reason is FinishReason.DRAINING
    worker.thread.join(60)
    front.socket.close()


def test_steps_that_all_fail_end_the_worker_and_every_request_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[BaseException] = []
    run = WorkerHost.run

    def watched(host: WorkerHost) -> None:
        try:
            run(host)
        except RuntimeError as error:
            raised.append(error)

    def broken(batch: StepBatch) -> StepResult:
        raise OSError("the device is gone")

    monkeypatch.setattr(WorkerHost, "run", watched)
    worker = Worker(tmp_path)
    worker.runner.instead = broken
    front = Front(worker.path)
    for number in range(3):
        front.submit(str(number))
        ends = [event for event in front.events(str(number)) if isinstance(event, Finished)]
        assert [end.finish_reason for end in ends] == [FinishReason.ERROR]
    worker.thread.join(60)
    assert not worker.thread.is_alive()
    assert "3 steps failed" in str(raised[0])
    front.socket.close()
