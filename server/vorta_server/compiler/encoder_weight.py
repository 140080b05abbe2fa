"""The weights of a text encoder: which tensors must exist, under which prefix, and readers over them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np

from vorta_server.compiler.checkpoint import Checkpoint, Float32Array
from vorta_server.compiler.encoder_spec import EncoderSpec
from vorta_server.compiler.linear import Linear, stack_linears
from vorta_server.compiler.weight import TensorReader

__all__ = ["EncoderWeights"]

# Buffers that older checkpoints saved beside the weights; they are recomputed here.
_BUFFERS = re.compile(r"(.*\.)?(position_ids|token_type_ids|rotary_emb\.inv_freq|masked_bias)")


class EncoderWeights(TensorReader):
    """The checkpoint's tensors under an encoder's names, all of them checked when it is made.

    Raises CheckpointError naming the first tensor that is missing, misshapen, of an unsupported type, or left over.
    """

    def __init__(self, checkpoint: Checkpoint, spec: EncoderSpec) -> None:
        self._spec = spec
        self._prefix = _find_prefix(checkpoint, spec)
        shapes = dict(self._shapes())
        super().__init__(checkpoint, shapes)
        ignored = re.compile(spec.names.ignored)
        left_over = [
            name
            for name in checkpoint.tensors
            if name not in shapes and not ignored.fullmatch(name) and not _BUFFERS.fullmatch(name)
        ]
        self._refuse(left_over, spec.architecture)
        self.num_parameters = sum(math.prod(shape) for shape in shapes.values())

    def name(self, part: str, layer: int | None = None) -> str:
        """A tensor's full name, without `.weight`, by its name in EncoderNames."""
        return self._prefix + ("" if layer is None else self._spec.names.layer.format(layer)) + part

    def linear(self, name: str) -> Linear:
        """The layer of this full name."""
        return Linear(name=name, weight=self.matrix(f"{name}.weight"), bias=self.optional_vector(f"{name}.bias"))

    def stacked(self, parts: tuple[str, ...], layer: int, name: str) -> Linear:
        """A layer's linear parts as one, their outputs side by side."""
        linears = [self.linear(self.name(part, layer)) for part in parts]
        return linears[0] if len(linears) == 1 else stack_linears(self.name(name, layer), linears)

    def table(self, part: str) -> Float32Array:
        """A small table of rows (positions, types) in memory, [rows, columns]."""
        matrix = self.matrix(f"{self.name(part)}.weight")
        return np.asarray(matrix.read(0, matrix.num_rows))

    def _shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        spec, names = self._spec, self._spec.names
        hidden = spec.hidden_size
        yield f"{self.name(names.words)}.weight", (spec.vocab_size, hidden)
        if names.positions:
            yield f"{self.name(names.positions)}.weight", (spec.num_positions, hidden)
        if names.types:
            yield f"{self.name(names.types)}.weight", (spec.num_types, hidden)
        if names.relative:
            buckets = spec.relative.num_buckets if spec.relative is not None else 0
            yield f"{self.name(names.relative)}.weight", (buckets, spec.num_heads)
        for norm in (names.embedding_norm, names.final_norm):
            yield from self._norm(norm)
        for layer in range(spec.num_layers):
            yield from self._layer(layer)
        if spec.head is not None:
            yield from _linear(spec.head.dense, hidden, hidden, spec.head.dense_bias)
            if spec.head.norm:
                yield f"{spec.head.norm}.weight", (hidden,)
                if spec.norm_bias:
                    yield f"{spec.head.norm}.bias", (hidden,)
            yield from _linear(spec.head.classifier, spec.head.num_labels, hidden, True)

    def _layer(self, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        spec, names = self._spec, self._spec.names
        hidden, inner = spec.hidden_size, spec.intermediate_size
        query, key = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        sizes = (query, key, key) if len(names.qkv) == 3 else (query + 2 * key,)
        for part, size in zip(names.qkv, sizes, strict=True):
            yield from _linear(self.name(part, layer), size, hidden, spec.attention_bias)
        yield from _linear(self.name(names.attention_output, layer), hidden, query, spec.attention_output_bias)
        width = inner * (2 if spec.is_gated else 1) // len(names.inner)
        for part in names.inner:
            yield from _linear(self.name(part, layer), width, hidden, spec.feed_bias)
        yield from _linear(self.name(names.outer, layer), hidden, inner, spec.feed_bias)
        if layer > 0 or spec.has_first_norm:
            yield from self._norm(names.attention_norm, layer)
        yield from self._norm(names.feed_norm, layer)
        for part in (names.query_norm, names.key_norm):
            if part:
                yield f"{self.name(part, layer)}.weight", (spec.head_dim,)

    def _norm(self, part: str, layer: int | None = None) -> Iterator[tuple[str, tuple[int, ...]]]:
        if part:
            yield f"{self.name(part, layer)}.weight", (self._spec.hidden_size,)
            if self._spec.norm_bias:
                yield f"{self.name(part, layer)}.bias", (self._spec.hidden_size,)


def _linear(name: str, num_rows: int, num_columns: int, has_bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (num_rows, num_columns)
    if has_bias:
        yield f"{name}.bias", (num_rows,)


def _find_prefix(checkpoint: Checkpoint, spec: EncoderSpec) -> str:
    """The prefix under which the words are; the family's first where there are none, which is then the error."""
    for prefix in spec.names.prefixes:
        if f"{prefix}{spec.names.words}.weight" in checkpoint.tensors:
            return prefix
    return spec.names.prefixes[0]
