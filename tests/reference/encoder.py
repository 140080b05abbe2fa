"""Text encoders in float64 numpy, written from the papers and the checkpoints' configurations: what graphs are compared
with.

Every function takes the checkpoint's tensors under the names that transformers gives them, one text at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.reference import decoder

Array = npt.NDArray[np.float64]
Tensors = Mapping[str, npt.NDArray[Any]]

_erf = np.vectorize(math.erf)


def gelu(x: Array) -> Array:
    return x * 0.5 * (1 + _erf(x / math.sqrt(2)))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def hidden_states(
    config: Mapping[str, Any], tensors: Tensors, ids: npt.ArrayLike, types: npt.ArrayLike | None = None
) -> Array:
    """The last hidden states [S, H] of one text. `tensors` have no prefix before the encoder's names."""
    weights = _Weights(tensors)
    tokens = np.asarray(ids)
    match config["model_type"]:
        case "modernbert":
            return _modernbert(config, weights, tokens)
        case "qwen3":
            return _qwen3(config, tensors, tokens)
        case _:
            kinds = np.zeros(len(tokens), np.int64) if types is None else np.asarray(types)
            return _bert(config, weights, tokens, kinds)


def logits(
    config: Mapping[str, Any],
    tensors: Tensors,
    head: Tensors,
    ids: npt.ArrayLike,
    types: npt.ArrayLike | None = None,
) -> Array:
    """The scores [labels] of one input; `head` has the tensors outside the encoder, and BERT's pooler."""
    states, weights = hidden_states(config, tensors, ids, types), _Weights(head)
    match config["model_type"]:
        case "bert":
            return weights.linear("classifier", np.tanh(weights.linear("bert.pooler.dense", states[0])))
        case "modernbert":
            pooled = states[0] if config.get("classifier_pooling", "cls") == "cls" else states.mean(axis=0)
            activation = ACTIVATIONS[config.get("classifier_activation", "gelu")]
            dense = activation(weights.linear("head.dense", pooled))
            return weights.linear("classifier", weights.norm("head.norm", dense, config["norm_eps"]))
        case _:
            return weights.linear("classifier.out_proj", np.tanh(weights.linear("classifier.dense", states[0])))


class _Weights:
    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors

    def tensor(self, name: str) -> Array:
        return self._tensors[name].astype(np.float64)

    def linear(self, name: str, x: Array) -> Array:
        bias = f"{name}.bias"
        return x @ self.tensor(f"{name}.weight").T + (self.tensor(bias) if bias in self._tensors else 0)

    def norm(self, name: str, x: Array, epsilon: float) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon) * self.tensor(f"{name}.weight")
        bias = f"{name}.bias"
        return scaled + (self.tensor(bias) if bias in self._tensors else 0)


def attend(query: Array, key: Array, value: Array, seen: npt.NDArray[np.bool_], bias: Array | float = 0.0) -> Array:
    """[S, heads, D] each, `seen` [S, S] and what is added to scores [heads, S, S]: [S, heads * D]."""
    scores = np.einsum("qhd,khd->hqk", query, key) / math.sqrt(query.shape[-1]) + bias
    scores = np.where(seen, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed: Array = np.einsum("hqk,khd->qhd", weights / weights.sum(axis=-1, keepdims=True), value)
    return mixed.reshape(len(query), -1)


def buckets(distance: npt.NDArray[np.int64], num_buckets: int, max_distance: int = 128) -> npt.NDArray[np.int64]:
    """T5's buckets of key less query, both directions."""
    half = num_buckets // 2
    exact = half // 2
    result = np.where(distance > 0, half, 0)
    far = np.abs(distance)
    for index, value in np.ndenumerate(far):
        if value < exact:
            result[index] += value
        else:
            share = math.log(value / exact) / math.log(max_distance / exact)
            result[index] += min(half - 1, exact + int(share * (half - exact)))
    return result


def _bert(config: Mapping[str, Any], weights: _Weights, ids: npt.NDArray[Any], types: npt.NDArray[Any]) -> Array:
    """BERT, RoBERTa and MPNet."""
    kind, epsilon, heads = config["model_type"], config["layer_norm_eps"], config["num_attention_heads"]
    first = {"bert": 0, "mpnet": 2}.get(kind, config.get("pad_token_id", 1) + 1)
    positions = np.arange(len(ids))
    x = weights.tensor("embeddings.word_embeddings.weight")[ids]
    x = x + weights.tensor("embeddings.position_embeddings.weight")[positions + first]
    bias: Array | float = 0.0
    if kind == "mpnet":
        distance = positions[None, :] - positions[:, None]
        table = weights.tensor("encoder.relative_attention_bias.weight")
        bias = table[buckets(distance, config.get("relative_attention_num_buckets", 32))].transpose(2, 0, 1)
    else:
        x = x + weights.tensor("embeddings.token_type_embeddings.weight")[types]
    x = weights.norm("embeddings.LayerNorm", x, epsilon)
    seen = np.ones((len(ids), len(ids)), bool)
    activation = ACTIVATIONS[config.get("hidden_act", "gelu")]
    names = ("attn.q", "attn.k", "attn.v", "attn.o", "LayerNorm")
    if kind != "mpnet":
        names = ("self.query", "self.key", "self.value", "output.dense", "output.LayerNorm")
    for layer in range(config["num_hidden_layers"]):
        prefix = f"encoder.layer.{layer}"
        query, key, value = (
            weights.linear(f"{prefix}.attention.{name}", x).reshape(len(ids), heads, -1) for name in names[:3]
        )
        attended = weights.linear(f"{prefix}.attention.{names[3]}", attend(query, key, value, seen, bias))
        x = weights.norm(f"{prefix}.attention.{names[4]}", x + attended, epsilon)
        inner = activation(weights.linear(f"{prefix}.intermediate.dense", x))
        x = weights.norm(f"{prefix}.output.LayerNorm", x + weights.linear(f"{prefix}.output.dense", inner), epsilon)
    return x


def _modernbert(config: Mapping[str, Any], weights: _Weights, ids: npt.NDArray[Any]) -> Array:
    heads, epsilon = config["num_attention_heads"], config["norm_eps"]
    activation = ACTIVATIONS[config.get("hidden_activation", "gelu")]
    x = weights.norm("embeddings.norm", weights.tensor("embeddings.tok_embeddings.weight")[ids], epsilon)
    positions = np.arange(len(ids))
    distance = np.abs(positions[None, :] - positions[:, None])
    for layer in range(config["num_hidden_layers"]):
        is_global = layer % config["global_attn_every_n_layers"] == 0
        theta = config["global_rope_theta" if is_global else "local_rope_theta"]
        prefix = f"layers.{layer}"
        normed = weights.norm(f"{prefix}.attn_norm", x, epsilon) if layer else x
        qkv = weights.linear(f"{prefix}.attn.Wqkv", normed).reshape(len(ids), 3, heads, -1)
        query, key = (_rotate(part, theta) for part in (qkv[:, 0], qkv[:, 1]))
        seen = np.ones_like(distance, bool) if is_global else distance <= config["local_attention"] // 2
        x = x + weights.linear(f"{prefix}.attn.Wo", attend(query, key, qkv[:, 2], seen))
        first, factor = np.split(
            weights.linear(f"{prefix}.mlp.Wi", weights.norm(f"{prefix}.mlp_norm", x, epsilon)), 2, axis=-1
        )
        x = x + weights.linear(f"{prefix}.mlp.Wo", activation(first) * factor)
    return weights.norm("final_norm", x, epsilon)


def _rotate(x: Array, theta: float) -> Array:
    """[S, heads, D], halves paired."""
    half = x.shape[-1] // 2
    angles = np.arange(len(x))[:, None] / theta ** (np.arange(half) / half)
    cosines, sines = np.cos(angles)[:, None], np.sin(angles)[:, None]
    low, high = x[..., :half], x[..., half:]
    return np.concatenate([low * cosines - high * sines, high * cosines + low * sines], axis=-1)


def _qwen3(config: Mapping[str, Any], tensors: Tensors, ids: npt.NDArray[Any]) -> Array:
    """The decoder's hidden states, seen through a head that changes nothing."""
    size = config["hidden_size"]
    named = {f"model.{name}": value for name, value in tensors.items()}
    named["lm_head.weight"] = np.eye(size)
    return decoder.logits({**config, "tie_word_embeddings": False}, named, ids.tolist())
