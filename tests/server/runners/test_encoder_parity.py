"""The default embedding model against sentence-transformers, on real texts (figures: `vorta_bench.embedding`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vorta_bench.embedding import InProcess
from vorta_bench.passages import collection, mixed_lengths, passages
from vorta_server.registry.source import DEFAULT_EMBEDDING_MODEL, resolve_source

sentence_transformers = pytest.importorskip(
    "sentence_transformers", reason="the reference implementation (sentence-transformers) is not installed"
)
pytestmark = [pytest.mark.reference, pytest.mark.slow, pytest.mark.filterwarnings("default")]


def nearest(queries: np.ndarray, documents: np.ndarray) -> list[set[int]]:
    return [set(row) for row in np.argsort(-(queries @ documents.T), axis=1)[:, :10].tolist()]


@pytest.mark.parametrize(("precision", "mean", "lowest"), [("fp32", 0.9999, 0.9999), ("int8", 0.995, 0.985)])
def test_vectors_are_those_of_sentence_transformers(precision: str, mean: float, lowest: float, tmp_path: Path) -> None:
    texts = passages([1] * 20 + mixed_lengths(480, seed=1), seed=1)
    queries, documents = passages([8] * 100, seed=2), collection(mixed_lengths(1000, seed=3))
    folder = resolve_source(DEFAULT_EMBEDDING_MODEL, data_dir=tmp_path)
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    ours = InProcess(precision, tmp_path)
    encoded = [theirs.encode(part, normalize_embeddings=True) for part in (texts, queries, documents)]
    found = [ours.embed(part) for part in (texts, queries, documents)]
    cosines = (encoded[0] * found[0]).sum(axis=1)
    assert cosines.mean() >= mean
    assert cosines.min() >= lowest
    pairs = zip(nearest(found[1], found[2]), nearest(encoded[1], encoded[2]), strict=True)
    assert np.mean([len(a & b) / 10 for a, b in pairs]) >= 0.95
