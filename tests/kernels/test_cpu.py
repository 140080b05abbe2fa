"""The CPU operators, each alone in a graph, against float64 in numpy."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from vorta_kernels import cpu
from vorta_server.compiler.graph import IR_VERSION, OPSET, VORTA
from vorta_server.compiler.linear import Linear
from vorta_server.compiler.native import pack_tiles, take_turns
from vorta_server.compiler.quantise import dequantise_int4, dequantise_int8, quantise_int4, quantise_int8
from vorta_server.compiler.weight import Matrix

pytestmark = pytest.mark.skipif(cpu.compiler() is None, reason="no C++ compiler is installed to build the kernels")

Float64Array = npt.NDArray[np.float64]

# Whether attention over several steps multiplies bfloat16; see csrc/cpu/attention_halves.h.
HAS_HALVES = Path("/proc/cpuinfo").exists() and "avx512_bf16" in Path("/proc/cpuinfo").read_text()


def run(
    op: str, inputs: list[np.ndarray | None], outputs: list[int], *, threads: int = 2, **attributes: Any
) -> list[np.ndarray]:
    """Runs one node. `outputs` are element types; an input of None is left out."""
    names = ["" if value is None else f"x{index}" for index, value in enumerate(inputs)]
    given_values = {name: value for name, value in zip(names, inputs, strict=True) if value is not None}
    node = helper.make_node(op, names, [f"y{i}" for i in range(len(outputs))], domain=VORTA, **attributes)
    graph = helper.make_graph(
        [node],
        "test",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)
            for name, value in given_values.items()
        ],
        [helper.make_tensor_value_info(f"y{i}", kind, None) for i, kind in enumerate(outputs)],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(VORTA, 1)]
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(cpu.library()))
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, given_values)


def check_codes(codes: np.ndarray, factors: np.ndarray, exact: Float64Array, multiple: int) -> None:
    """Codes and factors stand for `exact` [..., K] as well as 8 bits with a scale per row can."""
    size = exact.shape[-1]
    assert codes.shape == (*exact.shape[:-1], -(-size // multiple) * multiple)
    assert not codes[..., size:].any()
    largest = np.abs(exact).max(axis=-1, keepdims=True)
    np.testing.assert_allclose(factors, largest / 127, rtol=2e-6, atol=1e-30)
    error = np.abs(codes[..., :size] * factors.astype(np.float64) - exact)
    # Half a step, and what numbers of 32 bits add to a row: as much of its largest as is granted to the factor.
    assert (error <= largest * (0.5 / 127 + 2 * 2e-6) + 1e-30).all()


SIZES = [(0, 48), (1, 1), (3, 16), (5, 37), (2, 192), (40, 896), (1, 4864)]


@pytest.mark.parametrize(("rows", "size"), SIZES)
def test_quantise(rows: int, size: int) -> None:
    x = np.random.default_rng(1).standard_normal((1, rows, size)).astype(np.float32)
    x[0, :1] = 0 if rows > 1 else x[0, :1]
    codes, factors = run("Quantise", [x], [TensorProto.INT8, TensorProto.FLOAT], multiple=32)
    check_codes(codes, factors, x.astype(np.float64), 32)


@pytest.mark.parametrize("has_delta", [False, True])
@pytest.mark.parametrize(("rows", "size"), SIZES)
def test_add_norm_quantise(rows: int, size: int, has_delta: bool) -> None:
    rng = np.random.default_rng(2)
    residual, delta = rng.standard_normal((2, rows, 1, size)).astype(np.float32) * 3
    weight = rng.standard_normal(size).astype(np.float32)
    kinds = [TensorProto.INT8, TensorProto.FLOAT] + [TensorProto.FLOAT] * has_delta
    codes, factors, *total = run(
        "AddNormQuantise", [residual, weight, delta if has_delta else None], kinds, multiple=64, epsilon=1e-5
    )
    exact = residual.astype(np.float64) + (delta if has_delta else 0)
    if has_delta:
        np.testing.assert_allclose(total[0], exact, rtol=1e-6, atol=1e-6)
    exact = exact / np.sqrt((exact**2).mean(axis=-1, keepdims=True) + 1e-5) * weight
    check_codes(codes, factors, exact, 64)


@pytest.mark.parametrize(("rows", "size"), SIZES)
def test_gate_quantise(rows: int, size: int) -> None:
    both = np.random.default_rng(3).standard_normal((rows, 2 * size)).astype(np.float32) * 4
    both[:1, 0] = -500  # silu is 0 there, not NaN
    codes, factors = run("GateQuantise", [both], [TensorProto.INT8, TensorProto.FLOAT], multiple=32)
    gate, up = np.split(both.astype(np.float64), 2, axis=1)
    check_codes(codes, factors, gate / (1 + np.exp(-gate)) * up, 32)


def products(
    x: np.ndarray, factors: np.ndarray, weight: np.ndarray, bits: int, block: int, bias: np.ndarray | None = None
) -> tuple[np.ndarray, Float64Array]:
    """What MatMulBlocks computes, and what it should."""
    codes, scales = (quantise_int4 if bits == 4 else quantise_int8)(weight, block)
    packed, ordered = pack_tiles(codes, scales, bits=bits)
    inputs = [x, factors, packed, ordered, bias]
    (y,) = run("MatMulBlocks", inputs, [TensorProto.FLOAT], bits=bits, block=block, N=len(weight))
    restored = (dequantise_int4 if bits == 4 else dequantise_int8)(codes, scales, x.shape[-1]).astype(np.float64)
    exact = x.astype(np.float64) @ restored.T * factors
    return y, exact if bias is None else exact + bias


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 30),
    num_outputs=st.integers(1, 70),
    blocks=st.integers(1, 5),
    block=st.sampled_from([16, 32, 64, 128]),
    bits=st.sampled_from([4, 8]),
    has_bias=st.booleans(),
    is_extreme=st.booleans(),
)
def test_products_of_any_shape(
    rows: int, num_outputs: int, blocks: int, block: int, bits: int, has_bias: bool, is_extreme: bool
) -> None:
    rng = np.random.default_rng(rows + 100 * num_outputs)
    size = blocks * block
    x = rng.integers(-127, 128, (rows, size)).astype(np.int8)
    weight = rng.standard_normal((num_outputs, size)).astype(np.float32)
    if is_extreme:  # every product at the largest that there is
        x[:] = 127
        weight[:] = 0.7
    factors = rng.random((rows, 1)).astype(np.float32)
    bias = rng.standard_normal(num_outputs).astype(np.float32) if has_bias else None
    y, exact = products(x, factors, weight, bits, block, bias)
    assert y.shape == exact.shape
    scale = np.abs(exact).max(initial=1.0)
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=3e-6 * scale)


@pytest.mark.parametrize(("bits", "block"), [(4, 64), (8, 64), (8, 128)])
def test_a_row_does_not_depend_on_the_rows_beside_it(bits: int, block: int) -> None:
    rng = np.random.default_rng(5)
    x = rng.integers(-127, 128, (131, 256)).astype(np.int8)
    factors = rng.random((131, 1)).astype(np.float32)
    weight = rng.standard_normal((100, 256)).astype(np.float32)
    bias = rng.standard_normal(100).astype(np.float32)
    together, _ = products(x, factors, weight, bits, block, bias)
    for count in (1, 2, 4, 5, 7, 12, 13, 24, 29, 41, 100):
        assert np.array_equal(products(x[:count], factors[:count], weight, bits, block, bias)[0], together[:count])


def float_products(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """What MatMulTiles computes of rows [rows, K] and a weight [N, K]."""
    whole = np.pad(weight, ((0, -len(weight) % 16), (0, 0)))
    tiles = np.ascontiguousarray(whole.reshape(-1, 16, weight.shape[1]).transpose(0, 2, 1))
    inputs = [x, tiles.reshape(len(tiles), -1), bias]
    (y,) = run("MatMulTiles", inputs, [TensorProto.FLOAT], N=len(weight))
    return y


@settings(max_examples=60, deadline=None)
@given(
    rows=st.sampled_from([0, 1, 5, 16, 17, 31, 33, 95, 96, 130, 300]),
    num_outputs=st.integers(1, 70),
    size=st.sampled_from([1, 2, 15, 31, 32, 33, 100, 384, 385, 800]),
    has_bias=st.booleans(),
    magnitude=st.sampled_from([1e-12, 1.0, 1e12]),
)
def test_products_of_floats_are_as_exact_as_floats(
    rows: int, num_outputs: int, size: int, has_bias: bool, magnitude: float
) -> None:
    rng = np.random.default_rng(rows + 1000 * num_outputs + size)
    x = (rng.standard_normal((rows, size)) * 10.0 ** rng.integers(-3, 3, size) * magnitude).astype(np.float32)
    weight = rng.standard_normal((num_outputs, size)).astype(np.float32)
    bias = (rng.standard_normal(num_outputs) * magnitude).astype(np.float32) if has_bias else None
    exact, terms = x.astype(np.float64) @ weight.T.astype(np.float64), np.abs(x) @ np.abs(weight).T
    if bias is not None:
        exact, terms = exact + bias, terms + np.abs(bias)
    error = np.abs(float_products(x, weight, bias) - exact)
    assert (error <= (4 + size / 4) * 2.0**-24 * terms).all()


def test_a_row_of_floats_does_not_depend_on_the_rows_beside_it() -> None:
    rng = np.random.default_rng(6)
    x, weight = rng.standard_normal((300, 400)).astype(np.float32), rng.standard_normal((100, 400)).astype(np.float32)
    bias = rng.standard_normal(100).astype(np.float32)
    together = float_products(x, weight, bias)
    for count in (1, 2, 12, 16, 17, 33, 48, 95, 96, 131):
        assert np.array_equal(float_products(x[:count], weight, bias), together[:count])


def packed(weight: np.ndarray, bits: int, block: int) -> tuple[np.ndarray, np.ndarray, Float64Array]:
    """Codes and scales of a weight [N, K] in tiles, and what they stand for."""
    codes, scales = (quantise_int4 if bits == 4 else quantise_int8)(weight, block)
    restored = (dequantise_int4 if bits == 4 else dequantise_int8)(codes, scales, weight.shape[1])
    return *pack_tiles(codes, scales, bits=bits), restored.astype(np.float64)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("rows", "size"), [(0, 40), (1, 48), (7, 50), (33, 96), (100, 200), (130, 33)])
def test_gated_products(rows: int, size: int, bits: int, has_bias: bool) -> None:
    rng = np.random.default_rng(11)
    x, factors = rng.integers(-127, 128, (rows, 128)).astype(np.int8), rng.random((rows, 1)).astype(np.float32) / 99
    layers = [
        Linear(
            name="part",
            weight=Matrix(name="part", num_rows=size, num_columns=128, read=lambda i, j, part=part: part[i:j]),
            bias=rng.standard_normal(size).astype(np.float32) if has_bias else None,
        )
        for part in rng.standard_normal((2, size, 128)).astype(np.float32)
    ]
    both = take_turns("both", *layers)
    codes, scales, restored = packed(both.weight.read(0, both.weight.num_rows), bits, 64)
    outputs = x.astype(np.float64) @ restored.T * factors + (0 if both.bias is None else both.bias)
    turns = outputs.reshape(rows, len(restored) // 32, 2, 16).transpose(2, 0, 1, 3)
    gate, up = turns.reshape(2, rows, len(restored) // 2)[:, :, :size]
    kinds = [TensorProto.INT8, TensorProto.FLOAT]
    sizes = {"bits": bits, "block": 64, "N": size, "multiple": 64}
    out = run("MatMulBlocksGate", [x, factors, codes, scales, both.bias], kinds, **sizes)
    check_codes(*out, gate / (1 + np.exp(-gate)) * up, 64)
    for count in (1, 13, 97) if rows else ():
        part = run("MatMulBlocksGate", [x[:count], factors[:count], codes, scales, both.bias], kinds, **sizes)
        assert all(np.array_equal(got, whole[:count]) for got, whole in zip(part, out, strict=True))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "size"), [(0, 40), (1, 48), (7, 50), (33, 96), (130, 33)])
def test_products_added_and_normed(rows: int, size: int, bits: int) -> None:
    rng = np.random.default_rng(12)
    x, factors = rng.integers(-127, 128, (rows, 128)).astype(np.int8), rng.random((rows, 1)).astype(np.float32) / 99
    residual, norm = rng.standard_normal((rows, size)).astype(np.float32), rng.random(size).astype(np.float32)
    codes, scales, restored = packed(rng.standard_normal((size, 128)).astype(np.float32), bits, 64)
    kinds = [TensorProto.INT8, TensorProto.FLOAT, TensorProto.FLOAT]
    sizes = {"bits": bits, "block": 64, "N": size, "multiple": 64, "epsilon": 1e-5}

    def compute(count: int) -> list[np.ndarray]:
        inputs = [x[:count], factors[:count], codes, scales, None, residual[:count], norm]
        return run("MatMulBlocksAddNorm", inputs, kinds, **sizes)

    *out, total = compute(rows)
    exact = x.astype(np.float64) @ restored.T * factors + residual
    np.testing.assert_allclose(total, exact, rtol=1e-5, atol=1e-5)
    check_codes(*out, exact / np.sqrt((exact**2).mean(axis=-1, keepdims=True) + 1e-5) * norm, 64)
    for count in (1, 13, 97) if rows else ():
        parts = zip(compute(count), [*out, total], strict=True)
        assert all(np.array_equal(got, whole[:count]) for got, whole in parts)


def test_products_with_inputs_that_do_not_fit_are_refused() -> None:
    x, factors = np.zeros((2, 64), np.int8), np.ones((2, 1), np.float32)
    codes, scales = np.zeros((2, 512), np.uint8), np.zeros((2, 16), np.float32)
    sizes = {"bits": 4, "block": 64, "N": 17, "multiple": 64}
    kinds = [TensorProto.INT8, TensorProto.FLOAT]
    with pytest.raises(Exception, match="do not fit each other"):
        run("MatMulBlocksGate", [x, factors, codes, scales], kinds, **sizes)
    inputs = [x, factors, codes, scales, None, np.zeros((1, 17), np.float32), np.ones(17, np.float32)]
    with pytest.raises(Exception, match="do not fit each other"):
        run("MatMulBlocksAddNorm", inputs, kinds, epsilon=1e-5, **sizes)


def test_weights_that_do_not_fit_are_refused() -> None:
    x, factors = np.zeros((1, 64), np.int8), np.ones((1, 1), np.float32)
    packed, scales = np.zeros((1, 64), np.uint8), np.zeros((1, 16), np.float32)
    with pytest.raises(Exception, match="do not fit each other"):
        run("MatMulBlocks", [x, factors, packed, scales, None], [TensorProto.FLOAT], bits=4, block=64, N=16)


def attend(
    query: Float64Array, keys: Float64Array, values: Float64Array, first: int, scale: float, window: int
) -> Float64Array:
    """[S, H, D] queries at positions `first` and on over [T, KH, D]."""
    group = query.shape[1] // keys.shape[1]
    out = np.zeros_like(query)
    for step in range(len(query)):
        position = first + step
        start = max(0, position - window + 1) if window else 0
        for head in range(query.shape[1]):
            scores = keys[start : position + 1, head // group] @ query[step, head] * scale
            weights = np.exp(scores - scores.max())
            out[step, head] = weights / weights.sum() @ values[start : position + 1, head // group]
    return out


def rotate(x: Float64Array, cosines: np.ndarray, sines: np.ndarray, first: int) -> Float64Array:
    """[S, H, D], halves paired."""
    half = x.shape[-1] // 2
    cos, sin = (table[first : first + len(x), None].astype(np.float64) for table in (cosines, sines))
    low, high = x[..., :half], x[..., half:]
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(6, 6, 32), (14, 2, 64), (4, 1, 24), (8, 2, 80), (3, 3, 128)])
@pytest.mark.parametrize(
    ("pasts", "steps", "window"),
    [
        ([0], 1, 0),
        ([200, 3, 0, 131], 1, 0),
        ([5, 140], 1, 9),
        ([0], 70, 0),
        ([130], 33, 0),
        ([7], 150, 20),
        ([3], 2, 0),
    ],
)
@pytest.mark.parametrize("is_packed", [True, False])
def test_attention(
    heads: int, kv_heads: int, dim: int, pasts: list[int], steps: int, window: int, is_packed: bool
) -> None:
    rng = np.random.default_rng(7)
    batch, capacity, scale = len(pasts), 256, 1 / np.sqrt(dim)
    past = rng.standard_normal((2, batch, kv_heads, capacity, dim)).astype(np.float32)
    query = rng.standard_normal((batch, steps, heads * dim)).astype(np.float32) * 2
    key, value = rng.standard_normal((2, batch, steps, kv_heads * dim)).astype(np.float32) * 2
    angles = np.arange(capacity)[:, None] * rng.random(dim // 2)
    cosines, sines = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    last = np.array([count + steps - 1 for count in pasts], np.int32)
    new = [np.concatenate([query, key, value], axis=-1), None, None] if is_packed else [query, key, value]
    out, present_key, present_value = run(
        "Attention",
        [*new, past[0], past[1], last, cosines, sines],
        [TensorProto.FLOAT] * 3,
        num_heads=heads,
        num_kv_heads=kv_heads,
        window=window,
        scale=float(scale),
    )
    for row, count in enumerate(pasts):
        split = [part[row].reshape(steps, -1, dim).astype(np.float64) for part in (query, key, value)]
        new_keys = rotate(split[1], cosines, sines, count)
        end = count + steps
        keys = np.concatenate([past[0, row, :, :count].transpose(1, 0, 2), new_keys])
        values = np.concatenate([past[1, row, :, :count].transpose(1, 0, 2), split[2]])
        np.testing.assert_allclose(present_key[row, :, :end].transpose(1, 0, 2), keys, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(present_value[row, :, :end].transpose(1, 0, 2), values, rtol=1e-6)
        expected = attend(rotate(split[0], cosines, sines, count), keys, values, count, scale, window)
        if steps > 1 and HAS_HALVES and dim % 16 == 0:
            check_halves(out[row], expected.reshape(steps, -1), np.abs(values).max())
        else:
            np.testing.assert_allclose(out[row], expected.reshape(steps, -1), rtol=1e-4, atol=2e-5)


def check_halves(out: np.ndarray, expected: Float64Array, largest: float) -> None:
    """Factors of 8 bits in scores of about 4, and again in the weights: 0.5 % of the whole, a few of one number."""
    error = out - expected
    assert np.linalg.norm(error) <= 0.005 * np.linalg.norm(expected)
    assert np.abs(error).max() <= 0.02 * largest


@pytest.mark.parametrize(("window", "cuts"), [(0, [70, 130]), (20, [2, 33, 131]), (150, [128, 198])])
def test_attention_does_not_depend_on_how_a_prompt_is_cut(window: int, cuts: list[int]) -> None:
    rng = np.random.default_rng(8)
    heads, kv_heads, dim, steps, capacity = 6, 2, 32, 200, 256
    qkv = rng.standard_normal((1, steps, (heads + 2 * kv_heads) * dim)).astype(np.float32)
    angles = np.arange(capacity)[:, None] * rng.random(dim // 2)
    tables = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    sizes = {"num_heads": heads, "num_kv_heads": kv_heads, "window": window, "scale": dim**-0.5}

    def attention(first: int, last: int, key: np.ndarray, value: np.ndarray) -> list[np.ndarray]:
        inputs = [qkv[:, first:last], None, None, key, value, np.array([last - 1], np.int32), *tables]
        return run("Attention", inputs, [TensorProto.FLOAT] * 3, **sizes)

    empty = np.zeros((1, kv_heads, capacity, dim), np.float32)
    whole, _, _ = attention(0, steps, empty, empty)
    key, value, parts = empty, empty, []
    for first, last in pairwise([0, *cuts, steps]):
        part, key, value = attention(first, last, key, value)
        parts.append(part)
    assert np.array_equal(np.concatenate(parts, axis=1), whole)


def test_attention_refuses_positions_beyond_the_slot() -> None:
    past = np.zeros((1, 1, 8, 16), np.float32)
    table = np.zeros((64, 8), np.float32)
    qkv = np.zeros((1, 1, 48), np.float32)
    with pytest.raises(Exception, match="more positions than a slot"):
        run(
            "Attention",
            [qkv, None, None, past, past, np.array([8], np.int32), table, table],
            [TensorProto.FLOAT] * 3,
            num_heads=1,
            num_kv_heads=1,
            window=0,
            scale=1.0,
        )


def test_attention_refuses_queries_of_another_width() -> None:
    past, table = np.zeros((1, 1, 8, 16), np.float32), np.zeros((64, 8), np.float32)
    inputs = [np.zeros((1, 1, 32), np.float32), None, None, past, past, np.array([0], np.int32), table, table]
    sizes = {"num_heads": 1, "num_kv_heads": 1, "window": 0, "scale": 1.0}
    with pytest.raises(Exception, match="do not fit each other"):
        run("Attention", inputs, [TensorProto.FLOAT] * 3, **sizes)


def test_gelu_is_as_exact_as_it_says() -> None:
    edges = np.array([0.0, -0.0, 5.2999, -5.2999, 5.3001, -5.3001, 40.0, -40.0, 1e-30, -1e-30, 3e8, -3e8], np.float32)
    x = np.concatenate([edges, np.linspace(-8, 8, 40_004).astype(np.float32)]).reshape(-1, 16)
    identity = np.eye(16, dtype=np.float32).reshape(1, -1)
    (y,) = run("MatMulTilesActivate", [x, identity, None], [TensorProto.FLOAT], N=16, activation=0, gated=0)
    exact = x * np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x.ravel().tolist()]).reshape(x.shape)
    # Phi is off by 1.3e-7 at most, and everything is rounded once more.
    assert (np.abs(y - exact) <= 2e-7 * np.abs(x)).all()


def test_the_library_is_kept_and_a_missing_compiler_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = cpu.library.__wrapped__()
    assert built.is_relative_to(tmp_path)
    stamp = built.stat().st_mtime_ns
    assert cpu.library.__wrapped__() == built
    assert built.stat().st_mtime_ns == stamp
    assert {file.name for file in built.parent.iterdir()} == {built.name, built.with_suffix(".log").name}
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(cpu.BuildError, match="no C\\+\\+ compiler"):
        cpu.library.__wrapped__()
