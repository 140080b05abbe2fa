"""What a measured engine must offer: prefill and decode, timed by itself, with greedy choice of tokens.

The clock runs over what the engine does for a step, the choice of the next token included; it does not run
over loading, prompts before a decode, or tokenization.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Peer", "Tokens", "first_tokens"]

Tokens = NDArray[np.int64]


class Peer(Protocol):
    """An engine with a model loaded."""

    @property
    def version(self) -> str:
        """The engine's version."""
        ...

    @property
    def setting(self) -> str:
        """How the engine was set where it differs from its defaults; may be empty."""
        ...

    def prefill_s(self, prompt: Tokens) -> float:
        """Seconds to read a prompt [num_tokens] and to have the logits of its last position."""
        ...

    def decode_s(self, prompt: Tokens, num_rows: int, num_steps: int, num_windows: int) -> list[float]:
        """Seconds of each window of num_steps steps; a step is one token for each of num_rows sequences.

        All sequences begin with the prompt [num_tokens]. The windows follow one another in the same sequences, or
        begin anew at the prompt's end, as the engine does it best. One step before the first is not counted.
        """
        ...

    def close(self) -> None:
        """Frees the model."""
        ...


def first_tokens(prompt: Tokens, num_rows: int) -> Tokens:
    """The first token that each sequence decodes, so that they go different ways: [num_rows]."""
    return np.resize(prompt, num_rows)
