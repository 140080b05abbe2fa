"""Any configuration is read or refused with a field's name; family by family."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import decoder as reference
from tests.server.compiler.case import CASES, Case
from vorta_server.compiler.checkpoint import CheckpointError
from vorta_server.compiler.config import ConfigReader
from vorta_server.compiler.family import read_spec
from vorta_server.compiler.rope import inverse_frequencies, rope_tables
from vorta_server.compiler.spec import DecoderSpec


def read(config: dict[str, Any]) -> DecoderSpec:
    return read_spec(ConfigReader(config, Path("config.json")))


def case_of(name: str) -> dict[str, Any]:
    return next(case.config for case in CASES if case.name == name)


QWEN2, QWEN3, MISTRAL = (
    case_of(name) for name in ("qwen2-windows-by-depth", "qwen3-explicit-head", "mistral-window-of-7")
)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({**QWEN2, "max_window_layers": None}, "max_window_layers"),
        ({**QWEN2, "max_window_layers": -1}, "max_window_layers"),
        ({**QWEN2, "sliding_window": 0}, "sliding_window"),
        ({**QWEN2, "layer_types": ["full_attention"]}, "layer_types"),
        ({**QWEN2, "layer_types": ["full_attention", "linear_attention", "full_attention"]}, "layer_types"),
        ({**QWEN2, "layer_types": "full_attention"}, "layer_types"),
        ({**QWEN3, "layer_types": ["sliding_attention"] * 3}, "layer_types"),
        ({**QWEN3, "head_dim": 0}, "head_dim"),
        ({**MISTRAL, "sliding_window": "7"}, "sliding_window"),
        ({**MISTRAL, "layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({**MISTRAL, "rope_scaling": {"type": "yarn", "factor": 2.0, "attention_factor": -1}}, None),
        ({**MISTRAL, "model_type": ""}, "model_type"),
        ({**MISTRAL, "model_type": None}, "model_type"),
        (
            {
                **MISTRAL,
                "rope_scaling": {"type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 1},
            },
            "rope_scaling.high_freq_factor",
        ),
        (
            {**MISTRAL, "head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope_scaling.type",
        ),
    ],
)
def test_wrong_values(config: dict[str, Any], field: str | None) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(config)
    assert caught.value.field == (field or "rope_scaling.attention_factor")


def test_windows() -> None:
    assert read(QWEN2).windows == (None, 5, 5)
    assert read({**QWEN2, "use_sliding_window": False}).windows == (None,) * 3
    assert read({**QWEN2, "layer_types": ["sliding_attention"] * 3}).windows == (5,) * 3
    assert read(MISTRAL).windows == (7,) * 3
    assert read({**MISTRAL, "sliding_window": None}).windows == (None,) * 3


def test_defaults_of_head_sizes() -> None:
    assert read({**QWEN3, "head_dim": None}).head_dim == 128
    assert read({**QWEN2, "head_dim": None}).head_dim == 16


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 200) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
rope_values = st.dictionaries(
    st.sampled_from(
        [
            *("type", "rope_type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor"),
            *("original_max_position_embeddings", "attention_factor", "mscale", "mscale_all_dim", "beta_fast"),
            *("beta_slow", "truncate", "partial_rotary_factor"),
        ]
    ),
    json_values | st.sampled_from(["default", "linear", "dynamic", "yarn", "llama3"]) | st.floats(0.1, 50),
)
changes = st.dictionaries(
    st.sampled_from(sorted({*MISTRAL, *QWEN2, *QWEN3, "partial_rotary_factor", "rope_theta"})), json_values
)


@settings(deadline=None)
@given(st.sampled_from(CASES), changes, st.none() | rope_values)
def test_any_configuration_is_read_or_refused(case: Case, change: dict[str, Any], rope: Any) -> None:
    """What is accepted has finite rope tables of the right shape; what is not names its field."""
    config = {**case.config, **change, **({} if rope is None else {"rope_parameters": rope})}
    try:
        spec = read(config)
    except CheckpointError as refused:
        named = refused.field
    else:
        named = None
        cos, sin = rope_tables(spec.rope, 8)
        assert cos.shape == sin.shape == (8, spec.rope.rotary_dim // 2)
        assert np.isfinite(cos).all()
        assert np.isfinite(sin).all()
    assert named is None or named


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_frequencies(case: Case) -> None:
    rope = read(case.config).rope
    expected, magnitude = reference.rope(case.config)
    np.testing.assert_allclose(inverse_frequencies(rope, 128), expected, rtol=2e-6)
    assert rope.attention_factor == pytest.approx(magnitude)


def test_dynamic_scaling_beyond_the_trained_length() -> None:
    """A longer artifact gets the base of its full length: theta * (factor * n / m - factor + 1) ^ (d / (d - 2))."""
    rope = read(case_of("llama-dynamic-rope")).rope
    base = rope.theta * (2.0 * 256 / 128 - 1.0) ** (16 / 14)
    np.testing.assert_allclose(inverse_frequencies(rope, 256), base ** -(np.arange(0, 16, 2) / 16), rtol=1e-5)
    assert (inverse_frequencies(rope, 64) == inverse_frequencies(rope, 128)).all()


def test_yarn_magnitude() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    plain = read({**MISTRAL, "rope_parameters": scaling}).rope
    assert plain.attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    weighted = read({**MISTRAL, "rope_parameters": {**scaling, "mscale": 0.7, "mscale_all_dim": 0.5}}).rope
    assert weighted.attention_factor == pytest.approx((0.07 * math.log(4) + 1) / (0.05 * math.log(4) + 1))
    implied = read({**MISTRAL, "rope_parameters": {k: v for k, v in scaling.items() if k != "factor"}}).rope
    assert implied.factor == 128 / 32
    assert dataclasses.replace(implied, factor=4.0) == plain
