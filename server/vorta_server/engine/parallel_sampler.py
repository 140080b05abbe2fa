"""A sampler that shares large batches among threads. Rows do not depend on each other, so the tokens are the same."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vorta_server.engine.row_state import RowState
from vorta_server.engine.sampler import Sampler, SampleResult, TokenScore

__all__ = ["ParallelSampler"]

_MIN_LOGITS = 1 << 19
"""Below this many logits a batch is sampled before a thread has woken up."""


class ParallelSampler:
    """`Sampler.sample` on parts of the rows at once; numpy works without the interpreter's lock. One thread calls.

    Args:
        vocab_size: Columns of the logits.
        num_threads: Parts of a large batch, at least 1.
    """

    def __init__(self, vocab_size: int, num_threads: int) -> None:
        if num_threads < 1:
            raise ValueError(f"num_threads must be at least 1, got {num_threads}")
        self._samplers = [Sampler(vocab_size) for _ in range(num_threads)]
        self._executor = ThreadPoolExecutor(max(1, num_threads - 1), thread_name_prefix="sample")
        self._rows: Sequence[RowState] = ()
        self._parts: list[Sequence[RowState]] = []

    def sample(self, logits: NDArray[np.float32], rows: Sequence[RowState]) -> SampleResult:
        """Chooses a token for every row; see `Sampler.sample`."""
        if len(self._samplers) == 1 or logits.size < _MIN_LOGITS or len(rows) < len(self._samplers):
            return self._samplers[0].sample(logits, rows)
        if rows is not self._rows or sum(map(len, self._parts)) != len(rows):
            bounds = np.linspace(0, len(rows), len(self._samplers) + 1).astype(int).tolist()
            self._rows = rows
            self._parts = [rows[start:end] for start, end in pairwise(bounds)]
        start = len(self._parts[0])
        futures = []
        for sampler, part in zip(self._samplers[1:], self._parts[1:], strict=True):
            futures.append(self._executor.submit(sampler.sample, logits[start : start + len(part)], part))
            start += len(part)
        results = [self._samplers[0].sample(logits[: len(self._parts[0])], self._parts[0])]
        results += [future.result() for future in futures]
        return self._join(results)

    def _join(self, results: list[SampleResult]) -> SampleResult:
        scores: list[TokenScore | None] | None = None
        if any(result.scores is not None for result in results):
            scores = []
            for result in results:
                scores += result.scores if result.scores is not None else [None] * len(result.token_ids)
        bad_rows: list[int] = []
        start = 0
        for result in results:
            bad_rows += [start + row for row in result.bad_rows]
            start += len(result.token_ids)
        return SampleResult(
            token_ids=np.concatenate([result.token_ids for result in results]), scores=scores, bad_rows=tuple(bad_rows)
        )
