"""A moved and padded head gives the same attention scores as the head it came from."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vorta_server.compiler.decoder import padded_norm
from vorta_server.compiler.head import HeadLayout, head_layout

layouts = st.integers(2, 100).flatmap(
    lambda dim: st.integers(1, dim // 2).map(lambda pairs: head_layout(dim, 2 * pairs))
)


def rotate(head: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    half = len(cos)
    first, second, rest = head[:half], head[half : 2 * half], head[2 * half :]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest])


@settings(deadline=None)
@given(layouts, st.integers(0, 2**32 - 1))
def test_scores_are_kept(layout: HeadLayout, seed: int) -> None:
    rng = np.random.default_rng(seed)
    query, key = rng.standard_normal((2, layout.source_dim)).astype(np.float32)
    angles = rng.uniform(0, 6, (2, layout.rotary_dim // 2)).astype(np.float32)
    cos, sin = np.cos(angles), np.sin(angles)
    expected = rotate(query, cos[0], sin[0]) @ rotate(key, cos[1], sin[1])
    wide_cos, wide_sin = layout.place_table(cos, 1.0), layout.place_table(sin, 0.0)
    moved = [rotate(layout.place(head), wide_cos[i], wide_sin[i]) for i, head in enumerate((query, key))]
    np.testing.assert_allclose(moved[0] @ moved[1], expected, rtol=1e-4, atol=1e-4)


@settings(deadline=None)
@given(layouts)
def test_every_element_has_one_place(layout: HeadLayout) -> None:
    source = layout.source_of()
    assert layout.dim % 16 == 0
    assert layout.source_dim <= layout.dim < layout.source_dim + 16
    assert sorted(source[source >= 0].tolist()) == list(range(layout.source_dim))
    assert layout.is_identity == np.array_equal(source, np.arange(layout.source_dim))


@settings(deadline=None)
@given(layouts, st.integers(0, 2**32 - 1))
def test_padded_norm(layout: HeadLayout, seed: int) -> None:
    rng = np.random.default_rng(seed)
    head, weight = rng.standard_normal((2, layout.source_dim)).astype(np.float32)
    epsilon = 1e-3
    expected = layout.place(head / np.sqrt((head**2).mean() + epsilon) * weight)
    scale, padded_epsilon = padded_norm(layout, weight, epsilon)
    moved = layout.place(head)
    ours = moved / np.sqrt((moved**2).mean() + padded_epsilon) * scale
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
