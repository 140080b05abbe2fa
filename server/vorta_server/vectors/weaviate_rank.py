"""Ranking that Weaviate leaves to us: fusing two lists, ordering ties, groups."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from vorta_server.vectors.operation import Hit

__all__ = ["fuse", "group_value", "in_order", "passes"]


def in_order(hits: Iterable[Hit], *, is_less_better: bool) -> list[Hit]:
    """Best first, equals by id."""
    return sorted(hits, key=lambda hit: (hit.score if is_less_better else -hit.score, hit.id))


def passes(score: float, threshold: float | None, *, is_less_better: bool) -> bool:
    """Whether a score is good enough."""
    return threshold is None or (score <= threshold if is_less_better else score >= threshold)


def fuse(
    dense: Sequence[Hit], text: Sequence[Hit], *, fusion: str, dense_weight: float, rrf_k: int, is_less_better: bool
) -> list[Hit]:
    """One list of two, best first, by reciprocal ranks ("rrf") or by weighted scores scaled to 0 to 1 ("weighted").

    Ranks count from 1. A list whose scores are all equal scales to 1. A point that one list lacks gets nothing there.

    Args:
        dense: By vector, best first.
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
        dense_parts = _scaled([-hit.score if is_less_better else hit.score for hit in dense], dense_weight)
        text_parts = _scaled([hit.score for hit in text], 1.0 - dense_weight)
    fused: dict[str, Hit] = {}
    for hit, part in zip(dense, dense_parts, strict=True):
        fused[hit.id] = Hit(id=hit.id, score=part, payload=hit.payload, vector=hit.vector, dense_score=hit.score)
    for hit, part in zip(text, text_parts, strict=True):
        known = fused.get(hit.id)
        if known is None:
            fused[hit.id] = Hit(id=hit.id, score=part, payload=hit.payload, vector=hit.vector, text_score=hit.score)
        else:
            known.score += part
            known.text_score = hit.score
    return in_order(fused.values(), is_less_better=False)


def _scaled(scores: list[float], weight: float) -> list[float]:
    if not scores:
        return []
    low, high = min(scores), max(scores)
    return [weight * ((score - low) / (high - low) if high > low else 1.0) for score in scores]


def group_value(payload: str, path: str) -> str | int | bool | None:
    """The value that a point is grouped by: a text, whole number or boolean, of a list the first; None without one."""
    found = _find(json.loads(payload) if payload else None, path)
    while isinstance(found, list):
        found = found[0] if found else None
    if isinstance(found, float):
        return int(found) if found.is_integer() else None
    return found if isinstance(found, str | int | bool) else None


def _find(value: Any, path: str) -> Any:
    if not path:
        return value
    if isinstance(value, list):
        return next((found for item in value if (found := _find(item, path)) is not None), None)
    if not isinstance(value, dict):
        return None
    # A key may hold dots itself.
    for key, item in value.items():
        if path == key or path.startswith(f"{key}."):
            found = _find(item, path[len(key) + 1 :])
            if found is not None:
                return found
    return None
