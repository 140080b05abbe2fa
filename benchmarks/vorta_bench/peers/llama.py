"""llama.cpp through llama-cpp-python's low-level API: a GGUF file, one context, a batch of sequences."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vorta_bench.peers.peer import Tokens, first_tokens

__all__ = ["LlamaPeer"]

_MAX_BATCH = 2048
_FLASH_OFF, _FLASH_ON, _FLASH_AUTO = 0, 1, -1


class LlamaPeer:
    """llama.cpp with `threads` threads.

    Args:
        model: a GGUF file.
        flash_attention: None leaves the choice to llama.cpp.
    """

    def __init__(self, model: Path, *, threads: int, flash_attention: bool | None = None) -> None:
        import llama_cpp

        self._lib: Any = llama_cpp
        self._threads = threads
        self._flash = {None: _FLASH_AUTO, False: _FLASH_OFF, True: _FLASH_ON}[flash_attention]
        self._log = llama_cpp.llama_log_callback(lambda level, text, user_data: None)
        llama_cpp.llama_log_set(self._log, None)
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(model).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp refuses {model}")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(_MAX_BATCH, 0, 1)

    @property
    def version(self) -> str:
        """The version of llama-cpp-python."""
        return str(self._lib.__version__)

    @property
    def setting(self) -> str:
        """Flash attention's setting."""
        return f"flash_attn={ {_FLASH_AUTO: 'auto', _FLASH_OFF: 'off', _FLASH_ON: 'on'}[self._flash] }"

    def prefill_s(self, prompt: Tokens) -> float:
        """See `Peer`."""
        lib, length = self._lib, len(prompt)
        context = self._context(1, length + 64)
        try:
            begin_s = time.perf_counter()
            self._fill(prompt, range(length), [0] * length, [0] * (length - 1) + [1])
            self._decode(context)
            lib.llama_get_logits_ith(context, -1)
            return time.perf_counter() - begin_s
        finally:
            lib.llama_free(context)

    def decode_s(self, prompt: Tokens, num_rows: int, num_steps: int, num_windows: int) -> list[float]:
        """See `Peer`; every window begins anew at the prompt's end."""
        lib, length = self._lib, len(prompt)
        context = self._context(num_rows, -(-(length + num_steps + 1) // 256) * 256)
        memory = lib.llama_get_memory(context)
        rows, wanted = range(num_rows), [1] * num_rows
        times_s = []
        try:
            self._fill(prompt, range(length), [0] * length, [0] * length)
            self._decode(context)
            for row in range(1, num_rows):
                lib.llama_memory_seq_cp(memory, 0, row, -1, -1)
            for window in range(num_windows + 1):
                for row in rows:
                    lib.llama_memory_seq_rm(memory, row, length, -1)
                tokens: Sequence[int] = first_tokens(prompt, num_rows).tolist()
                begin_s = time.perf_counter()
                for step in range(num_steps if window else 1):
                    self._fill(tokens, [length + step] * num_rows, rows, wanted)
                    self._decode(context)
                    logits = np.ctypeslib.as_array(lib.llama_get_logits(context), (num_rows, self._vocab_size))
                    tokens = logits.argmax(1).tolist()
                if window:
                    times_s.append(time.perf_counter() - begin_s)
        finally:
            lib.llama_free(context)
        return times_s

    def close(self) -> None:
        """Frees the model."""
        self._lib.llama_batch_free(self._batch)
        self._lib.llama_model_free(self._model)

    def _context(self, num_sequences: int, length: int) -> Any:
        params = self._lib.llama_context_default_params()
        params.n_ctx = num_sequences * length
        params.n_seq_max = num_sequences
        params.n_batch = _MAX_BATCH
        params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = self._threads
        params.kv_unified = False
        params.flash_attn_type = self._flash
        context = self._lib.llama_init_from_model(self._model, params)
        if not context:
            raise RuntimeError("llama.cpp refuses the context")
        return context

    def _fill(
        self,
        tokens: Sequence[int] | Tokens,
        positions: Sequence[int],
        sequences: Sequence[int],
        wanted: Sequence[int],
    ) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index in range(len(tokens)):
            batch.token[index] = int(tokens[index])
            batch.pos[index] = positions[index]
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequences[index]
            batch.logits[index] = wanted[index]

    def _decode(self, context: Any) -> None:
        code = self._lib.llama_decode(context, self._batch)
        if code:
            raise RuntimeError(f"llama_decode failed: {code}")
