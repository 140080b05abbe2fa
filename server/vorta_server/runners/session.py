"""Sessions of ONNX Runtime on a CPU, with Vorta's kernels where an artifact needs them."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from vorta.errors import Internal
from vorta_kernels import cpu
from vorta_server.compiler.artifact import ArtifactError

__all__ = ["kernel_library", "open_session"]

_PROVIDERS = ["CPUExecutionProvider"]
_LOG_ERRORS_ONLY = 3


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


def open_session(file: Path, threads: int, kernels: Path | None, *, has_siblings: bool = False) -> ort.InferenceSession:
    """A session over a graph.

    Args:
        threads: Of a run, the calling one included; 0 for one per core.
        kernels: The library of the operators that the graph needs beside ONNX Runtime's.
        has_siblings: Other sessions run in turn with this one.

    Raises Internal when ONNX Runtime refuses the graph.
    """
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
    try:
        return ort.InferenceSession(str(file), options, providers=_PROVIDERS)
    except Exception as error:  # ONNX Runtime raises its own types, with RuntimeError as their only common base
        raise Internal(f"ONNX Runtime refuses {file.name}: {error}") from error
