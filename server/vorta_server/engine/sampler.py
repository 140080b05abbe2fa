"""Chooses the next token of every row of a batch, without a sort over the vocabulary in the common case.

Order of operations on a row's logits, as in vLLM:

1. the mask of the row's constraint (what its grammar does not allow next becomes impossible), then logit bias, then
   repetition, frequency and presence penalties;
2. the min_tokens mask (end-of-sequence and stop tokens become impossible);
3. log probabilities are read here: log-softmax of the adjusted logits, before temperature; under a constraint they are
   among the allowed tokens, and there may be fewer alternatives than asked for;
4. temperature (below `GREEDY_TEMPERATURE` the largest logit wins and the rest is skipped);
5. top-k, then top-p on the distribution that top-k left, then min-p relative to the most likely token.

Tokens are ranked by (logit descending, id ascending): top-k keeps exactly k tokens and top-p the shortest prefix of the
ranking that reaches p. The kept tokens are laid out by ascending id and the row's one uniform number picks from them by
inverse CDF, so that a row's token depends on its own logits, parameters and uniform alone, never on its batch.

How the work stays small: the maxima of `num_blocks` disjoint blocks bound the k-th largest logit from below (k blocks
have a maximum of at least the k-th largest block maximum, hence at least k logits do), so one comparison yields every
candidate. A top-p row takes a few candidates first and is done when their mass reaches p; otherwise it takes the wide
path, which is exact for any set. Temperature alone needs block sums and the running sum of the one block that the
uniform hits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vorta.errors import Internal
from vorta_server.engine.constraint import MaskFiller, forbid, num_words, stack_masks
from vorta_server.engine.request import SamplingParams
from vorta_server.engine.row_state import RowState

__all__ = ["DrawKernel", "SampleResult", "Sampler", "TokenScore", "prompt_logprobs"]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
DoubleArray = NDArray[np.float64]

_CHUNK_ELEMENTS = 1 << 17
"""Logits handled at once (512 KiB as float32), so that a chunk's passes stay in the core's own cache."""

_CDF_BLOCK = 256
"""Tokens per block of the two-level inverse CDF."""

_MAX_BLOCKS = 1024
"""Block maxima per row at most: enough for every usual top-k, few enough to sort in microseconds."""

_MAX_CANDIDATES = 2048
"""Candidates per row beyond which the wide path is faster."""

_TOP_P_CANDIDATES = 64
"""Candidates that a top-p row looks at before it takes the wide path."""

_BORDER_SAMPLE = 4096
"""Logits of the sample that locates the border of a wide top-p set."""

_BORDER_MARGIN = 128
"""How far from its place in the sample the border may be: several standard deviations of that place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenScore:
    """The log probability of a token in its place, and of the most likely tokens there.

    Attributes:
        logprob: Natural logarithm, from a float64 normaliser.
        top_ids: int64 [top_n], most likely first, equal ones by ascending id.
        top_logprobs: float64 [top_n].
    """

    logprob: float
    top_ids: IntArray
    top_logprobs: DoubleArray


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleResult:
    """One token per row.

    Attributes:
        token_ids: int64 [num_rows]; -1 for a bad row.
        scores: Per row its score where the row asked for log probabilities, else None; None when no row asked.
        bad_rows: Rows whose logits hold NaN or +inf, or whose every token is impossible. They got no token.
    """

    token_ids: IntArray
    scores: list[TokenScore | None] | None = None
    bad_rows: tuple[int, ...] = ()


class DrawKernel(Protocol):
    """A faster way to do the heavy part: `vorta_kernels.sampling.SamplingKernel`."""

    def sample(
        self,
        logits: FloatArray,
        *,
        inverse_temperature: DoubleArray,
        top_k: IntArray,
        top_p: DoubleArray,
        min_p: DoubleArray,
        uniforms: DoubleArray,
    ) -> IntArray:
        """Tokens [num_rows], -1 for a bad row; inverse_temperature 0 is greedy."""
        ...

    def score(self, logits: FloatArray, indices: IntArray, top_n: int) -> tuple[DoubleArray, IntArray]:
        """Log-normalisers [n] and the best ids [n, top_n] of some rows."""
        ...


class _Plan:
    """A batch's parameters as arrays, made once per composition of the batch."""

    def __init__(self, rows: Sequence[RowState], vocab_size: int) -> None:
        self.rows = rows
        self.num_rows = len(rows)
        self.every = np.arange(len(rows))
        self.adjusted = [(i, row) for i, row in enumerate(rows) if row.is_adjusted]
        constrained = [i for i, row in enumerate(rows) if row.mask is not None]
        self.constrained = np.array(constrained, np.int64)
        self.constrained_rows = [rows[i] for i in constrained]
        self.masked = [(i, row) for i, row in enumerate(rows) if row.is_early and row.mask is None]
        self.scored = [i for i, row in enumerate(rows) if row.sampling.logprobs is not None]
        sampled = [i for i, row in enumerate(rows) if not row.is_greedy]
        free = [i for i in sampled if not _is_restricted(rows[i].sampling, vocab_size)]
        restricted = [i for i in sampled if _is_restricted(rows[i].sampling, vocab_size)]
        self.free = np.array(free, np.int64)
        self.restricted = np.array(restricted, np.int64)
        self.is_plain_greedy = not (constrained or self.adjusted or self.masked or self.scored or sampled)
        self.inverse_temperature = np.array(
            [1.0 if row.is_greedy else 1.0 / row.sampling.temperature for row in rows], np.float64
        )
        self.top_k = np.array([row.sampling.top_k for row in rows], np.int64)
        self.top_p = np.array([row.sampling.top_p for row in rows], np.float64)
        self.min_p = np.array([row.sampling.min_p for row in rows], np.float64)
        self.sampled = sampled
        self.draw_temperature = np.where([row.is_greedy for row in rows], 0.0, self.inverse_temperature)
        self.uniforms = np.zeros(len(rows), np.float64)


def _is_restricted(sampling: SamplingParams, vocab_size: int) -> bool:
    return 0 < sampling.top_k < vocab_size or sampling.top_p < 1.0 or sampling.min_p > 0.0


class Sampler:
    """Samples batches of one model. Keeps scratch memory; one thread calls.

    Args:
        vocab_size: Columns of the logits.
        kernel: Does what follows the adjustment of the logits; without it numpy does.
    """

    def __init__(self, vocab_size: int, kernel: DrawKernel | None = None) -> None:
        self._vocab_size = vocab_size
        self._kernel = kernel
        self._num_blocks = max(1, min(_MAX_BLOCKS, vocab_size // 16))
        self._chunk_rows = max(1, _CHUNK_ELEMENTS // vocab_size)
        padded = -(-vocab_size // _CDF_BLOCK) * _CDF_BLOCK
        # Columns beyond the vocabulary stay zero: they weigh nothing in a block's sum.
        self._weights: FloatArray = np.zeros((self._chunk_rows, padded), np.float32)
        self._is_found: NDArray[np.bool_] = np.zeros(self._chunk_rows * vocab_size + 8, np.bool_)
        self._plan = _Plan((), vocab_size)
        self._masks = MaskFiller(vocab_size)

    def sample(self, logits: FloatArray, rows: Sequence[RowState]) -> SampleResult:
        """Chooses a token for every row and lets its state accept it.

        Args:
            logits: float32 [num_rows, vocab_size]; overwritten.
            rows: One state per row of the logits. When the very same list object comes again, its parameters are
                taken as unchanged: pass a new list when the batch's composition changes.
        """
        plan = self._plan
        if plan.rows is not rows or plan.num_rows != len(rows):
            plan = self._plan = _Plan(rows, self._vocab_size)
        if logits.shape != (plan.num_rows, self._vocab_size) or logits.dtype != np.float32:
            expected = f"float32 ({plan.num_rows}, {self._vocab_size})"
            raise ValueError(f"logits are {logits.dtype} {logits.shape}, not {expected}")
        if plan.constrained_rows:
            self._constrain(logits, plan)
        for i, row in plan.adjusted:
            row.adjust(logits[i])
        if plan.masked:
            for i, row in plan.masked:
                if row.is_early:
                    logits[i, row.masked_ids] = -np.inf
        if self._kernel is not None and not plan.is_plain_greedy:
            return self._sample_by_kernel(self._kernel, logits, plan)
        # numpy's is the fastest there is here: 66 us for 32 rows of 32,000, the kernel's greedy rows take 157.
        token_ids = logits.argmax(axis=1)
        # argmax stops at the first NaN, so the value it found tells whether the row holds one.
        best = logits[plan.every, token_ids]
        if plan.is_plain_greedy and math.isfinite(best.sum(dtype=np.float64)):
            return SampleResult(token_ids=token_ids)
        maxima = best.tolist()
        bad_rows = tuple(i for i, value in enumerate(maxima) if not -np.inf < value < np.inf)
        if bad_rows:
            logits[list(bad_rows)] = 0.0
            for i in bad_rows:
                maxima[i] = 0.0
        if plan.free.size or plan.restricted.size:
            self._sample_rows(logits, np.array(maxima, np.float64), plan, token_ids)
        scores: list[TokenScore | None] | None = None
        if plan.scored:
            scores = [None] * plan.num_rows
            for i in plan.scored:
                if i not in bad_rows:
                    top_n = rows[i].sampling.logprobs or 0
                    scores[i] = self._score(logits[i], maxima[i], int(token_ids[i]), top_n)
        if bad_rows:
            token_ids[list(bad_rows)] = -1
        self._accept(plan, token_ids)
        return SampleResult(token_ids=token_ids, scores=scores, bad_rows=bad_rows)

    def _constrain(self, logits: FloatArray, plan: _Plan) -> None:
        """Makes impossible what the rows' constraints do not allow."""
        masks = np.empty((len(plan.constrained_rows), num_words(self._vocab_size)), np.int32)
        stack_masks(plan.constrained_rows, masks)
        if len(masks) == len(logits):
            forbid(logits, masks)
            return
        for i, mask in zip(plan.constrained.tolist(), masks, strict=True):
            forbid(logits[i : i + 1], mask[None, :])

    def _sample_by_kernel(self, kernel: DrawKernel, logits: FloatArray, plan: _Plan) -> SampleResult:
        """`sample` behind the adjustments."""
        for i in plan.sampled:
            plan.uniforms[i] = plan.rows[i].draw()
        token_ids = kernel.sample(
            logits,
            inverse_temperature=plan.draw_temperature,
            top_k=plan.top_k,
            top_p=plan.top_p,
            min_p=plan.min_p,
            uniforms=plan.uniforms,
        )
        bad_rows = tuple(np.flatnonzero(token_ids < 0).tolist())
        scores: list[TokenScore | None] | None = None
        if plan.scored:
            scores = [None] * plan.num_rows
            good = [i for i in plan.scored if i not in bad_rows]
            wanted = [min(plan.rows[i].sampling.logprobs or 0, self._vocab_size) for i in good]
            normalisers, top_ids = kernel.score(logits, np.array(good, np.int64), max(wanted, default=0))
            for index, (i, top_n) in enumerate(zip(good, wanted, strict=True)):
                ids = _possible(logits[i], top_ids[index, :top_n])
                normaliser = float(normalisers[index])
                scores[i] = TokenScore(
                    logprob=float(logits[i, token_ids[i]]) - normaliser,
                    top_ids=ids,
                    top_logprobs=logits[i, ids].astype(np.float64) - normaliser,
                )
        self._accept(plan, token_ids)
        return SampleResult(token_ids=token_ids, scores=scores, bad_rows=bad_rows)

    def _accept(self, plan: _Plan, token_ids: IntArray) -> None:
        """Lets the rows count their tokens, and starts on the masks of the next ones."""
        for row, token_id in zip(plan.rows, token_ids.tolist(), strict=True):
            if token_id >= 0:
                row.accept(token_id)
        if plan.constrained_rows:
            self._masks.begin([row.mask for row in plan.constrained_rows if row.mask is not None])
        if plan.masked:
            plan.masked = [(i, row) for i, row in plan.masked if row.is_early]
            plan.is_plain_greedy = not (
                plan.constrained_rows
                or plan.adjusted
                or plan.masked
                or plan.scored
                or plan.free.size
                or plan.restricted.size
            )

    def _sample_rows(self, logits: FloatArray, maxima: DoubleArray, plan: _Plan, token_ids: IntArray) -> None:
        """Draws the sampled rows' tokens into `token_ids`."""
        for indices, draw in ((plan.free, self._draw_free), (plan.restricted, self._draw_restricted)):
            if indices.size:
                part = logits if len(indices) == len(logits) else logits[indices]
                uniforms = np.array([plan.rows[i].draw() for i in indices.tolist()], np.float64)
                token_ids[indices] = draw(part, maxima[indices], uniforms, plan, indices)

    def _weigh(self, logits: FloatArray, maxima: DoubleArray, inverse_temperature: DoubleArray) -> FloatArray:
        """exp((logit - maximum) / temperature) in scratch memory, [num_rows, padded vocabulary]."""
        weights = self._weights[: len(logits)]
        inner = weights[:, : self._vocab_size]
        np.subtract(logits, maxima.astype(np.float32)[:, None], out=inner)
        inner *= inverse_temperature.astype(np.float32)[:, None]
        np.exp(inner, out=inner)
        return weights

    def _draw_free(
        self, logits: FloatArray, maxima: DoubleArray, uniforms: DoubleArray, plan: _Plan, indices: IntArray
    ) -> IntArray:
        """Rows with a temperature and nothing else."""
        inverse_temperature = plan.inverse_temperature[indices]
        tokens = np.empty(len(logits), np.int64)
        for start in range(0, len(logits), self._chunk_rows):
            chunk = slice(start, start + self._chunk_rows)
            weights = self._weigh(logits[chunk], maxima[chunk], inverse_temperature[chunk])
            tokens[chunk] = _draw_by_blocks(weights, uniforms[chunk])
        return tokens

    def _draw_restricted(
        self, logits: FloatArray, maxima: DoubleArray, uniforms: DoubleArray, plan: _Plan, indices: IntArray
    ) -> IntArray:
        """Rows with top-k, top-p or min-p."""
        num_rows = len(logits)
        inverse_temperature = plan.inverse_temperature[indices]
        top_k, top_p, min_p = plan.top_k[indices], plan.top_p[indices], plan.min_p[indices]
        has_k = (top_k > 0) & (top_k < self._vocab_size)
        needs_mass = ~has_k & (top_p < 1.0)
        only_min_p = ~has_k & ~needs_mass
        # No more than this many tokens can be ranked among the candidates; the wide path takes the others.
        wanted = np.where(has_k, top_k, _TOP_P_CANDIDATES)
        is_wide = wanted > self._num_blocks
        with np.errstate(divide="ignore"):
            exact = maxima + np.log(min_p) / inverse_temperature
        # Rounded down, so that the float64 comparison below decides at the border.
        min_p_bounds = np.nextafter(exact.astype(np.float32), np.float32(-np.inf))
        mass = np.full(num_rows, np.inf)
        found: list[IntArray] = []
        for start in range(0, num_rows, self._chunk_rows):
            chunk = slice(start, start + self._chunk_rows)
            bounds = min_p_bounds[chunk]
            if not only_min_p[chunk].all():
                block_maxima = self._block_maxima(logits[chunk])
                block_maxima.sort(axis=1)
                nth = self._num_blocks - np.minimum(wanted[chunk], self._num_blocks)
                ranked_bounds = block_maxima[np.arange(len(nth)), nth]
                bounds = np.where(only_min_p[chunk], bounds, ranked_bounds)
            bounds = np.where(is_wide[chunk], np.float32(np.inf), bounds)
            found.append(self._find_at_least(logits[chunk], bounds) + start * self._vocab_size)
            if needs_mass[chunk].any():
                weights = self._weigh(logits[chunk], maxima[chunk], inverse_temperature[chunk])
                mass[chunk] = np.where(needs_mass[chunk], weights.sum(axis=1), np.inf)

        flat = np.concatenate(found)
        row_of = flat // self._vocab_size
        counts = np.bincount(row_of, minlength=num_rows)
        too_many = counts > _MAX_CANDIDATES
        if too_many.any():
            is_wide |= too_many
            flat = flat[~too_many[row_of]]
            row_of = flat // self._vocab_size
            counts[too_many] = 0
        width = max(1, int(counts.max()))
        column = np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
        ids = np.zeros((num_rows, width), np.int64)
        ids[row_of, column] = flat - row_of * self._vocab_size
        scaled = np.full((num_rows, width), -np.inf)
        scaled[row_of, column] = (logits.reshape(-1)[flat] - maxima[row_of]) * inverse_temperature[row_of]

        order = np.argsort(-scaled, axis=1, kind="stable")
        ranked = np.exp(np.take_along_axis(scaled, order, axis=1))
        keep, covered = _keep(ranked, np.where(has_k, top_k, width), top_p, min_p, mass)
        is_wide |= ~covered
        kept_weights = np.empty_like(ranked)
        np.put_along_axis(kept_weights, order, np.where(keep, ranked, 0.0), axis=1)
        tokens = ids[np.arange(num_rows), _pick(kept_weights, uniforms)]
        for i in np.flatnonzero(is_wide).tolist():
            tokens[i] = self._draw_wide(
                logits[i],
                float(maxima[i]),
                float(inverse_temperature[i]),
                int(top_k[i]) if has_k[i] else self._vocab_size,
                float(top_p[i]),
                float(min_p[i]),
                float(uniforms[i]),
            )
        return tokens

    def _find_at_least(self, logits: FloatArray, bounds: FloatArray) -> IntArray:
        """Flat indices, ascending, of the logits [num_rows, vocab_size] that reach their row's bound: few are expected,
        so eight comparisons are looked at together."""
        size = logits.size
        is_found = self._is_found[:size].reshape(logits.shape)
        np.greater_equal(logits, bounds[:, None], out=is_found)
        padded = -(-size // 8) * 8
        self._is_found[size:padded] = False
        eights = np.flatnonzero(self._is_found[:padded].view(np.uint64) != 0)
        inner = np.flatnonzero(self._is_found[:padded].reshape(-1, 8)[eights])
        flat: IntArray = eights[inner >> 3] * 8 + (inner & 7)
        return flat

    def _draw_wide(
        self,
        logits: FloatArray,
        maximum: float,
        inverse_temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        uniform: float,
    ) -> int:
        """One row whose kept set may be most of the vocabulary: finds the set's border, then draws by blocks."""
        weights = self._weigh(logits[None, :], np.array([maximum]), np.array([inverse_temperature]))
        border = None
        if top_k >= self._vocab_size and top_p >= 1.0:
            # min-p alone: float32 weights decide but for those within a rounding of the bound.
            is_kept = weights[0, : self._vocab_size] >= min_p
            unsure = np.flatnonzero(np.abs(weights[0, : self._vocab_size] - np.float32(min_p)) < 1e-5 * min_p)
            is_kept[unsure] = np.exp((logits[unsure] - maximum) * inverse_temperature) >= min_p
            weights[0, : self._vocab_size] *= is_kept
            return int(_draw_by_blocks(weights, np.array([uniform]))[0])
        if top_k >= self._vocab_size and min_p == 0.0:
            border = self._find_top_p_border(logits, weights, maximum, inverse_temperature, top_p)
        if border is None:
            ranked_logits = np.sort(logits)[::-1][:top_k]
            ranked = np.exp((ranked_logits.astype(np.float64) - maximum) * inverse_temperature)[None, :]
            mass = np.array([ranked.sum()])
            keep, _ = _keep(ranked, np.array([top_k]), np.array([top_p]), np.array([min_p]), mass)
            num_kept = int(keep.sum())
            border = float(ranked_logits[num_kept - 1]), num_kept
        value, num_kept = border
        is_kept = logits > value
        num_ties = num_kept - int(np.count_nonzero(is_kept))
        is_kept[np.flatnonzero(logits == value)[:num_ties]] = True
        weights[0, : self._vocab_size] *= is_kept
        return int(_draw_by_blocks(weights, np.array([uniform]))[0])

    def _find_top_p_border(
        self, logits: FloatArray, weights: FloatArray, maximum: float, inverse_temperature: float, top_p: float
    ) -> tuple[float, int] | None:
        """The smallest logit that top-p keeps and how many tokens it keeps, without sorting all of the row.

        A sorted sample of the logits says between which two values the border should be; only the logits between them
        are sorted. Exact: the mass above is summed and must lie on the right side; None when the sample misled.
        """
        stride = self._vocab_size // _BORDER_SAMPLE
        if stride < 2:
            return None
        sample = np.sort(logits[::stride])[::-1]
        running = np.cumsum(np.exp((sample.astype(np.float64) - maximum) * inverse_temperature))
        near = int(np.searchsorted(running, top_p * running[-1]))
        high, low = sample[max(0, near - _BORDER_MARGIN)], sample[min(len(sample) - 1, near + _BORDER_MARGIN)]
        is_above = logits > high
        inner = weights[0, : self._vocab_size]
        goal = top_p * float(weights.sum())
        mass_above = float(np.multiply(inner, is_above).sum())
        between = logits[np.flatnonzero((logits >= low) ^ is_above)]
        between.sort()
        between = between[::-1]
        added = np.exp((between.astype(np.float64) - maximum) * inverse_temperature)
        running = mass_above + np.cumsum(added)
        if mass_above >= goal or running[-1] < goal:
            return None
        last = int(np.searchsorted(running, goal))
        return float(between[last]), int(np.count_nonzero(is_above)) + last + 1

    def _block_maxima(self, logits: FloatArray) -> FloatArray:
        """[num_rows, num_blocks]: block j holds the ids equal to j modulo the number of blocks, so that the maximum is
        one over whole vectors."""
        num_blocks = self._num_blocks
        depth = self._vocab_size // num_blocks
        main = depth * num_blocks
        maxima: FloatArray = logits[:, :main].reshape(len(logits), depth, num_blocks).max(axis=1)
        rest = self._vocab_size - main
        if rest:
            np.maximum(maxima[:, :rest], logits[:, main:], out=maxima[:, :rest])
        return maxima

    def _score(self, logits: FloatArray, maximum: float, token_id: int, top_n: int) -> TokenScore:
        """The log probability of a token and the `top_n` largest, of logits [vocab_size] without NaN."""
        weights = self._weigh(logits[None, :], np.array([maximum]), np.ones(1))
        normaliser = maximum + float(np.log(weights.sum(dtype=np.float64)))
        top_n = min(top_n, self._vocab_size)
        top_ids = np.zeros(0, np.int64)
        if top_n > self._num_blocks:
            top_ids = np.argsort(-logits, kind="stable")[:top_n]
        elif top_n:
            block_maxima = self._block_maxima(logits[None, :])[0]
            block_maxima.sort()
            candidates = np.flatnonzero(logits >= block_maxima[-top_n])
            top_ids = candidates[np.argsort(-logits[candidates], kind="stable")[:top_n]]
        top_ids = _possible(logits, top_ids)
        return TokenScore(
            logprob=float(logits[token_id]) - normaliser,
            top_ids=top_ids,
            top_logprobs=logits[top_ids].astype(np.float64) - normaliser,
        )


def _possible(logits: FloatArray, token_ids: IntArray) -> IntArray:
    """The tokens that have a probability."""
    return token_ids[logits[token_ids] > -np.inf]


def _keep(
    ranked: DoubleArray, top_k: IntArray, top_p: DoubleArray, min_p: DoubleArray, mass: DoubleArray
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of the ranked weights [num_rows, width] (1 for the most likely token, descending) are kept.

    `mass` is the sum over the whole vocabulary for rows with top-p and without top-k, inf for the others. The second
    result says per row whether the candidates decide: false when top-p reaches beyond them.
    """
    in_k = np.arange(ranked.shape[1]) < top_k[:, None]
    weights = np.where(in_k, ranked, 0.0)
    running = np.cumsum(weights, axis=1)
    total = np.where(np.isfinite(mass), mass, running[:, -1])
    goal = np.where(top_p < 1.0, top_p * total, np.inf)
    keep = in_k & (running - weights < goal[:, None]) & (weights >= min_p[:, None])
    keep[:, 0] = True
    covered = np.isinf(goal) | ~np.isfinite(mass) | (running[:, -1] >= goal)
    return keep, covered


def _pick(weights: DoubleArray, uniforms: DoubleArray) -> IntArray:
    """Inverse CDF per row: the first column whose running sum exceeds uniform × total. Never a column of weight 0,
    unless all of the row is."""
    running = np.cumsum(weights, axis=1)
    total = running[:, -1]
    target = np.minimum(uniforms * total, np.nextafter(total, 0.0))
    chosen = np.count_nonzero(running <= target[:, None], axis=1)
    token_columns: IntArray = np.minimum(chosen, weights.shape[1] - 1)
    return token_columns


def _draw_by_blocks(weights: FloatArray, uniforms: DoubleArray) -> IntArray:
    """Inverse CDF over weights [num_rows, a multiple of the block size]: first the block, then the token in it."""
    num_rows = len(weights)
    blocks = weights.reshape(num_rows, -1, _CDF_BLOCK)
    running = np.cumsum(blocks.sum(axis=2), axis=1, dtype=np.float64)
    total = running[:, -1]
    target = np.minimum(uniforms * total, np.nextafter(total, 0.0))
    block = np.count_nonzero(running <= target[:, None], axis=1)
    every = np.arange(num_rows)
    rest = target - np.where(block > 0, running[every, block - 1], 0.0)
    inner = np.cumsum(blocks[every, block], axis=1, dtype=np.float64)
    # The block's float32 sum may exceed its float64 running sum by a rounding.
    rest = np.minimum(rest, np.nextafter(inner[:, -1], 0.0))
    token_ids: IntArray = block * _CDF_BLOCK + np.count_nonzero(inner <= rest[:, None], axis=1)
    return token_ids


def prompt_logprobs(logits: FloatArray, target_token_ids: Sequence[int] | IntArray, top_n: int) -> list[TokenScore]:
    """Scores tokens in their places, for prompt scoring.

    Args:
        logits: float32 [num_tokens, vocab_size], raw; row i predicts `target_token_ids[i]`.
        target_token_ids: [num_tokens].
        top_n: Alternatives per place, 0 or more.

    Raises:
        Internal: A row holds NaN or +inf, or nothing but -inf.
    """
    sampler = Sampler(logits.shape[1])
    scores: list[TokenScore] = []
    for row, token_id in zip(logits, target_token_ids, strict=True):
        maximum = float(row.max())
        if not -np.inf < maximum < np.inf:
            raise Internal(f"The model's logits at prompt position {len(scores)} are not finite.")
        scores.append(sampler._score(row, maximum, int(token_id), top_n))
    return scores
