"""What the engine refuses, and steps that fail: each request ends once, and the others go on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.server.engine.fakes import PROMPT, Clock, ends_of, expected, make_engine, request, run, tokens_of
from vorta.errors import AlreadyExists, DeadlineExceeded, InvalidArgument, ResourceExhausted
from vorta_server.engine.request import FinishReason
from vorta_server.engine.runner import StepBatch, StepResult


def test_deadline_in_the_past_is_refused() -> None:
    engine, runner = make_engine()
    with pytest.raises(DeadlineExceeded):
        engine.submit(request("a", PROMPT, deadline_s=99.0))
    assert runner.steps == 0


def test_nan_ends_its_own_request_once_and_no_other() -> None:
    engine, runner = make_engine()
    engine.submit(request("a", [7] * 20, n=2))
    engine.submit(request("b", [5] * 20, max_tokens=30))
    for _ in range(4):
        engine.step()
    original = runner.compute

    def poison(batch: StepBatch) -> StepResult:
        result = original(batch)
        if result.decode_logits is not None:
            for row, sequence in enumerate(engine._scheduler._decoding):
                if sequence.request.request.request_id == "a":
                    result.decode_logits[row] = np.nan
        return result

    runner.instead = poison
    events = engine.step()
    runner.instead = None
    assert [end.finish_reason for end in ends_of(events, "a")] == [FinishReason.ERROR]
    events += run(engine)
    assert ends_of(events, "b")[0].finish_reason is FinishReason.LENGTH
    engine.check_integrity()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [64]}, "prompt_token_ids"),
        ({"prompt": [-1]}, "prompt_token_ids"),
        ({"prompt": [1] * 256}, "prompt"),
        ({"prompt": [1] * 200, "max_tokens": 57}, "max_tokens"),
        ({"prompt": [1], "stop_token_ids": (64,)}, "stop_token_ids"),
        ({"prompt": [1], "logit_bias": {99: 1.0}}, "logit_bias"),
    ],
)
def test_bad_requests_name_their_field(options: dict[str, Any], field: str) -> None:
    engine, _ = make_engine()
    with pytest.raises(InvalidArgument) as caught:
        engine.submit(request("a", **options))
    assert caught.value.field == field
    assert not engine.has_work


def test_full_queue_and_double_id_are_refused() -> None:
    engine, _ = make_engine(max_waiting=2)
    engine.submit(request("a", PROMPT))
    with pytest.raises(AlreadyExists):
        engine.submit(request("a", PROMPT))
    engine.submit(request("b", PROMPT))
    with pytest.raises(ResourceExhausted):
        engine.submit(request("c", PROMPT))
    assert len(ends_of(run(engine), "a")) == 1


def test_a_failing_step_ends_every_request_once_and_the_engine_goes_on() -> None:
    engine, runner = make_engine()
    engine.submit(request("a", PROMPT))
    engine.submit(request("b", PROMPT, n=2))

    def broken(batch: StepBatch) -> StepResult:
        raise RuntimeError("device lost")

    runner.instead = broken
    events = engine.step()
    runner.instead = None
    assert engine.num_failures_in_row == 1
    for key in ("a", "b"):
        (end,) = ends_of(events, key)
        assert end.finish_reason is FinishReason.ERROR
        assert end.failure is not None
        assert end.failure.retry_delay_s is not None
    engine.submit(request("c", PROMPT))
    assert tokens_of(run(engine), "c") == expected(runner, PROMPT, 8)
    assert engine.num_failures_in_row == 0
    engine.check_integrity()


def test_prompt_scores_that_are_no_numbers_end_their_own_request() -> None:
    engine, runner = make_engine()
    original = runner.compute

    def poison(batch: StepBatch) -> StepResult:
        result = original(batch)
        for chunk, logits in zip(batch.prefills, result.prefill_logits, strict=True):
            if chunk.token_ids[0] == 7 and logits is not None:
                logits[:] = np.nan
        return result

    runner.instead = poison
    engine.submit(request("scored", [7] * 20, prompt_logprobs=1))
    engine.submit(request("other", PROMPT))
    events = run(engine)
    assert [end.finish_reason for end in ends_of(events, "scored")] == [FinishReason.ERROR]
    assert tokens_of(events, "other") == expected(runner, PROMPT, 8)
    engine.check_integrity()


def test_one_slow_prompt_does_not_refuse_those_to_come() -> None:
    clock = Clock()
    engine, runner = make_engine(clock=clock)
    engine._scheduler.speed.prefill_token_s = 60.0  # as when kernels were compiled in its step
    engine.submit(request("a", PROMPT, deadline_s=clock.now_s + 30))
    with pytest.raises(DeadlineExceeded):
        engine.submit(request("b", PROMPT, deadline_s=clock.now_s + 30))
    assert tokens_of(run(engine), "a") == expected(runner, PROMPT, 8)


@pytest.mark.parametrize("fault", ["nan", "raises"])
def test_a_fault_among_held_tokens_loses_none_of_them(fault: str) -> None:
    engine, runner = make_engine()
    for request_id, prompt in {"a": PROMPT, "b": PROMPT[2:7]}.items():
        engine.submit(request(request_id, prompt, max_tokens=30, ignore_eos=True))
    events = [event for _ in range(12) for event in engine.step(hold=True)]

    def break_step(batch: StepBatch) -> StepResult:
        if fault == "raises":
            raise RuntimeError("broken")
        result = runner.compute(batch)
        assert result.decode_logits is not None
        result.decode_logits[0] = np.nan
        return result

    runner.instead = break_step
    events += engine.step(hold=True)
    runner.instead = None
    (end,) = ends_of(events, "a")
    assert end.finish_reason is FinishReason.ERROR
    assert end.completion_tokens == len(tokens_of(events, "a")) > 8
    events += run(engine, hold=True)
    (other,) = ends_of(events, "b")
    assert other.finish_reason is (FinishReason.LENGTH if fault == "nan" else FinishReason.ERROR)
    tokens = tokens_of(events, "b")
    assert tokens == expected(runner, PROMPT[2:7], 30)[: len(tokens)]
    engine.check_integrity()
