"""The decoder's step on a device: packed tokens in, logits and chosen tokens out."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch

from vorta_kernels import ops
from vorta_kernels.kv_cache import KvCache
from vorta_kernels.reference.batch_pack import PackedBatch
from vorta_server.compiler.rope import rope_tables
from vorta_server.compiler.spec import DecoderSpec
from vorta_server.runners.cuda.counts import TokenCounts
from vorta_server.runners.cuda.step import DeviceStep
from vorta_server.runners.cuda.weights import Decoder, DecoderLayer, Linear, Rows

__all__ = ["DecoderModel"]


@dataclass(frozen=True, slots=True)
class _Packed:
    """What all layers need of a step.

    Attributes:
        seq_lens: int32 [num_decodes + num_prefills], tokens of each sequence behind the step.
        prefill_starts: int32 [num_prefills + 1], where each chunk's tokens begin behind the decode rows.
    """

    packed: PackedBatch
    seq_lens: torch.Tensor
    prefill_starts: torch.Tensor


class DecoderModel:
    """A decoder over a paged cache; `forward` may be captured into a CUDA graph.

    Args:
        cache: Written by `forward`, the same for the same step.
        counts: Added to by `choose`.
        max_model_len: Positions of the rotary tables.

    Attributes:
        vocab_size: Columns of the logits.
    """

    def __init__(
        self, spec: DecoderSpec, decoder: Decoder, cache: KvCache, counts: TokenCounts, max_model_len: int
    ) -> None:
        self.vocab_size = spec.vocab_size
        self._spec = spec
        self._decoder = decoder
        self._counts = counts
        self._layers = [cache.layer(index) for index in range(spec.num_layers)]
        cos, sin = rope_tables(spec.rope, max_model_len)
        tables = torch.from_numpy(np.stack([cos, sin], axis=1))
        self._cos_sin = tables.to(decoder.embedding.device).contiguous()
        self._scale = 1 / math.sqrt(spec.head_dim)

    def forward(self, step: DeviceStep, last_token_ids: torch.Tensor) -> torch.Tensor:
        """Computes a step up to its logits, [num_outputs + num_scored, vocab_size] in the activations' type, the scored
        positions last.

        Args:
            last_token_ids: int32 [at least the step before's outputs], the tokens that it chose.
        """
        decoder = self._decoder
        layout = step.layout
        pending = ops.batch_compact(last_token_ids[:, None], step.sources)[:, 0]
        # What is no token (a bad row's -1) is computed as any other: nobody will look at it.
        token_ids = (pending + step.token_ids).clamp_min(0)
        packed = ops.batch_pack(
            step.query_lens,
            step.past_lens,
            step.block_table,
            block_size=self._layers[0].block_size,
            num_tokens_padded=layout.num_tokens,
        )
        seq_lens = step.past_lens + step.query_lens
        prefill_starts = packed.cu_query_lens[layout.num_decodes :] - layout.num_decodes
        batch = _Packed(packed, seq_lens, prefill_starts)
        delta = torch.nn.functional.embedding(token_ids, decoder.embedding)
        residual: torch.Tensor | None = None
        for index, layer in enumerate(decoder.layers):
            rows, residual = self._norm(delta, layer.input_norm, residual, layer.qkv)
            attended = self._attention(index, layer, rows, step, batch)
            delta = layer.output(_for(layer.output, attended))
            rows, residual = self._norm(delta, layer.post_norm, residual, layer.gate_up)
            gate_up = layer.gate_up(rows)
            delta = layer.down(ops.silu_mul_fp8(gate_up) if layer.down.takes_fp8 else ops.silu_mul(gate_up))
        # Only positions whose logits are wanted go on.
        wanted = step.output_rows
        rows, _ = self._norm(delta[wanted], decoder.norm, None if residual is None else residual[wanted], decoder.head)
        return decoder.head(rows)

    def choose(self, step: DeviceStep, logits: torch.Tensor) -> torch.Tensor:
        """The tokens of a step's outputs, int32 [num_outputs], -1 where the logits hold NaN or +inf."""
        layout, columns = step.layout, step.columns
        if layout.has_penalties:
            counts, seen = self._counts.tensors
            columns = dataclasses.replace(columns, counts=counts, seen=seen)
        return ops.sample(logits[: layout.num_outputs], columns).token_ids

    def _attention(self, index: int, layer: DecoderLayer, rows: Rows, step: DeviceStep, batch: _Packed) -> torch.Tensor:
        spec, layout = self._spec, step.layout
        cache = self._layers[index]
        query = ops.rope_kv(
            layer.qkv(rows),
            self._cos_sin,
            batch.packed.positions,
            batch.packed.slots,
            cache,
            num_heads=spec.num_heads,
            q_norm=layer.q_norm,
            k_norm=layer.k_norm,
            eps=spec.rms_norm_eps,
        )
        window = spec.windows[index] or 0
        parts = []
        split = layout.num_decodes
        if split:
            parts.append(
                ops.paged_decode(
                    query[:split],
                    cache,
                    step.block_table[:split],
                    batch.seq_lens[:split],
                    scale=self._scale,
                    window=window,
                )
            )
        if layout.num_prefills:
            parts.append(
                ops.paged_prefill(
                    query[split:],
                    cache,
                    step.block_table[split:],
                    batch.seq_lens[split:],
                    batch.prefill_starts,
                    scale=self._scale,
                    window=window,
                )
            )
        return (torch.cat(parts) if len(parts) > 1 else parts[0]).flatten(1)

    def _norm(
        self, rows: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None, target: Linear
    ) -> tuple[Rows, torch.Tensor]:
        """Rows for a linear layer, and the new residual."""
        eps = self._spec.rms_norm_eps
        if target.takes_fp8:
            values, scale, residual = ops.rms_norm_fp8(rows, weight, eps, residual)
            return (values, scale), residual
        return ops.rms_norm(rows, weight, eps, residual)


def _for(target: Linear, rows: torch.Tensor) -> Rows:
    return ops.quantise_rows(rows) if target.takes_fp8 else rows
