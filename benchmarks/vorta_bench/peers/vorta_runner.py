"""Vorta's own ONNX runner on an artifact, without the engine around it: the same work as a peer's."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnxruntime

from vorta_bench.peers.peer import Tokens, first_tokens
from vorta_server.engine.runner import LogitsWanted, PrefillChunk, StepBatch
from vorta_server.runners.onnx import OnnxRunner

__all__ = ["VortaPeer"]

_MAX_SEQUENCES = 32
_NO_TOKENS = np.zeros(0, np.int64)


class VortaPeer:
    """The runner of one artifact."""

    def __init__(self, artifact: Path, *, threads: int) -> None:
        self._runner = OnnxRunner(artifact, num_slots=_MAX_SEQUENCES, threads=threads)

    @property
    def version(self) -> str:
        """ONNX Runtime's version: it computes the steps."""
        return f"onnxruntime {onnxruntime.__version__}"

    @property
    def setting(self) -> str:
        """Whose kernels the artifact needs and which graphs it has."""
        manifest = self._runner.manifest
        graphs = ", ".join(f"{graph.file} from {graph.min_rows}" for graph in manifest.graphs)
        return f"{manifest.kernels} kernels, {graphs}"

    def prefill_s(self, prompt: Tokens) -> float:
        """See `Peer`; the prompt is one chunk."""
        begin_s = time.perf_counter()
        self._prefill(0, prompt, LogitsWanted.LAST)
        return time.perf_counter() - begin_s

    def decode_s(self, prompt: Tokens, num_rows: int, num_steps: int, num_windows: int) -> list[float]:
        """See `Peer`; every window begins anew at the prompt's end."""
        length = len(prompt)
        self._prefill(0, prompt, LogitsWanted.NONE)
        for slot in range(1, num_rows):
            self._runner.copy_slot(0, slot, length)
        times_s = []
        for window in range(num_windows + 1):
            tokens = first_tokens(prompt, num_rows)
            lengths = np.full(num_rows, length, np.int64)
            begin_s = time.perf_counter()
            for _ in range(num_steps if window else 1):
                batch = StepBatch(prefills=(), decode_token_ids=tokens, decode_lengths=lengths)
                logits = self._runner.run(batch).decode_logits
                assert logits is not None
                tokens = logits.argmax(1)
                lengths += 1
            if window:
                times_s.append(time.perf_counter() - begin_s)
        return times_s

    def close(self) -> None:
        """Frees the model."""
        self._runner.close()

    def _prefill(self, slot: int, prompt: Tokens, logits: LogitsWanted) -> None:
        chunk = PrefillChunk(slot=slot, token_ids=prompt, num_past=0, logits=logits)
        self._runner.run(StepBatch(prefills=(chunk,), decode_token_ids=_NO_TOKENS, decode_lengths=_NO_TOKENS))
