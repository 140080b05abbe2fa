"""Threads change nothing but the time."""

from __future__ import annotations

import numpy as np
import pytest

from vorta_server.engine.parallel_sampler import ParallelSampler
from vorta_server.engine.request import SamplingParams
from vorta_server.engine.row_state import RowState
from vorta_server.engine.sampler import Sampler

VOCAB = 50_000


def rows(count: int) -> list[RowState]:
    kinds = [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=0.8),
        SamplingParams(top_p=0.9, logprobs=3),
        SamplingParams(top_k=40, repetition_penalty=1.2),
        SamplingParams(min_p=0.1),
    ]
    return [
        RowState(kinds[i % len(kinds)], seed=i, prompt_token_ids=[1, 2], vocab_size=VOCAB, eos_token_ids=[0])
        for i in range(count)
    ]


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 13])
def test_same_tokens_scores_and_bad_rows(num_threads: int, count: int) -> None:
    parallel, single = ParallelSampler(VOCAB, num_threads), Sampler(VOCAB)
    mine, theirs = rows(count), rows(count)
    rng = np.random.default_rng(count)
    for step in range(3):
        logits = rng.standard_normal((count, VOCAB)).astype(np.float32) * 3
        if step == 1:
            logits[-1, 7] = np.nan
        got, wanted = parallel.sample(logits.copy(), mine), single.sample(logits.copy(), theirs)
        assert got.token_ids.tolist() == wanted.token_ids.tolist()
        assert got.bad_rows == wanted.bad_rows
        assert [score and score.logprob for score in got.scores or []] == [
            score and score.logprob for score in wanted.scores or []
        ]


def test_no_threads_is_refused() -> None:
    with pytest.raises(ValueError, match="num_threads"):
        ParallelSampler(VOCAB, 0)
