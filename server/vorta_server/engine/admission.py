"""Taking requests in: what a request must be for the engine to compute it, and the sequences it becomes."""

from __future__ import annotations

import secrets

import numpy as np
from numpy.typing import NDArray

from vorta.errors import DeadlineExceeded, InvalidArgument
from vorta_server.engine.detokenizer import Detokenizer
from vorta_server.engine.output import Vocabulary
from vorta_server.engine.request import GenerationRequest
from vorta_server.engine.row_state import RowState
from vorta_server.engine.runner import RunnerInfo
from vorta_server.engine.sequence import RunningRequest, Sequence
from vorta_server.engine.stop import StopMatcher

__all__ = ["Admission", "check_deadline"]


class Admission:
    """Checks requests against a model's sizes, and makes their sequences. Engine thread only.

    Args:
        vocabulary: Of the sequences' text.
        info: The model's sizes.
        max_tokens_cap: Most tokens that one request may ask for, and its default where the context has more room.
    """

    def __init__(self, vocabulary: Vocabulary, info: RunnerInfo, *, max_tokens_cap: int) -> None:
        self._vocabulary = vocabulary
        self._max_model_len = info.max_model_len
        self._vocab_size = info.vocab_size
        self._max_tokens_cap = max_tokens_cap
        self._order = 0

    def admit(self, request: GenerationRequest) -> RunningRequest:
        """The request, running. Raises InvalidArgument as `Engine.submit` does."""
        max_output = self._check(request)
        seed = request.sampling.seed if request.sampling.seed is not None else secrets.randbits(63)
        return RunningRequest(request=request, seed=seed, max_output=max_output)

    def new_sequence(self, running: RunningRequest, prompt: NDArray[np.int64]) -> Sequence:
        """The request's next sequence, whose prompt is int64 [num_tokens]."""
        sampling, max_output = running.request.sampling, running.max_output
        index = len(running.sequences)
        tokens = np.empty(len(prompt) + max_output, np.int64)
        tokens[: len(prompt)] = prompt
        self._order += 1
        sequence = Sequence(
            request=running,
            index=index,
            order=self._order,
            tokens=tokens,
            num_tokens=len(prompt),
            num_told=len(prompt),
            num_prompt=len(prompt),
            max_output=max_output,
            row=RowState(
                sampling,
                seed=running.seed,
                stream=index,
                prompt_token_ids=running.request.prompt_token_ids,
                vocab_size=self._vocab_size,
                eos_token_ids=self._vocabulary.eos_token_ids,
                constraint=None if running.request.grammar is None else running.request.grammar.start(),
            ),
            detokenizer=Detokenizer(
                self._vocabulary,
                prompt_tail=running.request.prompt_token_ids[-8:],
                skip_special_tokens=sampling.skip_special_tokens,
            ),
            stop=StopMatcher(sampling.stop, sampling.include_stop) if sampling.stop else None,
            wants_prompt_logits=index == 0 and sampling.prompt_logprobs is not None,
        )
        running.sequences.append(sequence)
        return sequence

    def _check(self, request: GenerationRequest) -> int:
        """Checks the prompt and returns the most tokens to generate."""
        prompt, sampling = request.prompt_token_ids, request.sampling
        field_name = "prompt_token_ids"
        if not prompt:
            raise InvalidArgument("the prompt is empty", reason="MISSING_FIELD", field="prompt")
        low, high = min(prompt), max(prompt)
        if low < 0 or high >= self._vocab_size:
            wrong = low if low < 0 else high
            index = prompt.index(wrong)
            raise InvalidArgument(
                f"{field_name}[{index}] is {wrong}; the vocabulary has {self._vocab_size} tokens",
                field=field_name,
            )
        for name, token_ids in (
            ("stop_token_ids", sampling.stop_token_ids),
            ("logit_bias", sampling.logit_bias),
        ):
            for token_id in token_ids:
                if not 0 <= token_id < self._vocab_size:
                    raise InvalidArgument(
                        f"{name} names token {token_id}; the vocabulary has {self._vocab_size} tokens",
                        field=name,
                    )
        room, asked, cap = self._max_model_len - len(prompt), sampling.max_tokens, self._max_tokens_cap
        if asked is not None and asked > cap:
            raise InvalidArgument(f"max_tokens is {asked}; this server allows {cap}", field="max_tokens")
        if room < (asked or 1):
            raise InvalidArgument(
                f"the prompt has {len(prompt)} tokens and max_tokens is {asked or 1}, together more than the model's "
                f"context of {self._max_model_len}",
                reason="CONTEXT_LENGTH_EXCEEDED",
                field="prompt" if room < 1 else "max_tokens",
                metadata={"prompt_tokens": len(prompt), "max_model_len": self._max_model_len},
            )
        return asked or min(room, cap)


def check_deadline(request: GenerationRequest, now_s: float, prefill_token_s: float) -> None:
    """Raises DeadlineExceeded when the deadline passed, or the prompt alone would outlast it at this speed."""
    if request.deadline_s is None:
        return
    left_s = request.deadline_s - now_s
    needed_s = prefill_token_s * len(request.prompt_token_ids)
    if left_s <= needed_s:
        raise DeadlineExceeded(
            f"the prompt needs about {needed_s:.3f} s and the deadline is {max(left_s, 0.0):.3f} s away"
        )
