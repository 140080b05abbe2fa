"""K6a thread by thread on a CPU against the reference, with tensor cores as the PTX manual has them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed")

from vorta_kernels import cpu  # noqa: E402
from vorta_kernels.cuda_ops.fp8_linear import fp8_linear  # noqa: E402
from vorta_kernels.kv_cache import FP8  # noqa: E402
from vorta_kernels.reference import linear as reference  # noqa: E402
from vorta_kernels.reference.fp8 import quantise_rows  # noqa: E402

pytestmark = pytest.mark.skipif(cpu.compiler() is None, reason="no C++ compiler is installed to build the emulation")


def small_integers(*shape: int) -> torch.Tensor:
    """Values whose products and sums are exact in every type on the way: any order of the sum gives the same bits."""
    return torch.randint(-2, 3, shape).float()


@settings(max_examples=40, deadline=None)
@given(
    num_rows=st.sampled_from([0, 1, 2, 3, 4, 7, 8, 9, 16, 17]),
    num_outputs=st.sampled_from([0, 1, 15, 16, 17, 33, 100, 128]),
    sixteens=st.sampled_from([0, 1, 3, 4, 8, 9, 31, 64, 65, 70]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
)
def test_multiplies_every_element_once(num_rows: int, num_outputs: int, sixteens: int, dtype: torch.dtype) -> None:
    x = small_integers(num_rows, 16 * sixteens).to(FP8)
    weight = reference.Fp8Weight(
        values=small_integers(num_outputs, 16 * sixteens).to(FP8), scale=2.0 ** torch.randint(-3, 3, (num_outputs,))
    )
    x_scale = 2.0 ** torch.randint(-3, 3, (num_rows,))
    guarded = torch.full((num_rows * num_outputs + 16,), 77, dtype=dtype)
    out = guarded[8 : 8 + num_rows * num_outputs].view(num_rows, num_outputs)
    fp8_linear(x, x_scale, weight, dtype, out=out)
    assert torch.equal(out, reference.fp8_linear(x, x_scale, weight, dtype))
    assert (guarded[:8] == 77).all()
    assert (guarded[-8:] == 77).all()


@pytest.mark.parametrize("num_inputs", [16, 1040, 2064])
def test_takes_each_input_from_its_place(num_inputs: int) -> None:
    # A row of x with a single one gives a column of the matrix, whose elements are all different.
    codes = torch.arange(16 * num_inputs).view(16, num_inputs) * 7919 % 251
    codes = torch.where(codes % 128 == 127, codes - 1, codes).to(torch.uint8)
    weight = reference.Fp8Weight(values=codes.view(FP8), scale=torch.ones(16))
    columns = sorted({0, 1, 15, num_inputs // 2 + 3, num_inputs - 1, *range(0, num_inputs, 37)})
    for start in range(0, len(columns), 16):
        chosen = columns[start : start + 16]
        x = torch.zeros(len(chosen), num_inputs)
        x[range(len(chosen)), chosen] = 1
        product = fp8_linear(x.to(FP8), torch.ones(len(chosen)), weight, torch.float16)
        assert torch.equal(product, weight.values.float()[:, chosen].T.half())


def test_every_finite_float8() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    finite = codes[(codes & 127) != 127]
    values = torch.zeros(len(finite), 16, dtype=torch.uint8)
    values[:, 5] = finite
    weight = reference.Fp8Weight(values=values.view(FP8), scale=torch.full((len(finite),), 0.5))
    x = torch.ones(1, 16).to(FP8)
    product = fp8_linear(x, torch.ones(1), weight, torch.float16)
    assert torch.equal(product[0], finite.view(FP8).half() * 0.5)


@pytest.mark.parametrize(("num_rows", "dtype"), [(1, torch.bfloat16), (5, torch.float16), (16, torch.bfloat16)])
def test_is_close_on_real_numbers(num_rows: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    x, x_scale = quantise_rows(torch.randn(num_rows, 1536, generator=generator))
    weight = reference.quantise_fp8(torch.randn(96, 1536, generator=generator))
    expected = reference.fp8_linear(x, x_scale, weight, torch.float64)
    actual = fp8_linear(x, x_scale, weight, dtype)
    torch.testing.assert_close(actual.double(), expected, rtol=2**-8, atol=1e-4 * expected.abs().max().item())
    assert torch.equal(actual, fp8_linear(x, x_scale, weight, dtype))


def test_says_what_is_wrong() -> None:
    x, scale = torch.zeros(1, 16).to(FP8), torch.ones(1)
    weight = reference.Fp8Weight(values=x, scale=scale)
    with pytest.raises(ValueError, match="bfloat16 or float16"):
        fp8_linear(x, scale, weight, torch.float32)
    with pytest.raises(ValueError, match="2 dimensions"):
        fp8_linear(x[0], scale, weight, torch.float16)
    with pytest.raises(ValueError, match="no multiple of 16"):
        fp8_linear(x[:, :8], scale, weight, torch.float16)
    with pytest.raises(ValueError, match=r"x must be torch\.float8_e4m3fn"):
        fp8_linear(x.float(), scale, weight, torch.float16)
    with pytest.raises(ValueError, match=r"x_scale must be of shape \(1,\)"):
        fp8_linear(x, torch.ones(2), weight, torch.float16)
    unaligned = torch.zeros(32, dtype=torch.uint8)[8:24].view(FP8).view(1, 16)
    with pytest.raises(RuntimeError, match="vorta_fp8_linear failed: invalid argument"):
        fp8_linear(unaligned, scale, weight, torch.float16)
