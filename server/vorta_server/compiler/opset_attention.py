"""Attention in ONNX's own operators, of encoders and decoders alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vorta_server.compiler.graph import GraphBuilder

__all__ = ["Attended", "attend", "make_mask"]

# A score that no softmax gives weight to, also in fp16. A row in which all are so (padding) stays finite.
_NEVER = -30_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attended:
    """What attention works on.

    Attributes:
        query: [B, heads, S, D].
        key, value: [B, kv heads, T, D].
        mask: What is added to scores, of the same type; [B or 1, heads or 1, S, T]. (TensorRT-RTX 1.7 cannot build some
            decoders in bf16 with one that says yes or no.)
    """

    query: str
    key: str
    value: str
    mask: str
    num_heads: int
    num_kv_heads: int
    scale: float


def make_mask(graph: GraphBuilder, name: str, seen: str, element: np.dtype[Any], relative: str = "") -> str:
    """A mask of this name and type from whether a query sees a key, and from what is added to scores that are seen."""
    never = graph.constant("mask/never", np.array(_NEVER, element))
    return graph.node("Where", [seen, relative or graph.constant("mask/seen", np.array(0, element)), never], [name])


def attend(graph: GraphBuilder, name: str, layer: Attended, element: np.dtype[Any]) -> str:
    """Adds the attention: [B, heads, S, D].

    The operator Attention in 16 bits, for which engines have fused kernels. TensorRT-RTX has none in fp32 and does not
    take the operator apart either, so there it is products and a softmax.
    """
    if element != np.float32:
        inputs = [layer.query, layer.key, layer.value, layer.mask]
        return graph.node("Attention", inputs, [name], scale=layer.scale, is_causal=0)
    key, value = (_repeat(graph, part, layer) for part in (layer.key, layer.value))
    turned = graph.node("Transpose", [key], [f"{name}.turned"], perm=[0, 1, 3, 2])
    scores = graph.node("MatMul", [layer.query, turned], [f"{name}.products"])
    scale = graph.constant(f"scale_{layer.scale:.9g}", np.array(layer.scale, np.float32))
    scores = graph.node("Mul", [scores, scale], [f"{name}.scaled"])
    scores = graph.node("Add", [scores, layer.mask], [f"{name}.scores"])
    weights = graph.node("Softmax", [scores], [f"{name}.weights"], axis=-1)
    return graph.node("MatMul", [weights, value], [name])


def _repeat(graph: GraphBuilder, x: str, layer: Attended) -> str:
    """Every KV head once for each query head of its group."""
    if layer.num_kv_heads == layer.num_heads:
        return x
    source = np.repeat(np.arange(layer.num_kv_heads), layer.num_heads // layer.num_kv_heads)
    return graph.node("Gather", [x, graph.constant("head_of_group", source)], [f"{x}.repeated"], axis=1)
