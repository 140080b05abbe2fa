"""A decoder in plain numpy and float64, written from the papers' formulas, to compare compiled graphs with.

Takes config.json and the tensors as they are in a checkpoint; shares no code with the compiler. It is
itself compared with transformers in tests/server/compiler/test_reference.py. One sequence, no cache, no
batching: the whole prefix is computed anew for each call.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def logits(config: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]], ids: list[int]) -> Array:
    """The logits of every position: [len(ids), vocab_size]."""
    weights = {name: np.asarray(value, np.float64) for name, value in tensors.items()}
    eps = config.get("rms_norm_eps", 1e-6)
    embedding = weights["model.embed_tokens.weight"]
    x = embedding[ids]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        normed = rms_norm(x, weights[prefix + "input_layernorm.weight"], eps)
        x = x + attention(config, weights, layer, normed)
        normed = rms_norm(x, weights[prefix + "post_attention_layernorm.weight"], eps)
        gate = linear(weights, prefix + "mlp.gate_proj", normed)
        up = linear(weights, prefix + "mlp.up_proj", normed)
        x = x + linear(weights, prefix + "mlp.down_proj", gate / (1 + np.exp(-gate)) * up)
    x = rms_norm(x, weights["model.norm.weight"], eps)
    return x @ (embedding if config.get("tie_word_embeddings") else weights["lm_head.weight"]).T


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def linear(weights: Mapping[str, Array], name: str, x: Array) -> Array:
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def attention(config: Mapping[str, Any], weights: Mapping[str, Array], layer: int, x: Array) -> Array:
    prefix = f"model.layers.{layer}.self_attn."
    num_heads = config["num_attention_heads"]
    num_kv_heads = config.get("num_key_value_heads") or num_heads
    dim = head_dim(config)
    length = len(x)
    q = linear(weights, prefix + "q_proj", x).reshape(length, num_heads, dim)
    k = linear(weights, prefix + "k_proj", x).reshape(length, num_kv_heads, dim)
    v = linear(weights, prefix + "v_proj", x).reshape(length, num_kv_heads, dim)
    if prefix + "q_norm.weight" in weights:
        q = rms_norm(q, weights[prefix + "q_norm.weight"], config["rms_norm_eps"])
        k = rms_norm(k, weights[prefix + "k_norm.weight"], config["rms_norm_eps"])
    q, k = rotate(config, q), rotate(config, k)
    position = np.arange(length)
    visible = position[None, :] <= position[:, None]
    window = window_of(config, layer)
    if window is not None:
        visible &= position[None, :] > position[:, None] - window
    out = np.empty((length, num_heads, dim))
    for head in range(num_heads):
        group = head // (num_heads // num_kv_heads)
        scores = np.where(visible, q[:, head] @ k[:, group].T / math.sqrt(dim), -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, head] = scores / scores.sum(-1, keepdims=True) @ v[:, group]
    return linear(weights, prefix + "o_proj", out.reshape(length, -1))


def head_dim(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def window_of(config: Mapping[str, Any], layer: int) -> int | None:
    """How many positions a token of the layer sees, itself included; None for all."""
    if config["model_type"] == "mistral":
        return config.get("sliding_window")
    if not config.get("use_sliding_window"):
        return None
    kinds = config.get("layer_types")
    slides = kinds[layer] == "sliding_attention" if kinds else layer >= config["max_window_layers"]
    return int(config["sliding_window"]) if slides else None


def rotate(config: Mapping[str, Any], x: Array) -> Array:
    """Turns the pairs (i, i + n / 2) of the first n elements of each head of x [length, heads, dim]."""
    frequencies, magnitude = rope(config)
    half = len(frequencies)
    angle = np.arange(len(x))[:, None] * frequencies
    cos, sin = (magnitude * f(angle)[:, None, :] for f in (np.cos, np.sin))
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def rope(config: Mapping[str, Any]) -> tuple[Array, float]:
    """Frequencies of the rotated pairs and the factor on cos and sin, by the scaling's own paper."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = scaling.get("rope_theta") or config.get("rope_theta", 10_000.0)
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    partial = scaling.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    dim = int(head_dim(config) * partial)
    frequencies = theta ** -(np.arange(0, dim, 2) / dim)
    factor = scaling.get("factor", 1.0)
    original = scaling.get("original_max_position_embeddings") or config["max_position_embeddings"]
    if kind == "linear":
        return frequencies / factor, 1.0
    if kind == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = original * frequencies / (2 * math.pi)
        keep = np.clip((turns - low) / (high - low), 0, 1)
        return frequencies * (keep + (1 - keep) / factor), 1.0
    if kind == "yarn":

        def border(turns: float) -> float:
            return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = border(scaling.get("beta_fast") or 32), border(scaling.get("beta_slow") or 1)
        if scaling.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        stretched = np.clip((np.arange(dim // 2) - low) / max(high - low, 0.001), 0, 1)
        magnitude = scaling.get("attention_factor") or 0.1 * math.log(factor) + 1.0
        return frequencies * (1 - stretched + stretched / factor), magnitude
    return frequencies, 1.0  # "dynamic" changes nothing up to max_position_embeddings
