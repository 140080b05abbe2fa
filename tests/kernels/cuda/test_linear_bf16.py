"""The product with 16-bit matrices thread by thread on a CPU, against float64."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed")

from vorta_kernels import cpu  # noqa: E402
from vorta_kernels.cuda_ops.linear_bf16 import linear_bf16  # noqa: E402

pytestmark = pytest.mark.skipif(cpu.compiler() is None, reason="no C++ compiler is installed to build the emulation")


def exact(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x.double() @ weight.double().T


@settings(max_examples=30, deadline=None)
@given(
    num_rows=st.sampled_from([0, 1, 2, 3, 8, 9, 16, 18]),
    num_outputs=st.sampled_from([0, 1, 15, 17, 100, 128]),
    eights=st.sampled_from([0, 1, 3, 8, 9, 64, 65, 130]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
)
def test_multiplies_every_element_once(num_rows: int, num_outputs: int, eights: int, dtype: torch.dtype) -> None:
    # Small enough that all sums are exact up to the last rounding.
    x = torch.randint(-3, 4, (num_rows, 8 * eights)).to(dtype)
    weight = torch.randint(-3, 4, (num_outputs, 8 * eights)).to(dtype)
    guarded = torch.full((num_rows * num_outputs + 16,), 77, dtype=dtype)
    out = guarded[8 : 8 + num_rows * num_outputs].view(num_rows, num_outputs)
    linear_bf16(x, weight, out=out)
    assert torch.equal(out, exact(x, weight).to(dtype))
    assert (guarded[:8] == 77).all()
    assert (guarded[-8:] == 77).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_is_close_on_real_numbers(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(4, 1032, generator=generator).to(dtype)
    weight = torch.randn(130, 1032, generator=generator).to(dtype)
    torch.testing.assert_close(linear_bf16(x, weight).double(), exact(x, weight), rtol=2**-8, atol=1e-3)


def test_says_what_is_wrong() -> None:
    x = torch.zeros(1, 8, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="bfloat16 or float16"):
        linear_bf16(x.float(), x.float())
    with pytest.raises(ValueError, match="2 dimensions"):
        linear_bf16(x[0], x)
    with pytest.raises(ValueError, match="no multiple of 8"):
        linear_bf16(x[:, :4], x[:, :4])
    with pytest.raises(ValueError, match=r"weight must be torch\.bfloat16"):
        linear_bf16(x, x.half())
    with pytest.raises(ValueError, match="out must be of shape"):
        linear_bf16(x, x, out=torch.zeros(2, 1, dtype=torch.bfloat16))
