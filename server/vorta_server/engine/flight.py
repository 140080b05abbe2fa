"""A step between its launch and its landing, and the tokens that come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vorta_server.engine.decode_rows import DecodeRows
from vorta_server.engine.runner import StepResult
from vorta_server.engine.sampler import Sampler, SampleResult, TokenScore
from vorta_server.engine.scheduler import SchedulerStep
from vorta_server.engine.sequence import Sequence

__all__ = ["Flight"]


@dataclass(slots=True, kw_only=True)
class Flight:
    """A step between its launch and its landing.

    Attributes:
        ready: The prefilling sequences whose first token it chooses.
        result: Waits for what the step computed.
    """

    plan: SchedulerStep
    rows: DecodeRows
    ready: list[Sequence]
    result: Callable[[], StepResult]

    @property
    def needs_host(self) -> bool:
        """Whether the host chooses some of its tokens, so that the next step cannot be launched before it lands."""
        draws = self.plan.batch.draws
        return draws is not None and len(draws.on_host) > 0

    def choose(self, sampler: Sampler, result: StepResult) -> tuple[SampleResult | None, SampleResult | None]:
        """The tokens of the decode rows and those of the prompts that ended; None where there are none."""
        num_rows, ready = len(self.rows.states), self.ready
        draws = self.plan.batch.draws
        if draws is None:
            decoded = first = None
            if result.decode_logits is not None:
                decoded = sampler.sample(result.decode_logits, self.rows.states)
            if ready:
                by_sequence = {
                    id(sequence): logits
                    for sequence, logits in zip(self.plan.prefilling, result.prefill_logits, strict=True)
                }
                last_rows = [by_sequence[id(sequence)] for sequence in ready]
                logits = np.concatenate([rows[-1:] for rows in last_rows if rows is not None])
                first = sampler.sample(logits, [sequence.row for sequence in ready])
            return decoded, first
        assert result.token_ids is not None
        token_ids, scores = result.token_ids, None
        if len(draws.on_host):
            assert result.host_logits is not None
            states = [*self.rows.states, *(sequence.row for sequence in ready)]
            outputs = draws.on_host.tolist()
            sampled = sampler.sample(result.host_logits, [states[index] for index in outputs])
            token_ids = token_ids.copy()
            token_ids[draws.on_host] = sampled.token_ids
            if sampled.scores is not None:
                by_output = dict(zip(outputs, sampled.scores, strict=True))
                scores = [by_output.get(index) for index in range(len(token_ids))]
        return (
            _part(token_ids, scores, 0, num_rows) if num_rows else None,
            _part(token_ids, scores, num_rows, len(token_ids)) if ready else None,
        )


def _part(token_ids: NDArray[np.int64], scores: list[TokenScore | None] | None, start: int, stop: int) -> SampleResult:
    """Some outputs of a step whose tokens a runner chose."""
    part = token_ids[start:stop]
    return SampleResult(
        token_ids=part,
        scores=None if scores is None else scores[start:stop],
        bad_rows=tuple(np.flatnonzero(part < 0).tolist()),
    )
