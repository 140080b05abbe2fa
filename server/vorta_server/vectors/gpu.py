"""Copies of vectors on a GPU, where FAISS was built for one.

A segment that has a copy is compared with as a whole, exactly, which a GPU has the bandwidth for. The index stays, for
what the copy does not do: filters, dead rows, very many hits. FAISS's graphs have no form for GPUs.

Tested against a fake of FAISS's GPU functions alone; it was not run on a GPU yet.
"""

from __future__ import annotations

import logging
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from vorta.errors import FailedPrecondition
from vorta_server.vectors.index import Found, Matrix

__all__ = ["Gpu", "GpuVectors", "open_gpu"]

_log = logging.getLogger(__name__)

# FAISS's GPU kernels find no more.
_MAX_HITS = 2048
_SLICE_ROWS = 1 << 17


class GpuVectors:
    """Vectors on a GPU. Of the worker's thread.

    Attributes:
        max_hits: Most hits of a query.
    """

    max_hits = _MAX_HITS

    def __init__(self, faiss_index: Any) -> None:
        self._index = faiss_index

    def search(self, queries: Matrix, k: int) -> Found:
        """The best k of all, scores and positions as in `index.scan`. k is at most `max_hits`."""
        scores: npt.NDArray[np.float32]
        scores, positions = self._index.search(queries, k)
        return scores, positions


class Gpu:
    """The first GPU that FAISS sees, and its memory for temporary values, which all segments share."""

    def __init__(self) -> None:
        self._resources = faiss.StandardGpuResources()

    def upload(self, vectors: Matrix, distance: str) -> GpuVectors | None:
        """A copy of vectors [rows, dimension]; None where there is no room for it, which is logged."""
        metric = faiss.METRIC_L2 if distance == "l2" else faiss.METRIC_INNER_PRODUCT
        try:
            index = faiss.index_cpu_to_gpu(self._resources, 0, faiss.IndexFlat(vectors.shape[1], metric))
            for start in range(0, len(vectors), _SLICE_ROWS):
                index.add(np.ascontiguousarray(vectors[start : start + _SLICE_ROWS]))
        except RuntimeError as error:  # FAISS's own, of CUDA
            _log.warning("%d vectors stay off the GPU: %s", len(vectors), error)
            return None
        return GpuVectors(index)


def open_gpu(device: str) -> Gpu | None:
    """The GPU for a setting: "cpu" has none, "auto" the one that there is, "cuda" must have one.

    Raises FailedPrecondition naming `vector.device` (DEVICE_MISSING).
    """
    if device == "cpu":
        return None
    is_built = hasattr(faiss, "StandardGpuResources")
    if is_built and faiss.get_num_gpus() > 0:
        return Gpu()
    if device == "auto":
        return None
    why = "FAISS sees no GPU" if is_built else "this FAISS was built for CPUs (faiss-cpu); install a faiss-gpu package"
    raise FailedPrecondition(f"vector.device is {device}, but {why}", reason="DEVICE_MISSING", field="vector.device")
