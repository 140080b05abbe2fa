"""fp32 graphs against the float64 reference, in every way that a runner drives them.

Bound: 1e-4 of the largest logit. float32 with a few hundred terms per sum gives about 1e-6; the bound
leaves room for other orders of summation, and any wrong formula exceeds it by orders of magnitude.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.reference import decoder as reference
from tests.server.compiler.case import CASES, VOCAB_SIZE, Case, GraphRunner, random_tensors

BOUND = 1e-4

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
ArtifactOf = Callable[[Case, str], Path]


def prompt(length: int, seed: int = 7) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB_SIZE, length).tolist()


def error(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float64]) -> float:
    """The largest difference, relative to the largest logit."""
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@each_case
def test_prefill(case: Case, artifact_of: ArtifactOf) -> None:
    ids = prompt(45)
    expected = reference.logits(case.config, random_tensors(case.config), ids)
    assert error(GraphRunner(artifact_of(case, "fp32")).step([ids], [0]), expected) < BOUND


@each_case
def test_prefill_in_chunks(case: Case, artifact_of: ArtifactOf) -> None:
    ids = prompt(45)
    expected = reference.logits(case.config, random_tensors(case.config), ids)
    for chunk in (1, 8, 17):
        runner = GraphRunner(artifact_of(case, "fp32"))
        pieces = [runner.step([ids[start : start + chunk]], [start]) for start in range(0, len(ids), chunk)]
        assert error(np.concatenate(pieces), expected) < BOUND


@each_case
def test_ragged_decode(case: Case, artifact_of: ArtifactOf) -> None:
    """Rows of different lengths, prefilled together with padding on the right, then decoded in one batch."""
    tensors = random_tensors(case.config)
    sequences = [prompt(length + 3, seed=length) for length in (5, 21, 1, 13)]
    lengths = [len(ids) - 3 for ids in sequences]
    expected = [reference.logits(case.config, tensors, ids) for ids in sequences]
    runner = GraphRunner(artifact_of(case, "fp32"), batch=4)
    padded = [ids[:length] + [0] * (max(lengths) - length) for ids, length in zip(sequences, lengths, strict=True)]
    last = [row * max(lengths) + length - 1 for row, length in enumerate(lengths)]
    first = runner.step(padded, [0] * 4, rows=last, new=lengths)
    assert error(first, np.stack([e[n - 1] for e, n in zip(expected, lengths, strict=True)])) < BOUND
    for offset in range(3):
        past = [length + offset for length in lengths]
        ids = [[sequence[at]] for sequence, at in zip(sequences, past, strict=True)]
        theirs = np.stack([e[at] for e, at in zip(expected, past, strict=True)])
        assert error(runner.step(ids, past), theirs) < BOUND


@each_case
def test_64_greedy_tokens(case: Case, artifact_of: ArtifactOf) -> None:
    tensors, start = random_tensors(case.config), prompt(20)
    runner = GraphRunner(artifact_of(case, "fp32"))
    ours = list(start)
    logits = runner.step([ours], [0], rows=[len(ours) - 1])
    for _ in range(64):
        ours.append(int(logits[0].argmax()))
        logits = runner.step([ours[-1:]], [len(ours) - 1])
    # Each token of ours is what the reference chooses after the same prefix, or as good within the error of both.
    theirs = reference.logits(case.config, tensors, ours)[len(start) - 1 : -1]
    chosen = theirs[np.arange(len(theirs)), ours[len(start) :]]
    assert (theirs.max(-1) - chosen <= 2 * BOUND * np.abs(theirs).max()).all()


def test_no_wanted_rows(artifact_of: ArtifactOf) -> None:
    """A chunk in the middle of a prompt wants no logits, and still writes its keys and values."""
    ids = prompt(24)
    artifact = artifact_of(CASES[0], "fp32")
    silent, loud = GraphRunner(artifact), GraphRunner(artifact)
    assert silent.step([ids[:16]], [0], rows=[]).shape == (0, VOCAB_SIZE)
    loud.step([ids[:16]], [0])
    assert np.array_equal(silent.step([ids[16:]], [16]), loud.step([ids[16:]], [16]))


def test_rows_in_any_order(artifact_of: ArtifactOf) -> None:
    ids, artifact = prompt(12), artifact_of(CASES[0], "fp32")
    all_rows = GraphRunner(artifact).step([ids], [0])
    some = GraphRunner(artifact).step([ids], [0], rows=[11, 3, 3])
    np.testing.assert_allclose(some, all_rows[[11, 3, 3]], rtol=1e-4, atol=1e-4)
