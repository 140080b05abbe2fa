"""sample on the interpreter."""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vorta_kernels import grid
from vorta_kernels.reference import sample as reference
from vorta_kernels.reference.sample import SamplingColumns
from vorta_kernels.triton_ops import sample as triton_ops

CPU = torch.device("cpu")
SMALL = [case for case in grid.CASES["sample"] if not case.is_large]


@pytest.mark.parametrize("block", [128, 1024])
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.id)
def test_agrees_with_the_reference(case: grid.Case, block: int) -> None:
    """A small block has rows that do not fit it and several blocks, a large one neither."""
    expected = grid.run(case, reference.sample, CPU)
    got = grid.run(case, partial(triton_ops.sample, chunk=256, block=block), CPU)
    assert grid.mismatches(case, got, expected) == []


def column(values: list[float], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


@st.composite
def calls(draw: st.DrawFn) -> tuple[torch.Tensor, SamplingColumns, int, int]:
    """Logits and columns of up to three rows, and the sizes of chunk and block."""
    num_rows, vocab_size = draw(st.integers(1, 3)), draw(st.integers(1, 200))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    logits = torch.randn(num_rows, vocab_size, generator=generator) * draw(st.sampled_from([0.1, 1.0, 4.0, 30.0]))
    if draw(st.booleans()):
        logits = logits.round()
    if draw(st.booleans()):
        logits = logits.where(torch.rand(logits.shape, generator=generator) < 0.7, float("-inf"))

    def rows(values: st.SearchStrategy[float]) -> list[float]:
        return draw(st.lists(values, min_size=num_rows, max_size=num_rows))

    share = st.one_of(st.just(1.0), st.floats(1 / 1024, 1.0, width=32))
    columns = SamplingColumns(
        temperature=column(rows(st.sampled_from([0.0, 0.5, 1.0, 1.5, 20.0]))),
        top_k=column(rows(st.one_of(st.just(0), st.integers(1, 250))), torch.int32),
        top_p=column(rows(share)),
        min_p=column(rows(st.sampled_from([0.0, 0.01, 0.3, 1.0]))),
        uniforms=column(rows(st.floats(0, 1, exclude_max=True, width=32))),
    )
    return logits, columns, draw(st.sampled_from([32, 64, 256])), draw(st.sampled_from([32, 256]))


def acceptable(logits: torch.Tensor, columns: SamplingColumns, row: int) -> set[int]:
    """The tokens that a row may get where sums are in float32: in float64, with the borders of top-p and min-p and the
    uniform moved by what float32 may err, which grows with the logits that exponentials are taken of."""
    temperature = float(columns.temperature[row])
    values = logits[row].double()
    order = values.sort(descending=True, stable=True)
    if temperature == 0:
        return {int(order.indices[0])}
    scaled = (order.values - order.values[0]) / temperature
    finite = scaled[scaled > -60]
    error = 3e-6 + 2**-22 * float(finite.abs().max())
    weights = scaled.exp()
    top_k = int(columns.top_k[row])
    if top_k:
        weights[top_k:] = 0
    before = (weights.cumsum(0) - weights) / weights.sum()
    top_p, min_p, uniform = (float(getattr(columns, name)[row]) for name in ("top_p", "min_p", "uniforms"))
    tokens: set[int] = set()
    for moved_p, moved_min in itertools.product((-error, 0.0, error), repeat=2):
        kept = weights.clone()
        if top_p < 1:
            kept[before >= max(top_p * (1 + moved_p) + moved_p, 2**-60)] = 0
        kept[weights < min_p * (1 + moved_min)] = 0
        kept[0] = 1
        by_id = torch.zeros_like(kept).scatter(0, order.indices, kept)
        running = by_id.cumsum(0) / by_id.sum()
        is_near = (running > uniform - error) & (running - by_id / by_id.sum() < uniform + error) & (by_id > 0)
        tokens |= set(is_near.nonzero()[:, 0].tolist())
    return tokens


@settings(max_examples=25, deadline=None)
@given(calls())
def test_random_rows_agree_with_the_reference(call: tuple[torch.Tensor, SamplingColumns, int, int]) -> None:
    logits, columns, chunk, block = call
    got = triton_ops.sample(logits, columns, chunk=chunk, block=block).token_ids.tolist()
    expected = reference.sample(logits, columns).token_ids.tolist()
    for row, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
        assert ours == theirs or ours in acceptable(logits, columns, row)


def test_the_first_uniform_takes_a_token_that_has_a_weight() -> None:
    """A uniform of 0 picks the first token whose sum float32 can tell from 0, which may not be float64's first."""
    logits = torch.tensor([[-34.0, 17.0, 23.8, 55.6, 14.0]])
    columns = SamplingColumns(
        temperature=column([1.0]),
        top_k=column([0], torch.int32),
        top_p=column([1.0]),
        min_p=column([0.0]),
        uniforms=column([0.0]),
    )
    got = triton_ops.sample(logits, columns, chunk=32, block=32).token_ids.tolist()
    assert got[0] in acceptable(logits, columns, 0) == {0, 1, 2, 3}


@pytest.mark.parametrize(("num_draws", "top_k", "top_p", "limit"), [(400, 0, 1.0, 27.9), (60, 6, 0.9, 16.3)])
def test_draws_have_the_distribution_of_softmax(num_draws: int, top_k: int, top_p: float, limit: float) -> None:
    """Chi-square at 0.1 %: 9 degrees of freedom, and 3 where top-p leaves 4 tokens."""
    heat = 0.8
    logits = torch.tensor([0.3, 2.0, -1.0, 1.7, 0.0, 1.1, -0.4, 2.3, 0.9, -2.0])
    columns = SamplingColumns(
        temperature=torch.full((num_draws,), heat),
        top_k=torch.full((num_draws,), top_k, dtype=torch.int32),
        top_p=torch.full((num_draws,), top_p),
        min_p=torch.zeros(num_draws),
        uniforms=torch.rand(num_draws, generator=torch.Generator().manual_seed(3)),
    )
    token_ids = triton_ops.sample(logits.expand(num_draws, -1), columns, chunk=16, block=16).token_ids
    observed = torch.bincount(token_ids, minlength=len(logits)).double()
    expected = (logits.double() / heat).softmax(-1)
    if top_k:
        expected[expected.argsort(descending=True)[top_k:]] = 0
        ranked = (expected / expected.sum()).sort(descending=True)
        expected[ranked.indices[ranked.values.cumsum(0) - ranked.values >= top_p]] = 0
        assert int((expected > 0).sum()) == 4
    expected *= num_draws / expected.sum()
    assert int(observed[expected == 0].sum()) == 0
    kept = expected > 0
    assert float(((observed - expected)[kept].square() / expected[kept]).sum()) < limit


def test_rows_may_be_strided_and_do_not_depend_on_their_batch() -> None:
    logits = torch.randn(3, 400, generator=torch.Generator().manual_seed(1))
    columns = SamplingColumns(
        temperature=torch.ones(3),
        top_k=torch.tensor([0, 20, 0], dtype=torch.int32),
        top_p=torch.tensor([1.0, 1.0, 0.8]),
        min_p=torch.zeros(3),
        uniforms=torch.tensor([0.2, 0.5, 0.9]),
    )
    together = triton_ops.sample(logits[:, 100:], columns, block=64).token_ids.tolist()
    alone = []
    for row in range(3):
        own = {
            field.name: None if value is None else value[row : row + 1]
            for field in dataclasses.fields(columns)
            for value in [getattr(columns, field.name)]
        }
        alone += triton_ops.sample(logits[row : row + 1, 100:], SamplingColumns(**own), block=256).token_ids.tolist()
    assert together == alone == reference.sample(logits[:, 100:], columns).token_ids.tolist()
