"""The least time that a step can take on a card whose bandwidth and matrix rates were measured.

decode = max(weights / bandwidth, operations / rate) + KV / bandwidth; attention's operations are left out, as they
run while KV is read. prefill = max(operations / rate, weights / bandwidth).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vorta_bench.h200.model_shape import ModelShape

__all__ = ["PRECISIONS", "Ceilings", "Precision", "decode_floor_s", "prefill_floor_s", "weight_bytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """What the card can do: bytes/s of a copy, read and written counted, and FLOP/s of large products."""

    bandwidth: float
    bf16: float
    fp8: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """Bytes of a weight of the layers, of one of the head, of an element of KV; the type that products are made in."""

    linear_bytes: float
    head_bytes: float
    kv_bytes: float
    products: Literal["bf16", "fp8"]


PRECISIONS = {
    "bf16": Precision(linear_bytes=2, head_bytes=2, kv_bytes=2, products="bf16"),
    "fp8": Precision(linear_bytes=1, head_bytes=1, kv_bytes=1, products="fp8"),
    # One 16-bit scale for 128 weights; the head and KV in float8, arithmetic in 16 bits.
    "int4": Precision(linear_bytes=0.5 + 2 / 128, head_bytes=1, kv_bytes=1, products="bf16"),
}
"""What a floor assumes of each precision; scales but int4's are left out, which makes the floor stricter."""


def weight_bytes(shape: ModelShape, precision: str) -> float:
    """Bytes of the weights that a step reads."""
    sizes = PRECISIONS[precision]
    return shape.num_linear * sizes.linear_bytes + shape.num_head * sizes.head_bytes


def decode_floor_s(shape: ModelShape, precision: str, ceilings: Ceilings, *, batch: int, context: float) -> float:
    """Seconds of a step of `batch` sequences that each attend to `context` tokens."""
    sizes = PRECISIONS[precision]
    products_s = batch * 2 * (shape.num_linear + shape.num_head) / _rate(ceilings, precision)
    kv_s = batch * context * shape.kv_elements * sizes.kv_bytes / ceilings.bandwidth
    return max(weight_bytes(shape, precision) / ceilings.bandwidth, products_s) + kv_s


def prefill_floor_s(shape: ModelShape, precision: str, ceilings: Ceilings, *, num_tokens: int) -> float:
    """Seconds of one prompt of `num_tokens` tokens whose last position alone needs logits."""
    attention = 2 * num_tokens**2 * shape.num_heads * shape.head_dim * shape.num_layers  # the causal half
    products = num_tokens * 2 * shape.num_linear + 2 * shape.num_head
    compute_s = products / _rate(ceilings, precision) + attention / ceilings.bf16
    return max(compute_s, weight_bytes(shape, precision) / ceilings.bandwidth)


def _rate(ceilings: Ceilings, precision: str) -> float:
    return ceilings.fp8 if PRECISIONS[precision].products == "fp8" else ceilings.bf16
