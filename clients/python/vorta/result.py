"""What the clients return: frozen values, without grpc or protobuf."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

__all__ = [
    "ChatMessage",
    "Delta",
    "Event",
    "FinishReason",
    "Finished",
    "Generation",
    "HealthStatus",
    "Model",
    "ModelKind",
    "ModelLoad",
    "ModelState",
    "RequestError",
    "SequenceOutput",
    "ServerInfo",
    "Started",
    "StopMatch",
    "Timings",
    "TokenAlternative",
    "TokenLogprob",
    "Tokenization",
    "Tool",
    "ToolCall",
    "Usage",
]


class FinishReason(enum.StrEnum):
    """Why a sequence or request ended."""

    UNSPECIFIED = "unspecified"
    """Not ended yet, or a reason that this client does not know."""
    STOP = "stop"
    """An end-of-sequence token, a stop string or a stop token."""
    LENGTH = "length"
    """max_tokens or the model's context length was reached."""
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    DRAINING = "draining"
    """The server shut down first."""
    ERROR = "error"


class ModelState(enum.StrEnum):
    """Where a model is in its life."""

    UNSPECIFIED = "unspecified"
    UNLOADED = "unloaded"
    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"
    FAILED = "failed"


class ModelKind(enum.StrEnum):
    """What a model is for."""

    UNSPECIFIED = "unspecified"
    GENERATION = "generation"
    EMBEDDING = "embedding"
    RERANK = "rerank"


class HealthStatus(enum.StrEnum):
    """grpc.health.v1's ServingStatus."""

    UNKNOWN = "unknown"
    SERVING = "serving"
    NOT_SERVING = "not_serving"
    SERVICE_UNKNOWN = "service_unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call that the model makes."""

    id: str
    name: str
    arguments: str
    """JSON text."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation; `role` is system, user, assistant or tool."""

    role: str
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    """For a tool message: the call that it answers."""
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the model may call; `parameters` is the JSON Schema of its arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StopMatch:
    """What ended a sequence: a stop string, or a stop or end-of-sequence token."""

    stop: str | None = None
    token_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of a request, over all its sequences."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where a request's time went on the server, in seconds."""

    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    ttft_s: float = 0.0
    total_s: float = 0.0
    tokens_per_second: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAlternative:
    """A token that could have stood in a place, and its natural log probability."""

    token_id: int
    token: str
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """A token, its natural log probability (None for the first prompt token), and the likeliest in its place."""

    token_id: int
    token: str
    logprob: float | None
    top: tuple[TokenAlternative, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceOutput:
    """One of the n sequences of a request."""

    sequence_index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_match: StopMatch | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A finished generation. Text, token ids, finish reason and logprobs are those of the first sequence."""

    request_id: str
    model: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    tokens_per_second: float
    stop_match: StopMatch | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    sequences: tuple[SequenceOutput, ...] = ()
    """All sequences in order when n is greater than 1; empty otherwise."""
    message: ChatMessage | None = None
    """From `chat`, and from `stream_chat` with tools: the answer as a message, with its tool calls parsed."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestError:
    """Why a stream ended with finish reason ERROR."""

    reason: str
    message: str
    retryable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The first event of a stream: a worker accepted the request."""

    index: int
    request_id: str
    model: str
    prompt_tokens: int

    @property
    def text(self) -> str:
        """Always empty; every event has a text, so that a loop may print it unseen."""
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """New tokens of one sequence."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    sequence_index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason = FinishReason.UNSPECIFIED
    """Set on a sequence's last delta when n is greater than 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The last event of a stream."""

    index: int
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    stop_match: StopMatch | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    sequences: tuple[SequenceOutput, ...] = ()
    """How each sequence ended when n is greater than 1, without texts; empty otherwise."""
    error: RequestError | None = None
    message: ChatMessage | None = None
    """From `stream_chat` with tools only: the answer as a message, with its tool calls parsed."""

    @property
    def text(self) -> str:
        """Always empty, as in `Started`."""
        return ""


Event = Started | Delta | Finished
"""One event of a stream. `index` grows; `text` is what to print."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenization:
    """Tokens of a text or conversation; `max_model_len` is the model's context length in tokens."""

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    count: int
    max_model_len: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLoad:
    """What a serving model is doing; `kv_use` is a share from 0 to 1."""

    running_requests: int
    waiting_requests: int
    kv_use: float
    restart_count: int
    worker_pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that the server knows."""

    model: str
    kind: ModelKind
    state: ModelState
    source: str
    architecture: str
    precision: str
    device: str
    max_model_len: int
    vocab_size: int
    parameter_count: int
    is_default: bool
    error: str
    """Why it is FAILED; otherwise empty."""
    load_time: datetime | None
    load: ModelLoad | None
    dimension: int = 0
    """Numbers of an embedding model's vectors; 0 for other kinds."""
    prompt_names: tuple[str, ...] = ()
    """Names of an embedding model's prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerInfo:
    """About the server."""

    version: str
    start_time: datetime | None
    default_model: str
    max_message_bytes: int
    is_draining: bool
    services: tuple[str, ...]
    default_embedding_model: str = ""
    default_rerank_model: str = ""
