"""Sessions of ONNX Runtime, with Vorta's kernels where an artifact needs them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort

from vorta.errors import FailedPrecondition, Internal
from vorta_kernels import cpu
from vorta_server.compiler.artifact import ArtifactError, Manifest
from vorta_server.runners.providers import ProviderChoice, check_started

__all__ = ["check_target", "kernel_library", "open_session"]

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
) -> ort.InferenceSession:
    """A session over a graph.

    Args:
        threads: Of a run, the calling one included; 0 for one per core.
        kernels: The library of the operators that the graph needs beside ONNX Runtime's.
        has_siblings: Other sessions run in turn with this one.
        providers: Default the CPU's alone.

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
    for name, size in choice.overrides.items():
        options.add_free_dimension_override_by_name(name, size)
    try:
        session = ort.InferenceSession(str(file), options, providers=choice.for_session())
    except Exception as error:  # ONNX Runtime raises its own types, with RuntimeError as their only common base
        raise Internal(f"ONNX Runtime refuses {file.name}: {error}") from error
    check_started(session, choice.names)
    return session
