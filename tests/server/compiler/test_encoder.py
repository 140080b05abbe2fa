"""Encoders against the float64 reference: every family, both kernels, both precisions.

Bound of fp32: 1e-4 of the largest number, as for decoders. int8 keeps the direction of the hidden states of the random
models: a mean cosine of 0.995 (their weights and activations are less benign than trained ones).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.reference import encoder as reference
from tests.server.compiler.encoder_case import (
    EMBEDDING_CASES,
    SCORE_CASES,
    EncoderCase,
    encoder_tensors,
    head_tensors,
    texts,
    write_encoder,
)
from vorta_kernels import cpu
from vorta_server.compiler.compile import compile_checkpoint
from vorta_server.compiler.encoder import relative_buckets
from vorta_server.compiler.encoder_spec import RelativeBias
from vorta_server.compiler.plan import Kernels
from vorta_server.runners.encoder import OnnxEncoder

LENGTHS = [7, 1, 150, 30, 17, 2]

needs_compiler = pytest.mark.skipif(cpu.compiler() is None, reason="no C++ compiler is installed to build the kernels")
each_kernels = pytest.mark.parametrize("kernels", ["portable", pytest.param("vorta", marks=needs_compiler)])
each_embedding = pytest.mark.parametrize("case", EMBEDDING_CASES, ids=lambda case: case.name)
each_score = pytest.mark.parametrize("case", SCORE_CASES, ids=lambda case: case.name)

Load = Callable[..., OnnxEncoder]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """A case's encoder, compiled once."""
    root = tmp_path_factory.mktemp("encoders")

    def encoder(case: EncoderCase, precision: str, kernels: Kernels) -> OnnxEncoder:
        source, artifact = root / case.name, root / f"{case.name}-{precision}-{kernels}"
        if not source.exists():
            write_encoder(source, case)
        if not artifact.exists():
            compile_checkpoint(source, artifact, precision=precision, kernels=kernels)
        return OnnxEncoder(artifact, threads=1)

    return encoder


def states_of(case: EncoderCase, ids: np.ndarray, types: np.ndarray | None = None) -> np.ndarray:
    return reference.hidden_states(case.config, encoder_tensors(case.config), ids, types)


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@each_kernels
@each_embedding
def test_fp32_hidden_states(case: EncoderCase, kernels: Kernels, load: Load) -> None:
    sequences = texts(LENGTHS)
    expected = np.concatenate([states_of(case, ids) for ids in sequences])
    assert error(load(case, "fp32", kernels).run(sequences), expected) < 1e-4


@each_kernels
@each_embedding
def test_int8_hidden_states(case: EncoderCase, kernels: Kernels, load: Load) -> None:
    sequences = texts(LENGTHS)
    expected = np.concatenate([states_of(case, ids) for ids in sequences])
    ours = load(case, "int8", kernels).run(sequences)
    cosines = (ours * expected).sum(axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.mean() > 0.995
    assert cosines.min() > 0.96


@each_kernels
@each_score
def test_logits(case: EncoderCase, kernels: Kernels, load: Load) -> None:
    sequences = texts(LENGTHS)
    rng = np.random.default_rng(3)
    types = [rng.integers(0, 2, length).astype(np.int32) for length in LENGTHS]
    runner = load(case, "fp32", kernels)
    tensors, head = encoder_tensors(case.config), head_tensors(case.config)
    kinds = types if runner.info.has_token_types else [None] * len(types)
    expected = np.stack(
        [reference.logits(case.config, tensors, head, *pair) for pair in zip(sequences, kinds, strict=True)]
    )
    assert error(runner.run(sequences, types), expected) < 1e-4
    int8 = load(case, "int8", kernels).run(sequences, types)
    assert np.abs(int8 - expected).max() < 0.25 * max(1.0, np.abs(expected).max())


@needs_compiler
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(
    "case", [EMBEDDING_CASES[0], EMBEDDING_CASES[5], EMBEDDING_CASES[6]], ids=lambda case: case.name
)
def test_a_text_does_not_depend_on_the_texts_beside_it(case: EncoderCase, precision: str, load: Load) -> None:
    sequences = texts(LENGTHS)
    runner = load(case, precision, "vorta")
    together = runner.run(sequences)
    alone = np.concatenate([runner.run([ids]) for ids in sequences])
    assert np.array_equal(together, alone)


def test_token_types_matter(load: Load) -> None:
    case, ids = EMBEDDING_CASES[0], texts([9])
    types = [np.array([0] * 4 + [1] * 5, np.int32)]
    runner = load(case, "fp32", "portable")
    assert error(runner.run(ids, types), states_of(case, ids[0], types[0])) < 1e-4
    assert error(runner.run(ids, types), runner.run(ids).astype(np.float64)) > 0.01


@pytest.mark.parametrize("num_buckets", [32, 16])
def test_relative_buckets(num_buckets: int) -> None:
    distances = np.arange(-600, 601)
    ours = relative_buckets(RelativeBias(num_buckets=num_buckets), distances)
    theirs = reference.buckets(distances, num_buckets)
    # float32 decides at the edges, where the float64 of the reference may fall on the other side.
    assert np.abs(ours - theirs).max() <= 1
    assert (ours != theirs).mean() < 0.01


def test_window_of_every_size(tmp_path: Path) -> None:
    """Texts shorter than, as long as and longer than a window."""
    case = next(case for case in EMBEDDING_CASES if case.name == "modernbert")
    for window in (2, 140, 400):
        changed = EncoderCase(name=case.name, config={**case.config, "local_attention": window})
        source = write_encoder(tmp_path / f"source-{window}", changed)
        sequences = texts([71, 1, 70, 160])
        expected = np.concatenate([states_of(changed, ids) for ids in sequences])
        for kernels in ("portable", "vorta") if cpu.compiler() else ("portable",):
            artifact = tmp_path / f"{window}-{kernels}"
            compile_checkpoint(source, artifact, precision="fp32", kernels=kernels)
            assert error(OnnxEncoder(artifact, threads=1).run(sequences), expected) < 1e-4
