"""From the hidden states of tokens to one vector for each text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["POOLINGS", "normalized", "pool"]

Float32Array = NDArray[np.float32]

POOLINGS = ("mean", "cls", "last", "token")

# Below it a vector has no direction worth keeping; it stays as it is instead of becoming noise or NaN.
_SMALLEST_NORM = 1e-12


def pool(
    hidden: Float32Array, lengths: NDArray[np.int64], *, pooling: str, normalize: bool, dimensions: int | None = None
) -> Float32Array:
    """One vector for each text.

    Args:
        hidden: Hidden states of all texts' tokens, one text behind the other, [T, H].
        lengths: Tokens of each text, [B], each positive, T together.
        pooling: "mean" of the tokens, the first ("cls"), the "last", or "token" for a vector of each token.
        normalize: Scale each vector to length 1; a vector of zeros stays one.
        dimensions: Keep the first so many numbers, before scaling (Matryoshka representations, arXiv 2205.13147);
            None for all.

    Returns:
        [B, D], with "token" [T, D]; a new array.

    Raises:
        ValueError: An argument is out of range.
    """
    size = hidden.shape[1]
    if dimensions is not None and not 1 <= dimensions <= size:
        raise ValueError(f"dimensions must be 1 to {size}, not {dimensions}")
    lengths = np.asarray(lengths, np.int64)
    if int(lengths.sum()) != len(hidden) or (len(lengths) and int(lengths.min()) < 1):
        raise ValueError(f"{len(lengths)} lengths, {int(lengths.sum())} together, do not fit {len(hidden)} tokens")
    kept = hidden if dimensions is None else hidden[:, :dimensions]
    ends = np.cumsum(lengths)
    if pooling == "mean":
        # reduceat has nothing to say about no texts at all
        sums = np.add.reduceat(kept, ends - lengths, axis=0) if len(lengths) else kept[:0]
        vectors: Float32Array = np.divide(sums, lengths[:, None].astype(np.float32), dtype=np.float32)
    elif pooling == "cls":
        vectors = kept[ends - lengths]
    elif pooling == "last":
        vectors = kept[ends - 1]
    elif pooling == "token":
        vectors = kept.copy()
    else:
        raise ValueError(f"pooling {pooling!r} is unknown; there are {', '.join(POOLINGS)}")
    return normalized(vectors) if normalize else vectors


def normalized(vectors: Float32Array) -> Float32Array:
    """The vectors [B, D] scaled to length 1; those (nearly) zero as they are."""
    norms = np.sqrt(np.einsum("bd,bd->b", vectors, vectors))[:, None]
    result: Float32Array = np.divide(vectors, np.where(norms > _SMALLEST_NORM, norms, 1), dtype=np.float32)
    return result
