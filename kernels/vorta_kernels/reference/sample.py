"""The next token of every row of a batch: the device's side of `vorta_server.engine.sampler`, in the same order and
with the same ranking, so that a seed gives the same tokens on every device (but where float32 sums round to the other
side of a border)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["SampleOutput", "SamplingColumns", "sample"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingColumns:
    """A batch's parameters by column; each [num_rows] unless said otherwise.

    Attributes:
        temperature: float32; 0 takes the largest logit.
        top_k: int32; 0 is off.
        top_p: float32 in (0, 1]; 1 is off.
        min_p: float32 in [0, 1]; 0 is off.
        uniforms: float32 in [0, 1): what picks from the kept tokens by inverse CDF, laid out by ascending id.
        repetition, presence, frequency: float32 penalties; 1, 0, 0 are off.
        state_rows: int32, the row of `counts` and `seen` that is the sequence's.
        counts: int32 [num_states, vocab_size], how often the sequence generated each token; `sample` adds its token.
            None where no row has a penalty, and then nothing is counted.
        seen: int32 [num_states, ceil(vocab_size / 32)], bit i of word w set where token 32 * w + i is in the prompt;
            looked at for the repetition penalty alone. None as with counts.
        bias_ids, bias_values: int32 and float32 [num_rows, max_biases]; id -1 is none. None without any.
        banned_ids: int32 [num_rows, max_banned], tokens that are impossible; -1 is none. None without any.
        allowed: int32 [num_rows, ceil(vocab_size / 32)], bit set where a grammar allows the token. None without any.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    uniforms: torch.Tensor
    repetition: torch.Tensor | None = None
    presence: torch.Tensor | None = None
    frequency: torch.Tensor | None = None
    state_rows: torch.Tensor | None = None
    counts: torch.Tensor | None = None
    seen: torch.Tensor | None = None
    bias_ids: torch.Tensor | None = None
    bias_values: torch.Tensor | None = None
    banned_ids: torch.Tensor | None = None
    allowed: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOutput:
    """One token a row.

    Attributes:
        token_ids: int32 [num_rows]; -1 where the row holds NaN or +inf, or no token is possible.
        logprobs: float32 [num_rows], of the token, after bias, penalties and bans and before temperature.
        top_ids, top_logprobs: int32 and float32 [num_rows, num_top], the most likely first, equal ones by ascending id;
            None without num_top.
    """

    token_ids: torch.Tensor
    logprobs: torch.Tensor
    top_ids: torch.Tensor | None = None
    top_logprobs: torch.Tensor | None = None


def sample(logits: torch.Tensor, columns: SamplingColumns, *, num_top: int = 0) -> SampleOutput:
    """Chooses a token for each row of logits [num_rows, vocab_size] of any float type.

    Tokens are ranked by (adjusted logit descending, id ascending): top-k keeps exactly k, top-p the shortest prefix of
    the ranking whose share of what top-k left reaches p, min-p those at least min_p times as likely as the first.
    """
    adjusted = _adjust(logits.double(), columns)
    is_bad = torch.isnan(adjusted).any(-1) | (adjusted.amax(-1).isinf())
    safe = torch.where(is_bad[:, None], torch.zeros_like(adjusted), adjusted)
    order = safe.sort(dim=-1, descending=True, stable=True)
    token_ids = torch.where(columns.temperature > 0, _draw(safe, order, columns), order.indices[:, 0])
    logprobs = safe.log_softmax(-1)
    token_ids = token_ids.masked_fill(is_bad, -1)
    if columns.counts is not None and columns.state_rows is not None:
        real = ~is_bad
        columns.counts[columns.state_rows[real].long(), token_ids[real]] += 1
    chosen = logprobs.gather(1, token_ids.clamp_min(0)[:, None])[:, 0].masked_fill(is_bad, float("nan"))
    best = order.indices[:, :num_top]
    return SampleOutput(
        token_ids=token_ids.int(),
        logprobs=chosen.float(),
        top_ids=best.int() if num_top else None,
        top_logprobs=logprobs.gather(1, best).float() if num_top else None,
    )


def _adjust(logits: torch.Tensor, columns: SamplingColumns) -> torch.Tensor:
    """Bias, then penalties, then what is impossible."""
    vocab_size = logits.shape[1]
    if columns.bias_ids is not None and columns.bias_values is not None:
        values = columns.bias_values.double().masked_fill(columns.bias_ids < 0, 0)
        logits = logits.scatter_add(1, columns.bias_ids.clamp_min(0).long(), values)
    if columns.counts is not None and columns.seen is not None and columns.state_rows is not None:
        assert columns.repetition is not None
        assert columns.presence is not None
        assert columns.frequency is not None
        counts = columns.counts[columns.state_rows.long()].double()
        known = (counts > 0) | _bits(columns.seen[columns.state_rows.long()], vocab_size)
        repetition = columns.repetition.double()[:, None]
        repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
        logits = torch.where(known, repeated, logits)
        logits = logits - columns.frequency.double()[:, None] * counts
        logits = logits - columns.presence.double()[:, None] * (counts > 0)
    if columns.banned_ids is not None:
        is_banned = torch.zeros(len(logits), vocab_size + 1, dtype=torch.bool, device=logits.device)
        ids = columns.banned_ids.long()
        is_banned.scatter_(1, torch.where(ids < 0, vocab_size, ids), True)
        logits = logits.masked_fill(is_banned[:, :vocab_size], float("-inf"))
    if columns.allowed is not None:
        logits = logits.masked_fill(~_bits(columns.allowed, vocab_size), float("-inf"))
    return logits


def _bits(words: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Words [num_rows, n] as bool [num_rows, vocab_size]."""
    shifts = torch.arange(32, dtype=torch.int32, device=words.device)
    return ((words[..., None] >> shifts) & 1).bool().flatten(1)[:, :vocab_size]


def _draw(logits: torch.Tensor, order: torch.return_types.sort, columns: SamplingColumns) -> torch.Tensor:
    vocab_size = logits.shape[1]
    temperature = columns.temperature.double().clamp_min(1e-30)[:, None]
    ranked = ((order.values - order.values[:, :1]) / temperature).exp()
    rank = torch.arange(vocab_size, device=logits.device)[None]
    top_k = torch.where(columns.top_k > 0, columns.top_k, vocab_size)[:, None]
    ranked = ranked * (rank < top_k)
    before = ranked.cumsum(-1) - ranked
    top_p = torch.where(columns.top_p < 1, columns.top_p.double(), torch.inf)[:, None]
    ranked = ranked * (before < top_p * ranked.sum(-1, keepdim=True))
    ranked = ranked * (ranked >= columns.min_p.double()[:, None])
    kept = torch.zeros_like(ranked).scatter(1, order.indices, ranked)
    running = kept.cumsum(-1)
    target = columns.uniforms.double()[:, None] * running[:, -1:]
    # The first token whose running sum passes the target has a weight, as a sum without weight does not grow.
    return (running > target).int().argmax(-1)
