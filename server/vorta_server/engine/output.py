"""From a sampled token to text: detokenization, stop conditions and log probabilities of one sequence."""

from __future__ import annotations

from collections.abc import Sequence as Sequenced
from typing import Protocol

from vorta_server.engine.detokenizer import TokenDecoder
from vorta_server.engine.request import Delta, FinishReason, SequenceEnd, TokenAlternative, TokenLogprob
from vorta_server.engine.runner import FloatArray
from vorta_server.engine.sampler import TokenScore, prompt_logprobs
from vorta_server.engine.sequence import Sequence

__all__ = ["OutputBuilder", "Vocabulary"]


class Vocabulary(TokenDecoder, Protocol):
    """What the engine must know of the tokenizer, besides decoding."""

    @property
    def eos_token_ids(self) -> Sequenced[int]:
        """The tokens that end a text."""
        ...

    def token_text(self, token_id: int) -> str:
        """The text of one token, U+FFFD for bytes that are not UTF-8 by themselves."""
        ...


class OutputBuilder:
    """Turns tokens into deltas. Engine thread only."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._eos_token_ids = frozenset(vocabulary.eos_token_ids)

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The tokens that end a text."""
        return self._eos_token_ids

    def release(self, sequence: Sequence) -> Delta | None:
        """The tokens that were appended without `take`; None when there are none. Such tokens end nothing."""
        start, end = sequence.num_told, sequence.num_tokens
        if start == end:
            return None
        sequence.num_told = end
        token_ids: list[int] = sequence.tokens[start:end].tolist()
        text = sequence.detokenizer.add(token_ids)
        return Delta(sequence.request.request.request_id, sequence.index, text, token_ids)

    def take(self, sequence: Sequence, token_id: int, score: TokenScore | None) -> tuple[Delta, SequenceEnd | None]:
        """Appends a token to the sequence. Returns its delta, with what was held before it, and, when it was the last,
        how the sequence ended."""
        held = self.release(sequence)
        delta, end = self._take(sequence, token_id, score)
        if held is not None:
            delta.text = held.text + delta.text
            delta.token_ids = held.token_ids + delta.token_ids
        return delta, end

    def _take(self, sequence: Sequence, token_id: int, score: TokenScore | None) -> tuple[Delta, SequenceEnd | None]:
        sampling = sequence.request.request.sampling
        sequence.append(token_id)
        sequence.num_told = sequence.num_tokens
        num_output = sequence.num_output
        reason, matched, text = self._read(sequence, token_id)
        if reason is None and sequence.row.is_complete:
            reason = FinishReason.STOP
        if reason is None and num_output >= sequence.max_output:
            reason = FinishReason.LENGTH
        if reason is not None and not isinstance(matched, str):
            rest, late_match = self._flush(sequence)
            text += rest
            if late_match is not None:
                reason, matched = FinishReason.STOP, late_match
        if sampling.echo and num_output == 1:
            prompt = sequence.tokens[: sequence.num_prompt].tolist()
            text = self._vocabulary.decode(prompt, sampling.skip_special_tokens) + text
        delta = Delta(sequence.request.request.request_id, sequence.index, text, [token_id])
        if score is not None:
            delta.logprobs = [self._logprob(token_id, score)]
        if reason is None:
            return delta, None
        if sequence.request.num_sequences > 1:
            delta.finish_reason = reason
        return delta, SequenceEnd(reason, matched, num_output)

    def score_prompt(self, sequence: Sequence, logits: FloatArray, num_past: int) -> None:
        """Books the log probabilities of the prompt tokens that follow a chunk's positions.

        Args:
            logits: float32 [num_tokens, vocab_size] of the chunk.
            num_past: Tokens of the sequence before the chunk.
        """
        request = sequence.request
        top_n = request.request.sampling.prompt_logprobs or 0
        if request.prompt_logprobs is None or num_past == 0:  # again after a preemption
            first = int(sequence.tokens[0])
            request.prompt_logprobs = [TokenLogprob(first, self._vocabulary.token_text(first), None)]
        start = num_past + 1
        targets = sequence.tokens[start : min(start + len(logits), sequence.num_prompt)]
        if len(targets):
            scores = prompt_logprobs(logits[: len(targets)], targets, top_n)
            request.prompt_logprobs += [
                self._logprob(token_id, score) for token_id, score in zip(targets.tolist(), scores, strict=True)
            ]

    def _read(self, sequence: Sequence, token_id: int) -> tuple[FinishReason | None, str | int | None, str]:
        """The token's text, and whether it or the text ends the sequence."""
        sampling = sequence.request.request.sampling
        reason: FinishReason | None = None
        matched: str | int | None = None
        is_eos = token_id in self._eos_token_ids and not sampling.ignore_eos
        if is_eos or token_id in sampling.stop_token_ids:
            reason, matched = FinishReason.STOP, token_id
            text = sequence.detokenizer.add([token_id]) if sampling.include_stop else ""
        else:
            text = sequence.detokenizer.add([token_id])
        if sequence.stop is not None and sequence.num_output >= sampling.min_tokens:
            step = sequence.stop.feed(text)
            text = step.emit
            if step.matched is not None:
                reason, matched = FinishReason.STOP, step.matched
        return reason, matched, text

    def _flush(self, sequence: Sequence) -> tuple[str, str | None]:
        """What was held back, and the stop string that turned out to be in it."""
        rest = sequence.detokenizer.flush()
        if sequence.stop is None:
            return rest, None
        step = sequence.stop.feed(rest)
        if step.matched is not None:
            return step.emit, step.matched
        return step.emit + sequence.stop.flush(), None

    def _logprob(self, token_id: int, score: TokenScore) -> TokenLogprob:
        text = self._vocabulary.token_text
        return TokenLogprob(
            token_id,
            text(token_id),
            score.logprob,
            tuple(
                TokenAlternative(other, text(other), value)
                for other, value in zip(score.top_ids.tolist(), score.top_logprobs.tolist(), strict=True)
            ),
        )
