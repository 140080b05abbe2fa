"""The operations that a runner calls, each by the device of its first tensor: the references on a CPU, on a GPU the
kernels in Triton, or in CUDA C++ where there are any and their library is built.

Importing this imports torch but not triton, which is imported on the first call with tensors on a GPU.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from vorta_kernels import cuda
from vorta_kernels.kv_cache import KvLayer
from vorta_kernels.reference import batch_pack as _batch_pack
from vorta_kernels.reference import block_copy as _block_copy
from vorta_kernels.reference import fp8 as _fp8
from vorta_kernels.reference import linear as _linear
from vorta_kernels.reference import paged_attention as _paged_attention
from vorta_kernels.reference import rms_norm as _rms_norm
from vorta_kernels.reference import rope_kv as _rope_kv
from vorta_kernels.reference import sample as _sample
from vorta_kernels.reference import silu_mul as _silu_mul
from vorta_kernels.reference import verify as _verify
from vorta_kernels.reference.batch_pack import PackedBatch
from vorta_kernels.reference.linear import Fp8Weight, Int4Weight
from vorta_kernels.reference.sample import SampleOutput, SamplingColumns

if TYPE_CHECKING:
    from vorta_kernels.cuda_ops.int4_linear import ShuffledInt4Weight

__all__ = [
    "batch_compact",
    "batch_pack",
    "batch_pack_by_search",
    "block_copy",
    "fp8_linear",
    "has_cuda_library",
    "int4_linear",
    "paged_decode",
    "paged_prefill",
    "plain_linear",
    "quantise_rows",
    "rms_norm",
    "rms_norm_fp8",
    "rope_kv",
    "sample",
    "scaled_mm",
    "shuffle_int4",
    "silu_mul",
    "silu_mul_fp8",
    "verify",
]

SKINNY_ROWS = 16
"""Rows up to which the CUDA C++ kernel for float8 reads its matrix once."""

INT4_SKINNY_ROWS = 32
"""The same for 4 bits."""

PLAIN_SKINNY_ROWS = 4
"""Rows up to which our own 16-bit product is taken instead of cuBLAS's, whose small products are as good."""


@functools.cache
def has_cuda_library() -> bool:
    """Whether the library of the CUDA C++ kernels is there or could be built; the first call may build it."""
    try:
        cuda.load("cuda")
    except (cuda.BuildError, OSError):
        return False
    return True


@functools.cache
def _triton(stem: str, name: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(f"vorta_kernels.triton_ops.{stem}"), name)


@functools.cache
def _cuda(stem: str, name: str) -> Callable[..., Any] | None:
    """The launcher in CUDA C++, None where the library is not there."""
    return getattr(importlib.import_module(f"vorta_kernels.cuda_ops.{stem}"), name) if has_cuda_library() else None


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `reference.rms_norm.rms_norm`."""
    function = _triton("rms_norm", "rms_norm") if x.is_cuda else _rms_norm.rms_norm
    return function(x, weight, eps, residual)


def rms_norm_fp8(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `reference.rms_norm.rms_norm_fp8`."""
    function = _triton("rms_norm", "rms_norm_fp8") if x.is_cuda else _rms_norm.rms_norm_fp8
    return function(x, weight, eps, residual)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """See `reference.silu_mul.silu_mul`."""
    function = _triton("silu_mul", "silu_mul") if gate_up.is_cuda else _silu_mul.silu_mul
    return function(gate_up)


def silu_mul_fp8(gate_up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `reference.silu_mul.silu_mul_fp8`."""
    function = _triton("silu_mul", "silu_mul_fp8") if gate_up.is_cuda else _silu_mul.silu_mul_fp8
    return function(gate_up)


def rope_kv(
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    cache: KvLayer,
    *,
    num_heads: int,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 1e-6,
) -> torch.Tensor:
    """See `reference.rope_kv.rope_kv`."""
    function = _triton("rope_kv", "rope_kv") if qkv.is_cuda else _rope_kv.rope_kv
    return function(qkv, cos_sin, positions, slots, cache, num_heads=num_heads, q_norm=q_norm, k_norm=k_norm, eps=eps)


def paged_decode(
    query: torch.Tensor,
    cache: KvLayer,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    scale: float,
    window: int = 0,
    splits: int | None = None,
) -> torch.Tensor:
    """See `reference.paged_attention.paged_decode`.

    `splits` is how many programs share a sequence's tokens on a GPU: from
    `triton_ops.paged_attention.num_splits`, fixed for a captured graph; by default that of the block table's width.
    """
    if query.is_cuda:
        function = _triton("paged_attention", "paged_decode")
        return function(query, cache, block_table, seq_lens, scale=scale, window=window, splits=splits)
    return _paged_attention.paged_decode(query, cache, block_table, seq_lens, scale=scale, window=window)


def paged_prefill(
    query: torch.Tensor,
    cache: KvLayer,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    cu_query_lens: torch.Tensor,
    *,
    scale: float,
    window: int = 0,
) -> torch.Tensor:
    """See `reference.paged_attention.paged_prefill`."""
    function = _triton("paged_attention", "paged_prefill") if query.is_cuda else _paged_attention.paged_prefill
    return function(query, cache, block_table, seq_lens, cu_query_lens, scale=scale, window=window)


def sample(logits: torch.Tensor, columns: SamplingColumns, *, num_top: int = 0) -> SampleOutput:
    """See `reference.sample.sample`."""
    function = _triton("sample", "sample") if logits.is_cuda else _sample.sample
    return function(logits, columns, num_top=num_top)


def verify(drafts: torch.Tensor, num_drafts: torch.Tensor, sampled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `reference.verify.verify`."""
    function = _triton("verify", "verify") if drafts.is_cuda else _verify.verify
    return function(drafts, num_drafts, sampled)


def quantise_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `reference.fp8.quantise_rows`."""
    function = _triton("fp8", "quantise_rows") if rows.is_cuda else _fp8.quantise_rows
    return function(rows)


def plain_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [num_rows, num_inputs] times weight [num_outputs, num_inputs], plus bias: [num_rows, num_outputs], of one type.

    For very few rows of 16 bits on a GPU our own kernel, which is made to read the matrix as fast as memory gives it;
    torch's, which is cuBLAS's, for all others.
    """
    if x.is_cuda and len(x) <= PLAIN_SKINNY_ROWS and x.dtype != torch.float32:
        function = _cuda("linear_bf16", "linear_bf16")
        if function is not None:
            product = function(x, weight)
            return product if bias is None else product + bias
    return torch.nn.functional.linear(x, weight, bias)


def fp8_linear(x: torch.Tensor, x_scale: torch.Tensor, weight: Fp8Weight, dtype: torch.dtype) -> torch.Tensor:
    """See `reference.linear.fp8_linear`. On a GPU for few rows in CUDA C++, for more by cuBLAS, which scales rows from
    compute capability 9.0 on, and by Triton where neither can."""
    if not x.is_cuda:
        return _linear.fp8_linear(x, x_scale, weight, dtype)
    if x.shape[1] % 16 == 0 and dtype != torch.float32:  # as rows must lie at 16 bytes
        function = _cuda("fp8_linear", "fp8_linear") if len(x) <= SKINNY_ROWS else None
        if function is not None:
            return function(x, x_scale, weight, dtype)
        if dtype == torch.bfloat16 and len(weight.values) % 16 == 0 and _has_row_scales(x.device):
            return scaled_mm(x, x_scale, weight, dtype)
    return _triton("linear", "fp8_linear")(x, x_scale, weight, dtype)


def scaled_mm(x: torch.Tensor, x_scale: torch.Tensor, weight: Fp8Weight, dtype: torch.dtype) -> torch.Tensor:
    """`fp8_linear` by torch's own product; inputs and outputs in multiples of 16, results in bfloat16."""
    return torch._scaled_mm(x, weight.values.t(), scale_a=x_scale[:, None], scale_b=weight.scale[None], out_dtype=dtype)


@functools.cache
def _has_row_scales(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (9, 0)


def int4_linear(x: torch.Tensor, weight: Int4Weight, shuffled: ShuffledInt4Weight | None = None) -> torch.Tensor:
    """See `reference.linear.int4_linear`. `shuffled` is from `shuffle_int4`: with it few rows are multiplied by the
    kernel in CUDA C++."""
    if not x.is_cuda:
        return _linear.int4_linear(x, weight)
    if shuffled is not None and len(x) <= INT4_SKINNY_ROWS:
        function = _cuda("int4_linear", "int4_linear")
        if function is not None:
            return function(x, shuffled)
    return _triton("linear", "int4_linear")(x, weight)


def shuffle_int4(weight: Int4Weight) -> ShuffledInt4Weight | None:
    """The matrix in the order of the CUDA C++ kernel, beside its own; None where that kernel cannot be used."""
    if not weight.packed.is_cuda or weight.scale.dtype == torch.float32:
        return None
    function = _cuda("int4_linear", "shuffle_int4")
    return None if function is None else function(weight)


def batch_pack(
    query_lens: torch.Tensor,
    past_lens: torch.Tensor,
    block_table: torch.Tensor,
    *,
    block_size: int,
    num_tokens_padded: int,
) -> PackedBatch:
    """See `reference.batch_pack.batch_pack`. On a GPU nothing is checked, as that would wait for it."""
    function: Callable[..., PackedBatch] = _batch_pack.batch_pack
    if query_lens.is_cuda:
        function = _cuda("batch_pack", "batch_pack") or batch_pack_by_search
    return function(query_lens, past_lens, block_table, block_size=block_size, num_tokens_padded=num_tokens_padded)


def batch_pack_by_search(
    query_lens: torch.Tensor,
    past_lens: torch.Tensor,
    block_table: torch.Tensor,
    *,
    block_size: int,
    num_tokens_padded: int,
) -> PackedBatch:
    """`batch_pack` where the CUDA library is not there: every token looks for its sequence, by operations that a CUDA
    graph can capture."""
    ends = query_lens.cumsum(0, dtype=torch.int32)
    cu_query_lens = torch.cat([ends.new_zeros(1), ends])
    token = torch.arange(num_tokens_padded, dtype=torch.int32, device=query_lens.device)
    owner = torch.searchsorted(ends, token, right=True).clamp_max(len(query_lens) - 1)
    is_real = token < cu_query_lens[-1]
    position = torch.where(is_real, token - cu_query_lens[owner] + past_lens[owner], 0)
    slot = block_table[owner, position // block_size] * block_size + position % block_size
    return PackedBatch(
        cu_query_lens=cu_query_lens,
        positions=position,
        slots=torch.where(is_real, slot, -1),
        sequence=torch.where(is_real, owner.int(), -1),
    )


def batch_compact(state: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """See `reference.batch_pack.batch_compact`."""
    function = (_cuda("batch_pack", "batch_compact") if state.is_cuda else None) or _batch_pack.batch_compact
    return function(state, rows)


def block_copy(tensors: Sequence[torch.Tensor], pairs: torch.Tensor) -> None:
    """See `reference.block_copy.block_copy`."""
    function = (_cuda("block_copy", "block_copy") if pairs.is_cuda else None) or _block_copy.block_copy
    function(tensors, pairs)
