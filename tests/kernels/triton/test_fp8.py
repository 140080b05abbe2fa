"""Conversions of float8 in kernels, by instructions and by integers, against torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

from vorta_kernels import grid
from vorta_kernels.reference import fp8 as reference
from vorta_kernels.triton_ops.fp8 import from_e4m3, quantise, quantise_rows, to_e4m3


@InterpretedFunction
def to_bytes(source: Any, target: Any, N: tl.constexpr, HARDWARE: tl.constexpr) -> None:
    index = tl.arange(0, N)
    tl.store(target + index, to_e4m3(tl.load(source + index), HARDWARE))


@InterpretedFunction
def from_bytes(source: Any, target: Any, N: tl.constexpr, HARDWARE: tl.constexpr) -> None:
    index = tl.arange(0, N)
    tl.store(target + index, from_e4m3(tl.load(source + index), target.dtype.element_ty, HARDWARE))


@InterpretedFunction
def quantise_row(source: Any, target: Any, scale: Any, N: tl.constexpr, HARDWARE: tl.constexpr) -> None:
    index = tl.arange(0, N)
    values = tl.load(source + index)
    quantised, factor = quantise(values, tl.max(tl.abs(values), 0), HARDWARE)
    tl.store(target + index, quantised)
    tl.store(scale, factor)


@pytest.mark.parametrize("hardware", [False, True])
def test_every_float16_rounds_as_in_torch(hardware: bool) -> None:
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    values = torch.where(every.isfinite(), every, 0).clamp(-448, 448)
    result = torch.empty(len(values), dtype=torch.uint8)
    to_bytes[(1,)](values, result, N=len(values), HARDWARE=hardware)
    assert torch.equal(result, values.to(torch.float8_e4m3fn).view(torch.uint8))


@pytest.mark.parametrize("hardware", [False, True])
def test_float32_beside_a_border_rounds_as_in_torch(hardware: bool) -> None:
    steps = torch.arange(0, 0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middle = (steps[1:] + steps[:-1]) / 2
    values = torch.cat([middle, middle.nextafter(torch.tensor(0.0)), middle.nextafter(torch.tensor(500.0))])
    values = torch.cat([values, -values, torch.zeros(1024 - 2 * len(values))])
    result = torch.empty(len(values), dtype=torch.uint8)
    to_bytes[(1,)](values, result, N=len(values), HARDWARE=hardware)
    assert torch.equal(result, values.to(torch.float8_e4m3fn).view(torch.uint8))


@pytest.mark.parametrize("hardware", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_byte_reads_as_in_torch(dtype: torch.dtype, hardware: bool) -> None:
    every = torch.arange(256).to(torch.uint8)
    every[0x7F] = every[0xFF] = 0  # NaN
    result = torch.empty(256, dtype=dtype)
    from_bytes[(1,)](every, result, N=256, HARDWARE=hardware)
    assert torch.equal(result, every.view(torch.float8_e4m3fn).to(dtype))


@pytest.mark.parametrize("values", [torch.zeros(16), torch.full((16,), 1e-30), torch.linspace(-1e38, 1e38, 16)])
def test_extreme_rows_stay_finite(values: torch.Tensor) -> None:
    result, scale = torch.empty(16, dtype=torch.uint8), torch.empty(1)
    quantise_row[(1,)](values, result, scale, N=16, HARDWARE=False)
    back = result.view(torch.float8_e4m3fn).double() * scale.double()
    torch.testing.assert_close(back, values.double(), rtol=0.0625, atol=1e-12)


@pytest.mark.parametrize("case", [case for case in grid.CASES["fp8"] if not case.is_large], ids=lambda case: case.id)
def test_rows_are_quantised_as_the_reference_does(case: grid.Case) -> None:
    expected = grid.run(case, reference.quantise_rows, torch.device("cpu"))
    assert grid.mismatches(case, grid.run(case, quantise_rows, torch.device("cpu")), expected) == []
