"""What is asked of servers and of the engines that they are compared with: the same lengths for all."""

from __future__ import annotations

__all__ = ["BETWEEN_TOKENS_S", "DRY_LENGTHS", "DRY_STREAMS", "DRY_WAVE", "LENGTHS", "STREAMS", "WAVE"]

BETWEEN_TOKENS_S = 1 / 150
"""The most time between tokens that counts as goodput."""
STREAMS, DRY_STREAMS = (1, 32, 128, 256), (1, 3)
LENGTHS, DRY_LENGTHS = ((128, 128), (512, 256)), ((8, 8), (16, 8))
"""Prompt and output tokens."""
WAVE, DRY_WAVE = 128, 3
"""Requests at once whose rate is compared with the bare loop's."""
