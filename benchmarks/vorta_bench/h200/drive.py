"""Drives a runner as the engine does, without the engine: prompts into slots, then greedy steps of all rows.

A runner that samples is driven one step ahead of its results, as the engine drives it; of any other the largest logit
is taken here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from vorta_bench.h200.runner import MAX_BATCHED_TOKENS

if TYPE_CHECKING:
    from vorta_server.engine.runner import ModelRunner, SamplingRunner, StepResult

__all__ = ["decode_s", "given_logits", "prefill_s", "random_prompts"]

_NONE = np.zeros(0, np.int64)


def random_prompts(num_prompts: int, num_tokens: int, vocab_size: int, seed: int = 0) -> Any:
    """int64 [num_prompts, num_tokens], no two alike."""
    return np.random.default_rng(seed).integers(2, vocab_size, (num_prompts, num_tokens))


def prefill_s(runner: ModelRunner, prompts: Any, *, max_step_tokens: int = MAX_BATCHED_TOKENS) -> tuple[float, Any]:
    """Writes prompt i into slot i, several prompts a step, up to `max_step_tokens` tokens.

    Returns the seconds, and the greedy first token of each, int64 [num_prompts].
    """
    from vorta_server.engine.runner import LogitsWanted, PrefillChunk, StepBatch

    num_prompts, num_tokens = prompts.shape
    together = max(1, max_step_tokens // num_tokens)
    first = np.zeros(num_prompts, np.int64)
    begin_s = time.perf_counter()
    for start in range(0, num_prompts, together):
        slots = range(start, min(start + together, num_prompts))
        chunks = [
            PrefillChunk(slot=slot, token_ids=prompts[slot], num_past=0, logits=LogitsWanted.LAST, is_last=True)
            for slot in slots
        ]
        batch = StepBatch(prefills=chunks, decode_token_ids=_NONE, decode_lengths=_NONE)
        if runner.info.samples:
            batch.draws = _greedy(len(chunks), _NONE)
            first[slots.start : slots.stop] = cast("SamplingRunner", runner).launch(batch)().token_ids
            continue
        result = runner.run(batch)
        for slot, logits in zip(slots, result.prefill_logits, strict=True):
            assert logits is not None
            first[slot] = logits[0].argmax()
    return time.perf_counter() - begin_s, first


def decode_s(runner: ModelRunner, first: Any, length: int, num_steps: int) -> float:
    """Seconds of `num_steps` greedy steps of rows that hold `length` tokens each; row i begins with first[i].

    The slots' later tokens are overwritten, so that windows may be repeated.
    """
    lengths = np.full(len(first), length, np.int64)
    begin_s = time.perf_counter()
    if runner.info.samples:
        _decode_ahead(cast("SamplingRunner", runner), first, lengths, num_steps)
    else:
        _decode_in_turn(runner, first, lengths, num_steps)
    return time.perf_counter() - begin_s


def given_logits(runner: ModelRunner, token_ids: Any, num_prompt: int) -> Any:
    """Logits of every position of one text, float32 [num_tokens, vocab_size]: its first `num_prompt` tokens at once,
    the rest in decode steps."""
    from vorta_server.engine.runner import LogitsWanted, PrefillChunk, StepBatch

    chunk = PrefillChunk(slot=0, token_ids=token_ids[:num_prompt], num_past=0, logits=LogitsWanted.ALL, is_last=True)
    found = runner.run(StepBatch(prefills=[chunk], decode_token_ids=_NONE, decode_lengths=_NONE)).prefill_logits[0]
    assert found is not None
    rows = [found.copy()]
    for length in range(num_prompt, len(token_ids)):
        token = token_ids[length : length + 1]
        result = runner.run(StepBatch(prefills=(), decode_token_ids=token, decode_lengths=np.array([length])))
        assert result.decode_logits is not None
        rows.append(result.decode_logits.copy())
    return np.concatenate(rows)


def _decode_in_turn(runner: ModelRunner, token_ids: Any, lengths: Any, num_steps: int) -> None:
    from vorta_server.engine.runner import StepBatch

    for _ in range(num_steps):
        result = runner.run(StepBatch(prefills=(), decode_token_ids=token_ids, decode_lengths=lengths))
        assert result.decode_logits is not None
        token_ids, lengths = result.decode_logits.argmax(1), lengths + 1


def _decode_ahead(runner: SamplingRunner, token_ids: Any, lengths: Any, num_steps: int) -> None:
    from vorta_server.engine.runner import StepBatch

    num_rows = len(lengths)
    waiting: Callable[[], StepResult] | None = None
    for step in range(num_steps):
        # From the second step on, row i takes the token that the step before chose for it.
        sources = np.full(num_rows, -1) if step == 0 else np.arange(num_rows)
        batch = StepBatch(
            prefills=(), decode_token_ids=token_ids, decode_lengths=lengths, draws=_greedy(num_rows, sources)
        )
        launched = runner.launch(batch)
        if waiting is not None:
            waiting()
        waiting, lengths = launched, lengths + 1
    if waiting is not None:
        waiting()


def _greedy(num_outputs: int, sources: Any) -> Any:
    from vorta_server.engine.runner import Draws

    zeros = np.zeros(num_outputs, np.float32)
    return Draws(
        temperature=zeros,
        top_k=np.zeros(num_outputs, np.int32),
        top_p=np.ones(num_outputs, np.float32),
        min_p=zeros,
        uniforms=zeros,
        on_host=_NONE,
        sources=sources.astype(np.int32),
    )
