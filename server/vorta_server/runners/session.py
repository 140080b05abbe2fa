"""Sessions of ONNX Runtime, with Vorta's kernels where an artifact needs them."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from vorta.errors import FailedPrecondition, Internal
from vorta_kernels import cpu
from vorta_server.compiler.artifact import ArtifactError, Manifest
from vorta_server.runners.providers import ProviderChoice, check_started

__all__ = ["check_target", "kernel_library", "open_session", "resident_weights"]

_LOG_ERRORS_ONLY = 3
_LARGE_PAGE_BYTES = 2 << 20


def resident_weights(files: Iterable[Path]) -> dict[str, ort.OrtValue]:
    """The tensors that graphs keep in files beside them, by name, read into memory of large pages where there are any.

    ONNX Runtime maps those files, in pages of 4 KiB, at each of which the processor stops reading ahead. Measured with
    `vorta_bench.kernels step` in benchmarks/results/cpu.md. The values own the memory, which every session that is
    given them shares; they must live as long as the sessions.

    Raises OSError where a file cannot be read or memory is short, ValueError where a file is shorter than its tensors.
    """
    import onnx  # here, since only where tensors lie is read with it, and runners of other kinds do not need it

    memories: dict[Path, np.ndarray] = {}
    values: dict[str, ort.OrtValue] = {}
    for file in files:
        for tensor in onnx.load(str(file), load_external_data=False).graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL or tensor.name in values:
                continue
            place = {entry.key: entry.value for entry in tensor.external_data}
            path = file.parent / place["location"]
            if path not in memories:
                memories[path] = _read_into_large_pages(path)
            start, size = int(place.get("offset", 0)), int(place["length"])
            element = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            data = memories[path][start : start + size].view(element).reshape(tuple(tensor.dims))
            values[tensor.name] = ort.OrtValue.ortvalue_from_numpy(data)
    return values


def _read_into_large_pages(path: Path) -> np.ndarray:
    """The file's bytes, from a large page's beginning on."""
    size = path.stat().st_size
    memory = mmap.mmap(-1, size + _LARGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    everything = np.frombuffer(memory, np.uint8)
    start = -everything.ctypes.data % _LARGE_PAGE_BYTES
    data = everything[start : start + size]
    with path.open("rb", buffering=0) as stream:
        done = 0
        while done < size:
            count = stream.readinto(data[done:].data)
            if not count:
                raise ValueError(f"{path} ended after {done} of {size} bytes")
            done += count
    return data


def kernel_library(artifact: Path) -> Path:
    """The kernels' library for an artifact that needs it. Raises ArtifactError where it cannot be had."""
    try:
        return cpu.library()
    except cpu.BuildError as error:
        raise ArtifactError(
            f"{artifact} needs vorta's kernels, which cannot be had here: {error}; compile it with --kernels portable",
            path=artifact,
            field="kernels",
        ) from error


def check_target(manifest: Manifest, artifact: Path, names: Sequence[str]) -> None:
    """Refuses an artifact for the CPU where providers of a GPU are to run it.

    Raises FailedPrecondition naming `providers` (TARGET_MISMATCH).
    """
    if names[0] == "cpu" or manifest.target == "tensorrt":
        return
    needs = "vorta's kernels, which run on a CPU" if manifest.kernels == "vorta" else "operators of the CPU's provider"
    raise FailedPrecondition(
        f"{artifact} needs {needs}; for the provider {names[0]} compile the checkpoint with --target tensorrt",
        reason="TARGET_MISMATCH",
        field="providers",
    )


def open_session(
    file: Path,
    threads: int,
    kernels: Path | None,
    *,
    has_siblings: bool = False,
    providers: ProviderChoice | None = None,
    weights: Mapping[str, ort.OrtValue] | None = None,
) -> ort.InferenceSession:
    """A session over a graph.

    Args:
        threads: Of a run, the calling one included; 0 for one per core.
        kernels: The library of the operators that the graph needs beside ONNX Runtime's.
        has_siblings: Other sessions run in turn with this one.
        providers: Default the CPU's alone.
        weights: Of `resident_weights`; default those that ONNX Runtime reads.

    Raises:
        Internal: ONNX Runtime refuses the graph.
        FailedPrecondition: A provider did not start.
    """
    choice = providers or ProviderChoice()
    options = ort.SessionOptions()
    if kernels is not None:
        options.register_custom_ops_library(str(kernels))
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_ERRORS_ONLY
    # Weights of standard graphs are quantised and their activations are not, here as on the engines they are made for.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if has_siblings:
        # Another session's threads must not spin on the cores that this step needs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
    for name, value in (weights or {}).items():
        options.add_initializer(name, value)
    for name, size in choice.overrides.items():
        options.add_free_dimension_override_by_name(name, size)
    try:
        session = ort.InferenceSession(str(file), options, providers=choice.for_session())
    except Exception as error:  # ONNX Runtime raises its own types, with RuntimeError as their only common base
        raise Internal(f"ONNX Runtime refuses {file.name}: {error}") from error
    check_started(session, choice.names)
    return session
