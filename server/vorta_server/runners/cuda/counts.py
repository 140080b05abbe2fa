"""What sequences that pay penalties had so far, on the device: rows of counts that sampling reads and adds to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vorta_server.engine.runner import StateReset
from vorta_server.runners.cuda.device import Device

__all__ = ["TokenCounts"]


class TokenCounts:
    """Rows of counts. Memory is taken when the first sequence pays a penalty.

    Args:
        num_states: Rows that sequences may have at once; one more is for outputs that have none.
    """

    def __init__(self, num_states: int, vocab_size: int, device: torch.device) -> None:
        self._num_rows, self._vocab_size, self._device = num_states + 1, vocab_size, device
        self._counts: torch.Tensor | None = None
        self._seen: torch.Tensor | None = None

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """int32 [num_states + 1, vocab_size], how often each token was generated, and int32 [num_states + 1,
        ceil(vocab_size / 32)], the bits of the prompts' tokens. Row 0 is the spare one, state n is row n + 1."""
        if self._counts is None or self._seen is None:
            shape = (self._num_rows, self._vocab_size)
            self._counts = torch.zeros(shape, dtype=torch.int32, device=self._device)
            self._seen = torch.zeros((shape[0], -(-shape[1] // 32)), dtype=torch.int32, device=self._device)
        return self._counts, self._seen

    def reset(self, resets: Sequence[StateReset], device: Device) -> None:
        """Begins some states' rows anew."""
        counts, seen = self.tensors
        for entry in resets:
            row = entry.state + 1
            generated = np.bincount(entry.generated, minlength=self._vocab_size).astype(np.int32)
            counts[row] = device.send(generated)
            bits = np.zeros(seen.shape[1] * 32, np.uint8)
            bits[entry.prompt] = 1
            seen[row] = device.send(np.packbits(bits, bitorder="little").view(np.int32))
