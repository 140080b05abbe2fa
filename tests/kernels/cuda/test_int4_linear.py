"""K6b thread by thread on a CPU against the reference, and the order of its matrix."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed")

from vorta_kernels import cpu  # noqa: E402
from vorta_kernels.cuda_ops import int4_linear as op  # noqa: E402
from vorta_kernels.reference import linear as reference  # noqa: E402

needs_compiler = pytest.mark.skipif(
    cpu.compiler() is None, reason="no C++ compiler is installed to build the emulation"
)


def random_weight(num_outputs: int, num_inputs: int, group: int, dtype: torch.dtype) -> reference.Int4Weight:
    """All words are possible; scales are powers of two, so that sums are exact."""
    packed = torch.randint(-(1 << 31), 1 << 31, (num_outputs, num_inputs // 8)).int()
    scale = 2.0 ** torch.randint(-3, 1, (num_outputs, num_inputs // group))
    return reference.Int4Weight(packed=packed, scale=scale.to(dtype), group=group)


shapes = st.tuples(
    st.sampled_from([1, 15, 16, 17, 40, 100]), st.sampled_from([(32, 1), (32, 3), (64, 2), (96, 1), (128, 3), (32, 40)])
)


@settings(max_examples=30, deadline=None)
@given(shapes)
def test_shuffles_there_and_back(shape: tuple[int, tuple[int, int]]) -> None:
    num_outputs, (group, groups) = shape
    weight = random_weight(num_outputs, group * groups, group, torch.float16)
    back = op.unshuffle_int4(op.shuffle_int4(weight))
    assert torch.equal(back.packed, weight.packed)
    assert torch.equal(back.scale, weight.scale)
    assert back.group == weight.group


def test_the_order_is_the_one_that_is_written_down() -> None:
    weight = random_weight(20, 96, 32, torch.bfloat16)
    shuffled = op.shuffle_int4(weight)
    levels = reference.unpack_int4(weight)
    assert shuffled.packed.shape == (2, 2, 32, 4)
    for tile, step, lane, word in torch.cartesian_prod(*map(torch.arange, shuffled.packed.shape)).tolist():
        bits = int(shuffled.packed[tile, step, lane, word]) & 0xFFFFFFFF
        g, t, h, j = lane // 4, lane % 4, word // 2, word % 2
        for e, i, r in torch.cartesian_prod(*map(torch.arange, (2, 2, 2))).tolist():
            row, column = 16 * tile + g + 8 * r, 64 * step + 32 * h + 8 * t + 4 * j + 2 * i + e
            expected = int(levels[row, column]) if row < 20 and column < 96 else 0
            assert (bits >> (4 * (4 * e + 2 * i + r)) & 15) - 8 == expected
    for tile, group, place in torch.cartesian_prod(*map(torch.arange, shuffled.scale.shape)).tolist():
        row = 16 * tile + place // 2 + place % 2 * 8
        assert shuffled.scale[tile, group, place] == (weight.scale[row, group] if row < 20 else 0)


@needs_compiler
@settings(max_examples=40, deadline=None)
@given(
    num_rows=st.sampled_from([0, 1, 2, 3, 8, 9, 16, 17, 32, 33]),
    num_outputs=st.sampled_from([1, 15, 16, 33, 100, 200, 384]),
    groups=st.sampled_from([(32, 1), (32, 3), (64, 2), (96, 3), (128, 3), (32, 40), (64, 17)]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
)
def test_multiplies_every_element_once(
    num_rows: int, num_outputs: int, groups: tuple[int, int], dtype: torch.dtype
) -> None:
    group, count = groups
    weight = random_weight(num_outputs, group * count, group, dtype)
    # Products and sums are exact up to the last rounding.
    x = torch.randint(-2, 3, (num_rows, group * count)).to(dtype)
    guarded = torch.full((num_rows * num_outputs + 16,), 77, dtype=dtype)
    out = guarded[8 : 8 + num_rows * num_outputs].view(num_rows, num_outputs)
    op.int4_linear(x, op.shuffle_int4(weight), out=out)
    assert torch.equal(out, reference.int4_linear(x, weight))
    assert (guarded[:8] == 77).all()
    assert (guarded[-8:] == 77).all()


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_rows", [8, 16])
def test_takes_each_element_from_its_place(num_rows: int, dtype: torch.dtype) -> None:
    # A row of x with a single one gives a column of the matrix.
    weight = random_weight(48, 1120, 32, dtype)
    shuffled = op.shuffle_int4(weight)
    matrix = reference.unpack_int4(weight).double() * weight.scale.double().repeat_interleave(32, 1)
    columns = [0, 1, 31, 32, 63, 64, 511, 512, 1023, 1024, 1055, 1056, 1087, 1088, 1118, 1119][-num_rows:]
    x = torch.zeros(num_rows, 1120, dtype=dtype)
    x[range(num_rows), columns] = 1
    assert torch.equal(op.int4_linear(x, shuffled).double(), matrix[:, columns].T)


@needs_compiler
@pytest.mark.parametrize("num_rows", [1, 12, 32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_is_close_on_real_numbers(num_rows: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    weight = reference.quantise_int4(torch.randn(80, 1024, generator=generator), 128, dtype)
    x = torch.randn(num_rows, 1024, generator=generator).to(dtype)
    exact = reference.int4_linear(x.double(), weight)
    actual = op.int4_linear(x, op.shuffle_int4(weight))
    torch.testing.assert_close(actual.double(), exact, rtol=2**-8, atol=1e-3)


def test_says_what_is_wrong() -> None:
    weight = random_weight(16, 64, 64, torch.bfloat16)
    shuffled = op.shuffle_int4(weight)
    x = torch.zeros(1, 64, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="multiple of 32 that divides 64 inputs, not 16"):
        op.shuffle_int4(reference.Int4Weight(packed=weight.packed, scale=weight.scale, group=16))
    with pytest.raises(ValueError, match="2 dimensions"):
        op.int4_linear(x[0], shuffled)
    with pytest.raises(ValueError, match="bfloat16 or float16"):
        op.int4_linear(x.float(), shuffled)
    with pytest.raises(ValueError, match=r"x must be of shape \(1, 64\)"):
        op.int4_linear(x[:, :32], shuffled)
    with pytest.raises(ValueError, match=r"weight\.scale must be torch\.float16"):
        op.int4_linear(x.half(), shuffled)
