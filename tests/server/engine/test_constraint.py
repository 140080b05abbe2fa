"""Constraints in the engine, with one of its own over the fake runner: no grammar library, no tokenizer."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from tests.server.engine.fakes import ends_of, expected, make_engine, request, run, tokens_of
from vorta.errors import InvalidArgument, VortaError
from vorta_kernels import cpu
from vorta_kernels.sampling import SamplingKernel
from vorta_server.engine import constraint
from vorta_server.engine.constraint import Bits, bits_of, forbid, num_words, stack_masks
from vorta_server.engine.engine import Engine
from vorta_server.engine.request import Delta, Event, FinishReason, GenerationRequest, SamplingParams
from vorta_server.engine.row_state import RowState
from vorta_server.engine.sampler import Sampler

VOCAB = 64
EOS = 0
PROMPT = list(range(1, 30))


class State:
    """Tokens from sets, one set after another; the text may end after `min_len` tokens."""

    failure: VortaError | None = None

    def __init__(self, steps: list[set[int]], min_len: int) -> None:
        self.steps, self.min_len = steps, min_len
        self.accepted: list[int] = []

    @property
    def is_complete(self) -> bool:
        return len(self.accepted) >= len(self.steps)

    def fill_mask(self, mask: Bits) -> None:
        place = len(self.accepted)
        allowed = set(self.steps[place]) if place < len(self.steps) else set()
        if place >= self.min_len:
            allowed.add(EOS)
        mask[:] = bits_of(np.array(sorted(allowed), np.int64), VOCAB)

    def accept(self, token_id: int) -> None:
        self.accepted.append(token_id)


@dataclasses.dataclass
class Steps:
    """A grammar that keeps the states it made."""

    steps: list[set[int]]
    min_len: int | None = None
    states: list[State] = dataclasses.field(default_factory=list)

    def start(self) -> State:
        self.states.append(State(self.steps, len(self.steps) if self.min_len is None else self.min_len))
        return self.states[-1]


def sets(length: int, seed: int = 0) -> list[set[int]]:
    generator = np.random.default_rng(seed)
    return [set(generator.choice(np.arange(1, VOCAB), 5, replace=False).tolist()) for _ in range(length)]


def asking(request_id: str, grammar: Steps, **options: Any) -> GenerationRequest:
    made = request(request_id, options.pop("prompt", PROMPT), max_tokens=options.pop("max_tokens", 40), **options)
    made.grammar = grammar
    return made


def submit_and_run(engine: Engine, *requests: GenerationRequest, hold: bool = False) -> list[Event]:
    for entry in requests:
        engine.submit(entry)
    return run(engine, hold=hold)


# Masks


def test_bit_of_a_token() -> None:
    mask = bits_of(np.array([0, 31, 32, 63], np.int64), VOCAB)
    assert (mask.dtype, mask.shape) == (np.int32, (2,))
    assert mask.view(np.uint32).tolist() == [0x80000001, 0x80000001]
    assert num_words(33) == 2
    assert num_words(32) == 1


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.9])
@pytest.mark.parametrize("vocab_size", [31, 32, 33, 100, 4096, 40_001])
def test_forbidding_leaves_the_allowed_as_they_were(vocab_size: int, share: float) -> None:
    generator = np.random.default_rng(vocab_size)
    logits = generator.standard_normal((3, vocab_size), np.float32)
    before = logits.copy()
    allowed = [np.flatnonzero(generator.random(vocab_size) < share) for _ in logits]
    forbid(logits, np.stack([bits_of(ids, vocab_size) for ids in allowed]))
    for row, ids in enumerate(allowed):
        others = np.setdiff1d(np.arange(vocab_size), ids)
        assert (logits[row, ids] == before[row, ids]).all()
        assert (logits[row, others] == -np.inf).all()


def row_of(grammar: Steps | None, **sampling: Any) -> RowState:
    return RowState(
        SamplingParams(**sampling),
        seed=1,
        prompt_token_ids=PROMPT,
        vocab_size=VOCAB,
        eos_token_ids=[EOS],
        constraint=None if grammar is None else grammar.start(),
    )


def allowed_by(row: RowState) -> set[int]:
    masks = np.zeros((1, num_words(VOCAB)), np.int32)
    stack_masks([row], masks)
    return set(np.flatnonzero(np.unpackbits(masks.view(np.uint8), bitorder="little")).tolist())


def test_masks_of_a_batch() -> None:
    masks = np.zeros((2, num_words(VOCAB)), np.int32)
    stack_masks([row_of(None), row_of(Steps([{3}]))], masks)
    assert masks.tolist() == [[-1, -1], [8, 0]]


def test_early_ends_and_ignored_ends_are_not_allowed_unless_nothing_else_is() -> None:
    grammar = Steps([{3, 9}], min_len=0)
    assert allowed_by(row_of(grammar)) == {EOS, 3, 9}
    assert allowed_by(row_of(grammar, ignore_eos=True)) == {3, 9}
    assert allowed_by(row_of(grammar, min_tokens=1)) == {3, 9}
    assert allowed_by(row_of(grammar, min_tokens=1, stop_token_ids=(9,))) == {3}
    assert allowed_by(row_of(Steps([], min_len=0), min_tokens=1)) == {EOS}
    assert allowed_by(row_of(Steps([], min_len=0), ignore_eos=True)) == {EOS}


KERNELS = [None, *([SamplingKernel(1)] if cpu.is_available() else [])]


@pytest.mark.parametrize("kernel", KERNELS, ids=["numpy", "kernel"][: len(KERNELS)])
@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 1.0, "top_p": 0.5},
        {"temperature": 1.0, "top_k": 3, "repetition_penalty": 1.3, "logit_bias": {7: 100.0}},
        {"temperature": 0.0, "presence_penalty": 2.0, "logprobs": 8},
        {"temperature": 1.0, "min_p": 0.2},
    ],
)
def test_sampled_tokens_are_allowed_ones(kernel: SamplingKernel | None, sampling: dict[str, Any]) -> None:
    steps = sets(30)
    sampler, generator = Sampler(VOCAB, kernel), np.random.default_rng(1)
    constrained, free = row_of(Steps(steps), **sampling), row_of(None, **sampling)
    rows = [free, constrained, row_of(None, temperature=0.0)]
    for step in steps:
        logits = generator.standard_normal((3, VOCAB), np.float32) * 4
        before = logits.copy()
        sampled = sampler.sample(logits, rows)
        assert int(sampled.token_ids[1]) in step
        assert int(sampled.token_ids[2]) == int(before[2].argmax())
        if sampled.scores is not None and sampled.scores[1] is not None:
            score = sampled.scores[1]
            assert set(score.top_ids.tolist()) == step  # and no more, though more were asked for
            assert np.isclose(np.exp(score.top_logprobs).sum(), 1.0)


# In the engine, with a runner whose logits the engine samples, and with one that samples what it can


@pytest.fixture(params=["logits", "samples", "thread"])
def samples(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the runner samples. In "thread", masks are filled beside the step, however small they are."""
    if request.param == "thread":
        monkeypatch.setattr(constraint, "_MIN_THREAD_WORDS", 0)
    return bool(request.param == "samples")


def test_a_text_ends_where_nothing_can_follow(samples: bool) -> None:
    engine, _ = make_engine(samples=samples)
    grammar = Steps(sets(6))
    events = submit_and_run(engine, asking("a", grammar))
    tokens = tokens_of(events, "a")
    assert len(tokens) == 6
    assert all(token in step for token, step in zip(tokens, grammar.steps, strict=True))
    (end,) = ends_of(events, "a")
    assert end.finish_reason is FinishReason.STOP
    assert end.sequences[0].stop is None
    engine.check_integrity()


@pytest.mark.parametrize("hold", [False, True])
def test_a_text_may_end_by_an_end_token(hold: bool, samples: bool) -> None:
    engine, _ = make_engine(samples=samples)
    # From the third token on, nothing but the end is more likely than another.
    events = submit_and_run(engine, asking("a", Steps([{3}, {4}, {5}], min_len=2), logit_bias={EOS: 50.0}), hold=hold)
    assert tokens_of(events, "a") == [3, 4, EOS]
    (end,) = ends_of(events, "a")
    assert (end.finish_reason, end.sequences[0].stop) == (FinishReason.STOP, EOS)


def test_min_tokens_and_ignore_eos_go_as_far_as_the_format(samples: bool) -> None:
    engine, _ = make_engine(samples=samples)
    steps = [{3}, {4}, {5}]
    events = submit_and_run(
        engine,
        asking("early", Steps(steps, min_len=0), logit_bias={EOS: 50.0}, min_tokens=2),
        asking("ignored", Steps(steps, min_len=0), logit_bias={EOS: 50.0}, ignore_eos=True),
        asking("beyond", Steps(steps), min_tokens=20),
    )
    assert tokens_of(events, "early") == [3, 4, EOS]
    for name in ("ignored", "beyond"):
        assert tokens_of(events, name) == [3, 4, 5]
        assert ends_of(events, name)[0].finish_reason is FinishReason.STOP


def test_length_and_stop_strings_end_a_text_as_ever(samples: bool) -> None:
    engine, _ = make_engine(samples=samples)
    grammar = Steps([{3}, {4}, {5}, {6}])
    events = submit_and_run(
        engine, asking("short", grammar, max_tokens=2), asking("whole", grammar, max_tokens=4),
        asking("stopped", grammar, stop=("ef",)),
    )  # fmt: skip
    assert ends_of(events, "short")[0].finish_reason is FinishReason.LENGTH
    assert ends_of(events, "whole")[0].finish_reason is FinishReason.STOP
    (end,) = ends_of(events, "stopped")
    assert (end.finish_reason, end.sequences[0].stop, end.completion_tokens) == (FinishReason.STOP, "ef", 3)


def test_siblings_have_states_of_their_own(samples: bool) -> None:
    engine, _ = make_engine(samples=samples)
    grammar = Steps(sets(8))
    events = submit_and_run(engine, asking("a", grammar, n=3, temperature=2.0, seed=4, min_p=0.0))
    texts = [tokens_of(events, "a", index) for index in range(3)]
    assert [state.accepted for state in grammar.states] == texts
    assert len({tuple(text) for text in texts}) == 3
    for text in texts:
        assert all(token in step for token, step in zip(text, grammar.steps, strict=True))
    last = [event for event in events if isinstance(event, Delta) and event.finish_reason is not None]
    assert [event.finish_reason for event in last] == [FinishReason.STOP] * 3


def test_states_survive_preemption(samples: bool) -> None:
    engine, _ = make_engine(samples=samples, max_running=4, max_model_len=256, capacity=256, max_batched_tokens=64)
    grammars = {f"r{i}": Steps(sets(90, seed=i)) for i in range(4)}
    requests = [asking(name, grammar, prompt=[7 + i] * 20, max_tokens=100) for i, (name, grammar) in
                enumerate(grammars.items())]  # fmt: skip
    events = submit_and_run(engine, *requests)
    assert engine.num_preemptions > 0
    for name, grammar in grammars.items():
        tokens = tokens_of(events, name)
        assert [state.accepted for state in grammar.states] == [tokens]
        assert all(token in step for token, step in zip(tokens, grammar.steps, strict=True))
    engine.check_integrity()


@pytest.mark.parametrize("hold", [False, True])
def test_rows_beside_a_constrained_one_are_as_they_were(hold: bool, samples: bool) -> None:
    engine, runner = make_engine(samples=samples)
    events = submit_and_run(
        engine,
        request("free", PROMPT, max_tokens=20),
        asking("bound", Steps(sets(12)), deterministic=True),
        request("other", [5] * 9, max_tokens=30),
        hold=hold,
    )
    assert tokens_of(events, "free") == expected(runner, PROMPT, 20)
    assert tokens_of(events, "other") == expected(runner, [5] * 9, 30)
    assert len(tokens_of(events, "bound")) == 12


def test_a_text_that_cannot_go_on_fails_by_its_reason(samples: bool) -> None:
    engine, runner = make_engine(samples=samples)
    grammar = Steps([{3}, set(), {4}])
    engine.submit(asking("stuck", grammar))
    grammar_error = InvalidArgument("no way on", field="response_format.regex")
    original = grammar.start

    def start() -> State:
        state = original()
        state.failure = grammar_error
        return state

    grammar.start = start  # type: ignore[method-assign]
    engine.submit(asking("told", grammar))
    engine.submit(request("free", PROMPT))
    events = run(engine)
    for name, message in (("stuck", "not a number"), ("told", "no way on")):
        (end,) = ends_of(events, name)
        assert end.finish_reason is FinishReason.ERROR
        assert end.failure is not None
        assert message in end.failure.message
    assert tokens_of(events, "free") == expected(runner, PROMPT, 8)
    engine.check_integrity()
