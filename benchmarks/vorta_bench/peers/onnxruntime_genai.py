"""onnxruntime-genai: a model folder that its own builder made of the checkpoint at 4 bits."""

from __future__ import annotations

import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from vorta_bench.peers.peer import Tokens, first_tokens

__all__ = ["GenAiPeer"]


class GenAiPeer:
    """A model folder of `python -m onnxruntime_genai.models.builder`, on one thread per core."""

    def __init__(self, model: Path) -> None:
        import onnxruntime_genai

        self._lib: Any = onnxruntime_genai
        self._model: Any = onnxruntime_genai.Model(str(model))

    @property
    def version(self) -> str:
        """The version of onnxruntime-genai."""
        return metadata.version("onnxruntime-genai")

    @property
    def setting(self) -> str:
        """Nothing differs from the defaults."""
        return ""

    def prefill_s(self, prompt: Tokens) -> float:
        """See `Peer`."""
        generator = self._generator(1, len(prompt) + 8)
        begin_s = time.perf_counter()
        generator.append_tokens(prompt[None].astype(np.int32))
        generator.generate_next_token()
        return time.perf_counter() - begin_s

    def decode_s(self, prompt: Tokens, num_rows: int, num_steps: int, num_windows: int) -> list[float]:
        """See `Peer`; the windows follow one another. The sequences differ in the prompt's last token."""
        length = len(prompt) + num_steps * num_windows + 8
        generator = self._generator(num_rows, length)
        prompts = np.tile(prompt, (num_rows, 1))
        prompts[:, -1] = first_tokens(prompt, num_rows)
        generator.append_tokens(prompts.astype(np.int32))
        generator.generate_next_token()
        generator.generate_next_token()
        times_s = []
        for _ in range(num_windows):
            begin_s = time.perf_counter()
            for _ in range(num_steps):
                generator.generate_next_token()
            times_s.append(time.perf_counter() - begin_s)
        return times_s

    def close(self) -> None:
        """The library frees the model when nothing refers to it."""
        del self._model

    def _generator(self, num_rows: int, length: int) -> Any:
        params = self._lib.GeneratorParams(self._model)
        # As long as the whole run, so that no end token stops a sequence.
        params.set_search_options(do_sample=False, batch_size=num_rows, min_length=length, max_length=length)
        return self._lib.Generator(self._model, params)
