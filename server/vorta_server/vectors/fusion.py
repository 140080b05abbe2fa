"""One ranking of two: reciprocal ranks, or weighted scores."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["fuse"]

Ranked = Sequence[tuple[int, float]]


def fuse(
    dense: Ranked, text: Ranked, *, fusion: str, dense_weight: float, rrf_k: int, is_less_better: bool
) -> list[tuple[int, float, float | None, float | None]]:
    """Rows of both lists, best first, with fused score, score by vector and score by words (None where not found).

    Ranks count from 1. Weighted scores are scaled to 0 to 1 over their list; a list of equal scores scales to 1. What
    one list lacks gets nothing there.

    Args:
        dense: Rows and scores by vector, best first.
        text: By words, best first.
        fusion: "rrf" or "weighted".
        dense_weight: Share of the vector side under "weighted".
        rrf_k: Added to each rank under "rrf".
        is_less_better: Whether less is better on the vector side.
    """
    if fusion == "rrf":
        dense_parts = [1.0 / (rrf_k + rank) for rank in range(1, len(dense) + 1)]
        text_parts = [1.0 / (rrf_k + rank) for rank in range(1, len(text) + 1)]
    else:
        dense_parts = _scaled([-score if is_less_better else score for _, score in dense], dense_weight)
        text_parts = _scaled([score for _, score in text], 1.0 - dense_weight)
    fused: dict[int, tuple[float, float | None, float | None]] = {}
    for (row, score), part in zip(dense, dense_parts, strict=True):
        fused[row] = part, score, None
    for (row, score), part in zip(text, text_parts, strict=True):
        known = fused.get(row)
        fused[row] = (part, None, score) if known is None else (known[0] + part, known[1], score)
    return sorted(((row, *scores) for row, scores in fused.items()), key=lambda item: (-item[1], item[0]))


def _scaled(scores: list[float], weight: float) -> list[float]:
    if not scores:
        return []
    low, high = min(scores), max(scores)
    return [weight * ((score - low) / (high - low) if high > low else 1.0) for score in scores]
