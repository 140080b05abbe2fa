"""What goes into the engine and what comes out: the values that also cross the worker protocol.

All are msgspec structs, so that a step's events are encoded without a conversion in between.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import msgspec

from vorta.errors import VortaError, error_class

if TYPE_CHECKING:  # it needs numpy, which the front does without
    from vorta_server.engine.constraint import Grammar

__all__ = [
    "Delta",
    "Event",
    "Failure",
    "FinishReason",
    "Finished",
    "GenerationRequest",
    "SamplingParams",
    "SequenceEnd",
    "Started",
    "TokenAlternative",
    "TokenLogprob",
]


class FinishReason(IntEnum):
    """Why a sequence ended. Values equal `vorta.v1.FinishReason`."""

    STOP = 1
    LENGTH = 2
    CANCELLED = 3
    DEADLINE = 4
    DRAINING = 5
    ERROR = 6


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """How to choose tokens; every value resolved and checked (the front's conversion does both).

    Attributes:
        max_tokens: Most tokens to generate; None until resolved against the context by the worker.
        logprobs, prompt_logprobs: Alternatives to report, 0 to 20; None for no log probabilities.
        seed: None lets the engine draw one.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    n: int = 1
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: bool = False
    deterministic: bool = False
    skip_special_tokens: bool = True


class GenerationRequest(msgspec.Struct, kw_only=True):
    """A tokenized request, as the engine takes it.

    Attributes:
        prompt_token_ids: At least one token id below the vocabulary size.
        priority: Lower is scheduled first.
        deadline_s: `time.monotonic()` value after which the request is worthless; None for none. The clock is the
            system's, equal in all processes of a machine.
        arrival_s: `time.monotonic()` when the worker received it.
        grammar: What the text must be; None for any text.
    """

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    priority: int = 0
    deadline_s: float | None = None
    arrival_s: float = 0.0
    grammar: Grammar | None = None


class TokenAlternative(msgspec.Struct, frozen=True, array_like=True):
    """A token and its log probability."""

    token_id: int
    token: str
    logprob: float


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """The log probability of a token in its place; `logprob` is None for the first prompt token."""

    token_id: int
    token: str
    logprob: float | None
    top: tuple[TokenAlternative, ...] = ()


class Started(msgspec.Struct, array_like=True, tag=0, gc=False):
    """The request was accepted and tokenized; its first event."""

    request_id: str
    prompt_tokens: int


class Delta(msgspec.Struct, array_like=True, tag=1, gc=False):
    """New tokens of one sequence. `text` may be empty while a character or a stop string is incomplete.

    `finish_reason` is set on a sequence's last delta when the request has several sequences.
    """

    request_id: str
    sequence_index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None


class SequenceEnd(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How one sequence ended. `stop` is the stop string or token id that matched, None otherwise."""

    finish_reason: FinishReason
    stop: str | int | None
    num_tokens: int


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """Why a request failed: the parts of a `VortaError`."""

    code: int
    reason: str
    message: str
    metadata: dict[str, str] = {}
    retry_delay_s: float | None = None

    @classmethod
    def of(cls, error: VortaError) -> Failure:
        """The error as it crosses the worker protocol."""
        return cls(error.code, error.reason, error.message, error.metadata, error.retry_delay_s)

    def error(self) -> VortaError:
        """The exception that it stands for."""
        return error_class(self.code)(
            self.message, reason=self.reason, metadata=self.metadata, retry_delay_s=self.retry_delay_s
        )


class Finished(msgspec.Struct, array_like=True, tag=2, kw_only=True):
    """The end of a request; its last event, exactly once.

    Attributes:
        finish_reason: Of the first sequence, or of the whole request when it was cut short.
        sequences: One entry per sequence.
        queue_s, prefill_s, decode_s, ttft_s, total_s: As `vorta.v1.Timings`.
        failure: Set when finish_reason is ERROR, or when the request was refused before it started.
    """

    request_id: str
    finish_reason: FinishReason
    sequences: list[SequenceEnd]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_prompt_tokens: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    ttft_s: float = 0.0
    total_s: float = 0.0
    prompt_logprobs: list[TokenLogprob] | None = None
    failure: Failure | None = None


Event = Started | Delta | Finished
