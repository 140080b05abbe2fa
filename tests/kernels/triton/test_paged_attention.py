"""paged_decode and paged_prefill on the interpreter."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from triton.runtime.interpreter import InterpretedFunction

from vorta_kernels import grid
from vorta_kernels.reference import paged_attention as reference
from vorta_kernels.triton_ops import paged_attention as triton_ops
from vorta_kernels.triton_ops.tuning import DECODE, PREFILL, PREFILL_BEFORE_HOPPER, Launch

CPU = torch.device("cpu")
SMALL = [case for case in grid.CASES["paged_attention"] if not case.is_large]
LAUNCHES = [
    Launch(block_m=16, block_n=16, num_warps=4, num_stages=2),
    Launch(block_m=64, block_n=64, num_warps=4, num_stages=2),
]


@pytest.mark.parametrize(
    ("case", "launch"),
    [pytest.param(case, LAUNCHES[index % 2], id=f"{case.op}:{case.id}") for index, case in enumerate(SMALL)],
)
def test_agrees_with_the_reference(case: grid.Case, launch: Launch) -> None:
    expected = grid.run(case, getattr(reference, case.op), CPU)
    function: Any = partial(getattr(triton_ops, case.op), launch=launch)
    if isinstance(case, grid.DecodeCase):
        function = partial(function, min_tiles=1)
    assert grid.mismatches(case, grid.run(case, function, CPU), expected) == []


@pytest.mark.parametrize("case", SMALL[-3:] + SMALL[:1], ids=lambda case: f"{case.op}:{case.id}")
def test_agrees_as_launched_by_default(case: grid.Case) -> None:
    expected = grid.run(case, getattr(reference, case.op), CPU)
    assert grid.mismatches(case, grid.run(case, getattr(triton_ops, case.op), CPU), expected) == []


def test_every_head_size_and_cache_type_has_launch_constants() -> None:
    every = {(dim, size) for dim in (64, 128) for size in (1, 2, 4)}
    assert DECODE.keys() == PREFILL.keys() == PREFILL_BEFORE_HOPPER.keys() == every


@pytest.mark.parametrize(
    ("length", "splits", "window", "busy"),
    [(0, 4, 0, 0), (1, 4, 0, 1), (64, 4, 0, 1), (65, 4, 0, 2), (1000, 4, 0, 4), (1000, 4, 100, 2), (300, 8, 0, 5)],
)
def test_splits_behind_the_end_do_nothing(
    length: int, splits: int, window: int, busy: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts the programs that attend to anything, with tiles of 64 tokens and no least share."""
    programs = set()

    class Counting(InterpretedFunction):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            programs.add(triton_ops.triton.runtime.interpreter.interpreter_builder.grid_idx)
            return super().__call__(*args, **kwargs)

    monkeypatch.setattr(triton_ops, "_attend", Counting(triton_ops._attend.fn))
    query_lens = (1,) if length else (0,)
    case = grid.DecodeCase(
        query_lens=query_lens, past_lens=(max(length - 1, 0),), window=window, num_heads=1, splits=splits
    )
    launch = Launch(block_m=16, block_n=64, num_warps=4, num_stages=2)
    grid.run(case, partial(triton_ops.paged_decode, launch=launch, min_tiles=1), CPU)
    assert len(programs) == busy


def test_number_of_splits() -> None:
    assert triton_ops.num_splits(1, 8, 100_000, 132) == 33
    assert triton_ops.num_splits(1, 8, 1024, 132) == 4
    assert triton_ops.num_splits(1, 1, 1_000_000, 132) == 64
    assert triton_ops.num_splits(256, 8, 100_000, 132) == 1
    assert triton_ops.num_splits(0, 8, 0, 132) == 1
