"""int8 and int4 linear layers and decoders, within bounds that follow from how they quantise.

One layer, y = x W^T. Two roundings separate it from real arithmetic:
1. Weights: each w' is within e_b of its w: |scale_b| for int4 (clipped values), scale_b / 2 for int8.
2. Activations: MatMulNBits at accuracy level 4 rounds x by blocks of 32 to multiples of absmax / 127, so that
   each x is off by at most absmax_b(x) / 254.
So, exactly, |y - x W'^T| <= sum over blocks of absmax_b(x) / 254 * sum |w'_b|, and
|y - x W^T| <= that + sum over blocks of e_b * sum |x_b|. Both are checked element by element. On top comes
float32's own rounding, 1e-5 of sum |x_b| * 8 |scale_b| (int4) or 128 scale_b (int8): the kernel multiplies
codes that are offset by 8 or 128 and subtracts the offset's share afterwards, in float32.

A decoder. Against the float64 reference on the *dequantised* weights only rounding 2 remains. A rounding
error is uniform in +-absmax / 254, an rms of absmax / 440; the absmax of 32 Gaussian values is about 2.1
times their rms (for a product of two such values, as in front of down_proj, about 2.9), so a layer's output
carries a relative rms error of e = 2.9 / 440 = 0.66 % at most. A decoder layer adds to its residual stream
two branches with two quantised linears in sequence each; errors of different layers are independent and add
in squares; a branch's second linear sees the first's error through one more nonlinearity of slope about 1.
With the head that makes e * sqrt(4 L + 1) of the logits' rms. Softmax and the product gate * up may amplify
somewhat; the bound states twice that value. For L = 3: 2 * 0.0066 * sqrt(13) = 4.8 %.

With Vorta's kernels an activation's scale is that of its whole row: the absmax of some hundred Gaussian values is
about 2.9 times their rms, and of as many products of two about 5 times. So 5 stands in the place of 2.9: 8.2 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from tests.reference import decoder as reference
from tests.server.compiler.case import CASES, Case, GraphRunner, random_tensors
from tests.server.compiler.test_parity import prompt
from vorta_kernels import cpu
from vorta_server.compiler.graph import GraphBuilder, WeightFile
from vorta_server.compiler.head import head_layout
from vorta_server.compiler.linear import BlockLowering, Float32Lowering, Linear, LinearLowering
from vorta_server.compiler.plan import Kernels
from vorta_server.compiler.quantise import (
    BLOCK,
    dequantise_int4,
    dequantise_int8,
    num_blocks,
    quantise_int4,
    quantise_int8,
)
from vorta_server.compiler.weight import Matrix

Float32Array = npt.NDArray[np.float32]

needs_kernels = pytest.mark.skipif(cpu.compiler() is None, reason="no C++ compiler is installed to build the kernels")


def matrix_of(name: str, values: Float32Array) -> Matrix:
    return Matrix(name=name, num_rows=len(values), num_columns=values.shape[1], read=lambda a, b: values[a:b].copy())


def run_graph(folder: Path, build: Callable[[GraphBuilder], list[str]], feed: dict[str, np.ndarray]) -> list:
    """Builds a graph of one float input "x" [M, K] or ids, saves it and runs it once."""
    with (folder / "weights.bin").open("wb") as stream:
        graph = GraphBuilder(WeightFile(stream, "weights.bin"))
        for name, value in feed.items():
            kind = TensorProto.FLOAT if value.dtype == np.float32 else TensorProto.INT64
            graph.input(name, kind, [f"{name}_{axis}" for axis in range(value.ndim)])
        names = build(graph)
        for name in names:
            graph.output(name, TensorProto.FLOAT, [f"{name}_{axis}" for axis in range(2)])
    onnx.save(graph.model("test"), folder / "model.onnx")
    session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(names, feed)


def linear_alone(graph: GraphBuilder, lowering: LinearLowering, layer: Linear) -> list[str]:
    return [lowering.linear(graph, "x", layer)]


def lowering_of(precision: str) -> LinearLowering:
    return Float32Lowering() if precision == "fp32" else BlockLowering(precision)


def dequantised(weight: Float32Array, precision: str) -> tuple[Float32Array, Float32Array]:
    """The weights as the graph has them, and the largest error of a weight in each block [N, blocks]."""
    if precision == "int4":
        codes, scale = quantise_int4(weight)
        return dequantise_int4(codes, scale, weight.shape[1]), np.abs(scale)
    codes, scale = quantise_int8(weight)
    return dequantise_int8(codes, scale, weight.shape[1]), scale / 2


def by_block(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """[M, K] as [M, blocks, 32] with zeros after K."""
    padding = num_blocks(values.shape[1]) * BLOCK - values.shape[1]
    return np.pad(values.astype(np.float64), ((0, 0), (0, padding))).reshape(len(values), -1, BLOCK)


WEIGHTS = {
    "normal": lambda rng, n, k: rng.standard_normal((n, k)),
    "one sign, full range": lambda rng, n, k: np.full((n, k), 0.75),
    "outliers": lambda rng, n, k: rng.standard_normal((n, k)) * np.where(rng.random((n, k)) < 0.02, 50, 1),
    "zeros": lambda rng, n, k: np.zeros((n, k)),
}
INPUTS = {
    "normal": lambda rng, m, k: rng.standard_normal((m, k)),
    "one sign, full range": lambda rng, m, k: np.full((m, k), 3.0),
    "outliers": lambda rng, m, k: rng.standard_normal((m, k)) * np.where(rng.random((m, k)) < 0.02, 100, 1),
}


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("num_rows", "num_columns"), [(64, 96), (33, 40), (7, 20), (130, 1000)])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_linear_within_its_bound(
    tmp_path: Path, precision: str, num_rows: int, num_columns: int, weights: str, inputs: str
) -> None:
    rng = np.random.default_rng(3)
    weight = WEIGHTS[weights](rng, num_rows, num_columns).astype(np.float32)
    restored, weight_error = dequantised(weight, precision)
    offset = weight_error * (8 if precision == "int4" else 256)
    for rows in (1, 5, 32):
        x = INPUTS[inputs](rng, rows, num_columns).astype(np.float32)
        layer = Linear(name="y", weight=matrix_of("w", weight))
        build = partial(linear_alone, lowering=BlockLowering(precision), layer=layer)
        (y,) = run_graph(tmp_path, build, {"x": x})
        step = np.abs(by_block(x)).max(-1) / 254
        from_activations = step @ np.abs(by_block(restored)).sum(-1).T
        from_weights = np.abs(by_block(x)).sum(-1) @ weight_error.T
        rounding = 1e-5 * (np.abs(by_block(x)).sum(-1) @ offset.T)
        exact = x.astype(np.float64)
        assert (np.abs(y - exact @ restored.T) <= from_activations + rounding).all()
        assert (np.abs(y - exact @ weight.T) <= from_activations + from_weights + rounding).all()


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("rows", [0, 1, 6])
def test_several_linears_on_one_input(tmp_path: Path, precision: str, rows: int) -> None:
    """packed and shared give what each layer gives alone, with and without biases."""
    rng = np.random.default_rng(5)
    shapes = [(24, True), (8, False), (16, True)]
    parts = [
        Linear(
            name=f"part{index}",
            weight=matrix_of(f"w{index}", rng.standard_normal((size, 64)).astype(np.float32)),
            bias=rng.standard_normal(size).astype(np.float32) if biased else None,
        )
        for index, (size, biased) in enumerate(shapes)
    ]
    x = rng.standard_normal((rows, 64)).astype(np.float32)
    lowering = lowering_of(precision)
    (packed,) = run_graph(tmp_path, lambda g: [lowering.packed(g, "x", "together", parts)], {"x": x})
    shared = run_graph(tmp_path, lambda g: lowering.shared(g, "x", parts), {"x": x})
    alone = [run_graph(tmp_path, partial(linear_alone, lowering=lowering, layer=part), {"x": x})[0] for part in parts]
    assert packed.shape == (rows, 48)
    np.testing.assert_allclose(packed, np.concatenate(alone, axis=1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.concatenate(shared, axis=1), np.concatenate(alone, axis=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("num_columns", [64, 60])
def test_embedding(tmp_path: Path, precision: str, num_columns: int) -> None:
    """Quantised embeddings are 8-bit in every precision, and exact where blocks do not fit."""
    table = np.random.default_rng(1).standard_normal((50, num_columns)).astype(np.float32)
    ids = np.array([0, 49, 7, 7], np.int64)
    (rows,) = run_graph(
        tmp_path,
        lambda g: [lowering_of(precision).embedding(g, "ids", matrix_of("table", table))],
        {"ids": ids},
    )
    exact = precision == "fp32" or num_columns % BLOCK
    expected = table if exact else dequantised(table, "int8")[0]
    np.testing.assert_allclose(rows, expected[ids], rtol=1e-6, atol=1e-6)


def dequantised_tensors(case: Case, precision: str) -> dict[str, Float32Array]:
    """The checkpoint's tensors with every weight as the compiled graph has it."""
    tensors = random_tensors(case.config)
    head_dim = reference.head_dim(case.config)
    columns = head_layout(head_dim, int(head_dim * case.config.get("partial_rotary_factor", 1.0))).rows(
        case.config["num_attention_heads"]
    )
    result = dict(tensors)
    for name, value in tensors.items():
        if name.endswith("o_proj.weight"):
            # Blocks are cut from the moved and padded heads.
            moved = np.where(columns >= 0, value[:, columns], np.float32(0))
            restored = dequantised(moved, precision)[0]
            result[name] = np.empty_like(value)
            result[name][:, columns[columns >= 0]] = restored[:, columns >= 0]
        elif name.endswith("_proj.weight") or name == "lm_head.weight":
            result[name] = dequantised(value, precision)[0]
    embedding = tensors["model.embed_tokens.weight"]
    if case.config["tie_word_embeddings"]:
        result["lm_head.weight"] = dequantised(embedding, precision)[0]
    if embedding.shape[1] % BLOCK == 0:
        result["model.embed_tokens.weight"] = dequantised(embedding, "int8")[0]
    return result


def decoder_bound(num_layers: int, kernels: Kernels) -> float:
    """The stated bound on rms(error) / rms(logits); see the module's docstring."""
    return 2 * ({"portable": 2.9, "vorta": 5.0}[kernels] / 440) * math.sqrt(4 * num_layers + 1)


@pytest.mark.parametrize("kernels", ["portable", pytest.param("vorta", marks=needs_kernels)])
@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_decoder_within_its_bound(
    case: Case, precision: str, kernels: Kernels, artifact_of: Callable[..., Path]
) -> None:
    ids = prompt(45)
    config = {**case.config, "tie_word_embeddings": False}
    expected = reference.logits(config, dequantised_tensors(case, precision), ids)
    whole = GraphRunner(artifact_of(case, precision, kernels)).step([ids], [0])
    runner = GraphRunner(artifact_of(case, precision, kernels))
    pieces = [runner.step([ids[start : start + 9]], [start]) for start in range(0, len(ids), 9)]
    for ours in (whole, np.concatenate(pieces)):
        error = np.sqrt(((ours - expected) ** 2).mean() / (expected**2).mean())
        assert error < decoder_bound(case.config["num_hidden_layers"], kernels)
