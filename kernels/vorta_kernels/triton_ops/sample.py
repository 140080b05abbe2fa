"""The next token of every row: adjustments, top-k, top-p and min-p, the draw, and log probabilities; no sort.

Floor: the logits once, vocab_size elements a row, and the penalties' counts once where there are any. What comes after
the first pass reads a row of float32 again, 512 KiB at 128k tokens, which lies in L2.

Design, three kernels:

- `adjust_kernel`, a grid of (row, chunk of the vocabulary): bias, penalties, bans and the grammar's bits, then of each
  chunk the largest logit and its id, the sum of exponentials, and the smallest finite logit. Adjusted logits are stored
  as float32, but only where something adjusts them or they are of another type.
- `draw_kernel`, a program a row: greedy rows are done with the chunks' results. For top-k and top-p it looks for the
  border in the ranking: a border is a float32 as an integer of the same order, and each pass over the row counts the
  tokens, and sums their weights, above three pivots at once. The first pivots lie where borders usually do, by value;
  every second pass halves twice by bits, so that any row ends. As soon as what is above the lower bound fits one block
  (`block` tokens) it is gathered, in order of ids, and everything after is about that block alone. A row whose set is
  wider takes the same steps over the whole row. Ties at the border are kept by ascending id, by a running count.
- `top_kernel`, a program a row, where top log probabilities are asked for: the same search, then one maximum after the
  other.

Weights are exp2 of float32, relative to the largest, summed as integers with `62 - log2(vocab_size)` bits behind the
point: such sums are exact and the same in any order, so two passes never disagree about a total, and a row's token
depends neither on the batch nor on the block size. The gathered tokens go through global memory to other threads of the
same program, behind a barrier.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vorta_kernels.reference.sample import SampleOutput, SamplingColumns

__all__ = ["sample"]

_LOG2_E = tl.constexpr(1.4426950408889634)
_BOTTOM = tl.constexpr(-2139095042)
"""The order of minus infinity, less 1: every logit is above it."""

_NO_TOKEN = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _order(values):
    """float32 as int32 of the same order; both zeros are equal."""
    bits = tl.where(values == 0.0, 0.0, values).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _value(order):
    return (order ^ ((order >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def adjust_kernel(
    logits,
    values,
    peaks,
    lows,
    sums,
    best,
    bias_ids,
    bias_values,
    banned_ids,
    allowed,
    state_rows,
    counts,
    seen,
    repetition,
    presence,
    frequency,
    stride,
    VOCAB: tl.constexpr,
    CHUNK: tl.constexpr,
    WORDS: tl.constexpr,
    NUM_BIASES: tl.constexpr,
    NUM_BANNED: tl.constexpr,
    ALLOWED: tl.constexpr,
    PENALTIES: tl.constexpr,
    STORE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    first = chunk * CHUNK
    token = first + tl.arange(0, CHUNK)
    inside = token < VOCAB
    x = tl.load(logits + row * stride + token, mask=inside, other=float("-inf")).to(tl.float32)
    for i in range(NUM_BIASES):
        biased = tl.load(bias_ids + row * NUM_BIASES + i)
        if (biased >= first) & (biased < first + CHUNK):
            x += tl.where(token == biased, tl.load(bias_values + row * NUM_BIASES + i), 0.0)
    if PENALTIES:
        state = tl.load(state_rows + row).to(tl.int64)
        count = tl.load(counts + state * VOCAB + token, mask=inside, other=0)
        word = tl.load(seen + state * WORDS + token // 32, mask=inside, other=0)
        factor = tl.load(repetition + row)
        is_known = (count > 0) | (((word >> (token % 32)) & 1) != 0)
        x = tl.where(is_known, tl.where(x > 0, x / factor, x * factor), x)
        x -= tl.load(frequency + row) * count.to(tl.float32)
        x -= tl.where(count > 0, tl.load(presence + row), 0.0)
    for i in range(NUM_BANNED):
        banned = tl.load(banned_ids + row * NUM_BANNED + i)
        if (banned >= first) & (banned < first + CHUNK):
            x = tl.where(token == banned, float("-inf"), x)
    if ALLOWED:
        word = tl.load(allowed + row * WORDS + token // 32, mask=inside, other=0)
        x = tl.where(((word >> (token % 32)) & 1) != 0, x, float("-inf"))
    if STORE:
        tl.store(values + row * VOCAB + token, x, mask=inside)
    is_nan = (x != x) & inside
    x = tl.where(inside & (x == x), x, float("-inf"))
    peak = tl.max(x, 0)
    place = row * tl.num_programs(1) + chunk
    tl.store(best + place, tl.min(tl.where(inside & (x == peak), token, _NO_TOKEN), 0))
    tl.store(lows + place, tl.min(tl.where(x == float("-inf"), float("inf"), x), 0))
    tl.store(sums + place, tl.sum(tl.exp2((x - tl.where(peak == float("-inf"), 0.0, peak)) * _LOG2_E), 0))
    # A NaN spoils the row as an infinity does.
    tl.store(peaks + place, tl.where(tl.max(is_nan.to(tl.int32), 0) > 0, float("inf"), peak))


@triton.jit
def _row_facts(peaks, lows, sums, row, CHUNKS: tl.constexpr, CHUNKS_P: tl.constexpr):
    """Of a row's chunks: the largest logit, the smallest finite one, and the sum of exp(logit - largest)."""
    chunk = tl.arange(0, CHUNKS_P)
    inside = chunk < CHUNKS
    chunk_peaks = tl.load(peaks + row * CHUNKS + chunk, mask=inside, other=float("-inf"))
    peak = tl.max(chunk_peaks, 0)
    low = tl.min(tl.load(lows + row * CHUNKS + chunk, mask=inside, other=float("inf")), 0)
    factors = tl.exp2((chunk_peaks - tl.where(peak == float("-inf"), 0.0, peak)) * _LOG2_E)
    total = tl.sum(tl.load(sums + row * CHUNKS + chunk, mask=inside, other=0.0) * factors, 0)
    return peak, low, total


@triton.jit
def _mass(weights, BITS: tl.constexpr):
    """float32 weights of at most 1 as integers."""
    return (weights * (2.0**BITS)).to(tl.int64)


@triton.jit
def _above(source, size, a, b, c, peak, factor, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """How many of `size` values are above each of three orders, and the sums of their weights."""
    index = tl.arange(0, BLOCK)
    counts_a = tl.zeros([BLOCK], tl.int32)
    counts_b = tl.zeros([BLOCK], tl.int32)
    counts_c = tl.zeros([BLOCK], tl.int32)
    masses_a = tl.zeros([BLOCK], tl.int64)
    masses_b = tl.zeros([BLOCK], tl.int64)
    masses_c = tl.zeros([BLOCK], tl.int64)
    for start in range(0, size, BLOCK):
        inside = start + index < size
        x = tl.load(source + start + index, mask=inside, other=float("-inf"))
        order = _order(x).to(tl.int64)
        mass = _mass(tl.exp2((x - peak) * factor), BITS)
        is_above = inside & (order > a)
        counts_a += is_above.to(tl.int32)
        masses_a += tl.where(is_above, mass, 0)
        is_above = inside & (order > b)
        counts_b += is_above.to(tl.int32)
        masses_b += tl.where(is_above, mass, 0)
        is_above = inside & (order > c)
        counts_c += is_above.to(tl.int32)
        masses_c += tl.where(is_above, mass, 0)
    return (
        tl.sum(counts_a, 0).to(tl.int64),
        tl.sum(counts_b, 0).to(tl.int64),
        tl.sum(counts_c, 0).to(tl.int64),
        tl.sum(masses_a, 0),
        tl.sum(masses_b, 0),
        tl.sum(masses_c, 0),
    )


@triton.jit
def _share(top_p, total):
    """The least integer that is not below top_p * total, at least 1: what the kept tokens' weights must reach."""
    wanted = tl.ceil(top_p.to(tl.float64) * total.to(tl.float64)).to(tl.int64)
    return tl.maximum(tl.minimum(wanted, total), 1)


@triton.jit
def _largest(source, size, limit, BLOCK: tl.constexpr):
    """The largest order that is not above `limit`."""
    index = tl.arange(0, BLOCK)
    largest = tl.full([BLOCK], _BOTTOM, tl.int64)
    for start in range(0, size, BLOCK):
        x = tl.load(source + start + index, mask=start + index < size, other=float("-inf"))
        order = _order(x).to(tl.int64)
        largest = tl.maximum(largest, tl.where(order <= limit, order, _BOTTOM))
    return tl.max(largest, 0)


@triton.jit
def _search(
    source,
    size,
    low_order,
    high_order,
    num_above_low,
    num_above_high,
    mass_above_high,
    wanted,
    by_mass,
    asks_total,
    enough,
    top_p,
    low,
    peak,
    factor,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Narrows (low_order, high_order]: what is above the lower one reaches `wanted` (tokens, or weight `by_mass`), what
    is above the upper one does not. Ends with `enough` or fewer tokens above the lower one, or with the border as the
    upper one: with enough = 0 always the latter. With `asks_total` the first pass sets `wanted` to top_p of the total
    weight."""
    step = 0
    between = tl.where(enough > 0, 2, num_above_low - num_above_high)
    while (high_order - low_order > 1) & (num_above_low > enough) & (between > 1):
        by_value = step % 2 == 0
        distance = high_order - low_order
        low_value = tl.maximum(_value(tl.maximum(low_order, _order(low).to(tl.int64)).to(tl.int32)), low)
        value_distance = _value(high_order.to(tl.int32)) - low_value
        a = tl.where(by_value, _order(low_value + value_distance * 0.25).to(tl.int64), low_order + distance // 4)
        b = tl.where(by_value, _order(low_value + value_distance * 0.5).to(tl.int64), low_order + distance // 2)
        c = tl.where(by_value, _order(low_value + value_distance * 0.75).to(tl.int64), high_order - distance // 4)
        is_first = asks_total & (step == 0)
        # Weights of e^-14 and e^-4 of the largest.
        b = tl.where(is_first, _order(peak - 14.0 * 1.4426950408889634 / factor).to(tl.int64), b)
        c = tl.where(is_first, _order(peak - 4.0 * 1.4426950408889634 / factor).to(tl.int64), c)
        a = tl.minimum(tl.maximum(a, low_order + 1), high_order - 1)
        b = tl.minimum(tl.maximum(b, low_order + 1), high_order - 1)
        c = tl.minimum(tl.maximum(c, low_order + 1), high_order - 1)
        a = tl.where(is_first, low_order, a)
        num_a, num_b, num_c, mass_a, mass_b, mass_c = _above(source, size, a, b, c, peak, factor, BITS, BLOCK)
        wanted = tl.where(is_first, _share(top_p, mass_a), wanted)
        reaches_a = tl.where(by_mass, mass_a, num_a) >= wanted
        reaches_b = tl.where(by_mass, mass_b, num_b) >= wanted
        reaches_c = tl.where(by_mass, mass_c, num_c) >= wanted
        num_above_low = tl.where(
            reaches_c, num_c, tl.where(reaches_b, num_b, tl.where(reaches_a, num_a, num_above_low))
        )
        low_order = tl.where(reaches_c, c, tl.where(reaches_b, b, tl.where(reaches_a, a, low_order)))
        num_above_high = tl.where(
            reaches_c, num_above_high, tl.where(reaches_b, num_c, tl.where(reaches_a, num_b, num_a))
        )
        mass_above_high = tl.where(
            reaches_c, mass_above_high, tl.where(reaches_b, mass_c, tl.where(reaches_a, mass_b, mass_a))
        )
        high_order = tl.where(reaches_c, high_order, tl.where(reaches_b, c, tl.where(reaches_a, b, a)))
        between = tl.where(enough > 0, 2, num_above_low - num_above_high)
        step += 1
    if (high_order - low_order > 1) & (enough == 0):
        # One token is left between the bounds: the largest that is not above the upper one.
        high_order = _largest(source, size, high_order, BLOCK)
    return low_order, high_order, num_above_low, num_above_high, mass_above_high, wanted


@triton.jit
def _gather(source, size, low_order, found, found_ids, BLOCK: tl.constexpr):
    """Writes the values above an order and their ids, at most BLOCK, by ascending id."""
    index = tl.arange(0, BLOCK)
    taken = 0
    for start in range(0, size, BLOCK):
        inside = start + index < size
        x = tl.load(source + start + index, mask=inside, other=float("-inf"))
        is_above = inside & (_order(x).to(tl.int64) > low_order)
        number = tl.sum(is_above.to(tl.int32), 0)
        if number > 0:
            place = taken + tl.cumsum(is_above.to(tl.int32), 0) - 1
            tl.store(found + place, x, mask=is_above)
            tl.store(found_ids + place, start + index, mask=is_above)
        taken += number
    tl.debug_barrier()


@triton.jit
def _kept(source, start, size, border, ties, ties_before, min_p, peak, factor, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """The weights of a block's kept tokens, 0 for the others, and how many of the block are at the border."""
    index = start + tl.arange(0, BLOCK)
    inside = index < size
    x = tl.load(source + index, mask=inside, other=float("-inf"))
    order = _order(x).to(tl.int64)
    weights = tl.exp2((x - peak) * factor)
    is_tie = (inside & (order == border)).to(tl.int32)
    num_ties = tl.sum(is_tie, 0)
    rank = ties_before + is_tie
    if num_ties > 0:
        rank = ties_before + tl.cumsum(is_tie, 0)
    is_kept = inside & (weights >= min_p) & ((order > border) | ((is_tie > 0) & (rank <= ties)))
    return tl.where(is_kept, _mass(weights, BITS), 0), num_ties


@triton.jit
def draw_kernel(
    values,
    peaks,
    lows,
    sums,
    best,
    found,
    found_ids,
    temperature,
    top_k,
    top_p,
    min_p,
    uniforms,
    state_rows,
    counts,
    token_ids,
    logprobs,
    stride,
    VOCAB: tl.constexpr,
    CHUNKS: tl.constexpr,
    CHUNKS_P: tl.constexpr,
    COUNT: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    peak, low, total_weight = _row_facts(peaks, lows, sums, row, CHUNKS, CHUNKS_P)
    heat = tl.load(temperature + row)
    if (peak == float("inf")) | (peak == float("-inf")):
        tl.store(token_ids + row, -1)
        tl.store(logprobs + row, float("nan"))
    else:
        chunk = tl.arange(0, CHUNKS_P)
        is_chunk = chunk < CHUNKS
        is_best = tl.load(peaks + row * CHUNKS + chunk, mask=is_chunk, other=float("-inf")) == peak
        token = tl.min(tl.load(best + row * CHUNKS + chunk, mask=is_chunk & is_best, other=_NO_TOKEN), 0)
        source = values + row * stride
        if heat > 0:
            factor = _LOG2_E / tl.maximum(heat, 1e-30)
            num_kept = tl.load(top_k + row)
            share = tl.load(top_p + row)
            by_count = (num_kept > 0) & (num_kept < VOCAB)
            by_mass = share < 1.0
            size = tl.full([], VOCAB, tl.int32)
            tokens = source
            is_gathered = heat < 0
            border = tl.full([], _BOTTOM, tl.int64)
            ties = tl.full([], 0, tl.int64)
            if by_count | by_mass:
                zero = tl.full([], 0, tl.int64)
                peak_order = _order(peak).to(tl.int64)
                below, above, num_below, num_above, mass_above, wanted = _search(
                    source,
                    size,
                    border,
                    peak_order,
                    zero + VOCAB,
                    zero,
                    zero,
                    tl.where(by_count, num_kept, 0).to(tl.int64),  # 0 until the total is known
                    by_count == 0,
                    by_count == 0,
                    BLOCK,
                    share,
                    low,
                    peak,
                    factor,
                    BITS,
                    BLOCK,
                )
                is_gathered = num_below <= BLOCK
                if is_gathered:
                    _gather(source, size, below, found + row * BLOCK, found_ids + row * BLOCK, BLOCK)
                    tokens = found + row * BLOCK
                    size = num_below.to(tl.int32)
                below, border, num_below, num_above, mass_above, wanted = _search(
                    tokens,
                    size,
                    below,
                    above,
                    num_below,
                    num_above,
                    mass_above,
                    wanted,
                    by_count == 0,
                    (by_count == 0) & (wanted == 0),
                    0,
                    share,
                    low,
                    peak,
                    factor,
                    BITS,
                    BLOCK,
                )
                if by_count:
                    ties = num_kept - num_above
                    if by_mass:
                        weight = _mass(tl.exp2((_value(border.to(tl.int32)) - peak) * factor), BITS)
                        wanted = _share(share, mass_above + ties * weight)
                        below, border, num_below, num_above, mass_above, wanted = _search(
                            tokens,
                            size,
                            border - 1,
                            peak_order,
                            zero + VOCAB,
                            zero,
                            zero,
                            wanted,
                            by_mass,
                            zero > 0,
                            0,
                            share,
                            low,
                            peak,
                            factor,
                            BITS,
                            BLOCK,
                        )
                if by_mass:
                    weight = _mass(tl.exp2((_value(border.to(tl.int32)) - peak) * factor), BITS)
                    ties = tl.cdiv(wanted - mass_above, tl.maximum(weight, 1))
            least = tl.load(min_p + row)
            total = tl.full([], 0, tl.int64)
            ties_before = tl.full([], 0, tl.int32)
            for start in range(0, size, BLOCK):
                mass, num_ties = _kept(tokens, start, size, border, ties, ties_before, least, peak, factor, BITS, BLOCK)
                total += tl.sum(mass, 0)
                ties_before += num_ties
            target = (tl.load(uniforms + row).to(tl.float64) * total.to(tl.float64)).to(tl.int64)
            target = tl.minimum(target, total - 1)
            start = tl.full([], 0, tl.int32)
            place = start
            before = tl.full([], 0, tl.int64)
            ties_before = start
            while before <= target:
                mass, num_ties = _kept(tokens, start, size, border, ties, ties_before, least, peak, factor, BITS, BLOCK)
                in_block = tl.sum(mass, 0)
                if before + in_block > target:
                    passes = before + tl.cumsum(mass, 0) > target
                    place = start + tl.min(tl.where(passes, tl.arange(0, BLOCK), BLOCK), 0)
                before += in_block
                ties_before += num_ties
                start += BLOCK
            token = place
            if is_gathered:
                token = tl.load(found_ids + row * BLOCK + place)
        tl.store(token_ids + row, token)
        tl.store(logprobs + row, tl.load(source + token) - peak - tl.log(total_weight))
        if COUNT:
            tl.atomic_add(counts + tl.load(state_rows + row).to(tl.int64) * VOCAB + token, 1)


@triton.jit
def top_kernel(
    values,
    peaks,
    lows,
    sums,
    found,
    found_ids,
    top_ids,
    top_logprobs,
    stride,
    VOCAB: tl.constexpr,
    CHUNKS: tl.constexpr,
    CHUNKS_P: tl.constexpr,
    NUM_TOP: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    peak, low, total_weight = _row_facts(peaks, lows, sums, row, CHUNKS, CHUNKS_P)
    if (peak == float("inf")) | (peak == float("-inf")):
        for i in range(NUM_TOP):
            tl.store(top_ids + row * NUM_TOP + i, i)
            tl.store(top_logprobs + row * NUM_TOP + i, -tl.log(VOCAB * 1.0))
    else:
        source = values + row * stride
        one = tl.full([], 1.0, tl.float32)
        zero = tl.full([], 0, tl.int64)
        size = tl.full([], VOCAB, tl.int32)
        tokens = source
        ids = found_ids + row * BLOCK
        below, _, num_below, _, _, _ = _search(
            source,
            size,
            zero + _BOTTOM,
            _order(peak).to(tl.int64),
            zero + VOCAB,
            zero,
            zero,
            zero + NUM_TOP,
            zero > 0,
            zero > 0,
            BLOCK,
            one,
            low,
            peak,
            one,
            BITS,
            BLOCK,
        )
        is_gathered = num_below <= BLOCK
        if is_gathered:
            _gather(source, size, below, found + row * BLOCK, ids, BLOCK)
            tokens = found + row * BLOCK
            size = num_below.to(tl.int32)
        index = tl.arange(0, BLOCK)
        last_order = zero + 0x7FFFFFFF
        last_id = tl.full([], -1, tl.int32)
        for i in range(NUM_TOP):
            next_order = zero + _BOTTOM
            next_id = tl.full([], _NO_TOKEN, tl.int32)
            for start in range(0, size, BLOCK):
                inside = start + index < size
                order = _order(tl.load(tokens + start + index, mask=inside, other=float("-inf"))).to(tl.int64)
                token = start + index
                if is_gathered:
                    token = tl.load(ids + start + index, mask=inside, other=0)
                comes_later = inside & ((order < last_order) | ((order == last_order) & (token > last_id)))
                order = tl.where(comes_later, order, _BOTTOM)
                block_order = tl.max(order, 0)
                block_id = tl.min(tl.where(comes_later & (order == block_order), token, _NO_TOKEN), 0)
                # Blocks go by ascending id, so an equal one of a later block comes later.
                is_better = block_order > next_order
                next_order = tl.where(is_better, block_order, next_order)
                next_id = tl.where(is_better, block_id, next_id)
            last_order = next_order
            last_id = next_id
            tl.store(top_ids + row * NUM_TOP + i, next_id)
            logprob = _value(next_order.to(tl.int32)) - peak - tl.log(total_weight)
            tl.store(top_logprobs + row * NUM_TOP + i, logprob)


def sample(
    logits: torch.Tensor,
    columns: SamplingColumns,
    *,
    num_top: int = 0,
    chunk: int = 4096,
    block: int = 2048,
    num_warps: int = 8,
) -> SampleOutput:
    """See `reference.sample.sample`. Rows of logits may be strided.

    Args:
        chunk: Tokens that a program of `adjust_kernel` takes, a power of two.
        block: Tokens that `draw_kernel` and `top_kernel` take at once, and gather at most; a power of two.
        num_warps: Of all three kernels.
    """
    num_rows, vocab_size = logits.shape
    device = logits.device
    num_chunks = triton.cdiv(vocab_size, chunk)
    num_biases = 0 if columns.bias_ids is None else columns.bias_ids.shape[1]
    num_banned = 0 if columns.banned_ids is None else columns.banned_ids.shape[1]
    has_penalties = columns.counts is not None and columns.seen is not None and columns.state_rows is not None
    is_adjusted = num_biases > 0 or num_banned > 0 or has_penalties or columns.allowed is not None
    stores = is_adjusted or logits.dtype != torch.float32
    values = torch.empty(num_rows, vocab_size, dtype=torch.float32, device=device) if stores else logits
    peaks, lows, sums = torch.empty(3, num_rows, num_chunks, dtype=torch.float32, device=device).unbind(0)
    best = torch.empty(num_rows, num_chunks, dtype=torch.int32, device=device)

    def given(tensor: torch.Tensor | None) -> torch.Tensor:
        """A column, or any pointer in place of one that is not read."""
        return best if tensor is None else tensor

    adjust_kernel[(num_rows, num_chunks)](
        logits,
        values,
        peaks,
        lows,
        sums,
        best,
        given(columns.bias_ids),
        given(columns.bias_values),
        given(columns.banned_ids),
        given(columns.allowed),
        given(columns.state_rows),
        given(columns.counts),
        given(columns.seen),
        given(columns.repetition),
        given(columns.presence),
        given(columns.frequency),
        logits.stride(0),
        VOCAB=vocab_size,
        CHUNK=chunk,
        WORDS=triton.cdiv(vocab_size, 32),
        NUM_BIASES=num_biases,
        NUM_BANNED=num_banned,
        ALLOWED=columns.allowed is not None,
        PENALTIES=has_penalties,
        STORE=stores,
        num_warps=num_warps,
    )
    found = torch.empty(num_rows, block, dtype=torch.float32, device=device)
    found_ids = torch.empty(num_rows, block, dtype=torch.int32, device=device)
    token_ids = torch.empty(num_rows, dtype=torch.int32, device=device)
    logprobs = torch.empty(num_rows, dtype=torch.float32, device=device)
    bits = 62 - max(vocab_size - 1, 4095).bit_length()
    draw_kernel[(num_rows,)](
        values,
        peaks,
        lows,
        sums,
        best,
        found,
        found_ids,
        columns.temperature,
        columns.top_k,
        columns.top_p,
        columns.min_p,
        columns.uniforms,
        given(columns.state_rows),
        given(columns.counts),
        token_ids,
        logprobs,
        values.stride(0),
        VOCAB=vocab_size,
        CHUNKS=num_chunks,
        CHUNKS_P=triton.next_power_of_2(num_chunks),
        COUNT=columns.counts is not None and columns.state_rows is not None,
        BITS=bits,
        BLOCK=block,
        num_warps=num_warps,
    )
    if not num_top:
        return SampleOutput(token_ids=token_ids, logprobs=logprobs)
    num_top = min(num_top, vocab_size)
    top_ids = torch.empty(num_rows, num_top, dtype=torch.int32, device=device)
    top_logprobs = torch.empty(num_rows, num_top, dtype=torch.float32, device=device)
    top_kernel[(num_rows,)](
        values,
        peaks,
        lows,
        sums,
        found,
        found_ids,
        top_ids,
        top_logprobs,
        values.stride(0),
        VOCAB=vocab_size,
        CHUNKS=num_chunks,
        CHUNKS_P=triton.next_power_of_2(num_chunks),
        NUM_TOP=num_top,
        BITS=bits,
        BLOCK=block,
        num_warps=num_warps,
    )
    return SampleOutput(token_ids=token_ids, logprobs=logprobs, top_ids=top_ids, top_logprobs=top_logprobs)
