"""Attention over the paged cache: decode with the sequence split over programs, and chunked prefill.

Decode's floor: K and V of every sequence once, 2 * num_kv_heads * head_dim elements a token (as float8 also 8 bytes of
scales a head); queries, results and partial results are small beside it. Prefill's is the products' operations.

What both do: heads that share K and V are rows of one product, so that K and V are read once for all of them. A tile of
K and V is `block_n` tokens, in one block or several: the block table is read for the tile, offsets are int64 (a cache
can pass 2^31 elements), and a head's tokens are contiguous in a block, so loads are 16 bytes wide and asynchronous (but
for V in float8: Triton loads what a product's second operand is converted from in its layout, 8 bytes wide in decode
and 4 in prefill). Scores are float32 in base 2 (the scale carries log2(e)), and so is the running softmax. Of a float8
cache the keys' scales multiply the scores and the values' scales the probabilities, so that K and V go from bytes
straight into the product's type; probabilities are then bfloat16, whose range holds any scale. Tokens past the end are
never read.

Decode is a grid of (sequence, KV head, split). The number of splits is the caller's, fixed for a batch bucket, since a
captured graph fixes the grid; what a split covers follows from the sequence's length on the device, at least
`min_tiles` tiles, so short sequences use fewer splits and the other programs end at once. Each split writes its
normalised result and the base-2 logarithm of its sum, and a second kernel combines those that had work.

Prefill is a grid of (tile of queries, KV head) without a look at the lengths on the host: sequence i has its tiles from
`cu_query_lens[i] // tile + i` on, which leaves it at least as many as it needs, so the numbers of sequences and tokens
bound the grid, and a program finds its sequence by a binary search over cu_query_lens: a few dependent loads that hit
L2, beside which a table made by another kernel would save little and cost a launch. Padding behind the last sequence is
one more "sequence" whose result is 0. Late tiles see the most tokens and start first. Tiles of K and V that every query
of the tile sees take a loop without masks.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vorta_kernels.kv_cache import FP8, KvLayer
from vorta_kernels.triton_ops.fp8 import as_bytes, capability, from_e4m3, has_fp8
from vorta_kernels.triton_ops.tuning import DECODE, PREFILL, PREFILL_BEFORE_HOPPER, Launch

__all__ = ["num_splits", "paged_decode", "paged_prefill"]

_LOG2_E = 1.4426950408889634
_MIN_TILES = 4
"""Tiles of tokens that are worth a program: 256 tokens of 64."""

_MAX_SPLITS = 64

_DOT_TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


@triton.jit
def _attend(
    query,
    key,
    value,
    key_scale,
    value_scale,
    table_row,
    head,
    first,
    limit,
    position,
    peak,
    total,
    result,
    scale_log2,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_P: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    MASKED: tl.constexpr,
    DOT: tl.constexpr,
    VALUE_DOT: tl.constexpr,
    FP8: tl.constexpr,
    HARDWARE: tl.constexpr,
):
    """One tile of K and V, tokens from `first` on and below `limit`; `position` is that of each row's query.

    Where not MASKED every row sees the whole tile. Returns peak, total and result, updated.
    """
    token = first + tl.arange(0, BLOCK_N)
    is_token = token < limit
    if BLOCK_SIZE % BLOCK_N == 0:
        block = tl.load(table_row + first // BLOCK_SIZE).to(tl.int64)
        place = (block * KV_HEADS + head) * BLOCK_SIZE + token % BLOCK_SIZE
    else:
        block = tl.load(table_row + token // BLOCK_SIZE, mask=is_token, other=0).to(tl.int64)
        place = (block * KV_HEADS + head) * BLOCK_SIZE + token % BLOCK_SIZE
    dim = tl.arange(0, DIM_P)
    element = place[:, None] * DIM + dim[None, :]
    inside = is_token[:, None]
    if DIM != DIM_P:
        inside = inside & (dim < DIM)[None, :]
    if FP8:
        keys = from_e4m3(tl.load(key + element, mask=inside, other=0), DOT, HARDWARE)
    else:
        keys = tl.load(key + element, mask=inside, other=0.0).to(DOT)
    scores = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale_log2
    if FP8:
        scores *= tl.load(key_scale + place, mask=is_token, other=0.0)[None, :]
    if MASKED:
        visible = token[None, :] <= position[:, None]
        if WINDOW > 0:
            visible = visible & (token[None, :] > position[:, None] - WINDOW)
        scores = tl.where(visible, scores, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, 1))
    # With a window a row may see nothing of its first tiles.
    base = tl.where(new_peak == float("-inf"), 0.0, new_peak) if MASKED and WINDOW > 0 else new_peak
    weights = tl.exp2(scores - base[:, None])
    decay = tl.exp2(peak - base)
    total = total * decay + tl.sum(weights, 1)
    result = result * decay[:, None]
    if FP8:
        weights *= tl.load(value_scale + place, mask=is_token, other=0.0)[None, :]
        values = from_e4m3(tl.load(value + element, mask=inside, other=0), VALUE_DOT, HARDWARE)
    else:
        values = tl.load(value + element, mask=inside, other=0.0).to(VALUE_DOT)
    result = tl.dot(weights.to(VALUE_DOT), values, result, input_precision="ieee")
    return new_peak, total, result


@triton.jit
def _split_range(length, split, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr, MIN: tl.constexpr):
    """The tiles of a split, from and to, and how many splits have any."""
    low = 0
    if WINDOW > 0:
        low = tl.maximum(length - WINDOW, 0) // BLOCK_N
    high = tl.cdiv(length, BLOCK_N)
    share = tl.maximum(tl.cdiv(high - low, SPLITS), MIN)
    begin = low + split * share
    return begin, tl.minimum(begin + share, high), tl.cdiv(high - low, share)


@triton.jit
def decode_kernel(
    query,
    key,
    value,
    key_scale,
    value_scale,
    block_table,
    seq_lens,
    result,  # [num_seqs, num_heads, SPLITS, DIM]
    log_sums,  # [num_seqs, num_heads, SPLITS]
    table_stride,
    query_stride,
    scale_log2,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    DIM_P: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    SPLITS: tl.constexpr,
    MIN_TILES: tl.constexpr,
    DOT: tl.constexpr,
    VALUE_DOT: tl.constexpr,
    FP8: tl.constexpr,
    HARDWARE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    split = tl.program_id(2)
    length = tl.load(seq_lens + row)
    begin, end, _ = _split_range(length, split, WINDOW, BLOCK_N, SPLITS, MIN_TILES)
    if (begin >= end) & (SPLITS > 1):
        return
    member = tl.arange(0, BLOCK_M)
    dim = tl.arange(0, DIM_P)
    heads = head * GROUP + member
    inside = (member < GROUP)[:, None] & (dim < DIM)[None, :]
    queries = tl.load(query + row * query_stride + heads[:, None] * DIM + dim[None, :], mask=inside, other=0.0).to(DOT)
    position = tl.full([BLOCK_M], 0, tl.int32) + (length - 1)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    attended = tl.zeros([BLOCK_M, DIM_P], tl.float32)
    for tile in range(begin, end):
        peak, total, attended = _attend(
            queries,
            key,
            value,
            key_scale,
            value_scale,
            block_table + row * table_stride,
            head,
            tile * BLOCK_N,
            length,
            position,
            peak,
            total,
            attended,
            scale_log2,
            KV_HEADS,
            DIM,
            DIM_P,
            BLOCK_SIZE,
            BLOCK_N,
            WINDOW,
            True,
            DOT,
            VALUE_DOT,
            FP8,
            HARDWARE,
        )
    attended = attended / tl.where(total > 0.0, total, 1.0)[:, None]
    place = (row * (KV_HEADS * GROUP) + heads) * SPLITS + split
    tl.store(result + place[:, None] * DIM + dim[None, :], attended.to(result.dtype.element_ty), mask=inside)
    if SPLITS > 1:
        tl.store(log_sums + place, peak + tl.log2(total), mask=member < GROUP)


@triton.jit
def combine_kernel(
    partial,
    log_sums,
    seq_lens,
    result,
    NUM_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DIM_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLITS_P: tl.constexpr,
    MIN_TILES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    place = row * NUM_HEADS + tl.program_id(1)
    _, _, used = _split_range(tl.load(seq_lens + row), 0, WINDOW, BLOCK_N, SPLITS, MIN_TILES)
    split = tl.arange(0, SPLITS_P)
    dim = tl.arange(0, DIM_P)
    log_sum = tl.load(log_sums + place * SPLITS + split, mask=split < used, other=float("-inf"))
    peak = tl.max(log_sum, 0)
    weights = tl.exp2(log_sum - tl.where(peak == float("-inf"), 0.0, peak))
    total = tl.sum(weights, 0)
    inside = (split < used)[:, None] & (dim < DIM)[None, :]
    element = (place * SPLITS + split)[:, None] * DIM + dim[None, :]
    attended = tl.sum(tl.load(partial + element, mask=inside, other=0.0) * weights[:, None], 0)
    attended = attended / tl.where(total > 0.0, total, 1.0)
    tl.store(result + place * DIM + dim, attended.to(result.dtype.element_ty), mask=dim < DIM)


@triton.jit(do_not_specialize=["num_seqs", "num_tokens"])
def prefill_kernel(
    query,
    key,
    value,
    key_scale,
    value_scale,
    block_table,
    seq_lens,
    cu_query_lens,
    result,
    table_stride,
    query_stride,
    num_seqs,
    num_tokens,
    scale_log2,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_P: tl.constexpr,
    DIM: tl.constexpr,
    DIM_P: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOW: tl.constexpr,
    DOT: tl.constexpr,
    VALUE_DOT: tl.constexpr,
    FP8: tl.constexpr,
    HARDWARE: tl.constexpr,
):
    TILE: tl.constexpr = BLOCK_M // GROUP_P  # queries of a program
    number = tl.num_programs(0) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    low = number * 0
    high = low + num_seqs
    while low < high:  # the last sequence, or padding, whose first tile is not behind this one
        middle = (low + high + 1) // 2
        if tl.load(cu_query_lens + middle) // TILE + middle <= number:
            low = middle
        else:
            high = middle - 1
    start = tl.load(cu_query_lens + low)
    is_sequence = low < num_seqs
    stop = tl.load(cu_query_lens + low + 1, mask=is_sequence, other=num_tokens)
    length = tl.load(seq_lens + low, mask=is_sequence, other=0)
    first_query = (number - (start // TILE + low)) * TILE
    num_queries = stop - start
    if first_query >= num_queries:
        return
    row = tl.arange(0, BLOCK_M)
    index = first_query + row // GROUP_P
    member = row % GROUP_P
    dim = tl.arange(0, DIM_P)
    inside = ((index < num_queries) & (member < GROUP))[:, None] & (dim < DIM)[None, :]
    heads = head * GROUP + member
    token_row = (start + index).to(tl.int64)
    source = query + (token_row * query_stride + heads * DIM)[:, None] + dim[None, :]
    queries = tl.load(source, mask=inside, other=0.0).to(DOT)
    past = length - num_queries
    position = past + index
    limit = past + tl.minimum(first_query + TILE, num_queries)
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(past + first_query - WINDOW + 1, 0) // BLOCK_N
        middle = begin
    else:
        middle = tl.maximum(past + first_query + 1, 0) // BLOCK_N
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    attended = tl.zeros([BLOCK_M, DIM_P], tl.float32)
    table_row = block_table + low.to(tl.int64) * table_stride
    if WINDOW == 0:
        for tile in range(middle):
            peak, total, attended = _attend(
                queries,
                key,
                value,
                key_scale,
                value_scale,
                table_row,
                head,
                tile * BLOCK_N,
                limit,
                position,
                peak,
                total,
                attended,
                scale_log2,
                KV_HEADS,
                DIM,
                DIM_P,
                BLOCK_SIZE,
                BLOCK_N,
                WINDOW,
                False,
                DOT,
                VALUE_DOT,
                FP8,
                HARDWARE,
            )
    for tile in range(middle, tl.cdiv(limit, BLOCK_N)):
        peak, total, attended = _attend(
            queries,
            key,
            value,
            key_scale,
            value_scale,
            table_row,
            head,
            tile * BLOCK_N,
            limit,
            position,
            peak,
            total,
            attended,
            scale_log2,
            KV_HEADS,
            DIM,
            DIM_P,
            BLOCK_SIZE,
            BLOCK_N,
            WINDOW,
            True,
            DOT,
            VALUE_DOT,
            FP8,
            HARDWARE,
        )
    attended = attended / tl.where(total > 0.0, total, 1.0)[:, None]
    target = result + ((token_row * (KV_HEADS * GROUP) + heads) * DIM)[:, None] + dim[None, :]
    tl.store(target, attended.to(result.dtype.element_ty), mask=inside)


def num_splits(batch_bucket: int, num_kv_heads: int, max_len: int, num_multiprocessors: int) -> int:
    """How many programs should share a sequence in decode: as many as fill the device twice over with a full bucket,
    but none with less than 256 tokens of the longest sequence. Depends on nothing that changes between a graph's
    replays."""
    wanted = -(-2 * num_multiprocessors // max(batch_bucket * num_kv_heads, 1))
    most = -(-max_len // (64 * _MIN_TILES))
    return max(1, min(wanted, most, _MAX_SPLITS))


def paged_decode(
    query: torch.Tensor,
    cache: KvLayer,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    *,
    scale: float,
    window: int = 0,
    splits: int | None = None,
    launch: Launch | None = None,
    min_tiles: int = _MIN_TILES,
) -> torch.Tensor:
    """See `reference.paged_attention.paged_decode`.

    Args:
        splits: From `num_splits`, by default for the block table's width. A captured graph needs a fixed one.
        launch: Instead of `tuning.DECODE`'s.
        min_tiles: Tiles of tokens that a split has at least.
    """
    num_seqs, num_heads, head_dim = query.shape
    num_kv_heads, dim = cache.num_kv_heads, triton.next_power_of_2(head_dim)
    group = num_heads // num_kv_heads
    launch = launch or DECODE[max(dim, 64), cache.key.element_size()]
    if splits is None:
        most = block_table.shape[1] * cache.block_size
        splits = num_splits(num_seqs, num_kv_heads, most, _num_multiprocessors(query.device))
    device = query.device
    result = torch.empty(query.shape, dtype=query.dtype, device=device)
    partial, log_sums = result, result
    if splits > 1:
        partial = torch.empty(num_seqs, num_heads, splits, head_dim, dtype=torch.float32, device=device)
        log_sums = torch.empty(num_seqs, num_heads, splits, dtype=torch.float32, device=device)
    key, value = as_bytes(cache.key), as_bytes(cache.value)
    dot, is_fp8 = _dot_type(query, cache), cache.key.dtype == FP8
    decode_kernel[(num_seqs, num_kv_heads, splits)](
        query,
        key,
        value,
        key if cache.key_scale is None else cache.key_scale,
        value if cache.value_scale is None else cache.value_scale,
        block_table,
        seq_lens,
        partial,
        log_sums,
        block_table.stride(0),
        query.stride(0),
        scale * _LOG2_E,
        KV_HEADS=num_kv_heads,
        GROUP=group,
        DIM=head_dim,
        DIM_P=dim,
        BLOCK_SIZE=cache.block_size,
        BLOCK_M=max(launch.block_m, triton.next_power_of_2(group)),
        BLOCK_N=launch.block_n,
        WINDOW=window,
        SPLITS=splits,
        MIN_TILES=min_tiles,
        DOT=_DOT_TYPES[dot],
        VALUE_DOT=_DOT_TYPES[torch.bfloat16 if is_fp8 and dot == torch.float16 else dot],
        FP8=is_fp8,
        HARDWARE=has_fp8(device),
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
    if splits > 1:
        combine_kernel[(num_seqs, num_heads)](
            partial,
            log_sums,
            seq_lens,
            result,
            NUM_HEADS=num_heads,
            DIM=head_dim,
            DIM_P=dim,
            BLOCK_N=launch.block_n,
            WINDOW=window,
            SPLITS=splits,
            SPLITS_P=triton.next_power_of_2(splits),
            MIN_TILES=min_tiles,
            num_warps=2,
        )
    return result


def paged_prefill(
    query: torch.Tensor,
    cache: KvLayer,
    block_table: torch.Tensor,
    seq_lens: torch.Tensor,
    cu_query_lens: torch.Tensor,
    *,
    scale: float,
    window: int = 0,
    launch: Launch | None = None,
) -> torch.Tensor:
    """See `reference.paged_attention.paged_prefill`. `launch` is used instead of that of `tuning`."""
    num_tokens, num_heads, head_dim = query.shape
    num_kv_heads, dim, num_seqs = cache.num_kv_heads, triton.next_power_of_2(head_dim), len(seq_lens)
    group = num_heads // num_kv_heads
    table = PREFILL if capability(query.device) >= (9, 0) else PREFILL_BEFORE_HOPPER
    launch = launch or table[max(dim, 64), cache.key.element_size()]
    group_p = triton.next_power_of_2(group)
    block_m = max(launch.block_m, group_p)
    result = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    key, value = as_bytes(cache.key), as_bytes(cache.value)
    dot, is_fp8 = _dot_type(query, cache), cache.key.dtype == FP8
    prefill_kernel[(num_tokens // (block_m // group_p) + num_seqs + 1, num_kv_heads)](
        query,
        key,
        value,
        key if cache.key_scale is None else cache.key_scale,
        value if cache.value_scale is None else cache.value_scale,
        block_table,
        seq_lens,
        cu_query_lens,
        result,
        block_table.stride(0),
        query.stride(0),
        num_seqs,
        num_tokens,
        scale * _LOG2_E,
        KV_HEADS=num_kv_heads,
        GROUP=group,
        GROUP_P=group_p,
        DIM=head_dim,
        DIM_P=dim,
        BLOCK_SIZE=cache.block_size,
        BLOCK_M=block_m,
        BLOCK_N=launch.block_n,
        WINDOW=window,
        DOT=_DOT_TYPES[dot],
        VALUE_DOT=_DOT_TYPES[torch.bfloat16 if is_fp8 and dot == torch.float16 else dot],
        FP8=is_fp8,
        HARDWARE=has_fp8(query.device),
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )
    return result


def _dot_type(query: torch.Tensor, cache: KvLayer) -> torch.dtype:
    """The type of the products: the queries', unless a cache of another type would lose bits in it."""
    return query.dtype if cache.key.dtype in (query.dtype, FP8) else torch.float32


def _num_multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
