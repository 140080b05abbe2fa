"""The worker protocol: msgpack messages over a Unix stream socket, each behind a 4-byte little-endian length.

A worker listens; any number of fronts connect. A stream socket, unlike a message queue, tells at once and reliably
when the other side died, and the kernel's buffer is the bound on what is in flight. Front to worker: `Submit`,
`Cancel`, `Tokenize`, `Detokenize`, `Drain`. Worker to front: `Hello` once, then `Step` (one message carries the
events of every request of that connection), `Stats`, `TokenizeReply`, `DetokenizeReply`.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from vorta_server.engine.request import Event, Failure, SamplingParams

__all__ = [
    "HEADER",
    "MAX_MESSAGE_BYTES",
    "Cancel",
    "ChatMessage",
    "Detokenize",
    "DetokenizeReply",
    "Drain",
    "FrameBuffer",
    "FrontMessage",
    "GenerationDefaults",
    "Hello",
    "ModelCard",
    "Prompt",
    "Stats",
    "Step",
    "Submit",
    "Tokenize",
    "TokenizeReply",
    "ToolCall",
    "ToolSpec",
    "WorkerMessage",
    "decode_front_message",
    "decode_worker_message",
    "encode",
]

HEADER = struct.Struct("<I")
MAX_MESSAGE_BYTES = 256 * 1024 * 1024


class ToolCall(msgspec.Struct, array_like=True):
    """A tool call of an assistant message; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


class ChatMessage(msgspec.Struct, array_like=True):
    """One message of a conversation."""

    role: str
    content: str
    tool_calls: list[ToolCall] = []
    tool_call_id: str = ""
    name: str = ""


class ToolSpec(msgspec.Struct, array_like=True):
    """A function that the model may call; `parameters` is a JSON Schema."""

    name: str
    description: str
    parameters: dict[str, Any]


class Prompt(msgspec.Struct, array_like=True, kw_only=True):
    """What to continue: exactly one of text, token_ids and messages is set."""

    text: str | None = None
    token_ids: list[int] | None = None
    messages: list[ChatMessage] | None = None
    tools: list[ToolSpec] = []
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = True


class Submit(msgspec.Struct, tag="submit", kw_only=True):
    """Starts a request. Answered by `Started`, `Delta`s and one `Finished`, or by `Finished` with a failure alone."""

    request_id: str
    prompt: Prompt
    sampling: SamplingParams
    priority: int = 0
    deadline_s: float | None = None


class Cancel(msgspec.Struct, tag="cancel"):
    """Ends a request early; it still answers with one `Finished`. Unknown ids are ignored.

    `sent_s` is the front's `time.monotonic()`, from which the worker measures how long the KV memory took to come free.
    """

    request_id: str
    sent_s: float = 0.0


class Tokenize(msgspec.Struct, tag="tokenize", kw_only=True):
    """Asks for the tokens of a prompt."""

    call_id: int
    prompt: Prompt


class Detokenize(msgspec.Struct, tag="detokenize", kw_only=True):
    """Asks for the text of tokens."""

    call_id: int
    token_ids: list[int]
    skip_special_tokens: bool = True


class Drain(msgspec.Struct, tag="drain"):
    """Stops the worker: no new requests, running ones may finish for `grace_s`, then DRAINING; then it exits."""

    grace_s: float


class GenerationDefaults(msgspec.Struct, array_like=True, kw_only=True):
    """Sampling defaults of the model's generation config."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


class ModelCard(msgspec.Struct, kw_only=True):
    """What a worker serves."""

    model: str
    kind: str
    architecture: str
    precision: str
    device: str
    max_model_len: int
    vocab_size: int
    parameter_count: int
    eos_token_ids: list[int]
    has_chat_template: bool
    max_running_requests: int
    kv_capacity_tokens: int
    defaults: GenerationDefaults


class Hello(msgspec.Struct, tag="hello"):
    """The worker is ready."""

    pid: int
    card: ModelCard


class Step(msgspec.Struct, tag="step", gc=False):
    """Events of this connection's requests, in order."""

    events: list[Event]


class Stats(msgspec.Struct, tag="stats", kw_only=True):
    """The worker's state, sent at least once a second while the worker can, and when it changed.

    Counters grow from 0 at the worker's start. `step_count` is the heartbeat: it grows while requests run.
    """

    running: int
    waiting: int
    kv_used_tokens: int
    kv_capacity_tokens: int
    step_count: int
    preemption_count: int
    prompt_token_count: int
    cached_prompt_token_count: int
    generated_token_count: int
    batch_size_sum: int
    step_s_sum: float
    cancel_to_free_s: list[float] = []
    rss_bytes: int = 0


class TokenizeReply(msgspec.Struct, tag="tokenize_reply", kw_only=True):
    """Answers `Tokenize`."""

    call_id: int
    token_ids: list[int] = []
    tokens: list[str] = []
    failure: Failure | None = None


class DetokenizeReply(msgspec.Struct, tag="detokenize_reply", kw_only=True):
    """Answers `Detokenize`."""

    call_id: int
    text: str = ""
    failure: Failure | None = None


FrontMessage = Submit | Cancel | Tokenize | Detokenize | Drain
WorkerMessage = Hello | Step | Stats | TokenizeReply | DetokenizeReply

_encoder = msgspec.msgpack.Encoder()
_front_decoder: msgspec.msgpack.Decoder[FrontMessage] = msgspec.msgpack.Decoder(FrontMessage)
_worker_decoder: msgspec.msgpack.Decoder[WorkerMessage] = msgspec.msgpack.Decoder(WorkerMessage)


def encode(message: FrontMessage | WorkerMessage) -> bytearray:
    """The message as a frame: length, then msgpack."""
    frame = bytearray(HEADER.size)
    _encoder.encode_into(message, frame, HEADER.size)
    HEADER.pack_into(frame, 0, len(frame) - HEADER.size)
    return frame


def decode_front_message(body: bytes | memoryview) -> FrontMessage:
    """Reads a frame's body. Raises msgspec.DecodeError on anything else than a front message."""
    return _front_decoder.decode(body)


def decode_worker_message(body: bytes | memoryview) -> WorkerMessage:
    """Reads a frame's body. Raises msgspec.DecodeError on anything else than a worker message."""
    return _worker_decoder.decode(body)


class FrameBuffer:
    """Cuts a byte stream into frames. Not thread-safe."""

    def __init__(self, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._buffer = bytearray()
        self._max_message_bytes = max_message_bytes

    def feed(self, data: bytes) -> list[bytes]:
        """Adds received bytes and returns the bodies of the frames that are now whole.

        Raises:
            ValueError: A frame announces more than `max_message_bytes`; the stream cannot be trusted.
        """
        buffer = self._buffer
        buffer += data
        bodies: list[bytes] = []
        start = 0
        while len(buffer) - start >= HEADER.size:
            (size,) = HEADER.unpack_from(buffer, start)
            if size > self._max_message_bytes:
                raise ValueError(f"frame of {size} bytes exceeds the limit of {self._max_message_bytes}")
            end = start + HEADER.size + size
            if len(buffer) < end:
                break
            with memoryview(buffer) as view:  # one copy, not two
                bodies.append(bytes(view[start + HEADER.size : end]))
            start = end
        if start:
            del buffer[:start]
        return bodies
