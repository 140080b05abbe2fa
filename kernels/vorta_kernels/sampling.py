"""Choosing tokens for a batch of rows, in C++ (`csrc/cpu/sampling.cpp`) on as many threads as the logits are worth."""

from __future__ import annotations

import ctypes
import os

import numpy as np
from numpy.typing import NDArray

from vorta_kernels import cpu

__all__ = ["SamplingKernel"]


class SamplingKernel:
    """The kernel's functions. Stateless; any thread may call.

    Raises:
        vorta_kernels.cpu.BuildError: The library cannot be built here.
    """

    def __init__(self, num_threads: int = 0) -> None:
        library = ctypes.CDLL(str(cpu.library()))
        self._sample, self._score = library.vorta_sample, library.vorta_score
        self._sample.restype = self._score.restype = None
        self._num_threads = ctypes.c_int64(num_threads or os.cpu_count() or 1)

    def sample(
        self,
        logits: NDArray[np.float32],
        *,
        inverse_temperature: NDArray[np.float64],
        top_k: NDArray[np.int64],
        top_p: NDArray[np.float64],
        min_p: NDArray[np.float64],
        uniforms: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        """A token for every row of logits [num_rows, vocab_size], -1 where a row's maximum is not a finite number.

        Args:
            logits: C-contiguous.
            inverse_temperature: [num_rows]; 0 takes the largest logit.
            top_k, top_p, min_p, uniforms: [num_rows]; see `vorta_server.engine.sampler`.
        """
        tokens = np.empty(len(logits), np.int64)
        self._sample(
            _address(logits),
            ctypes.c_int64(logits.shape[0]),
            ctypes.c_int64(logits.shape[1]),
            _address(inverse_temperature),
            _address(top_k),
            _address(top_p),
            _address(min_p),
            _address(uniforms),
            self._num_threads,
            _address(tokens),
        )
        return tokens

    def score(
        self, logits: NDArray[np.float32], indices: NDArray[np.int64], top_n: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Of the rows of logits [num_rows, vocab_size] named by `indices` [n]: the log of the sum of exp [n], and the
        ids of the `top_n` largest [n, top_n], equal ones by ascending id. `top_n` is at most vocab_size."""
        normalisers = np.empty(len(indices), np.float64)
        top_ids = np.empty((len(indices), top_n), np.int64)
        self._score(
            _address(logits),
            ctypes.c_int64(logits.shape[1]),
            _address(indices),
            ctypes.c_int64(len(indices)),
            ctypes.c_int64(top_n),
            self._num_threads,
            _address(normalisers),
            _address(top_ids),
        )
        return normalisers, top_ids


def _address(array: NDArray[np.generic]) -> ctypes.c_void_p:
    if not array.flags.c_contiguous:
        raise ValueError("the array is not contiguous")
    return ctypes.c_void_p(array.ctypes.data)
