"""The sampler against a plain float64 reference, and the properties that users rely on."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vorta.errors import Internal
from vorta_kernels import cpu
from vorta_kernels.sampling import SamplingKernel
from vorta_server.engine.request import SamplingParams
from vorta_server.engine.row_state import RowState
from vorta_server.engine.sampler import Sampler, prompt_logprobs

Doubles = NDArray[np.float64]

_kernels: list[SamplingKernel | None] = [None]


@pytest.fixture(
    autouse=True,
    scope="module",
    params=[
        "numpy",
        pytest.param(
            "kernel",
            marks=pytest.mark.skipif(cpu.compiler() is None, reason="no C++ compiler builds the kernels"),
        ),
    ],
)
def _way(request: pytest.FixtureRequest) -> None:
    """Every test runs on numpy and on the kernel."""
    _kernels[0] = SamplingKernel() if request.param == "kernel" else None


def make_sampler(vocab_size: int) -> Sampler:
    return Sampler(vocab_size, _kernels[0])


def make_row(sampling: SamplingParams, vocab_size: int, *, seed: int = 0, prompt: tuple[int, ...] = ()) -> RowState:
    return RowState(sampling, seed=seed, prompt_token_ids=prompt, vocab_size=vocab_size, eos_token_ids=(0,))


@dataclasses.dataclass
class Reference:
    """The documented order of operations, one row, in float64 and with full sorts."""

    sampling: SamplingParams
    prompt: tuple[int, ...] = ()
    eos: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        self.output: list[int] = []

    def adjusted(self, logits: NDArray[np.float32]) -> Doubles:
        s = self.sampling
        x = logits.astype(np.float64)
        for token, bias in s.logit_bias.items():
            x[token] = np.float32(np.float32(x[token]) + np.float32(bias))
        for token in {*self.prompt, *self.output}:
            if s.repetition_penalty != 1.0:
                x[token] = x[token] / s.repetition_penalty if x[token] > 0 else x[token] * s.repetition_penalty
        for token in set(self.output):
            x[token] -= s.presence_penalty + s.frequency_penalty * self.output.count(token)
        if len(self.output) < s.min_tokens:
            x[[*s.stop_token_ids, *(() if s.ignore_eos else self.eos)]] = -np.inf
        return x

    def kept(self, logits: NDArray[np.float32]) -> Doubles:
        """Unnormalised probabilities by token id; 0 for excluded tokens."""
        s = self.sampling
        x = self.adjusted(logits)
        if s.temperature < 1e-5:
            result = np.zeros_like(x)
            result[int(np.argmax(x))] = 1.0
            return result
        weights = np.exp((x - x.max()) / s.temperature)
        order = np.lexsort((np.arange(len(x)), -x))
        ranked = weights[order]
        if s.top_k:
            ranked[s.top_k :] = 0.0
        if s.top_p < 1.0:
            running = np.cumsum(ranked)
            ranked[running - ranked >= s.top_p * running[-1]] = 0.0
        ranked[1:][ranked[1:] < s.min_p] = 0.0
        result = np.zeros_like(x)
        result[order] = ranked
        return result

    def acceptable(self, logits: NDArray[np.float32], uniform: float, tolerance: float = 3e-6) -> set[int]:
        """The tokens of the inverse CDF at the uniform number, give or take a rounding."""
        running = np.cumsum(self.kept(logits))
        running /= running[-1]
        low = int(np.searchsorted(running, max(uniform - tolerance, 0.0), side="right"))
        high = int(np.searchsorted(running, min(uniform + tolerance, 1.0 - 1e-16), side="right"))
        return set(range(low, high + 1))


samplings = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 0, 1, 3, 20, 100, 5000]),
    top_p=st.sampled_from([1.0, 1.0, 0.05, 0.5, 0.9, 0.999]),
    min_p=st.sampled_from([0.0, 0.0, 0.02, 0.3, 1.0]),
    presence_penalty=st.sampled_from([0.0, 0.0, 1.5, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.7, -0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3, 0.8]),
    logit_bias=st.dictionaries(st.integers(0, 30), st.floats(-20, 20, width=32), max_size=3),
    min_tokens=st.sampled_from([0, 0, 2]),
    stop_token_ids=st.sampled_from([(), (2, 5)]),
    ignore_eos=st.booleans(),
)


def make_logits(seed: int, num_rows: int, vocab_size: int, *, ties: bool = False) -> NDArray[np.float32]:
    generator = np.random.default_rng(seed)
    logits = (generator.standard_normal((num_rows, vocab_size)) * generator.choice([0.2, 2, 6])).astype(np.float32)
    return np.round(logits) if ties else logits


@settings(max_examples=150, deadline=None)
@given(st.lists(samplings, min_size=1, max_size=6), st.sampled_from([31, 257, 3001, 20_011]), st.integers(0, 10**6))
def test_tokens_follow_the_reference(params: list[SamplingParams], vocab_size: int, seed: int) -> None:
    prompt = (1, 2, 7, 7)
    rows = [make_row(s, vocab_size, seed=i, prompt=prompt) for i, s in enumerate(params)]
    twins = [make_row(s, vocab_size, seed=i, prompt=prompt) for i, s in enumerate(params)]
    references = [Reference(s, prompt) for s in params]
    sampler = make_sampler(vocab_size)
    for step in range(4):
        logits = make_logits(seed + step, len(rows), vocab_size)
        result = sampler.sample(logits.copy(), rows)
        assert result.bad_rows == ()
        for i, reference in enumerate(references):
            token = int(result.token_ids[i])
            uniform = 0.5 if rows[i].is_greedy else twins[i].draw()
            nearly = _nearly_kept(reference, logits[i])
            assert token in reference.acceptable(logits[i], uniform) or token in nearly
            reference.output.append(token)


def _nearly_kept(reference: Reference, logits: NDArray[np.float32]) -> set[int]:
    """All tokens, when rounding may move the border of the kept set; none otherwise."""
    s = reference.sampling
    shifted = dataclasses.replace(reference, sampling=_replace(s, top_p=s.top_p * (1 + 2e-6) if s.top_p < 1 else 1.0))
    lowered = dataclasses.replace(reference, sampling=_replace(s, top_p=s.top_p * (1 - 2e-6) if s.top_p < 1 else 1.0))
    raised_min_p = dataclasses.replace(reference, sampling=_replace(s, min_p=s.min_p * (1 - 2e-6)))
    sets = []
    for variant in (reference, shifted, lowered, raised_min_p):
        variant.output = reference.output
        sets.append(frozenset(np.flatnonzero(variant.kept(logits)).tolist()))
    x = np.sort(reference.adjusted(logits))[::-1]
    # Adjusted logits are float32 in the sampler: neighbours closer than that may change places.
    is_close = s.top_k and s.top_k < len(x) and abs(x[s.top_k - 1] - x[s.top_k]) < 1e-5 * max(1.0, abs(x[s.top_k]))
    greedy_tie = s.temperature < 1e-5 and abs(x[0] - x[1]) < 1e-5 * max(1.0, abs(x[0]))
    return set(range(len(logits))) if len(set(sets)) > 1 or is_close or greedy_tie else set()


def _replace(sampling: SamplingParams, **changes: object) -> SamplingParams:
    values = {name: getattr(sampling, name) for name in sampling.__struct_fields__}
    return SamplingParams(**(values | changes))


@settings(max_examples=100, deadline=None)
@given(st.lists(samplings, min_size=2, max_size=8), st.integers(0, 10**6), st.sampled_from([100, 5003, 40_000]))
def test_a_row_does_not_depend_on_its_batch(params: list[SamplingParams], seed: int, vocab_size: int) -> None:
    rows = [make_row(s, vocab_size, seed=i) for i, s in enumerate(params)]
    alone = [make_row(s, vocab_size, seed=i) for i, s in enumerate(params)]
    sampler = make_sampler(vocab_size)
    for step in range(2):
        logits = make_logits(seed + step, len(rows), vocab_size, ties=seed % 2 == 0)
        together = sampler.sample(logits.copy(), rows).token_ids.tolist()
        single = [int(sampler.sample(logits[i : i + 1].copy(), [row]).token_ids[0]) for i, row in enumerate(alone)]
        assert together == single


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_top_k_one_is_greedy(seed: int, ties: bool) -> None:
    logits = make_logits(seed, 5, 500, ties=ties)
    rows = [make_row(SamplingParams(temperature=1.7, top_k=1), 500, seed=i) for i in range(5)]
    assert make_sampler(500).sample(logits.copy(), rows).token_ids.tolist() == logits.argmax(axis=1).tolist()


@pytest.mark.parametrize("vocab_size", [1, 2, 15, 16, 17, 255, 256, 257, 1023, 32_768, 151_936])
@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(),
        SamplingParams(top_p=0.9),
        SamplingParams(top_k=50),
        SamplingParams(top_k=2000, top_p=0.95),
        SamplingParams(min_p=0.01),
        SamplingParams(temperature=0.0),
        SamplingParams(top_p=1e-6),
    ],
    ids=["free", "top_p", "top_k", "large top_k", "min_p", "greedy", "tiny top_p"],
)
def test_every_vocabulary_size(vocab_size: int, sampling: SamplingParams) -> None:
    logits = make_logits(1, 3, vocab_size)
    rows = [make_row(sampling, vocab_size, seed=i) for i in range(3)]
    twins = [make_row(sampling, vocab_size, seed=i) for i in range(3)]
    ids = make_sampler(vocab_size).sample(logits.copy(), rows).token_ids.tolist()
    for i, token in enumerate(ids):
        uniform = 0.5 if rows[i].is_greedy else twins[i].draw()
        assert token in Reference(sampling).acceptable(logits[i], uniform, tolerance=2e-5)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(),
        SamplingParams(temperature=0.6),
        SamplingParams(top_k=7),
        SamplingParams(top_p=0.8),
        SamplingParams(min_p=0.1),
        SamplingParams(top_k=12, top_p=0.7, min_p=0.02, temperature=1.4),
    ],
    ids=["free", "temperature", "top_k", "top_p", "min_p", "all"],
)
def test_draws_have_the_right_distribution(sampling: SamplingParams) -> None:
    vocab_size, num_rows, num_steps = 40, 64, 250
    logits = np.random.default_rng(5).standard_normal(vocab_size).astype(np.float32) * 1.5
    rows = [make_row(sampling, vocab_size, seed=i) for i in range(num_rows)]
    sampler = make_sampler(vocab_size)
    counts = np.zeros(vocab_size)
    for _ in range(num_steps):
        np.add.at(counts, sampler.sample(np.tile(logits, (num_rows, 1)), rows).token_ids, 1)
    expected = Reference(sampling).kept(logits)
    expected *= num_rows * num_steps / expected.sum()
    assert not counts[expected == 0].any()
    is_kept = expected > 0
    chi_square = float((((counts - expected) ** 2)[is_kept] / expected[is_kept]).sum())
    freedom = int(is_kept.sum()) - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom) + 5


def test_uniforms_are_equal_for_equal_seeds_and_one_per_token() -> None:
    first, second = (make_row(SamplingParams(), 50, seed=9) for _ in range(2))
    assert [first.draw() for _ in range(200)] == [second.draw() for _ in range(200)]
    assert make_row(SamplingParams(), 50, seed=10).draw() != make_row(SamplingParams(), 50, seed=9).draw()
    row, twin = (make_row(SamplingParams(top_p=0.5), 50, seed=3) for _ in range(2))
    make_sampler(50).sample(make_logits(0, 1, 50), [row])
    twin.draw()
    assert row.draw() == twin.draw()


def test_ties_go_to_the_lower_id_and_top_k_is_exact() -> None:
    logits = np.zeros((1, 1000), np.float32)
    row = make_row(SamplingParams(top_k=4), 1000)
    sampler = make_sampler(1000)
    seen = {int(sampler.sample(logits.copy(), [row]).token_ids[0]) for _ in range(200)}
    assert seen == {0, 1, 2, 3}


def test_min_tokens_masks_ends_until_then() -> None:
    sampling = SamplingParams(temperature=0.0, min_tokens=2, stop_token_ids=(3,))
    logits = np.array([[9.0, 1.0, 2.0, 8.0]], np.float32)
    rows = [make_row(sampling, 4)]
    sampler = make_sampler(4)
    assert [int(sampler.sample(logits.copy(), rows).token_ids[0]) for _ in range(4)] == [2, 2, 0, 0]
    ignoring = [make_row(_replace(sampling, ignore_eos=True), 4)]
    assert int(sampler.sample(logits.copy(), ignoring).token_ids[0]) == 0


def test_penalties() -> None:
    sampling = SamplingParams(temperature=0.0, presence_penalty=1.0, frequency_penalty=0.5)
    rows = [make_row(sampling, 3)]
    sampler = make_sampler(3)
    logits = np.array([[5.0, 4.0, 0.0]], np.float32)
    # 5 → 3.5 after one use; 4 → 2.5 after one; 5 → 3.0 after two; 2.5 after three ties with 2.5, the lower id wins.
    assert [int(sampler.sample(logits.copy(), rows).token_ids[0]) for _ in range(5)] == [0, 1, 0, 0, 0]


def test_presence_and_frequency_that_cancel_out() -> None:
    row = make_row(SamplingParams(presence_penalty=-1.0, frequency_penalty=1.0), 2)
    row.accept(1)
    row.accept(1)
    logits = np.zeros(2, np.float32)
    row.adjust(logits)
    assert logits.tolist() == [0.0, -1.0]


def test_repetition_penalty_counts_the_prompt_and_many_tokens() -> None:
    row = make_row(SamplingParams(repetition_penalty=2.0), 500, prompt=(1, 1, 2))
    for token in range(100, 300):
        row.accept(token)
    logits = np.full(500, -3.0, np.float32)
    logits[1] = 4.0
    row.adjust(logits)
    assert logits[1] == 2.0
    assert logits[2] == -6.0
    assert logits[3] == -3.0
    assert (logits[100:300] == -6.0).all()


def test_bad_rows_are_marked_and_do_not_harm_others() -> None:
    logits = make_logits(0, 5, 300)
    good = logits.copy()
    logits[1, 7] = np.nan
    logits[2, 7] = np.inf
    logits[3] = -np.inf
    params = [SamplingParams(top_p=0.9), SamplingParams(temperature=0.0), SamplingParams(), SamplingParams(top_k=5)]
    params.append(SamplingParams(logprobs=2, presence_penalty=1.0))
    rows = [make_row(s, 300, seed=i) for i, s in enumerate(params)]
    result = make_sampler(300).sample(logits, rows)
    assert result.bad_rows == (1, 2, 3)
    assert result.token_ids[1:4].tolist() == [-1, -1, -1]
    assert [row.num_generated for row in rows] == [1, 0, 0, 0, 1]
    assert result.scores is not None
    assert result.scores[0] is None
    expected = make_sampler(300).sample(good, [make_row(s, 300, seed=i) for i, s in enumerate(params)])
    assert result.token_ids[[0, 4]].tolist() == expected.token_ids[[0, 4]].tolist()


def test_a_bad_row_in_a_greedy_batch() -> None:
    rows = [make_row(SamplingParams(temperature=0.0), 3) for _ in range(2)]
    result = make_sampler(3).sample(np.array([[np.nan, 1, 2], [0, 5, 1]], np.float32), rows)
    assert result.bad_rows == (0,)
    assert result.token_ids.tolist() == [-1, 1]


@pytest.mark.parametrize("vocab_size", [5, 100, 5000])
def test_logprobs_are_of_the_adjusted_logits_before_temperature(vocab_size: int) -> None:
    logits = make_logits(3, 1, vocab_size)
    sampling = SamplingParams(temperature=0.5, top_k=2, logprobs=5, logit_bias={1: 3.0})
    result = make_sampler(vocab_size).sample(logits.copy(), [make_row(sampling, vocab_size)])
    assert result.scores is not None
    score = result.scores[0]
    assert score is not None
    x = Reference(sampling).adjusted(logits[0])
    expected = x - x.max() - np.log(np.exp(x - x.max()).sum())
    assert score.logprob == pytest.approx(expected[result.token_ids[0]], abs=1e-5)
    assert score.top_ids.tolist() == np.argsort(-x, kind="stable")[:5].tolist()
    assert score.top_logprobs == pytest.approx(expected[score.top_ids], abs=1e-5)


def test_prompt_logprobs() -> None:
    logits = make_logits(4, 3, 50)
    scores = prompt_logprobs(logits, [4, 9, 0], 2)
    expected = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    assert [score.logprob for score in scores] == pytest.approx(expected[[0, 1, 2], [4, 9, 0]].tolist(), abs=1e-5)
    assert scores[1].top_ids.tolist() == np.argsort(-logits[1])[:2].tolist()
    assert prompt_logprobs(logits, [4, 9, 0], 0)[0].top_ids.size == 0
    logits[2, 0] = np.nan
    with pytest.raises(Internal, match="position 2"):
        prompt_logprobs(logits, [4, 9, 0], 2)


def test_a_new_list_brings_new_parameters() -> None:
    sampler = make_sampler(10)
    logits = make_logits(0, 1, 10)
    first, second = make_row(SamplingParams(temperature=0.0), 10), make_row(SamplingParams(top_k=1), 10)
    for row in (first, second, first):
        assert int(sampler.sample(logits.copy(), [row]).token_ids[0]) == int(logits.argmax())


def test_wrong_shape_or_type_is_refused() -> None:
    with pytest.raises(ValueError, match="float64"):
        make_sampler(10).sample(np.zeros((1, 10)), [make_row(SamplingParams(), 10)])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"not float32 \(1, 10\)"):
        make_sampler(10).sample(np.zeros((2, 10), np.float32), [make_row(SamplingParams(), 10)])
