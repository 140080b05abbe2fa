"""The runner on a CPU: an artifact's graphs through plain ONNX Runtime, driven step by step.

K and V live in one pool that all graphs of the artifact share. Every graph reads and writes the slots in place
(past and present are bound to the same memory), so nothing is copied between steps, whichever graph computed
the last one.

A step's inputs lie in buffers that are bound once and overwritten; what changes between two decode steps of
the same batch is their content alone. A binding is kept for each (graph, first slot, number of slots).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from vorta.errors import Internal
from vorta_server.compiler.artifact import Manifest, load_manifest
from vorta_server.engine.runner import (
    FloatArray,
    IntArray,
    LogitsWanted,
    PrefillChunk,
    RunnerInfo,
    StepBatch,
    StepResult,
)
from vorta_server.runners.checks import check_step
from vorta_server.runners.kv_pool import KvPool
from vorta_server.runners.session import kernel_library, open_session, resident_weights

__all__ = ["OnnxRunner"]

# ONNX Runtime's attention either keeps the scores of all positions, or goes through them in blocks. Blocks were slower
# at every length tried (1.3 to 1.8 times at 128 to 2,000 positions, see benchmarks/results/cpu.md), so they are used
# only where the scores of a chunk of the usual size would take more memory than this.
_USUAL_CHUNK = 512
_MAX_SCORES_BYTES = 256 << 20
_BLOCKS_OFF = "ORT_GQA_DISABLE_FLASH_ATTENTION"


@dataclass(slots=True)
class _Binding:
    """A session's inputs and outputs bound to some slots, and what its free dimensions are bound to now."""

    session: ort.InferenceSession
    io: ort.IOBinding
    num_steps: int = -1
    num_logits: int = -1
    logits_address: int = -1


class OnnxRunner:
    """Computes steps on an artifact that `vorta compile --target cpu` wrote.

    Args:
        artifact: the artifact's folder.
        num_slots: KV slots; memory is used only for the pages that tokens were written to.
        max_model_len: tokens that a slot holds; default the artifact's, which it must not exceed.
        threads: threads of a step, the calling one included; 0 for one per core.
        verify: check the content of the artifact's files against its manifest, beside their sizes.

    Raises:
        ArtifactError: the folder is no artifact, or damaged.
        ValueError: a number is out of range.
        vorta.errors.Internal: ONNX Runtime refuses a graph.
    """

    def __init__(
        self,
        artifact: Path,
        *,
        num_slots: int,
        max_model_len: int | None = None,
        threads: int = 0,
        verify: bool = False,
    ) -> None:
        self._manifest = load_manifest(artifact, verify=verify)
        length = self._manifest.max_model_len if max_model_len is None else max_model_len
        if not 1 <= length <= self._manifest.max_model_len:
            raise ValueError(f"max_model_len must be 1 to {self._manifest.max_model_len}, not {length}")
        if num_slots < 1 or threads < 0:
            raise ValueError(f"num_slots ({num_slots}) must be positive, threads ({threads}) not negative")
        self._num_slots = num_slots
        self._max_model_len = length
        scores_bytes = 4 * self._manifest.num_heads * length * _USUAL_CHUNK
        kernels = kernel_library(artifact) if self._manifest.kernels == "vorta" else None
        files = [artifact / graph.file for graph in self._manifest.graphs]
        # Our operators read the weights as they are; ONNX Runtime's rearrange them into memory of its own.
        self._weights = resident_weights(files) if kernels is not None else None
        with _attention(is_blocked=scores_bytes > _MAX_SCORES_BYTES):
            self._sessions = [
                open_session(file, threads, kernels, has_siblings=len(files) > 1, weights=self._weights)
                for file in files
            ]
        self._min_rows = [graph.min_rows for graph in self._manifest.graphs]
        self._pool = KvPool(
            num_layers=self._manifest.num_layers,
            num_slots=num_slots,
            num_heads=self._manifest.num_kv_heads,
            capacity=length,
            head_dim=self._manifest.head_dim,
        )
        self._bindings: dict[tuple[int, int, int], _Binding] = {}
        self._token_ids = np.zeros(max(num_slots, length), np.int64)
        self._last_positions = np.zeros(num_slots, np.int32)
        self._total_length = np.zeros((), np.int32)
        self._wanted_all = np.arange(max(num_slots, length), dtype=np.int64)
        self._wanted_last = np.zeros(1, np.int64)
        self._logits: FloatArray = np.empty((num_slots, self._manifest.vocab_size), np.float32)
        self._is_closed = False

    @property
    def info(self) -> RunnerInfo:
        """The model's sizes."""
        return RunnerInfo(
            vocab_size=self._manifest.vocab_size,
            max_model_len=self._max_model_len,
            num_slots=self._num_slots,
            kv_bytes_per_token=self._pool.bytes_per_token,
        )

    @property
    def manifest(self) -> Manifest:
        """The artifact's manifest."""
        return self._manifest

    def run(self, batch: StepBatch) -> StepResult:
        """Computes a step, prefill chunks first. See `ModelRunner.run`.

        With `deterministic` everything runs on the artifact's last graph. In quantised artifacts its integer sums are
        exact and its scales belong to one row each, so a row depends on nothing but its own tokens and how its prompt
        was cut into chunks. An fp32 artifact computes the rows one after the other.

        Raises ValueError for a batch that does not fit the slots, Internal when ONNX Runtime fails.
        """
        if self._is_closed:
            raise RuntimeError("the runner is closed")
        num_rows = len(batch.decode_token_ids)
        check_step(batch, num_slots=self._num_slots, max_model_len=self._max_model_len)
        self._reserve_logits(num_rows + sum(_num_logits(chunk) for chunk in batch.prefills))
        begin_s = time.perf_counter()
        prefill_logits: list[FloatArray | None] = []
        first = num_rows
        for chunk in batch.prefills:
            num_logits = _num_logits(chunk)
            self._prefill(chunk, first, num_logits, batch.deterministic)
            prefill_logits.append(self._logits[first : first + num_logits] if num_logits else None)
            first += num_logits
        decode_begin_s = time.perf_counter()
        graph = self._graph_for(num_rows, batch.deterministic) if num_rows else 0
        rows_together = 1 if batch.deterministic and self._manifest.precision == "fp32" else num_rows
        for row in range(0, num_rows, rows_together or 1):
            self._decode(batch.decode_token_ids, batch.decode_lengths, row, row + rows_together, graph)
        end_s = time.perf_counter()
        return StepResult(
            prefill_logits=prefill_logits,
            decode_logits=self._logits[:num_rows] if num_rows else None,
            prefill_s=decode_begin_s - begin_s,
            decode_s=end_s - decode_begin_s,
        )

    def copy_slot(self, source: int, target: int, num_tokens: int) -> None:
        """Copies the first `num_tokens` tokens of KV from one slot to another."""
        self._pool.copy(source, target, num_tokens)

    def move_slot(self, source: int, target: int, num_tokens: int) -> None:
        """Copies too: a slot's place in memory is fixed."""
        self._pool.copy(source, target, num_tokens)

    def discard_slot(self, slot: int) -> None:
        """Gives the slot's memory back to the system."""
        self._pool.discard(slot)

    def close(self) -> None:
        """Drops the sessions, the weights and the KV pool. Idempotent."""
        self._is_closed = True
        self._bindings.clear()
        self._sessions.clear()
        self._weights = None
        self._pool.close()

    def _graph_for(self, num_rows: int, deterministic: bool) -> int:
        graph = len(self._min_rows) - 1
        while not deterministic and self._min_rows[graph] > num_rows:
            graph -= 1
        return graph

    def _reserve_logits(self, num_rows: int) -> None:
        if len(self._logits) < num_rows:
            self._logits = np.empty((num_rows, self._manifest.vocab_size), np.float32)

    def _prefill(self, chunk: PrefillChunk, first_logit: int, num_logits: int, deterministic: bool) -> None:
        num_tokens = len(chunk.token_ids)
        graph = self._graph_for(num_tokens, deterministic)
        binding = self._binding(graph, chunk.slot, 1)
        self._bind_step(binding, 1, num_tokens, first_logit, num_logits)
        self._token_ids[:num_tokens] = chunk.token_ids
        self._last_positions[0] = chunk.num_past + num_tokens - 1
        self._total_length[()] = chunk.num_past + num_tokens
        self._run(binding)

    def _decode(self, token_ids: IntArray, lengths: IntArray, start: int, stop: int, graph: int) -> None:
        num_rows = stop - start
        binding = self._binding(graph, start, num_rows)
        self._bind_step(binding, num_rows, 1, start, num_rows)
        self._token_ids[:num_rows] = token_ids[start:stop]
        # The last valid position after this step is the number of tokens before it.
        self._last_positions[:num_rows] = lengths[start:stop]
        self._total_length[()] = self._last_positions[:num_rows].max() + 1
        self._run(binding)

    def _run(self, binding: _Binding) -> None:
        try:
            binding.session.run_with_iobinding(binding.io)
        except Exception as error:  # ONNX Runtime raises its own types, with RuntimeError as their only common base
            raise Internal(f"ONNX Runtime failed: {error}") from error

    def _binding(self, graph: int, start: int, num_rows: int) -> _Binding:
        """The binding of a graph to slots start to start + num_rows - 1; the step's shapes are still free."""
        key = (graph, start, num_rows)
        binding = self._bindings.get(key)
        if binding is None:
            session = self._sessions[graph]
            binding = _Binding(session=session, io=session.io_binding())
            io = binding.io
            _bind_input(io, "seqlens_k", self._last_positions, (num_rows,))
            _bind_input(io, "total_sequence_length", self._total_length, ())
            shape = self._pool.shape(num_rows)
            for name, address in self._pool.addresses(start):
                io.bind_input(f"past_{name}", "cpu", 0, np.float32, shape, address)
                io.bind_output(f"present_{name}", "cpu", 0, np.float32, shape, address)
            self._bindings[key] = binding
        return binding

    def _bind_step(self, binding: _Binding, num_rows: int, num_steps: int, first_logit: int, num_logits: int) -> None:
        """Binds the shapes of a step where they differ from the binding's last one.

        Logits are wanted of all positions, of none, or of the last (the only one of a decode row).
        """
        io = binding.io
        if num_logits == 1:
            self._wanted_last[0] = num_steps - 1
        if binding.num_steps != num_steps:
            _bind_input(io, "input_ids", self._token_ids, (num_rows, num_steps))
            binding.num_steps = num_steps
            binding.num_logits = -1
        address = self._logits.ctypes.data + first_logit * self._logits.strides[0]
        if binding.num_logits != num_logits or binding.logits_address != address:
            wanted = self._wanted_last if num_logits == 1 else self._wanted_all
            _bind_input(io, "output_rows", wanted, (num_logits,))
            io.bind_output("logits", "cpu", 0, np.float32, (num_logits, self._logits.shape[1]), address)
            binding.num_logits, binding.logits_address = num_logits, address


def _num_logits(chunk: PrefillChunk) -> int:
    if chunk.logits is LogitsWanted.ALL:
        return len(chunk.token_ids)
    return 1 if chunk.logits is LogitsWanted.LAST else 0


def _bind_input(io: ort.IOBinding, name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    """Binds the beginning of an array that outlives the binding; its content is read at each run."""
    io.bind_input(name, "cpu", 0, array.dtype.type, shape, array.ctypes.data)


@contextlib.contextmanager
def _attention(*, is_blocked: bool) -> Iterator[None]:
    """Sessions made inside compute attention so. ONNX Runtime takes this setting from the environment alone, when a
    session is made; what was there is put back."""
    before = os.environ.get(_BLOCKS_OFF)
    os.environ[_BLOCKS_OFF] = "0" if is_blocked else "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_BLOCKS_OFF]
        else:
            os.environ[_BLOCKS_OFF] = before
