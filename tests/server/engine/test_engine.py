"""The engine over the fake runner, whose tokens depend on all of a slot's history: any mix-up of slots shows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.engine.fakes import PROMPT, Clock, ends_of, expected, make_engine, request, run, text_of, tokens_of
from vorta.errors import VortaError
from vorta_server.engine.request import Delta, Finished, FinishReason
from vorta_server.engine.runner import StepBatch, StepResult
from vorta_server.engine.scheduler import SchedulerConfig


def test_tokens_are_the_models() -> None:
    engine, runner = make_engine()
    started = engine.submit(request("a", PROMPT))
    assert started.prompt_tokens == len(PROMPT)
    events = run(engine)
    assert tokens_of(events, "a") == expected(runner, PROMPT, 8)
    (end,) = ends_of(events, "a")
    assert end.finish_reason is FinishReason.LENGTH
    assert (end.prompt_tokens, end.completion_tokens) == (len(PROMPT), 8)
    assert isinstance(events[-1], Finished)
    engine.check_integrity()


def test_a_step_is_launched_before_the_tokens_of_the_last_one_are_known() -> None:
    engine, runner = make_engine(samples=True)
    engine.submit(request("a", PROMPT, max_tokens=8))
    assert engine.step() == []  # the first step's token is known when the second is on its way
    assert runner.steps == 1
    for number in range(1, 8):
        assert len(tokens_of(engine.step(), "a")) == 1
        assert runner.steps == number + 1
    events = engine.step()  # the last token was known to be the last: nothing was computed for it
    assert runner.steps == 8
    assert isinstance(events[-1], Finished)
    assert not engine.has_work


def test_a_row_that_the_host_samples_is_waited_for() -> None:
    engine, runner = make_engine(samples=True)
    engine.submit(request("plain", PROMPT, max_tokens=12))
    engine.submit(request("scored", PROMPT[3:9], max_tokens=6, logprobs=2))
    events = run(engine)
    assert tokens_of(events, "plain") == expected(runner, PROMPT, 12)
    assert tokens_of(events, "scored") == expected(runner, PROMPT[3:9], 6)
    scores = [score for e in events if isinstance(e, Delta) and e.request_id == "scored" for score in e.logprobs or []]
    assert [score.token_id for score in scores] == tokens_of(events, "scored")


@pytest.mark.parametrize("samples", [False, True])
def test_requests_of_different_lengths_do_not_mix(samples: bool) -> None:
    engine, runner = make_engine(max_running=4, max_batched_tokens=16, samples=samples)
    prompts = {f"r{i}": [i + 1] * (3 + 11 * i) for i in range(9)}
    for key, prompt in prompts.items():
        engine.submit(request(key, prompt, max_tokens=5 + len(prompt) % 7))
    events = run(engine)
    for key, prompt in prompts.items():
        assert tokens_of(events, key) == expected(runner, prompt, 5 + len(prompt) % 7)
        assert len(ends_of(events, key)) == 1
    engine.check_integrity()


def test_prefix_is_reused_and_changes_nothing() -> None:
    engine, runner = make_engine()
    engine.submit(request("a", PROMPT))
    first = run(engine)
    longer = PROMPT + tokens_of(first, "a") + [5, 6, 7]
    engine.submit(request("b", longer))
    events = run(engine)
    (end,) = ends_of(events, "b")
    assert end.cached_prompt_tokens >= len(PROMPT) + 7
    assert tokens_of(events, "b") == expected(runner, longer, 8)


def test_siblings_share_the_prompt() -> None:
    engine, runner = make_engine()
    engine.submit(request("a", PROMPT, n=3))
    events = run(engine)
    for index in range(3):
        assert tokens_of(events, "a", index) == expected(runner, PROMPT, 8)
    (end,) = ends_of(events, "a")
    assert len(end.sequences) == 3
    assert end.completion_tokens == 24
    last = [e for e in events if isinstance(e, Delta) and e.finish_reason is not None]
    assert sorted(e.sequence_index for e in last) == [0, 1, 2]


def test_cancel_frees_memory_before_the_next_step() -> None:
    engine, _ = make_engine()
    engine.submit(request("a", PROMPT, max_tokens=100))
    engine.submit(request("b", [3] * 40, max_tokens=100))
    for _ in range(6):
        engine.step()
    (end,) = engine.cancel("a")
    assert isinstance(end, Finished)
    assert end.finish_reason is FinishReason.CANCELLED
    assert engine.cancel("a") == []
    engine.cancel("b")
    assert engine.kv_used_tokens == 0
    engine.check_integrity()


def test_cancel_while_waiting_and_while_prefilling() -> None:
    engine, runner = make_engine(max_running=1, max_batched_tokens=8)
    engine.submit(request("a", PROMPT))
    engine.submit(request("b", PROMPT))
    engine.step()
    engine.cancel("a")
    engine.cancel("b")
    assert not engine.has_work
    engine.submit(request("c", PROMPT))
    assert tokens_of(run(engine), "c") == expected(runner, PROMPT, 8)
    engine.check_integrity()


def test_deadline_ends_a_running_request_with_its_own_reason() -> None:
    clock = Clock()
    engine, _ = make_engine(clock=clock)
    engine.submit(request("a", PROMPT, max_tokens=50, deadline_s=101.0))
    engine.step()
    clock.now_s = 101.5
    events = engine.step()
    (end,) = ends_of(events, "a")
    assert end.finish_reason is FinishReason.DEADLINE
    assert engine.kv_used_tokens == 0


@pytest.mark.parametrize("samples", [False, True])
def test_memory_out_preempts_the_latest_and_every_token_stays_right(samples: bool) -> None:
    engine, runner = make_engine(max_running=4, max_model_len=256, capacity=256, max_batched_tokens=64, samples=samples)
    for i in range(4):
        engine.submit(request(f"r{i}", [i + 1] * 50, max_tokens=60))
    events = run(engine)
    assert engine.num_preemptions > 0
    for i in range(4):
        assert tokens_of(events, f"r{i}") == expected(runner, [i + 1] * 50, 60)
    engine.check_integrity()


def test_better_priority_preempts() -> None:
    engine, runner = make_engine(max_running=1)
    engine.submit(request("low", PROMPT, max_tokens=40, priority=5))
    for _ in range(4):
        engine.step()
    engine.submit(request("high", [9, 8, 7], max_tokens=4, priority=-1))
    events = run(engine)
    order = [event.request_id for event in events if isinstance(event, Finished)]
    assert order == ["high", "low"]
    assert tokens_of(events, "high") == expected(runner, [9, 8, 7], 4)


def test_a_long_prompt_is_cut_into_chunks_beside_running_streams() -> None:
    engine, _ = make_engine(max_batched_tokens=16)
    engine.submit(request("short", [1, 2, 3], max_tokens=60))
    engine.step()
    engine.submit(request("long", [4] * 160, max_tokens=2))
    tokens_between = []
    while not tokens_of(events := engine.step(), "long"):
        tokens_between += tokens_of(events, "short")
    assert len(tokens_between) >= 8  # the short stream got a token in every step of the long prefill


def test_eos_ends_and_ignore_eos_goes_on() -> None:
    engine, runner = make_engine(eos_every=3)
    prompt = next(p for p in ([i, i + 1] for i in range(1, 40)) if 0 in expected(runner, p, 6)[1:])
    engine.submit(request("a", prompt, max_tokens=6))
    engine.submit(request("b", prompt, max_tokens=6, ignore_eos=True))
    events = run(engine)
    tokens = expected(runner, prompt, 6)
    assert tokens_of(events, "a") == tokens[: tokens.index(0) + 1]
    (end,) = ends_of(events, "a")
    assert end.finish_reason is FinishReason.STOP
    assert end.sequences[0].stop == 0
    assert tokens_of(events, "b") == tokens


def test_stop_string_cuts_the_text() -> None:
    engine, runner = make_engine()
    tokens = expected(runner, PROMPT, 20)
    whole = "".join(chr(97 + t % 26) for t in tokens)
    stop = whole[5:7]
    engine.submit(request("a", PROMPT, max_tokens=20, stop=(stop,)))
    events = run(engine)
    assert text_of(events, "a") == whole[: whole.index(stop)]
    assert ends_of(events, "a")[0].sequences[0].stop == stop


def test_echo_and_logprobs() -> None:
    engine, _ = make_engine()
    engine.submit(request("a", PROMPT, echo=True, logprobs=2, prompt_logprobs=1))
    events = run(engine)
    assert text_of(events, "a").startswith("".join(chr(97 + t % 26) for t in PROMPT))
    scores = [score for e in events if isinstance(e, Delta) for score in e.logprobs or []]
    assert len(scores) == 8
    assert all(score.top[0].token_id == score.token_id and len(score.top) == 2 for score in scores)
    (end,) = ends_of(events, "a")
    assert end.prompt_logprobs is not None
    assert [score.token_id for score in end.prompt_logprobs] == PROMPT
    assert end.prompt_logprobs[0].logprob is None


def test_a_deterministic_prompt_is_cut_the_same_way_under_any_load() -> None:
    cuts: dict[bool, list[tuple[int, int]]] = {}
    for is_loaded in (False, True):
        engine, runner = make_engine(max_batched_tokens=40)
        seen = cuts[is_loaded] = []
        original = runner.compute

        def record(batch: StepBatch, run: Callable = original, seen: list = seen) -> StepResult:
            if batch.deterministic:
                seen += [(c.num_past, len(c.token_ids)) for c in batch.prefills if c.token_ids[0] == 7]
            return run(batch)

        runner.instead = record
        if is_loaded:
            engine.submit(request("other", [1] * 100, max_tokens=30))
            engine.submit(request("same", [7] * 100, max_tokens=3))
            for _ in range(5):
                engine.step()
        engine.submit(request("a", [7] * 100, deterministic=True))
        assert tokens_of(run(engine), "a") == expected(runner, [7] * 100, 8)
    assert [cut for cut in cuts[True] if cut in cuts[False]] == cuts[False] == [(0, 32), (32, 32), (64, 32), (96, 4)]


def test_prompt_logprobs_are_whole_after_a_preemption() -> None:
    engine, _ = make_engine(max_running=1, max_batched_tokens=16)
    engine.submit(request("low", PROMPT * 2, prompt_logprobs=0, priority=5))
    engine.step()
    engine.submit(request("high", [9, 8, 7], priority=-1))
    (end,) = ends_of(run(engine), "low")
    assert engine.num_preemptions == 1
    assert [score.token_id for score in end.prompt_logprobs or []] == PROMPT * 2


def test_conversations_with_one_beginning_keep_their_own_caches() -> None:
    engine, _ = make_engine(max_running=4, max_model_len=256, capacity=4096)
    system = [3] * 20
    history = {key: system + [key] * 60 for key in (10, 11, 12)}
    reused = []
    for turn in range(3):
        for key in history:
            engine.submit(request(f"{key}-{turn}", history[key]))
            events = run(engine)
            reused.append((turn, len(history[key]), ends_of(events, f"{key}-{turn}")[0].cached_prompt_tokens))
            history[key] = history[key] + tokens_of(events, f"{key}-{turn}") + [key] * 10
    assert all(cached >= length - 12 for turn, length, cached in reused if turn > 0), reused


def test_cancelled_requests_leave_nothing_in_the_queue() -> None:
    engine, _ = make_engine(max_running=1)
    engine.submit(request("head", PROMPT, max_tokens=100))
    engine.step()
    for i in range(1000):
        engine.submit(request(f"r{i}", PROMPT))
        engine.cancel(f"r{i}")
    assert len(engine._scheduler._waiting) < 100


def test_a_head_that_must_wait_costs_nobody_the_cache() -> None:
    engine, _ = make_engine(max_running=4, max_model_len=256, capacity=384, max_batched_tokens=256)
    engine.submit(request("old", [9] * 60, max_tokens=2))
    run(engine)
    engine.submit(request("running", [1] * 180, max_tokens=60))
    engine.step()
    engine.submit(request("head", [2] * 240, max_tokens=2, priority=1))
    engine.step()
    assert engine.num_waiting == 1
    assert engine._kv.num_cached == 1


def test_siblings_of_neighbouring_seeds_differ() -> None:
    engine, _ = make_engine()
    engine.submit(request("a", PROMPT, n=2, seed=5, temperature=50.0))
    engine.submit(request("b", PROMPT, seed=6, temperature=50.0))
    events = run(engine)
    assert tokens_of(events, "a", 1) != tokens_of(events, "b")
    assert tokens_of(events, "a", 1) != tokens_of(events, "a", 0)


def test_deterministic_chunks_stay_within_a_step() -> None:
    engine, runner = make_engine(max_batched_tokens=40)
    sizes = []
    original = runner.compute

    def record(batch: StepBatch) -> StepResult:
        sizes.append(len(batch.decode_token_ids) + sum(len(chunk.token_ids) for chunk in batch.prefills))
        return original(batch)

    runner.instead = record
    for index in range(3):
        engine.submit(request(str(index), [7 + index] * 70, deterministic=True))
    events = run(engine)
    for index in range(3):
        assert tokens_of(events, str(index)) == expected(runner, [7 + index] * 70, 8)
    assert max(sizes) <= 40


def test_held_tokens_come_with_release_and_before_what_cannot_wait() -> None:
    engine, runner = make_engine(max_batched_tokens=64)
    engine.submit(request("plain", PROMPT, max_tokens=20))
    engine.submit(request("scored", PROMPT[5:9], max_tokens=20, logprobs=1))
    events = engine.step(hold=True)
    assert len(tokens_of(events, "plain")) == 1  # a first token never waits
    while not tokens_of(events, "scored"):
        events += engine.step(hold=True)
    events += engine.release()
    for _ in range(5):
        step = engine.step(hold=True)
        assert not tokens_of(step, "plain")
        assert len(tokens_of(step, "scored")) == 1
        events += step
    released = engine.release()
    assert len(tokens_of(released, "plain")) == 5
    assert engine.release() == []
    engine.step(hold=True)
    cancelled = engine.cancel("plain")
    assert len(tokens_of(cancelled, "plain")) == 1
    tokens = tokens_of([*events, *released, *cancelled], "plain")
    assert tokens == expected(runner, PROMPT, 20)[: len(tokens)]
    assert isinstance(cancelled[-1], Finished)
    assert cancelled[-1].completion_tokens == len(tokens)


def test_tokens_of_many_steps_that_nobody_asked_for_are_all_there() -> None:
    engine, runner = make_engine(max_running=2, capacity=512)
    prompts = {"a": PROMPT, "b": PROMPT[2:7]}
    for request_id, prompt in prompts.items():
        engine.submit(request(request_id, prompt, max_tokens=200, ignore_eos=True))
    events = [event for _ in range(150) for event in engine.step(hold=True)]
    assert len(tokens_of(events, "a")) < 4  # its first one, and what came while the other's prompt was computed
    events += engine.cancel("a")
    events += run(engine, hold=True)
    assert tokens_of(events, "a") == expected(runner, prompts["a"], 200)[: len(tokens_of(events, "a"))]
    assert len(tokens_of(events, "a")) > 140
    assert tokens_of(events, "b") == expected(runner, prompts["b"], 200)
    engine.check_integrity()


def test_prefill_fills_a_step_that_nobody_would_see_earlier() -> None:
    chunks = []
    for unseen_step_s in (0.0, 0.05):
        config = SchedulerConfig(max_running_requests=2, min_prefill_tokens=4, unseen_step_s=unseen_step_s)
        engine, _ = make_engine(max_running=2)
        engine._scheduler.config = config
        engine.submit(request("a", PROMPT, max_tokens=50))
        engine.step()
        engine._scheduler.speed.decode_step_s, engine._scheduler.speed.prefill_token_s = 0.01, 0.001
        engine.submit(request("b", [3] * 100))
        plan = engine._scheduler.schedule()
        assert plan is not None
        chunks.append(sum(len(chunk.token_ids) for chunk in plan.batch.prefills))
    assert chunks == [15, 40]


@pytest.mark.parametrize("ends_by", ["stop_token_ids", "stop", "eos", "length"])
def test_holding_changes_neither_tokens_nor_text_nor_end(ends_by: str) -> None:
    plain, runner = make_engine()
    plain.submit(request("a", PROMPT, max_tokens=8))
    options: dict[str, object] = {
        "stop_token_ids": {"stop_token_ids": (expected(runner, PROMPT, 8)[5],)},
        "stop": {"stop": (text_of(run(plain), "a")[4:6],)},
        "eos": {},
        "length": {"ignore_eos": True},
    }[ends_by]

    def outcome(hold: bool) -> tuple[list[int], str, object]:
        engine, _ = make_engine(eos_every=11)
        engine.submit(request("a", PROMPT, max_tokens=40, **options))
        events = run(engine, hold=hold)
        (end,) = ends_of(events, "a")
        return tokens_of(events, "a"), text_of(events, "a"), end.sequences

    assert outcome(True) == outcome(False)


prompts = st.lists(st.integers(1, 3), min_size=1, max_size=60)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), prompts, st.integers(1, 40), st.integers(1, 3), st.integers(-1, 1), st.booleans()),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("step"), st.integers(1, 6)),
        st.tuples(st.just("release")),
    ),
    min_size=5,
    max_size=40,
)


@settings(max_examples=120, deadline=None)
@given(
    actions=actions,
    max_running=st.integers(1, 4),
    blocks=st.integers(2, 6),
    budget=st.integers(1, 40),
    hold=st.booleans(),
    samples=st.booleans(),
    shares_blocks=st.booleans(),
)
def test_any_history_ends_every_request_once_with_the_right_tokens(
    actions: list[tuple],
    max_running: int,
    blocks: int,
    budget: int,
    hold: bool,
    samples: bool,
    shares_blocks: bool,
) -> None:
    engine, runner = make_engine(
        max_running=max_running,
        max_model_len=128,
        capacity=blocks * 64,
        max_batched_tokens=budget,
        eos_every=29,
        samples=samples,
        shares_blocks=shares_blocks,
    )
    submitted: dict[str, tuple[list[int], int, int]] = {}
    cancelled: set[str] = set()
    events = []
    for action in actions:
        if action[0] == "submit":
            _, prompt, max_tokens, n, priority, is_scored = action
            logprobs = 1 if is_scored else None
            key = f"r{len(submitted)}"
            try:
                engine.submit(request(key, prompt, max_tokens=max_tokens, n=n, priority=priority, logprobs=logprobs))
            except VortaError:
                continue
            submitted[key] = (prompt, max_tokens, n)
        elif action[0] == "cancel":
            key = f"r{action[1]}"
            ended = engine.cancel(key)
            if ended:
                cancelled.add(key)
            events += ended
        elif action[0] == "release":
            events += engine.release()
        else:
            for _ in range(action[1]):
                events += engine.step(hold=hold)
        engine.check_integrity()
    events += run(engine, hold=hold)
    assert engine.release() == []
    engine.check_integrity()
    for key, (prompt, max_tokens, n) in submitted.items():
        (end,) = ends_of(events, key)
        assert [event for event in events if event.request_id == key][-1] is end
        assert end.completion_tokens == sum(len(tokens_of(events, key, index)) for index in range(n))
        tokens = expected(runner, prompt, max_tokens)
        if 0 in tokens:
            tokens = tokens[: tokens.index(0) + 1]
        for index in range(n):
            got = tokens_of(events, key, index)
            assert got == (tokens[: len(got)] if key in cancelled else tokens)
