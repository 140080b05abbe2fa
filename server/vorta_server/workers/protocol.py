"""The worker protocol: msgpack messages over a Unix stream socket, each behind a 4-byte little-endian length.

A worker listens; any number of fronts connect. A stream socket, unlike a message queue, tells at once and reliably
when the other side died, and the kernel's buffer is the bound on what is in flight. Worker to front: `Hello` once,
`Stats` now and then. Beside that a generation worker takes `Submit` and `Cancel` and sends `Step` (one message carries
the events of every request of that connection); and calls, which have one reply each: `Tokenize` and `Detokenize`
there, `Embed` and `Score` in an encoder's worker, `VectorCall` in the vector worker; `CancelCall` ends one early.
`Drain` ends any worker.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from vorta_server.engine.request import Event, Failure, SamplingParams
from vorta_server.vectors.operation import Operation, Result

__all__ = [
    "DOCUMENT_PROMPTS",
    "HEADER",
    "MAX_MESSAGE_BYTES",
    "QUERY_PROMPTS",
    "CallMessage",
    "CallReply",
    "Cancel",
    "CancelCall",
    "ChatMessage",
    "Detokenize",
    "DetokenizeReply",
    "Drain",
    "Embed",
    "EmbedReply",
    "FrameBuffer",
    "FrontMessage",
    "GenerationDefaults",
    "Hello",
    "ModelCard",
    "OutputFormat",
    "Prompt",
    "Score",
    "ScoreReply",
    "Stats",
    "Step",
    "Submit",
    "Tokenize",
    "TokenizeReply",
    "ToolCall",
    "ToolSpec",
    "VectorCall",
    "VectorReply",
    "WorkerMessage",
    "decode_front_message",
    "decode_worker_message",
    "encode",
    "failed_reply",
]

# Under what names models know the prompts of a search's two sides.
QUERY_PROMPTS = ("query", "search_query")
DOCUMENT_PROMPTS = ("document", "passage", "search_document")

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


class OutputFormat(msgspec.Struct, array_like=True):
    """What the text must be.

    Attributes:
        kind: "json_object", "json_schema", "regex", "choice", "grammar", or "tool_call" for calls of the prompt's
            tools.
        text: The schema, expression or grammar; the one tool to call, empty for any.
    """

    kind: str
    text: str = ""
    choices: list[str] = []


class Submit(msgspec.Struct, tag="submit", kw_only=True):
    """Starts a request. Answered by `Started`, `Delta`s and one `Finished`, or by `Finished` with a failure alone."""

    request_id: str
    prompt: Prompt
    sampling: SamplingParams
    priority: int = 0
    deadline_s: float | None = None
    output_format: OutputFormat | None = None


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


class Embed(msgspec.Struct, tag="embed", kw_only=True):
    """Asks an encoder for the vectors of texts.

    Attributes:
        texts: Not empty, none of them empty.
        prompt: Put before each text; None for the model's default.
        prompt_name: Name of one of the model's prompts instead.
        pooling: "mean", "cls", "last" or "token"; empty for the model's.
        normalize: Scale to length 1; None for the default, which is yes.
        dimensions: Keep so many numbers of each vector; 0 for all.
        truncate: "right" or "left": the end of a long text that is cut; empty: a long text is an error.
        keep_going: Give each bad text its own failure instead of failing the call.
    """

    call_id: int
    texts: list[str]
    prompt: str | None = None
    prompt_name: str = ""
    pooling: str = ""
    normalize: bool | None = None
    dimensions: int = 0
    truncate: str = ""
    keep_going: bool = False
    deadline_s: float | None = None


class Score(msgspec.Struct, tag="score", kw_only=True):
    """Asks how well documents answer a query: a cross-encoder's scores, or cosines of an embedding model.

    Attributes:
        max_tokens_per_doc: Longer documents are cut; 0 for what the model takes beside the query.
        raw: Without the sigmoid.
    """

    call_id: int
    query: str
    documents: list[str]
    max_tokens_per_doc: int = 0
    raw: bool = False
    deadline_s: float | None = None


class VectorCall(msgspec.Struct, tag="vector", kw_only=True, omit_defaults=True):
    """Asks the vector worker for an operation."""

    call_id: int
    operation: Operation
    deadline_s: float | None = None


class CancelCall(msgspec.Struct, tag="cancel_call"):
    """Nobody waits for this call's reply any more. Unknown ids are ignored."""

    call_id: int


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
    """What a worker serves.

    Attributes:
        kind: "generation", "embedding", "rerank", or "vectors" for the vector worker.
        dimension: Numbers of an embedding model's vectors; 0 for other kinds.
        prompt_names: An embedding model's prompts.
    """

    model: str
    kind: str
    architecture: str
    precision: str
    device: str
    max_model_len: int = 0
    vocab_size: int = 0
    parameter_count: int = 0
    eos_token_ids: list[int] = []
    has_chat_template: bool = False
    max_running_requests: int = 0
    kv_capacity_tokens: int = 0
    defaults: GenerationDefaults = msgspec.field(default_factory=GenerationDefaults)
    dimension: int = 0
    prompt_names: list[str] = []


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
    kv_used_tokens: int = 0
    kv_capacity_tokens: int = 0
    step_count: int = 0
    preemption_count: int = 0
    prompt_token_count: int = 0
    cached_prompt_token_count: int = 0
    generated_token_count: int = 0
    batch_size_sum: int = 0
    step_s_sum: float = 0.0
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


class EmbedReply(msgspec.Struct, tag="embed_reply", kw_only=True):
    """Answers `Embed`.

    Attributes:
        vectors: float32, little-endian: a row for each text without a failure, or for each of its tokens.
        dimension: Numbers of a row.
        token_counts: Of each text as computed; 0 where it failed.
        cut_counts: Tokens of each text that were cut off.
        failures: By text, with `keep_going`.
    """

    call_id: int
    vectors: bytes = b""
    dimension: int = 0
    token_counts: list[int] = []
    cut_counts: list[int] = []
    failures: dict[int, Failure] = {}
    failure: Failure | None = None


class ScoreReply(msgspec.Struct, tag="score_reply", kw_only=True):
    """Answers `Score`: one score for each document, and the tokens computed."""

    call_id: int
    scores: list[float] = []
    token_count: int = 0
    failure: Failure | None = None


class VectorReply(msgspec.Struct, tag="vector_reply", kw_only=True, omit_defaults=True):
    """Answers `VectorCall`."""

    call_id: int
    result: Result | None = None
    failure: Failure | None = None


CallMessage = Embed | Score | VectorCall
CallReply = TokenizeReply | DetokenizeReply | EmbedReply | ScoreReply | VectorReply
FrontMessage = Submit | Cancel | Tokenize | Detokenize | Embed | Score | VectorCall | CancelCall | Drain
WorkerMessage = Hello | Step | Stats | TokenizeReply | DetokenizeReply | EmbedReply | ScoreReply | VectorReply


def failed_reply(message: CallMessage, failure: Failure) -> CallReply:
    """The reply that says why a call failed."""
    if isinstance(message, Embed):
        return EmbedReply(call_id=message.call_id, failure=failure)
    if isinstance(message, Score):
        return ScoreReply(call_id=message.call_id, failure=failure)
    return VectorReply(call_id=message.call_id, failure=failure)


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
        # Mostly nothing waits and what comes is whole frames, which then are cut out where they lie.
        is_waiting = bool(buffer)
        if is_waiting:
            buffer += data
        bodies: list[bytes] = []
        start = 0
        with memoryview(buffer if is_waiting else data) as view:  # one copy of each body, not two
            length = len(view)
            while length - start >= HEADER.size:
                (size,) = HEADER.unpack_from(view, start)
                if size > self._max_message_bytes:
                    raise ValueError(f"frame of {size} bytes exceeds the limit of {self._max_message_bytes}")
                end = start + HEADER.size + size
                if length < end:
                    break
                bodies.append(bytes(view[start + HEADER.size : end]))
                start = end
            if not is_waiting and start < length:
                buffer += view[start:]
        if is_waiting and start:
            del buffer[:start]
        return bodies
