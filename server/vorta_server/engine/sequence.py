"""A sequence: one of the n continuations of a request, with all that the engine knows of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from vorta_server.engine.detokenizer import Detokenizer
from vorta_server.engine.request import (
    Failure,
    Finished,
    FinishReason,
    GenerationRequest,
    SequenceEnd,
    TokenLogprob,
)
from vorta_server.engine.row_state import RowState
from vorta_server.engine.stop import StopMatcher

__all__ = ["RunningRequest", "Sequence", "SequenceState"]


class SequenceState(Enum):
    """Where a sequence is. PREFILLING and DECODING sequences own a KV slot; of a LANDING one the last token is computed
    but not known yet."""

    WAITING = 0
    PREFILLING = 1
    DECODING = 2
    LANDING = 3
    FINISHED = 4


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """One continuation of a prompt. The scheduler owns state, slot and num_computed; the engine the rest.

    Attributes:
        index: Which of the request's sequences, from 0.
        order: Arrival number over all requests; breaks ties of priority.
        tokens: int64 [max_len]; the prompt and the generated tokens, `num_tokens` of them valid.
        num_prompt: Tokens of the prompt.
        num_computed: Tokens whose K and V are in the slot, or will be when the launched steps have run.
        num_pending: Tokens that launched steps will choose.
        draw_state: The row of a sampling runner's counts that is the sequence's, where it pays penalties.
        output: Of which output of the last launched step its next token is, while one is pending.
        max_output: Most tokens to generate.
        row: The sampler's state.
        stop: None when the request has no stop strings.
        num_told: Tokens whose text has been handed out, the prompt's included; the rest up to `num_tokens` is held.
    """

    request: RunningRequest
    index: int
    order: int
    tokens: NDArray[np.int64]
    num_tokens: int
    num_prompt: int
    max_output: int
    row: RowState
    detokenizer: Detokenizer
    stop: StopMatcher | None
    wants_prompt_logits: bool = False
    state: SequenceState = SequenceState.WAITING
    slot: int = -1
    num_computed: int = 0
    num_pending: int = 0
    output: int = -1
    draw_state: int = -1
    num_preempted: int = 0
    num_told: int = 0

    @property
    def num_output(self) -> int:
        """Tokens generated so far."""
        return self.num_tokens - self.num_prompt

    @property
    def num_known(self) -> int:
        """Tokens that are known and whose K and V are in the slot."""
        return min(self.num_computed, self.num_tokens)

    @property
    def rank(self) -> tuple[int, int]:
        """Scheduling order: the lower goes first."""
        return (self.request.request.priority, self.order)

    @property
    def is_deterministic(self) -> bool:
        """Whether its tokens must not depend on what else is computed."""
        return self.request.request.sampling.deterministic

    def append(self, token_id: int) -> None:
        """Adds a generated token."""
        self.tokens[self.num_tokens] = token_id
        self.num_tokens += 1


@dataclass(slots=True, kw_only=True, eq=False)
class RunningRequest:
    """A request with its sequences and clocks (`time.monotonic()` values).

    Attributes:
        seed: Of all its sequences, each of which draws from a stream of its own.
        max_output: Most tokens of each sequence.
        sequences: Those that were made so far; siblings of the first follow when it has computed the prompt.
        ends: How each sequence ended, by its index.
    """

    request: GenerationRequest
    seed: int
    max_output: int
    sequences: list[Sequence] = field(default_factory=list)
    ends: dict[int, SequenceEnd] = field(default_factory=dict)
    num_cached_prompt_tokens: int = 0
    scheduled_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    prompt_logprobs: list[TokenLogprob] | None = None

    @property
    def num_sequences(self) -> int:
        """How many sequences the request asked for."""
        return self.request.sampling.n

    @property
    def is_finished(self) -> bool:
        """Whether every sequence has ended."""
        return len(self.ends) == self.num_sequences

    def end_all(self, reason: FinishReason) -> None:
        """Books the end of the sequences that have none, also of siblings that never began."""
        for sequence in self.sequences:
            self.ends.setdefault(sequence.index, SequenceEnd(reason, None, sequence.num_output))
        for index in range(len(self.sequences), self.num_sequences):
            self.ends[index] = SequenceEnd(reason, None, 0)

    def finished(self, now: float, *, reason: FinishReason | None = None, failure: Failure | None = None) -> Finished:
        """Its last event, when every sequence has an end. `reason` where it is not the first sequence's."""
        request = self.request
        scheduled = self.scheduled_s if self.scheduled_s is not None else now
        first = self.first_token_s if self.first_token_s is not None else now
        last = self.last_token_s if self.last_token_s is not None else first
        ends = [self.ends[index] for index in range(self.num_sequences)]
        return Finished(
            request_id=request.request_id,
            finish_reason=reason or ends[0].finish_reason,
            sequences=ends,
            prompt_tokens=len(request.prompt_token_ids),
            completion_tokens=sum(end.num_tokens for end in ends),
            cached_prompt_tokens=self.num_cached_prompt_tokens,
            queue_s=scheduled - request.arrival_s,
            prefill_s=max(0.0, first - scheduled),
            decode_s=max(0.0, last - first),
            ttft_s=first - request.arrival_s if self.first_token_s is not None else 0.0,
            total_s=now - request.arrival_s,
            prompt_logprobs=self.prompt_logprobs,
            failure=failure,
        )
