"""The artifact that a worker serves: the source itself, or what a checkpoint is compiled into on first use."""

from __future__ import annotations

from pathlib import Path

from vorta.errors import FailedPrecondition, Unavailable
from vorta_kernels import cpu
from vorta_server.compiler.artifact import ArtifactError, Manifest, StorageError, is_artifact, load_manifest
from vorta_server.registry.source import model_kind
from vorta_server.runners.providers import parse_providers
from vorta_server.workers.config import WorkerConfig

__all__ = ["device_of", "engine_folder", "is_on_gpu", "served_artifact"]


def device_of(config: WorkerConfig) -> str:
    """What computes, as model cards name it. Raises FailedPrecondition for providers that are none."""
    return "cpu" if config.runner == "fake" or parse_providers(config.providers)[0] == "cpu" else "cuda"


def is_on_gpu(config: WorkerConfig) -> bool:
    """Whether ONNX Runtime is to compute on a GPU. Raises FailedPrecondition for providers that are none."""
    return device_of(config) != "cpu"


def engine_folder(config: WorkerConfig) -> Path:
    """Where TensorRT's provider keeps engines; made when absent."""
    folder = Path(config.cache_dir) / "engines"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def served_artifact(config: WorkerConfig) -> tuple[Path, Manifest]:
    """The artifact to serve, compiled first when the source is a checkpoint.

    For providers on a GPU it is compiled in standard operators, for TensorRT. For the cpu an encoder is compiled in
    int8 where the server's precision is one that it has not.

    Raises:
        FailedPrecondition: The checkpoint or artifact is at fault (CHECKPOINT_INVALID).
        Unavailable: Another process is compiling it.
    """
    source = Path(config.source)
    try:
        if is_artifact(source):
            return source, load_manifest(source)
        from vorta_server.compiler.cache import CacheBusyError, artifact_for  # brings onnx, which serving does not need
        from vorta_server.compiler.checkpoint import CheckpointError

        precision = config.precision
        target = "tensorrt" if is_on_gpu(config) else "cpu"
        if target == "cpu" and precision not in ("fp32", "int8") and model_kind(source) in ("embedding", "rerank"):
            precision = "int8"
        try:
            compiled = artifact_for(
                source,
                target=target,
                precision=precision,
                kernels="vorta" if cpu.is_available() else "portable",
                cache_dir=Path(config.cache_dir),
                max_model_len=config.max_model_len,
            )
        except CheckpointError as error:
            raise _invalid(error, error.path or source, error.field) from error
        except CacheBusyError as error:
            raise Unavailable(str(error), retry_delay_s=10.0) from error
        return compiled, load_manifest(compiled, verify=False)
    except ArtifactError as error:
        raise _invalid(error, error.path, error.field) from error
    except StorageError as error:
        raise FailedPrecondition(str(error), reason="CHECKPOINT_INVALID", metadata={"path": error.out}) from error


def _invalid(error: Exception, path: Path, field: str | None) -> FailedPrecondition:
    return FailedPrecondition(str(error), reason="CHECKPOINT_INVALID", metadata={"path": path}, field=field)
