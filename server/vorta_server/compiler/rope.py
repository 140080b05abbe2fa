"""Rotary position embedding: the cos and sin tables, with the scalings that checkpoints ask for.

Sources: RoFormer (arXiv 2104.09864); linear: position interpolation (arXiv 2306.15595); dynamic: NTK-aware
scaling; yarn: arXiv 2309.00071; llama3: the scaling published with Llama 3.1.
Frequencies are computed in float32 in the order of the reference implementation, because the models were
trained with its rounding: at position 100,000 the rounding of a frequency turns an angle by up to 0.006.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vorta_server.compiler.checkpoint import Float32Array
from vorta_server.compiler.config import ConfigReader

ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """How positions turn a head's vectors.

    Attributes:
        rope_type: one of ROPE_TYPES.
        theta: the base of the frequencies.
        rotary_dim: how many of a head's first elements are rotated; even.
        max_position_embeddings: the length that the checkpoint's configuration names.
        original_max_position_embeddings: the length of pretraining (llama3, yarn).
        factor: how far the context is stretched (all but default).
    """

    rope_type: str
    theta: float
    rotary_dim: int
    max_position_embeddings: int
    original_max_position_embeddings: int
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True


def read_rope(config: ConfigReader, head_dim: int, max_position_embeddings: int) -> RopeSpec:
    """The rotary embedding that the configuration asks for.

    Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before it).
    Raises CheckpointError for an unknown type or a wrong value.
    """
    section = config.section("rope_parameters") or config.section("rope_scaling") or ConfigReader({}, config.path)
    type_field = "rope_type" if section.has("rope_type") else "type"
    rope_type = section.text(type_field) if section.has(type_field) else "default"
    if rope_type not in ROPE_TYPES:
        raise section.error(type_field, f"is {rope_type!r}; supported are {', '.join(ROPE_TYPES)}")
    if any(isinstance(section.raw(field), dict) for field in ("full_attention", "sliding_attention")):
        raise section.error("full_attention", "differs between layers, which is not supported")
    theta_from = section if section.has("rope_theta") else config
    partial_from = section if section.has("partial_rotary_factor") else config
    partial = partial_from.positive_float("partial_rotary_factor", 1.0)
    rotary_dim = int(head_dim * partial)
    if partial > 1 or rotary_dim < 2 or rotary_dim % 2:
        raise partial_from.error(
            "partial_rotary_factor", f"rotates {rotary_dim} of {head_dim} elements of a head; must be even"
        )
    original_from = config if config.has("original_max_position_embeddings") else section
    original = original_from.positive_int("original_max_position_embeddings", max_position_embeddings)
    factor = 1.0
    if rope_type == "yarn" and not section.has("factor"):
        factor = max_position_embeddings / original
    elif rope_type != "default":
        factor = section.positive_float("factor", maximum=1e6)
    llama3 = rope_type == "llama3"
    low = section.positive_float("low_freq_factor", None if llama3 else 1.0)
    high = section.positive_float("high_freq_factor", None if llama3 else 4.0)
    if high <= low:
        raise section.error("high_freq_factor", f"must be above low_freq_factor ({low}), not {high}")
    if rope_type == "dynamic" and rotary_dim <= 2:
        raise section.error(type_field, "'dynamic' needs more than two rotated elements")
    return RopeSpec(
        rope_type=rope_type,
        theta=theta_from.positive_float("rope_theta", 10_000.0, above=1.0, maximum=1e20),
        rotary_dim=rotary_dim,
        max_position_embeddings=max_position_embeddings,
        original_max_position_embeddings=original,
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=high,
        beta_fast=section.positive_float("beta_fast", 32.0),
        beta_slow=section.positive_float("beta_slow", 1.0),
        attention_factor=_attention_factor(section, factor) if rope_type == "yarn" else 1.0,
        truncate=section.flag("truncate", True),
    )


def _attention_factor(section: ConfigReader, factor: float) -> float:
    if section.has("attention_factor"):
        return section.positive_float("attention_factor")

    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    # Zero means "not given" here, as in the reference implementation.
    if section.raw("mscale") and section.raw("mscale_all_dim"):
        return magnitude(section.positive_float("mscale")) / magnitude(section.positive_float("mscale_all_dim"))
    return magnitude(1.0)


def inverse_frequencies(rope: RopeSpec, max_model_len: int) -> Float32Array:
    """Radians per position of each rotated pair, [rotary_dim / 2] float32.

    `max_model_len` matters to "dynamic" alone: up to max_position_embeddings it changes nothing; a longer
    artifact gets the one base that fits its full length, where the reference would switch the base as a
    sequence grows (which no cache of rotated keys can follow).
    """
    exponents = np.arange(0, rope.rotary_dim, 2).astype(np.float32) / np.float32(rope.rotary_dim)
    theta = rope.theta
    if rope.rope_type == "dynamic":
        length = max(max_model_len, rope.max_position_embeddings)
        stretch = rope.factor * length / rope.max_position_embeddings - (rope.factor - 1)
        theta *= stretch ** (rope.rotary_dim / (rope.rotary_dim - 2))
    frequencies: Float32Array = np.float32(1.0) / np.power(np.float32(theta), exponents)
    if rope.rope_type == "linear":
        return np.asarray(frequencies / np.float32(rope.factor), np.float32)
    if rope.rope_type == "llama3":
        return _llama3(rope, frequencies)
    if rope.rope_type == "yarn":
        return _yarn(rope, frequencies)
    return frequencies


def _llama3(rope: RopeSpec, frequencies: Float32Array) -> Float32Array:
    """Long waves are stretched by the factor, short ones kept, those between blended."""
    original = rope.original_max_position_embeddings
    wavelengths = 2 * math.pi / frequencies
    smooth = (original / wavelengths - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = np.clip(smooth, 0.0, 1.0)
    blended = (1 - smooth) * frequencies / rope.factor + smooth * frequencies
    return np.asarray(blended, np.float32)


def _yarn(rope: RopeSpec, frequencies: Float32Array) -> Float32Array:
    """Frequencies that turn more than beta_fast times over the original length are kept, those that turn less
    than beta_slow times are divided by the factor, with a linear ramp over the index between."""

    def index_of(num_rotations: float) -> float:
        turns = rope.original_max_position_embeddings / (num_rotations * 2 * math.pi)
        return rope.rotary_dim * math.log(turns) / (2 * math.log(rope.theta))

    low, high = index_of(rope.beta_fast), index_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(rope.rotary_dim // 2, dtype=np.float32) - low) / (high - low), 0.0, 1.0)
    return np.asarray(frequencies / rope.factor * ramp + frequencies * (1 - ramp), np.float32)


def rope_tables(rope: RopeSpec, max_model_len: int) -> tuple[Float32Array, Float32Array]:
    """The cos and sin of every position below max_model_len, each [max_model_len, rotary_dim / 2] float32,
    already multiplied by the attention factor."""
    positions = np.arange(max_model_len, dtype=np.float32)
    angles = positions[:, None] * inverse_frequencies(rope, max_model_len)[None, :]
    scale = np.float32(rope.attention_factor)
    return np.cos(angles) * scale, np.sin(angles) * scale
