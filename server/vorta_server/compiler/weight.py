"""The weights of a decoder: which tensors must exist, and lazy matrices over them.

A Matrix is read a few rows at a time, so packing q, k and v together or moving a head's elements never needs
a whole tensor in memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vorta_server.compiler.checkpoint import Checkpoint, CheckpointError, Float32Array
from vorta_server.compiler.spec import DecoderSpec

# Buffers that older checkpoints saved beside the weights; they are recomputed here.
_IGNORED = re.compile(r"\.rotary_emb\.inv_freq$|\.masked_bias$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A float32 matrix [num_rows, num_columns] that is read in slices of rows.

    `read(start, stop)` returns a new array and may be called from several threads.
    """

    name: str
    num_rows: int
    num_columns: int
    read: Callable[[int, int], Float32Array]


def stack_rows(name: str, parts: Sequence[Matrix]) -> Matrix:
    """The matrices one below the other, as one."""
    starts = np.cumsum([0, *(part.num_rows for part in parts)])

    def read(start: int, stop: int) -> Float32Array:
        pieces = [
            part.read(max(start - low, 0), min(stop - low, part.num_rows))
            for part, low in zip(parts, starts.tolist(), strict=False)
            if start < low + part.num_rows and stop > low
        ]
        return np.concatenate(pieces) if len(pieces) != 1 else pieces[0]

    return Matrix(name=name, num_rows=int(starts[-1]), num_columns=parts[0].num_columns, read=read)


def take_rows(matrix: Matrix, source: npt.NDArray[np.int64]) -> Matrix:
    """Row i of the result is the matrix's row source[i], or zero where source[i] is -1."""

    def read(start: int, stop: int) -> Float32Array:
        wanted = source[start:stop]
        result = np.zeros((len(wanted), matrix.num_columns), np.float32)
        real = wanted >= 0
        if real.any():
            low, high = int(wanted[real].min()), int(wanted[real].max()) + 1
            result[real] = matrix.read(low, high)[wanted[real] - low]
        return result

    return Matrix(name=matrix.name, num_rows=len(source), num_columns=matrix.num_columns, read=read)


def take_columns(matrix: Matrix, source: npt.NDArray[np.int64]) -> Matrix:
    """Column i of the result is the matrix's column source[i], or zero where source[i] is -1."""

    def read(start: int, stop: int) -> Float32Array:
        rows = matrix.read(start, stop)
        return np.where(source >= 0, rows[:, source], np.float32(0))

    return Matrix(name=matrix.name, num_rows=matrix.num_rows, num_columns=len(source), read=read)


def tensor_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor that the decoder needs, with its shape."""
    hidden, inner = spec.hidden_size, spec.intermediate_size
    query, key = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (spec.vocab_size, hidden)}
    for layer in range(spec.num_layers):
        prefix = f"model.layers.{layer}."
        linears = {
            "self_attn.q_proj": (query, hidden, spec.qkv_bias),
            "self_attn.k_proj": (key, hidden, spec.qkv_bias),
            "self_attn.v_proj": (key, hidden, spec.qkv_bias),
            "self_attn.o_proj": (hidden, query, spec.output_bias),
            "mlp.gate_proj": (inner, hidden, spec.mlp_bias),
            "mlp.up_proj": (inner, hidden, spec.mlp_bias),
            "mlp.down_proj": (hidden, inner, spec.mlp_bias),
        }
        for name, (num_rows, num_columns, biased) in linears.items():
            shapes[f"{prefix}{name}.weight"] = (num_rows, num_columns)
            if biased:
                shapes[f"{prefix}{name}.bias"] = (num_rows,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}{name}.weight"] = (hidden,)
        if spec.qk_norm:
            shapes[f"{prefix}self_attn.q_norm.weight"] = (spec.head_dim,)
            shapes[f"{prefix}self_attn.k_norm.weight"] = (spec.head_dim,)
    shapes["model.norm.weight"] = (hidden,)
    if not spec.tie_word_embeddings:
        shapes["lm_head.weight"] = (spec.vocab_size, hidden)
    return shapes


class TensorReader:
    """A checkpoint's tensors under the names that they have there, those named here and no others."""

    def __init__(self, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._checkpoint = checkpoint
        self._entries = {name: checkpoint.entry(name, shape) for name, shape in shapes.items()}

    def matrix(self, name: str) -> Matrix:
        """A tensor of two dimensions."""
        entry = self._entries[name]
        num_rows, num_columns = entry.shape
        return Matrix(
            name=name,
            num_rows=num_rows,
            num_columns=num_columns,
            read=lambda start, stop: self._checkpoint.rows(entry, start, stop),
        )

    def vector(self, name: str) -> Float32Array:
        """A tensor of one dimension."""
        entry = self._entries[name]
        return self._checkpoint.rows(entry, 0, entry.shape[0])

    def optional_vector(self, name: str) -> Float32Array | None:
        """A tensor of one dimension, None when the model has none of this name (a bias)."""
        return self.vector(name) if name in self._entries else None

    def _refuse(self, left_over: Sequence[str], architecture: str) -> None:
        """Raises CheckpointError for the first tensor that the graph would silently drop: the configuration then
        describes another model."""
        if left_over:
            raise CheckpointError(
                f"tensor {left_over[0]} is not part of {architecture} as config.json describes it",
                field=left_over[0],
                path=self._checkpoint.tensors[left_over[0]].file,
            )


class DecoderWeights(TensorReader):
    """The checkpoint's tensors under a decoder's names, all of them checked when it is made.

    Raises CheckpointError naming the first tensor that is missing, misshapen, of an unsupported type, or left
    over.
    """

    def __init__(self, checkpoint: Checkpoint, spec: DecoderSpec) -> None:
        super().__init__(checkpoint, tensor_shapes(spec))
        left_over = [name for name in checkpoint.tensors if name not in self._entries and not _IGNORED.search(name)]
        if spec.tie_word_embeddings and "lm_head.weight" in left_over:
            left_over.remove("lm_head.weight")
            self._check_tied()
        self._refuse(left_over, spec.architecture)

    def _check_tied(self) -> None:
        embedding = self._entries["model.embed_tokens.weight"]
        head = self._checkpoint.entry("lm_head.weight", embedding.shape)
        for start in range(0, embedding.shape[0], 4096):
            stop = min(start + 4096, embedding.shape[0])
            ours, theirs = (self._checkpoint.rows(entry, start, stop) for entry in (embedding, head))
            if not np.array_equal(ours, theirs):
                raise CheckpointError(
                    "tensor lm_head.weight differs from the embedding, though tie_word_embeddings is true",
                    field="lm_head.weight",
                    path=head.file,
                )
