"""The quantiser keeps its stated bounds on any block."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vorta_server.compiler.quantise import (
    BLOCK,
    dequantise_int4,
    dequantise_int8,
    num_blocks,
    quantise_int4,
    quantise_int8,
)

# Magnitudes that weights have; scales below float32's normal range would round for another reason.
values = st.floats(-1e4, 1e4, width=32).map(lambda value: 0.0 if abs(value) < 1e-20 else value)
weights = hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 100)), elements=values, fill=st.nothing())


@settings(deadline=None)
@given(weights)
def test_int4_bounds(weight: npt.NDArray[np.float32]) -> None:
    packed, scale = quantise_int4(weight)
    num_rows, num_columns = weight.shape
    assert packed.shape == (num_rows, num_blocks(num_columns), BLOCK // 2)
    assert scale.shape == (num_rows, num_blocks(num_columns))
    per_value = np.abs(np.repeat(scale, BLOCK, axis=1)[:, :num_columns]).astype(np.float64)
    restored = dequantise_int4(packed, scale, num_columns)
    error = np.abs(restored - weight.astype(np.float64))
    # Clipped values lie beyond 7.5 steps on the side opposite to the block's extreme.
    clipped = weight / np.repeat(scale, BLOCK, axis=1)[:, :num_columns] > 7.5
    assert (error <= np.where(clipped, 1.0, 0.5) * per_value * (1 + 1e-5)).all()


@settings(deadline=None)
@given(weights)
def test_int8_bounds(weight: npt.NDArray[np.float32]) -> None:
    codes, scale = quantise_int8(weight)
    num_columns = weight.shape[1]
    per_value = np.repeat(scale, BLOCK, axis=1)[:, :num_columns].astype(np.float64)
    error = np.abs(dequantise_int8(codes, scale, num_columns) - weight.astype(np.float64))
    assert (error <= 0.5 * per_value * (1 + 1e-4)).all()


def test_definition_by_hand() -> None:
    """The documented formulas, value by value."""
    row = np.zeros((1, BLOCK), np.float32)
    row[0, :5] = [-4.0, 3.9, 1.0, 0.2, -0.26]
    packed, scale = quantise_int4(row)
    assert scale.tolist() == [[0.5]]
    # round(w / 0.5) + 8, clipped to 15; even elements in the low nibbles.
    codes = [0, 15, 10, 8, 7]
    assert packed[0, 0, :3].tolist() == [
        codes[0] | codes[1] << 4,
        codes[2] | codes[3] << 4,
        codes[4] | 8 << 4,
    ]
    bytes_, byte_scale = quantise_int8(row)
    assert byte_scale[0, 0] == pytest.approx(4 / 127)
    assert bytes_[0, 0, :5].tolist() == [1, 128 + 124, 128 + 32, 128 + 6, 128 - 8]


@pytest.mark.parametrize("quantise", [quantise_int4, quantise_int8])
def test_zeros_stay_zeros(quantise: Any) -> None:
    codes, scale = quantise(np.zeros((2, 40), np.float32))
    assert (scale == 1).all()
    assert set(codes.reshape(-1).tolist()) == {0x88} if quantise is quantise_int4 else {128}


@settings(deadline=None)
@given(weights)
def test_quantising_twice_changes_nothing(weight: npt.NDArray[np.float32]) -> None:
    """Dequantised weights are a fixed point, so a model trained on them compiles without further loss."""
    packed, scale = quantise_int4(weight)
    restored = dequantise_int4(packed, scale, weight.shape[1])
    again = dequantise_int4(*quantise_int4(restored), weight.shape[1])
    np.testing.assert_allclose(again, restored, rtol=1e-6, atol=1e-30)
