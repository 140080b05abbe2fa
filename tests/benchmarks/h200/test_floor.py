"""Floors: the numbers that the goals were set by, from the same ceilings."""

from __future__ import annotations

import pytest

from vorta_bench.h200.floor import Ceilings, decode_floor_s, prefill_floor_s, weight_bytes
from vorta_bench.h200.model_shape import SHAPES

CEILINGS = Ceilings(bandwidth=4.3e12, bf16=790e12, fp8=1400e12)


@pytest.mark.parametrize(
    ("model", "precision", "batch", "context", "tokens_per_s"),
    [
        ("llama-2-7b", "bf16", 1, 512, 319),
        ("llama-2-7b", "fp8", 1, 512, 638),
        ("llama-2-7b", "int4", 1, 512, 1193),
        ("llama-2-7b", "fp8", 32, 512, 12_621),
        ("llama-2-7b", "fp8", 256, 512, 24_599),
        ("llama-2-7b", "int4", 256, 512, 20_859),
        ("llama-2-7b", "bf16", 256, 1024, 7_063),
        ("llama-3.1-8b", "bf16", 1, 512, 285),
        ("llama-3.1-8b", "fp8", 256, 512, 53_983),
    ],
)
def test_decode(model: str, precision: str, batch: int, context: int, tokens_per_s: float) -> None:
    seconds = decode_floor_s(SHAPES[model], precision, CEILINGS, batch=batch, context=context)
    assert batch / seconds == pytest.approx(tokens_per_s, rel=2e-3)


@pytest.mark.parametrize(
    ("precision", "num_tokens", "milliseconds"),
    [("bf16", 128, 3.1), ("bf16", 512, 8.5), ("bf16", 2048, 35.0), ("fp8", 512, 4.8), ("fp8", 2048, 20.3)],
)
def test_prefill(precision: str, num_tokens: int, milliseconds: float) -> None:
    seconds = prefill_floor_s(SHAPES["llama-2-7b"], precision, CEILINGS, num_tokens=num_tokens)
    assert seconds * 1e3 == pytest.approx(milliseconds, rel=0.02)


def test_weights() -> None:
    assert weight_bytes(SHAPES["llama-2-7b"], "bf16") == pytest.approx(13.21e9, rel=1e-3)
    assert weight_bytes(SHAPES["llama-3.1-8b"], "fp8") == pytest.approx(7.50e9, rel=1e-3)
    assert SHAPES["llama-2-7b"].kv_elements * 2 == 512 * 1024
    matrices = sum(rows * columns for rows, columns in SHAPES["llama-3.1-8b"].matrices.values())
    assert 32 * matrices == SHAPES["llama-3.1-8b"].num_linear
