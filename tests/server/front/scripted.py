"""A scripted worker: the worker's side of the protocol over a Unix socket, its events chosen by the test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from vorta_server.engine.request import Delta, Event, Failure, Finished, FinishReason, SequenceEnd, Started
from vorta_server.workers.channel import WorkerChannel
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
    Stats,
    Step,
    Submit,
    Tokenize,
    TokenizeReply,
    WorkerMessage,
    decode_front_message,
    encode,
)

VOCAB_SIZE = 1000
MAX_MODEL_LEN = 128


def model_card(model: str = "scripted", **changes: object) -> ModelCard:
    """The card of a scripted model."""
    values: dict[str, object] = {
        "model": model,
        "kind": "generation",
        "architecture": "ScriptedForCausalLM",
        "precision": "fp32",
        "device": "cpu",
        "max_model_len": MAX_MODEL_LEN,
        "vocab_size": VOCAB_SIZE,
        "parameter_count": 12,
        "eos_token_ids": [2],
        "has_chat_template": True,
        "max_running_requests": 8,
        "kv_capacity_tokens": 1024,
        "defaults": GenerationDefaults(temperature=0.5, top_p=0.9, top_k=7),
    }
    return ModelCard(**{**values, **changes})  # type: ignore[arg-type]


def stats(**changes: object) -> Stats:
    """A report of an idle worker."""
    names = [name for name in Stats.__struct_fields__ if name != "cancel_to_free_s"]
    return Stats(**{**dict.fromkeys(names, 0), **changes})  # type: ignore[arg-type]


def delta(request_id: str, text: str, token_id: int = 5, sequence_index: int = 0) -> Delta:
    """One token."""
    return Delta(request_id, sequence_index, text, [token_id])


def finished(request_id: str, num_tokens: int, reason: FinishReason = FinishReason.STOP, n: int = 1) -> Finished:
    """A good end."""
    return Finished(
        request_id=request_id,
        finish_reason=reason,
        sequences=[SequenceEnd(reason, 2 if reason is FinishReason.STOP else None, num_tokens // n)] * n,
        prompt_tokens=3,
        completion_tokens=num_tokens,
        queue_s=0.001,
        prefill_s=0.01,
        decode_s=0.09,
        ttft_s=0.011,
        total_s=0.101,
    )


Script = Callable[["ScriptedWorker", Submit], Awaitable[None]]


async def speak(worker: ScriptedWorker, message: Submit) -> None:
    """Answers with up to max_tokens words, one step each."""
    request_id, count = message.request_id, message.sampling.max_tokens or 8
    worker.send_events(Started(request_id, 3))
    for position in range(count):
        await asyncio.sleep(0)
        for index in range(message.sampling.n):
            worker.send_events(delta(request_id, f"w{position} ", position, index))
    worker.send_events(finished(request_id, count * message.sampling.n, FinishReason.LENGTH, message.sampling.n))


async def hang(worker: ScriptedWorker, message: Submit) -> None:
    """Starts, says one word, and ends when it is cancelled."""
    worker.send_events(Started(message.request_id, 3), delta(message.request_id, "first"))


class ScriptedWorker:
    """Listens like a worker. Its lists tell what the front sent."""

    def __init__(self, path: Path, script: Script = speak, card: ModelCard | None = None) -> None:
        self.path = path
        self.script = script
        self.card = card or model_card()
        self.submitted: list[Submit] = []
        self.cancelled: list[str] = []
        self.drained: list[float] = []
        self.tokenized: list[Tokenize] = []
        self.cancel_seen = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._server: asyncio.AbstractServer | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[str] = set()
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begins to listen."""
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))

    async def connect(self, **options: object) -> WorkerChannel:
        """A channel to this worker, greeted."""
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_unix_connection(lambda: WorkerChannel(**options), str(self.path))  # type: ignore[arg-type]
        await channel.hello
        return channel

    async def stop(self) -> None:
        """Dies."""
        for task in list(self._tasks):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._connections:
            await asyncio.wait(self._connections)

    async def wait_submitted(self, count: int = 1) -> None:
        """Returns when so many requests have come."""
        while len(self.submitted) < count:  # noqa: ASYNC110 - a test's loop of one step
            await asyncio.sleep(0)

    def send(self, message: WorkerMessage) -> None:
        """Sends a message to the front."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(bytes(encode(message)))

    def send_events(self, *events: Event) -> None:
        """Sends one step, without the events of requests that have ended."""
        alive = [event for event in events if event.request_id in self._open]
        self._open -= {event.request_id for event in alive if isinstance(event, Finished)}
        if alive:
            self.send(Step(alive))

    def refuse(self, request_id: str, failure: Failure) -> None:
        """Ends a request before it started."""
        self.send_events(
            Finished(request_id=request_id, finish_reason=FinishReason.ERROR, sequences=[], failure=failure)
        )

    def send_raw(self, data: bytes) -> None:
        """Sends bytes that need not be a message."""
        assert self._writer is not None
        self._writer.write(data)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        frames = FrameBuffer()
        self.send(Hello(4242, self.card))
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                for body in frames.feed(data):
                    self._handle(decode_front_message(body))
        writer.close()

    def _handle(self, message: FrontMessage) -> None:
        match message:
            case Submit():
                self.submitted.append(message)
                self._open.add(message.request_id)
                task = asyncio.ensure_future(self.script(self, message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case Cancel():
                self.cancelled.append(message.request_id)
                self.cancel_seen.set()
                self.send_events(finished(message.request_id, 1, FinishReason.CANCELLED))
            case Drain():
                self.drained.append(message.grace_s)
            case Tokenize():
                self.tokenized.append(message)
                text = message.prompt.text or ""
                if text == "refuse":
                    failure = Failure(3, "INVALID_FIELD", "no such text", {"field": "text"})
                    self.send(TokenizeReply(call_id=message.call_id, failure=failure))
                elif text != "hang":
                    reply = TokenizeReply(call_id=message.call_id, token_ids=list(range(len(text))), tokens=list(text))
                    self.send(reply)
            case Detokenize():
                self.send(DetokenizeReply(call_id=message.call_id, text=" ".join(map(str, message.token_ids))))
