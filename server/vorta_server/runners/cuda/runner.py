"""The runner on a GPU, an `engine.runner.SamplingRunner`.

It computes packed steps over a paged cache, chooses the tokens that sampling parameters alone decide, and takes the
next step while the last one's tokens are on their way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from vorta_kernels import ops
from vorta_kernels.kv_cache import FP8, KvCache
from vorta_server.compiler.spec import DecoderSpec
from vorta_server.engine.runner import (
    MAX_ENTRIES,
    Draws,
    FloatArray,
    IntArray,
    LogitsWanted,
    Penalties,
    PrefillChunk,
    RunnerInfo,
    StepBatch,
    StepResult,
)
from vorta_server.runners.checks import check_step
from vorta_server.runners.cuda.blocks import BlockTables
from vorta_server.runners.cuda.counts import TokenCounts
from vorta_server.runners.cuda.device import device_for
from vorta_server.runners.cuda.executor import Executor, LaunchedStep
from vorta_server.runners.cuda.model import DecoderModel
from vorta_server.runners.cuda.step import NARROWEST, StepLayout, bucket_for, buckets_up_to, fill
from vorta_server.runners.cuda.weights import Decoder

__all__ = ["BLOCK_SIZE", "KV_DTYPES", "MAX_HEAD_DIM", "CudaRunner", "CudaRunnerConfig"]

BLOCK_SIZE = 64
"""Tokens of a block: the engine's unit of memory too, so that both count alike."""

MAX_HEAD_DIM = 128
"""Of the attention kernels."""

KV_DTYPES = ("auto", "fp8")


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaRunnerConfig:
    """How to run a decoder.

    Attributes:
        num_slots: KV slots.
        max_model_len: Tokens of a slot.
        kv_capacity_tokens: Tokens that the cache holds in all; the blocks that slots share count once.
        max_batched_tokens: Tokens of a step's prefill chunks; more are computed in several passes.
        kv_dtype: "auto" for the activations' type, or "fp8".
        use_graphs: Run decode steps as CUDA graphs.
    """

    num_slots: int
    max_model_len: int
    kv_capacity_tokens: int
    max_batched_tokens: int = 2048
    kv_dtype: str = "auto"
    use_graphs: bool = True


class CudaRunner:
    """Computes steps on a GPU, or on a CPU over the kernels' references.

    Args:
        decoder: The weights, on the device that computes.

    Raises:
        ValueError: A number is out of range, or heads are larger than the kernels take.
    """

    def __init__(self, spec: DecoderSpec, decoder: Decoder, config: CudaRunnerConfig) -> None:
        if config.kv_dtype not in KV_DTYPES:
            raise ValueError(f"kv_dtype {config.kv_dtype!r} is unknown; available: {', '.join(KV_DTYPES)}")
        if config.num_slots < 1 or config.max_model_len < 1 or config.max_batched_tokens < 1:
            raise ValueError("num_slots, max_model_len and max_batched_tokens must be positive")
        if spec.head_dim > MAX_HEAD_DIM:
            raise ValueError(f"heads of {spec.head_dim} elements are not supported, at most {MAX_HEAD_DIM}")
        self._spec, self._config = spec, config
        self._device = decoder.embedding.device
        num_blocks = 1 + -(-config.kv_capacity_tokens // BLOCK_SIZE)
        self._tables = BlockTables(
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            num_slots=config.num_slots,
            max_model_len=config.max_model_len,
        )
        dtype = kv_torch_dtype(config.kv_dtype, decoder.dtype)
        self._cache = KvCache(
            num_layers=spec.num_layers,
            num_blocks=num_blocks,
            num_kv_heads=spec.num_kv_heads,
            block_size=BLOCK_SIZE,
            head_dim=spec.head_dim,
            dtype=dtype,
            device=self._device,
        )
        self._max_rows = config.num_slots // 2 + 1  # of a decode batch: the other slots are there to move to
        self._counts = TokenCounts(self._max_rows, spec.vocab_size, self._device)
        self._widest = self._tables.table.shape[1]
        max_rows = bucket_for(config.num_slots)
        largest = StepLayout(
            num_decodes=max_rows,
            num_prefills=config.num_slots,
            num_chunk_tokens=config.max_batched_tokens,
            num_ends=config.num_slots,
            num_scored=config.max_batched_tokens,
            max_blocks=self._widest,
            has_penalties=True,
            num_biases=MAX_ENTRIES,
            num_banned=MAX_ENTRIES,
        )
        self._executor = Executor(
            DecoderModel(spec, decoder, self._cache, self._counts, config.max_model_len),
            device_for(self._device),
            self._device,
            max_words=largest.num_words,
            max_outputs=largest.num_outputs,
            use_graphs=config.use_graphs,
        )
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # what was filled with zeros here is used on another stream
        # Where on the device each output of the last step is.
        self._places = np.zeros(0, np.int32)
        self._decode_s = 0.0

    @property
    def info(self) -> RunnerInfo:
        """The model's sizes."""
        spec = self._spec
        return RunnerInfo(
            vocab_size=spec.vocab_size,
            max_model_len=self._config.max_model_len,
            num_slots=self._config.num_slots,
            kv_bytes_per_token=KvCache.bytes_per_token(
                num_layers=spec.num_layers,
                num_kv_heads=spec.num_kv_heads,
                head_dim=spec.head_dim,
                dtype=self._cache.dtype,
            ),
            samples=True,
            shares_blocks=True,
        )

    @property
    def graph_keys(self) -> list[StepLayout]:
        """The layouts of decode steps that have a graph."""
        return self._executor.graph_keys

    def warm_up(self, num_rows: int) -> None:
        """Runs steps of every bucket up to so many rows, and prompts, so that kernels are compiled and graphs captured
        before anybody waits for them. The slots must be empty, and are afterwards."""
        empty = StepBatch(prefills=[], decode_token_ids=np.zeros(0, np.int64), decode_lengths=np.zeros(0, np.int64))
        for bucket in buckets_up_to(num_rows):
            layout = StepLayout(num_decodes=bucket, max_blocks=min(NARROWEST, self._widest))
            words = self._executor.words(layout)
            fill(empty, layout, self._tables, np.zeros(0, np.int32), words.numpy())
            self._executor.launch(layout, words, np.zeros(0, np.int64)).wait()
        for num_tokens in sorted({1, min(17, self._config.max_model_len), self._longest_chunk()}):
            chunk = PrefillChunk(
                slot=0, token_ids=np.zeros(num_tokens, np.int64), num_past=0, logits=LogitsWanted.LAST, is_last=True
            )
            self.run(replace(empty, prefills=[chunk]))
        self.discard_slot(0)

    def _longest_chunk(self) -> int:
        return min(self._config.max_batched_tokens, self._config.max_model_len, self._config.kv_capacity_tokens)

    def run(self, batch: StepBatch) -> StepResult:
        """Computes a step and waits for it; with `draws` its tokens, without them the logits of every output."""
        if batch.draws is not None:
            return self.launch(batch)()
        num_outputs = len(batch.decode_token_ids) + sum(_has_logits(chunk) for chunk in batch.prefills)
        greedy = _greedy(num_outputs, len(batch.decode_token_ids))
        prefills = [replace(chunk, is_last=_has_logits(chunk)) for chunk in batch.prefills]
        result = self.launch(replace(batch, prefills=prefills, draws=greedy))()
        assert result.host_logits is not None
        num_rows = len(batch.decode_token_ids)
        rest = iter(result.host_logits[num_rows:])
        for index, chunk in enumerate(prefills):
            last = next(rest) if chunk.is_last else None
            if chunk.logits is LogitsWanted.LAST and last is not None:
                result.prefill_logits[index] = last[None]
        result.decode_logits = result.host_logits[:num_rows] if num_rows else None
        return result

    def launch(self, batch: StepBatch) -> Callable[[], StepResult]:
        """Starts a step; see `SamplingRunner.launch`.

        A deterministic step is computed in parts: the decode rows, padded to the largest bucket, and each chunk by
        itself, so that every product has one shape, whatever else is computed.

        Raises ValueError for a batch that does not fit the slots, MemoryError when the cache is full.
        """
        draws = batch.draws
        if draws is None:
            raise ValueError("the batch has no draws")
        self._check(batch)
        self._reserve(batch)
        if draws.penalties is not None and draws.penalties.resets:
            resets = draws.penalties.resets
            self._executor.run(lambda device: self._counts.reset(resets, device))
        num_rows = len(batch.decode_token_ids)
        sources = draws.sources
        if len(self._places):
            sources = np.where(sources >= 0, self._places[sources], -1).astype(np.int32)
        parts = _split(batch) if batch.deterministic else [batch]
        bucket = bucket_for(max(self._max_rows, num_rows) if batch.deterministic and num_rows else num_rows)
        launched: list[_Launched] = []
        place = first = 0
        for part in parts:
            assert part.draws is not None
            rows = len(part.decode_token_ids)
            layout = StepLayout.of(part, bucket if rows else 0, BLOCK_SIZE, self._widest)
            words = self._executor.words(layout)
            fill(part, layout, self._tables, sources[:rows], words.numpy())
            outputs = np.concatenate([np.arange(rows), np.arange(layout.num_decodes, layout.num_outputs)])
            wanted = draws.on_host[(draws.on_host >= first) & (draws.on_host < first + len(outputs))] - first
            step = self._executor.launch(layout, words, outputs[wanted], place=place)
            launched.append(_Launched(batch=part, layout=layout, step=step, outputs=outputs, place=place))
            place += layout.num_outputs
            first += len(outputs)
        self._places = np.concatenate([entry.place + entry.outputs for entry in launched]).astype(np.int32)
        return lambda: _joined([self._land(entry) for entry in launched])

    def copy_slot(self, source: int, target: int, num_tokens: int) -> None:
        """Shares the source's blocks; what is written later is written to a block of its own."""
        self._tables.share(source, target, num_tokens)

    def move_slot(self, source: int, target: int, num_tokens: int) -> None:
        """Gives the source's blocks to the target."""
        self._tables.move(source, target, num_tokens)

    def discard_slot(self, slot: int) -> None:
        """Gives the slot's blocks back."""
        self._tables.discard(slot)

    def close(self) -> None:
        """Waits for the device and drops the graphs; the memory goes with the object. Idempotent."""
        self._executor.close()

    def _check(self, batch: StepBatch) -> None:
        """Refuses what would write outside the slots or the step's arrays: the kernels do not look."""
        config = self._config
        check_step(batch, num_slots=config.num_slots, max_model_len=config.max_model_len)
        num_tokens = sum(len(chunk.token_ids) for chunk in batch.prefills)
        if num_tokens > config.max_batched_tokens:
            raise ValueError(
                f"chunks of {num_tokens} tokens, more than max_batched_tokens ({config.max_batched_tokens})"
            )

    def _reserve(self, batch: StepBatch) -> None:
        """Gives the step's slots the blocks that it writes to, and copies those that they shared."""
        pairs: list[tuple[int, int]] = []
        lengths = batch.decode_lengths
        for slot in np.flatnonzero(lengths >= self._tables.writable[: len(lengths)]).tolist():
            pairs += self._tables.extend(slot, int(lengths[slot]), int(lengths[slot]) + 1)
        for chunk in batch.prefills:
            pairs += self._tables.extend(chunk.slot, chunk.num_past, chunk.num_past + len(chunk.token_ids))
        if pairs:
            wanted = np.array(pairs, np.int32)
            self._executor.run(lambda device: ops.block_copy(self._cache.tensors, device.send(wanted)))

    def _land(self, launched: _Launched) -> StepResult:
        batch, layout, step = launched.batch, launched.layout, launched.step
        elapsed_s = step.wait()
        counts = [len(chunk.token_ids) for chunk in batch.prefills if chunk.logits is LogitsWanted.ALL]
        scored = iter(np.split(step.scored_logits, np.cumsum(counts)[:-1]))
        prefill_logits: list[FloatArray | None] = [
            next(scored) if chunk.logits is LogitsWanted.ALL else None for chunk in batch.prefills
        ]
        prefill_s = 0.0
        if not batch.prefills:
            self._decode_s = elapsed_s
        else:
            # A packed step has one time: what it took longer than the last pure decode step is the chunks'.
            share = layout.num_chunk_tokens / layout.num_tokens
            prefill_s = max(elapsed_s - (self._decode_s if layout.num_decodes else 0.0), elapsed_s * share * 0.5)
        return StepResult(
            prefill_logits=prefill_logits,
            decode_logits=None,
            prefill_s=prefill_s,
            decode_s=0.0 if batch.prefills else elapsed_s,
            token_ids=step.token_ids[launched.outputs].astype(np.int64),
            host_logits=step.host_logits,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Launched:
    """A part of a step on its way.

    Attributes:
        outputs: int64, of the layout's outputs those that are none of the padding.
        place: Where its outputs are among those that the next step is fed from.
    """

    batch: StepBatch
    layout: StepLayout
    step: LaunchedStep
    outputs: IntArray
    place: int


def kv_torch_dtype(kv_dtype: str, activations: torch.dtype) -> torch.dtype:
    """The type of K and V by the name of the setting, one of KV_DTYPES."""
    return FP8 if kv_dtype == "fp8" else activations


def _split(batch: StepBatch) -> list[StepBatch]:
    """The decode rows and each chunk as a batch of its own; what no part has is left out of its draws."""
    assert batch.draws is not None
    num_rows = len(batch.decode_token_ids)
    parts = []
    if num_rows:
        parts.append(replace(batch, prefills=[], draws=_slice(batch.draws, 0, num_rows)))
    empty = np.zeros(0, np.int64)
    output = num_rows
    for chunk in batch.prefills:
        draws = _slice(batch.draws, output, output + chunk.is_last)
        parts.append(replace(batch, prefills=[chunk], decode_token_ids=empty, decode_lengths=empty, draws=draws))
        output += chunk.is_last
    return parts


def _slice(draws: Draws, start: int, stop: int) -> Draws:
    part = slice(start, stop)
    return replace(
        draws,
        temperature=draws.temperature[part],
        top_k=draws.top_k[part],
        top_p=draws.top_p[part],
        min_p=draws.min_p[part],
        uniforms=draws.uniforms[part],
        penalties=None if draws.penalties is None else _slice_penalties(draws.penalties, part),
        biases={output - start: biases for output, biases in draws.biases.items() if start <= output < stop},
        banned={output - start: ids for output, ids in draws.banned.items() if start <= output < stop},
    )


def _slice_penalties(penalties: Penalties, part: slice) -> Penalties:
    return replace(
        penalties,
        states=penalties.states[part],
        repetition=penalties.repetition[part],
        presence=penalties.presence[part],
        frequency=penalties.frequency[part],
    )


def _joined(parts: list[StepResult]) -> StepResult:
    """The results of a step's parts as one."""
    if len(parts) == 1:
        return parts[0]
    token_ids = [part.token_ids for part in parts if part.token_ids is not None]
    host_logits = [part.host_logits for part in parts if part.host_logits is not None]
    return StepResult(
        prefill_logits=[logits for part in parts for logits in part.prefill_logits],
        decode_logits=None,
        prefill_s=sum(part.prefill_s for part in parts),
        decode_s=sum(part.decode_s for part in parts),
        token_ids=np.concatenate(token_ids),
        host_logits=np.concatenate(host_logits),
    )


def _has_logits(chunk: PrefillChunk) -> bool:
    return chunk.logits is not LogitsWanted.NONE


def _greedy(num_outputs: int, num_rows: int) -> Draws:
    zeros = np.zeros(num_outputs, np.float32)
    return Draws(
        temperature=zeros,
        top_k=np.zeros(num_outputs, np.int32),
        top_p=np.ones(num_outputs, np.float32),
        min_p=zeros,
        uniforms=zeros,
        on_host=np.arange(num_outputs),
        sources=np.full(num_rows, -1, np.int32),
    )
