"""K10 thread by thread on a CPU, bit for bit against the reference."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed")

from vorta_kernels import cpu  # noqa: E402
from vorta_kernels.cuda_ops import block_copy as op  # noqa: E402
from vorta_kernels.kv_cache import FP8, KvCache  # noqa: E402
from vorta_kernels.reference import block_copy as reference  # noqa: E402

pytestmark = pytest.mark.skipif(cpu.compiler() is None, reason="no C++ compiler is installed to build the emulation")


def random_bytes(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@settings(max_examples=40, deadline=None)
@given(
    layers=st.integers(1, 3),
    blocks=st.integers(2, 8),
    sizes=st.lists(st.sampled_from([1, 3, 4, 12, 16, 80, 20_000]), min_size=1, max_size=4),
    offset=st.sampled_from([0, 4, 16]),
    data=st.data(),
)
def test_copies_as_the_reference(layers: int, blocks: int, sizes: list[int], offset: int, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(blocks)))
    count = data.draw(st.integers(0, blocks // 2))
    pairs = torch.tensor(list(zip(order[:count], order[count : 2 * count], strict=True)), dtype=torch.int32)
    pairs = pairs.view(-1, 2)
    memory = [random_bytes(offset + layers * blocks * size + 16) for size in sizes]
    expected = [part.clone() for part in memory]

    def views(parts: list[torch.Tensor]) -> list[torch.Tensor]:
        return [
            part[offset : offset + layers * blocks * size].view(layers, blocks, size)
            for part, size in zip(parts, sizes, strict=True)
        ]

    op.block_copy(views(memory), pairs)
    reference.block_copy(views(expected), pairs)
    for actual, wanted in zip(memory, expected, strict=True):
        assert torch.equal(actual, wanted)


def cache(dtype: torch.dtype, num_blocks: int) -> KvCache:
    made = KvCache(num_layers=2, num_blocks=num_blocks, num_kv_heads=2, block_size=16, head_dim=8, dtype=dtype)
    for part in made.tensors:
        part.view(torch.uint8).copy_(random_bytes(*part.view(torch.uint8).shape))
    return made


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, FP8])
def test_copies_a_cache(dtype: torch.dtype) -> None:
    tensors = cache(dtype, 6).tensors
    before = [part.view(torch.uint8).clone() for part in tensors]
    # What names no block is padding.
    op.block_copy(tensors, torch.tensor([[0, 3], [-1, 1], [2, -1], [6, 1], [5, 4]], dtype=torch.int32))
    for part, old in zip(tensors, before, strict=True):
        old[:, 3], old[:, 4] = old[:, 0].clone(), old[:, 5].clone()
        assert torch.equal(part.view(torch.uint8), old)


@pytest.mark.parametrize("dtype", [torch.bfloat16, FP8])
def test_swaps_with_the_host(dtype: torch.dtype) -> None:
    here, there = cache(dtype, 5).tensors, cache(dtype, 3).tensors
    before = [part.view(torch.uint8).clone() for part in there]
    op.block_swap(here, there, [(4, 0), (1, 2)])
    for source, target, old in zip(here, there, before, strict=True):
        bytes_here, bytes_there = source.view(torch.uint8), target.view(torch.uint8)
        assert torch.equal(bytes_there[:, 0], bytes_here[:, 4])
        assert torch.equal(bytes_there[:, 1], old[:, 1])
        assert torch.equal(bytes_there[:, 2], bytes_here[:, 1])


def test_says_what_is_wrong() -> None:
    pairs = torch.tensor([[0, 1]], dtype=torch.int32)
    tensors = [torch.zeros(1, 2, 4)]
    with pytest.raises(ValueError, match="same two numbers"):
        op.block_copy([*tensors, torch.zeros(1, 3, 4)], pairs)
    with pytest.raises(ValueError, match="more than 4"):
        op.block_copy(tensors * 5, pairs)
    with pytest.raises(ValueError, match="pairs must be"):
        op.block_copy(tensors, pairs[0])
    with pytest.raises(ValueError, match=r"pairs must be torch\.int32"):
        op.block_copy(tensors, pairs.long())
    with pytest.raises(ValueError, match="contiguous"):
        op.block_copy([torch.zeros(1, 2, 4, 4).transpose(2, 3)], pairs)
    with pytest.raises(ValueError, match="differ in layers"):
        op.block_swap(tensors, [torch.zeros(1, 2, 5)], [(0, 0)])
    with pytest.raises(ValueError, match="no blocks 0 and 2"):
        op.block_swap(tensors, tensors, [(0, 2)])
    with pytest.raises(ValueError, match="must be contiguous"):
        op.block_swap([torch.zeros(1, 2, 4, 4).transpose(2, 3)], [torch.zeros(1, 2, 4, 4)], [(0, 0)])
    with pytest.raises(ValueError, match="1 tensors to 0"):
        op.block_swap(tensors, [], [(0, 0)])
    op.block_copy([], pairs)
    op.block_swap(tensors, tensors, [])
