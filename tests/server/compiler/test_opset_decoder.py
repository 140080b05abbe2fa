"""Decoders in standard operators against the float64 reference, as an engine drives them.

fp32: 1e-4 of the largest logit, as on the cpu. fp16 rounds activations and weights to 11 bits: 1e-2. int8 and int4 are
compared with the reference on the weights that they stand for, within the same 1e-2, since nothing else is quantised.
ONNX Runtime has no bf16 on a CPU, so these graphs are run by ONNX's own evaluator; 8 bits leave them 8 %.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from tests.reference import decoder as reference
from tests.server.compiler.case import CASES, Case, GraphRunner, random_tensors
from tests.server.compiler.opset_case import OpsetRunner, check_standard
from tests.server.compiler.test_parity import error, prompt
from vorta_server.compiler.artifact import load_manifest
from vorta_server.compiler.compile import compile_checkpoint
from vorta_server.compiler.config import ConfigReader
from vorta_server.compiler.family import read_spec
from vorta_server.compiler.head import HeadLayout, head_layout
from vorta_server.compiler.opset_product import pack_nibbles, quantise_blocks, quantise_outputs

PRECISIONS = ["fp32", "fp16", "bf16", "int8", "int4"]

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
OpsetOf = Callable[[Case, str], Path]


@pytest.fixture(scope="session")
def opset_of(tmp_path_factory: pytest.TempPathFactory, checkpoint_of: Callable[[Case], Path]) -> OpsetOf:
    """A case's artifact for TensorRT, compiled once."""
    root = tmp_path_factory.mktemp("opset")

    def folder(case: Case, precision: str) -> Path:
        path = root / f"{case.name}-{precision}"
        if not path.exists():
            compile_checkpoint(checkpoint_of(case), path, target="tensorrt", precision=precision, block=32)
        return path

    return folder


def ragged_steps(runner: OpsetRunner, sequences: list[list[int]], num_new: int) -> list[npt.NDArray[np.float32]]:
    """Prefills all but the last num_new tokens of each sequence together, filled up on the right, then decodes those.

    Returns each step's logits [B, V], of the last real token of every row.
    """
    lengths = [len(ids) - num_new for ids in sequences]
    widest = max(lengths)
    filled = [ids[:length] + [0] * (widest - length) for ids, length in zip(sequences, lengths, strict=True)]
    last = [row * widest + length - 1 for row, length in enumerate(lengths)]
    steps = [runner.step(filled, [0] * len(sequences), rows=last)]
    for offset in range(num_new):
        past = [length + offset for length in lengths]
        steps.append(runner.step([[ids[at]] for ids, at in zip(sequences, past, strict=True)], past))
    return steps


def check_against(config: dict[str, Any], tensors: dict[str, Any], artifact: Path, bound: float) -> None:
    sequences = [prompt(length + 4, seed=length) for length in (5, 21, 1, 13)]
    expected = [reference.logits(config, tensors, ids) for ids in sequences]
    for offset, ours in enumerate(ragged_steps(OpsetRunner(artifact, batch=4), sequences, 4)):
        theirs = np.stack([e[len(ids) - 5 + offset] for e, ids in zip(expected, sequences, strict=True)])
        assert error(ours, theirs) < bound


@each_case
@pytest.mark.parametrize("precision", PRECISIONS)
def test_graph_has_standard_operators_alone(case: Case, precision: str, opset_of: OpsetOf) -> None:
    operators = {node.op_type for node in check_standard(opset_of(case, precision)).graph.node}
    assert {"RMSNormalization", "RotaryEmbedding", "TensorScatter"} <= operators
    assert ("Attention" in operators) == (precision != "fp32")


@each_case
def test_ragged_batch(case: Case, opset_of: OpsetOf) -> None:
    check_against(case.config, random_tensors(case.config), opset_of(case, "fp32"), 1e-4)


@each_case
def test_same_as_on_the_cpu(case: Case, opset_of: OpsetOf, artifact_of: Callable[..., Path]) -> None:
    ids = prompt(40)
    ours, theirs = OpsetRunner(opset_of(case, "fp32")), GraphRunner(artifact_of(case, "fp32"))
    for start, stop in ((0, 17), (17, 18), (18, 40)):
        chunk = [ids[start:stop]]
        assert error(ours.step(chunk, [start]), theirs.step(chunk, [start]).astype(np.float64)) < 1e-4


@each_case
def test_fp16(case: Case, opset_of: OpsetOf) -> None:
    assert OpsetRunner(opset_of(case, "fp16")).manifest.kv_dtype == "float16"
    check_against(case.config, random_tensors(case.config), opset_of(case, "fp16"), 1e-2)


@each_case
def test_bf16(case: Case, opset_of: OpsetOf) -> None:
    """A prompt of two sequences, filled up, and a step behind it."""
    sequences = [prompt(12, seed=1), prompt(8, seed=2)]
    expected = [reference.logits(case.config, random_tensors(case.config), ids) for ids in sequences]
    artifact = opset_of(case, "bf16")
    manifest, evaluator = load_manifest(artifact), ReferenceEvaluator(onnx.load(artifact / "model.onnx"))
    empty = np.zeros((2, manifest.num_kv_heads, 32, manifest.head_dim), ml_dtypes.bfloat16)
    slots = {name: empty for name in evaluator.input_names if name.startswith("past_key") or "value" in name}
    ids = np.array([sequences[0][:11], sequences[1][:7] + [0] * 4])
    feed = {"input_ids": ids, "past_lengths": np.array([0, 0]), "output_rows": np.array([10, 17])}
    logits, *presents = evaluator.run(None, {**feed, **slots})
    assert error(logits, np.stack([expected[0][10], expected[1][6]])) < 0.08
    slots = {
        name.replace("present", "past"): value for name, value in zip(evaluator.output_names[1:], presents, strict=True)
    }
    ids = np.array([sequences[0][11:], sequences[1][7:]])
    feed = {"input_ids": ids, "past_lengths": np.array([11, 7]), "output_rows": np.array([0, 1])}
    logits = evaluator.run(["logits"], {**feed, **slots})[0]
    assert error(logits, np.stack([expected[0][11], expected[1][7]])) < 0.08


@each_case
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantised(case: Case, precision: str, opset_of: OpsetOf) -> None:
    if precision == "int4" and not _layout(case).is_identity:
        pytest.skip("the elements of its heads are moved before blocks are made of them")
    random = random_tensors(case.config)
    tensors = {name: _stored(name, value, precision) for name, value in random.items()}
    config = case.config
    if config["tie_word_embeddings"]:
        # A tied head is quantised and the embedding is not: for the reference they are two.
        tensors["lm_head.weight"] = _dequantised(random["model.embed_tokens.weight"], precision)
        config = {**config, "tie_word_embeddings": False}
    check_against(config, tensors, opset_of(case, precision), 1e-2)


def _layout(case: Case) -> HeadLayout:
    spec = read_spec(ConfigReader(case.config, Path("config.json")))
    return head_layout(spec.head_dim, spec.rope.rotary_dim)


def _stored(name: str, value: npt.NDArray[np.float32], precision: str) -> npt.NDArray[np.float32]:
    return value if value.ndim == 1 or name == "model.embed_tokens.weight" else _dequantised(value, precision)


def _dequantised(weight: npt.NDArray[np.float32], precision: str) -> npt.NDArray[np.float32]:
    if precision == "int8":
        codes, scales = quantise_outputs(weight)
        return codes * scales[:, None]
    block = next((block for block in (32, 16) if weight.shape[1] % block == 0), 0)
    if not block:
        return weight
    codes, scales = quantise_blocks(weight, block)
    return codes * np.repeat(scales, block, axis=1)


def test_what_fills_a_batch_up_changes_nothing(opset_of: OpsetOf) -> None:
    """A row that nobody runs in writes to the cache's last place, behind the rope tables, and disturbs no other row."""
    ids, artifact = prompt(12), opset_of(CASES[0], "fp32")
    alone, beside = OpsetRunner(artifact), OpsetRunner(artifact, batch=2, capacity=136)
    expected = [alone.step([ids], [0], rows=[11]), alone.step([[5]], [12])]
    ours = [beside.step([ids, [0] * 12], [0, 0], rows=[11]), beside.step([[5], [0]], [12, 135], rows=[0])]
    np.testing.assert_allclose(np.stack(ours), np.stack(expected), rtol=1e-4, atol=1e-4)


def test_a_tied_embedding_is_stored_once(opset_of: OpsetOf) -> None:
    case = next(case for case in CASES if case.name == "qwen2-tied")
    names = {tensor.name for tensor in check_standard(opset_of(case, "fp16")).graph.initializer}
    assert [name for name in names if "embed_tokens" in name] == ["model.embed_tokens.weight.float16"]


def test_nibbles() -> None:
    codes = np.array([[-8, 7, 1], [-1, 0, 3]], np.int8)
    assert pack_nibbles(codes).tolist() == [0x78, 0xF1, 0x30]


def test_scales_are_positive_and_clip_nothing() -> None:
    weight = np.random.default_rng(0).standard_normal((7, 64)).astype(np.float32)
    weight[0] = 0
    codes, scales = quantise_blocks(weight, 32)
    assert scales.min() > 0
    assert np.abs(codes * np.repeat(scales, 32, axis=1) - weight).max() <= 0.51 * scales.max()
