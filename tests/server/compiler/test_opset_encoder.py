"""Encoders in standard operators against the float64 reference: every family and precision, texts of all lengths.

fp32: 1e-4 of the largest number, as on the cpu. fp16, int8 and int4 are judged by the direction of the hidden states,
the last two against the reference on the weights that they stand for, since nothing else is quantised. ONNX Runtime has
no bf16 on a CPU, so these graphs are run by ONNX's own evaluator; 8 bits leave them 5 % of the largest number.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

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
from tests.server.compiler.opset_case import check_standard
from vorta_server.compiler.compile import compile_checkpoint
from vorta_server.compiler.opset_product import quantise_blocks, quantise_outputs
from vorta_server.runners.encoder import OnnxEncoder

LENGTHS = [7, 1, 150, 30, 17, 2]
PRECISIONS = ["fp32", "fp16", "bf16", "int8", "int4"]

each_embedding = pytest.mark.parametrize("case", EMBEDDING_CASES, ids=lambda case: case.name)
each_score = pytest.mark.parametrize("case", SCORE_CASES, ids=lambda case: case.name)

ArtifactOf = Callable[[EncoderCase, str], Path]


@pytest.fixture(scope="module")
def artifact_of(tmp_path_factory: pytest.TempPathFactory) -> ArtifactOf:
    """A case's artifact, compiled once."""
    root = tmp_path_factory.mktemp("opset-encoders")

    def folder(case: EncoderCase, precision: str) -> Path:
        source, artifact = root / case.name, root / f"{case.name}-{precision}"
        if not source.exists():
            write_encoder(source, case)
        if not artifact.exists():
            compile_checkpoint(source, artifact, target="tensorrt", precision=precision)
        return artifact

    return folder


def states_of(case: EncoderCase, sequences: list[np.ndarray], precision: str = "fp32") -> np.ndarray:
    """The reference's hidden states on what the weights are in this precision."""
    tensors = {name: _stored(name, value, precision) for name, value in encoder_tensors(case.config).items()}
    return np.concatenate([reference.hidden_states(case.config, tensors, ids, None) for ids in sequences])


def _stored(name: str, weight: np.ndarray, precision: str) -> np.ndarray:
    if weight.ndim == 1 or precision not in ("int8", "int4") or re.search(r"embed|relative", name):
        return weight
    if precision == "int8":
        codes, scales = quantise_outputs(weight)
        return codes * scales[:, None]
    block = next((block for block in (128, 64, 32, 16) if weight.shape[1] % block == 0), 0)
    if not block:
        return weight
    codes, scales = quantise_blocks(weight, block)
    return codes * np.repeat(scales, block, axis=1)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", [*EMBEDDING_CASES, *SCORE_CASES], ids=lambda case: case.name)
def test_graph_has_standard_operators_alone(case: EncoderCase, precision: str, artifact_of: ArtifactOf) -> None:
    operators = {node.op_type for node in check_standard(artifact_of(case, precision)).graph.node}
    assert ("Attention" in operators) == (precision != "fp32")
    assert ("DequantizeLinear" in operators) == (precision in ("int8", "int4"))


@each_embedding
def test_fp32_hidden_states(case: EncoderCase, artifact_of: ArtifactOf) -> None:
    sequences = texts(LENGTHS)
    expected = states_of(case, sequences)
    ours = OnnxEncoder(artifact_of(case, "fp32"), threads=1).run(sequences)
    assert np.abs(ours - expected).max() < 1e-4 * np.abs(expected).max()


@each_embedding
@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_hidden_states(case: EncoderCase, precision: str, artifact_of: ArtifactOf) -> None:
    sequences = texts(LENGTHS)
    expected = states_of(case, sequences, precision)
    ours = OnnxEncoder(artifact_of(case, precision), threads=1).run(sequences)
    cosines = (ours * expected).sum(axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.9995


@each_embedding
def test_bf16_hidden_states(case: EncoderCase, artifact_of: ArtifactOf) -> None:
    sequences = texts([7, 20])
    lengths = np.array([7, 20])
    padded = np.zeros((2, 20), np.int64)
    padded[np.arange(20) < lengths[:, None]] = np.concatenate(sequences)
    evaluator = ReferenceEvaluator(onnx.load(artifact_of(case, "bf16") / "model.onnx"))
    feed = {"input_ids": padded, "lengths": lengths, "token_types": np.zeros_like(padded)}
    (states,) = evaluator.run(None, {name: feed[name] for name in evaluator.input_names})
    expected = states_of(case, sequences)
    assert np.abs(states[np.arange(20) < lengths[:, None]] - expected).max() < 0.05 * np.abs(expected).max()


@each_score
def test_logits(case: EncoderCase, artifact_of: ArtifactOf) -> None:
    sequences = texts(LENGTHS)
    rng = np.random.default_rng(3)
    types = [rng.integers(0, 2, length).astype(np.int32) for length in LENGTHS]
    tensors, head = encoder_tensors(case.config), head_tensors(case.config)
    for precision, bound in (("fp32", 1e-4), ("fp16", 2e-2)):
        runner = OnnxEncoder(artifact_of(case, precision), threads=1)
        kinds = types if runner.info.has_token_types else [None] * len(types)
        expected = np.stack(
            [reference.logits(case.config, tensors, head, *pair) for pair in zip(sequences, kinds, strict=True)]
        )
        assert np.abs(runner.run(sequences, types) - expected).max() < bound * np.abs(expected).max()


@pytest.mark.parametrize("window", [2, 140, 400])
def test_window_of_every_size(tmp_path: Path, window: int) -> None:
    """Texts shorter than, as long as and longer than a window, beside much padding."""
    case = next(case for case in EMBEDDING_CASES if case.name == "modernbert")
    changed = EncoderCase(name=case.name, config={**case.config, "local_attention": window})
    compile_checkpoint(
        write_encoder(tmp_path / "source", changed), tmp_path / "out", target="tensorrt", precision="fp32"
    )
    sequences = texts([71, 1, 70, 160])
    expected = states_of(changed, sequences)
    ours = OnnxEncoder(tmp_path / "out", threads=1).run(sequences)
    assert np.abs(ours - expected).max() < 1e-4 * np.abs(expected).max()
