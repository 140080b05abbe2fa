"""OpenVINO GenAI's continuous batching on a GGUF file, which it reads itself."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from vorta_bench.peers.peer import Tokens

__all__ = ["OpenVinoPeer"]

_STEPS_BEFORE = 2


class OpenVinoPeer:
    """OpenVINO's continuous batching pipeline with `threads` threads."""

    def __init__(self, model: Path, *, threads: int) -> None:
        import openvino
        import openvino_genai

        self._openvino: Any = openvino
        self._genai: Any = openvino_genai
        config = openvino_genai.SchedulerConfig()
        config.cache_size = 2
        config.max_num_seqs = 64
        config.enable_prefix_caching = False
        config.max_num_batched_tokens = 512
        config.dynamic_split_fuse = True
        self._pipeline: Any = openvino_genai.ContinuousBatchingPipeline(
            str(model), config, "CPU", {"INFERENCE_NUM_THREADS": threads}
        )
        self._next_id = 0
        # A request whose handle is gone counts as dropped.
        self._handles: list[Any] = []

    @property
    def version(self) -> str:
        """The version of openvino-genai."""
        return str(self._genai.__version__)

    @property
    def setting(self) -> str:
        """KV in 8 bits is its default."""
        return "continuous batching"

    def prefill_s(self, prompt: Tokens) -> float:
        """See `Peer`."""
        begin_s = time.perf_counter()
        self._add(prompt, 1)
        self._finish()
        return time.perf_counter() - begin_s

    def decode_s(self, prompt: Tokens, num_rows: int, num_steps: int, num_windows: int) -> list[float]:
        """See `Peer`; the windows follow one another."""
        num_prompt_steps = -(-num_rows * len(prompt) // 512) + _STEPS_BEFORE
        for row in range(num_rows):
            own = prompt.copy()
            own[-1] = prompt[row % len(prompt)]
            self._add(own, num_prompt_steps + num_steps * num_windows + _STEPS_BEFORE)
        for _ in range(num_prompt_steps):
            self._pipeline.step()
        times_s = []
        for _ in range(num_windows):
            begin_s = time.perf_counter()
            for _ in range(num_steps):
                self._pipeline.step()
            times_s.append(time.perf_counter() - begin_s)
        self._finish()
        return times_s

    def close(self) -> None:
        """Frees the model."""
        del self._pipeline

    def _add(self, prompt: Tokens, num_tokens: int) -> None:
        config = self._genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = num_tokens
        config.ignore_eos = True
        config.do_sample = False
        self._next_id += 1
        ids = self._openvino.Tensor(prompt[None])
        self._handles.append(self._pipeline.add_request(self._next_id, ids, config))

    def _finish(self) -> None:
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        self._handles.clear()
