"""How a head's elements are laid out in the compiled graph.

ONNX Runtime's GroupQueryAttention rotates whole heads whose size is a multiple of 16, pairing element i with
i + size / 2. A head of any other size, or one that is rotated only in part, is brought into that form by
moving its elements and padding with zeros: a zero changes no dot product, and an element with cos 1 and sin
0 is not rotated. The move is made once, on the rows of the projections, so that it costs nothing at run time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vorta_server.compiler.checkpoint import Float32Array

_MULTIPLE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLayout:
    """The place of a source head's elements in the compiled head.

    Attributes:
        source_dim: elements of a head in the checkpoint.
        dim: elements of a head in the graph and in the KV cache; a multiple of 16.
        rotary_dim: how many first elements of the source head are rotated.
    """

    source_dim: int
    dim: int
    rotary_dim: int

    @property
    def is_identity(self) -> bool:
        """True when nothing moves."""
        return self.source_dim == self.dim == self.rotary_dim

    def source_of(self) -> npt.NDArray[np.int64]:
        """For each element of the compiled head the source element it takes, -1 for padding; [dim]."""
        source = np.full(self.dim, -1, np.int64)
        pairs, half = self.rotary_dim // 2, self.dim // 2
        source[:pairs] = np.arange(pairs)
        source[half : half + pairs] = np.arange(pairs, self.rotary_dim)
        rest = np.arange(self.rotary_dim, self.source_dim)
        source[np.flatnonzero(source < 0)[: len(rest)]] = rest
        return source

    def rows(self, num_heads: int) -> npt.NDArray[np.int64]:
        """For each row of a projection to num_heads compiled heads its source row, -1 for padding."""
        source = self.source_of()
        starts = np.arange(num_heads)[:, None] * self.source_dim
        return np.where(source < 0, -1, starts + source).reshape(-1)

    def place(self, vector: Float32Array) -> Float32Array:
        """A per-element vector of the source head in compiled order, zero in the padding."""
        source = self.source_of()
        return np.where(source < 0, np.float32(0), vector[source]).astype(np.float32)

    def place_table(self, table: Float32Array, fill: float) -> Float32Array:
        """A rope table [length, rotary_dim / 2] widened to [length, dim / 2] with `fill`."""
        missing = self.dim // 2 - table.shape[1]
        return np.pad(table, ((0, 0), (0, missing)), constant_values=fill) if missing else table


def head_layout(head_dim: int, rotary_dim: int) -> HeadLayout:
    """The layout for heads of head_dim elements, the first rotary_dim of them rotated."""
    dim = -(-head_dim // _MULTIPLE) * _MULTIPLE
    return HeadLayout(source_dim=head_dim, dim=dim, rotary_dim=rotary_dim)
