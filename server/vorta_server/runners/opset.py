"""The runner of standard-operator artifacts (`vorta compile --target tensorrt`), through ONNX Runtime's providers.

K and V stay on the device, past and present bound to the same memory. What a step takes beside them is small and bound
anew in every step, since ONNX Runtime copies it to the device when it is bound. TensorRT has a session for prompts and
one for decode steps, each an engine of its own; other providers have one for both.

That steps compute what they should is tested on the CPU's provider. The others were not run yet: they need a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from vorta.errors import Internal
from vorta_server.compiler.artifact import SLOT_COPY_FILE, ArtifactError, Manifest, load_manifest
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
from vorta_server.runners.device_pool import DevicePool, aligned
from vorta_server.runners.providers import CPU, Profile, ProviderChoice, choose_providers
from vorta_server.runners.session import open_session

__all__ = ["OpsetRunner"]


class OpsetRunner:
    """Computes steps on an artifact that `vorta compile --target tensorrt` wrote.

    Args:
        artifact: The artifact's folder.
        num_slots: KV slots, all of whose memory is taken at the start.
        providers: Of ONNX Runtime, see `runners.providers`.
        max_model_len: Tokens that a slot holds; default the artifact's, which it must not exceed.
        max_chunk: Tokens of a prompt's chunk that TensorRT plans for.
        threads: Threads of a step on the CPU's provider; 0 for one per core.
        cache_dir: Where TensorRT's provider keeps its engines; None for nowhere.
        verify: Check the content of the artifact's files against its manifest, beside their sizes.

    Raises:
        ArtifactError: The folder is no artifact of a decoder for TensorRT, or damaged.
        ValueError: A number is out of range.
        vorta.errors.FailedPrecondition: A provider is missing or did not start.
        vorta.errors.Internal: ONNX Runtime refuses a graph.
    """

    def __init__(
        self,
        artifact: Path,
        *,
        num_slots: int,
        providers: Sequence[str] = CPU,
        max_model_len: int | None = None,
        max_chunk: int = 512,
        threads: int = 0,
        cache_dir: Path | None = None,
        verify: bool = False,
    ) -> None:
        self._manifest = manifest = load_manifest(artifact, verify=verify)
        if manifest.target != "tensorrt" or manifest.kind != "generation":
            what = f"a {manifest.kind} model for {manifest.target}"
            raise ArtifactError(f"{artifact} is {what}, no decoder for TensorRT", path=artifact, field="target")
        length = manifest.max_model_len if max_model_len is None else max_model_len
        if not 1 <= length <= manifest.max_model_len:
            raise ValueError(f"max_model_len must be 1 to {manifest.max_model_len}, not {length}")
        if num_slots < 1 or threads < 0 or max_chunk < 1:
            raise ValueError(f"num_slots {num_slots}, max_chunk {max_chunk}, threads {threads}: out of range")
        self._num_slots, self._max_model_len, self._threads = num_slots, length, threads
        self._names, self._cache_dir = choose_providers(providers), cache_dir
        chunk = min(max_chunk, length)
        self._prefill = self._decode = self._session(artifact, "prefill", 1, chunk)
        if self._names[0] == "tensorrt":
            self._decode = self._session(artifact, "decode", num_slots, 1)
        copier = ProviderChoice(names=tuple(name for name in self._names if name != "tensorrt"))
        self._pool = DevicePool(
            num_layers=manifest.num_layers,
            num_slots=num_slots,
            num_heads=manifest.num_kv_heads,
            capacity=length,
            head_dim=manifest.head_dim,
            dtype=manifest.kv_dtype,
            device=copier.device,
            copier=open_session(artifact / SLOT_COPY_FILE, threads, None, providers=copier),
        )
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

        With `deterministic` decode rows are computed one after the other, so that each is a product of one row.

        Raises ValueError for a batch that does not fit the slots, Internal when ONNX Runtime fails.
        """
        if self._is_closed:
            raise RuntimeError("the runner is closed")
        check_step(batch, num_slots=self._num_slots, max_model_len=self._max_model_len)
        begin_s = time.perf_counter()
        prefill_logits = [self._run_chunk(chunk) for chunk in batch.prefills]
        decode_begin_s = time.perf_counter()
        decode_logits = self._run_rows(batch)
        return StepResult(
            prefill_logits=prefill_logits,
            decode_logits=decode_logits,
            prefill_s=decode_begin_s - begin_s,
            decode_s=time.perf_counter() - decode_begin_s,
        )

    def copy_slot(self, source: int, target: int, num_tokens: int) -> None:
        """Copies one slot to another; all of it, since its tokens do not lie together."""
        self._pool.copy(source, target)

    def move_slot(self, source: int, target: int, num_tokens: int) -> None:
        """Copies too: a slot's place in memory is fixed."""
        self._pool.copy(source, target)

    def discard_slot(self, slot: int) -> None:
        """Does nothing: the device's memory was taken for good."""

    def close(self) -> None:
        """Drops the sessions, the weights and the KV pool. Idempotent."""
        self._is_closed = True
        self._prefill = self._decode = None
        self._pool.close()

    def _session(self, artifact: Path, phase: str, most_rows: int, most_steps: int) -> ort.InferenceSession:
        """A session for batches of up to these sizes. Only TensorRT is told that a phase has a batch or a step of 1."""
        capacity = aligned(self._max_model_len)
        overrides = {"capacity": capacity}
        if self._names[0] == "tensorrt":
            overrides |= {"batch": 1} if phase == "prefill" else {"step": 1}
        choice = ProviderChoice(
            names=self._names,
            cache_dir=self._cache_dir,
            precision=self._manifest.precision,
            overrides=overrides,
            profile=self._profile(most_rows, most_steps, capacity),
        )
        return open_session(artifact / self._manifest.graphs[0].file, self._threads, None, providers=choice)

    def _profile(self, most_rows: int, most_steps: int, capacity: int) -> Profile:
        manifest = self._manifest
        usual = (most_rows + 1) // 2
        cache = [[rows, manifest.num_kv_heads, capacity, manifest.head_dim] for rows in (1, usual, most_rows)]
        names = [f"past_{part}_{layer}" for layer in range(manifest.num_layers) for part in ("key", "value")]
        return {
            "input_ids": ([1, 1], [usual, most_steps], [most_rows, most_steps]),
            "past_lengths": ([1], [usual], [most_rows]),
            "output_rows": ([1], [usual], [most_rows * most_steps]),
            **dict.fromkeys(names, (cache[0], cache[1], cache[2])),
        }

    def _run_chunk(self, chunk: PrefillChunk) -> FloatArray | None:
        num_tokens = len(chunk.token_ids)
        first = 0 if chunk.logits is LogitsWanted.ALL else num_tokens - 1
        past, wanted = np.array([chunk.num_past]), np.arange(first, num_tokens)
        logits = self._run(self._prefill, chunk.slot, chunk.token_ids[None, :], past, wanted)
        return None if chunk.logits is LogitsWanted.NONE else logits

    def _run_rows(self, batch: StepBatch) -> FloatArray | None:
        num_rows = len(batch.decode_token_ids)
        together = 1 if batch.deterministic else num_rows
        parts = []
        for first in range(0, num_rows, together or 1):
            rows = slice(first, first + together)
            ids, past = batch.decode_token_ids[rows, None], batch.decode_lengths[rows]
            parts.append(self._run(self._decode, first, ids, past, np.arange(together)))
        return np.concatenate(parts) if parts else None

    def _run(
        self, session: ort.InferenceSession, slot: int, ids: IntArray, past: IntArray, wanted: IntArray
    ) -> FloatArray:
        """Logits of the flattened positions `wanted` of ids [B, S], written to the slots from `slot` on."""
        logits = np.empty((len(wanted), self._manifest.vocab_size), np.float32)
        io = session.io_binding()
        inputs = {"input_ids": ids, "past_lengths": past, "output_rows": wanted}
        try:
            for name, value in inputs.items():
                io.bind_cpu_input(name, np.ascontiguousarray(value, np.int64))
            self._pool.bind(io, slot, len(ids))
            io.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
            session.run_with_iobinding(io)
        except Exception as error:  # ONNX Runtime raises its own types, with RuntimeError as their only common base
            raise Internal(f"ONNX Runtime failed: {error}") from error
        return logits
