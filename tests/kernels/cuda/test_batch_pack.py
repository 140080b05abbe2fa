"""K1 thread by thread on a CPU, bit for bit against the reference."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed")

from vorta_kernels import cpu  # noqa: E402
from vorta_kernels.cuda_ops import batch_pack as op  # noqa: E402
from vorta_kernels.reference import batch_pack as reference  # noqa: E402

pytestmark = pytest.mark.skipif(cpu.compiler() is None, reason="no C++ compiler is installed to build the emulation")


def tensor(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def assert_equal(actual: reference.PackedBatch, expected: reference.PackedBatch) -> None:
    for field in fields(expected):
        torch.testing.assert_close(
            getattr(actual, field.name), getattr(expected, field.name), rtol=0, atol=0, msg=field.name
        )


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[int], list[int], int, int]:
    """Lengths of this step and before it, a block size, and padding."""
    count = draw(st.integers(0, 40))
    query_lens = draw(st.lists(st.sampled_from([0, 0, 1, 1, 1, 2, 7, 31, 300]), min_size=count, max_size=count))
    past_lens = draw(st.lists(st.integers(0, 200), min_size=count, max_size=count))
    return query_lens, past_lens, draw(st.sampled_from([1, 16, 17, 64])), draw(st.sampled_from([0, 1, 5, 300]))


@settings(max_examples=60, deadline=None)
@given(batches())
def test_packs_as_the_reference(batch: tuple[list[int], list[int], int, int]) -> None:
    query_lens, past_lens, block_size, padding = batch
    ends = [query + past for query, past in zip(query_lens, past_lens, strict=True)]
    max_blocks = -(-max(ends, default=1) // block_size) or 1
    table = torch.randperm(len(query_lens) * max_blocks).int().view(len(query_lens), max_blocks)
    arguments = (tensor(query_lens), tensor(past_lens), table)
    options = {"block_size": block_size, "num_tokens_padded": sum(query_lens) + padding}
    assert_equal(op.batch_pack(*arguments, **options), reference.batch_pack(*arguments, **options))


@pytest.mark.parametrize("count", [255, 256, 257, 1000])
def test_many_sequences(count: int) -> None:
    query_lens = torch.randint(0, 3, (count,), dtype=torch.int32)
    past_lens = torch.randint(0, 64, (count,), dtype=torch.int32)
    table = torch.arange(count * 5, dtype=torch.int32).view(count, 5)
    options = {"block_size": 16, "num_tokens_padded": 2048}
    assert_equal(
        op.batch_pack(query_lens, past_lens, table, **options),
        reference.batch_pack(query_lens, past_lens, table, **options),
    )


def test_writes_what_is_given() -> None:
    columns = torch.full((3, 8), 77, dtype=torch.int32)
    starts = torch.full((3,), 77, dtype=torch.int32)
    out = reference.PackedBatch(cu_query_lens=starts, positions=columns[0], slots=columns[1], sequence=columns[2])
    assert op.batch_pack(
        tensor([2, 1]), tensor([3, 0]), tensor([[4], [5]]), block_size=16, num_tokens_padded=8, out=out
    ) is out  # fmt: skip
    assert starts.tolist() == [0, 2, 3]
    assert columns.tolist() == [
        [3, 4, 0, 0, 0, 0, 0, 0],
        [67, 68, 80, -1, -1, -1, -1, -1],
        [0, 0, 1, -1, -1, -1, -1, -1],
    ]


def test_leaves_out_what_does_not_fit() -> None:
    packed = op.batch_pack(tensor([3, 3]), tensor([0, 0]), tensor([[0], [1]]), block_size=16, num_tokens_padded=4)
    assert packed.cu_query_lens.tolist() == [0, 3, 6]
    assert packed.slots.tolist() == [0, 1, 2, 16]
    packed = op.batch_pack(tensor([2]), tensor([15]), tensor([[3]]), block_size=16, num_tokens_padded=2)
    assert packed.slots.tolist() == [63, -1]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(0, 3000), st.lists(st.integers(-1, 5), max_size=6), st.integers(0, 3))
def test_compacts_as_the_reference(num_rows: int, width: int, rows: list[int], offset: int) -> None:
    memory = torch.arange(num_rows * width + offset, dtype=torch.int32) + 1
    state = memory[offset:].view(num_rows, width)
    chosen = tensor([min(row, num_rows - 1) for row in rows])
    guarded = torch.full((len(rows) * width + 8,), -7, dtype=torch.int32)
    out = guarded[4 : 4 + len(rows) * width].view(len(rows), width)
    op.batch_compact(state, chosen, out=out)
    assert torch.equal(out, reference.batch_compact(state, chosen))
    assert (guarded[:4] == -7).all()
    assert (guarded[-4:] == -7).all()


def test_compact_takes_rows_that_are_not_there_for_zeros() -> None:
    assert op.batch_compact(tensor([[1, 2]]), tensor([1, 0, -5])).tolist() == [[0, 0], [1, 2], [0, 0]]


def test_says_what_is_wrong() -> None:
    good = {"query_lens": tensor([1]), "past_lens": tensor([0]), "block_table": tensor([[0]])}
    options = {"block_size": 16, "num_tokens_padded": 1}
    for change, message in (
        ({"query_lens": torch.tensor([1])}, r"query_lens must be torch\.int32"),
        ({"past_lens": tensor([0, 0])}, r"past_lens must be of shape \(1,\)"),
        ({"block_table": tensor([0])}, r"block_table must be \[num_seqs, max_blocks\]"),
        ({"block_table": tensor([[0], [1]])[::2].t().expand(1, 4)}, "block_table must be contiguous"),
    ):
        with pytest.raises(ValueError, match=message):
            op.batch_pack(**{**good, **change}, **options)
    with pytest.raises(ValueError, match="more than 8192"):
        op.batch_pack(torch.zeros(8193).int(), torch.zeros(8193).int(), torch.zeros(8193, 1).int(), **options)
    with pytest.raises(ValueError, match="must be positive"):
        op.batch_pack(**good, block_size=0, num_tokens_padded=1)
    with pytest.raises(ValueError, match="state and rows"):
        op.batch_compact(tensor([1]), tensor([0]))
