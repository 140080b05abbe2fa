"""Builds TensorRT engines from an artifact's graph, and keeps them in a folder.

TensorRT is whatever of its Python packages is installed: `tensorrt`, `tensorrt_rtx` or bare `tensorrt_bindings` (see
requirements-tensorrt.txt). Building needs no GPU with TensorRT-RTX; TensorRT itself times kernels on the one it finds.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from vorta.errors import FailedPrecondition, Internal
from vorta_server.compiler.artifact import Manifest, load_manifest
from vorta_server.compiler.tensorrt_plan import EngineLimits, EngineSpec, Shapes, plan_engines, specialise

__all__ = ["EngineBuilder", "TensorRtBuilder", "build_engines", "device_architecture", "engine_file", "find_tensorrt"]

_MODULES = ("tensorrt", "tensorrt_rtx", "tensorrt_bindings")
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76  # of cuDeviceGetAttribute

# Of an artifact's files, what engines are made of: graphs and weights.
_GRAPH_SUFFIXES = (".onnx", ".bin")

# TensorRT closes its errors with what it did not get to say; the first ones say what is wrong.
_MAX_ERRORS = 3


class EngineBuilder(Protocol):
    """What turns a graph into an engine."""

    @property
    def version(self) -> str:
        """The builder's name and version; engines of another one are not read."""
        ...

    def build(self, graph: bytes, file: Path, shapes: Shapes) -> bytes:
        """The engine of a serialized graph whose weights lie beside `file`, for inputs within `shapes`.

        Raises Internal when the graph is refused.
        """
        ...


class TensorRtBuilder:
    """An `EngineBuilder` over a Python package of TensorRT.

    Only what TensorRT and TensorRT-RTX have in common is used: parsing, profiles, building.
    """

    def __init__(self, module: ModuleType) -> None:
        self._trt: Any = module

    @property
    def module(self) -> Any:
        """The package of TensorRT."""
        return self._trt

    @property
    def version(self) -> str:
        """As in "tensorrt 11.4.0"."""
        return f"{self._trt.__name__} {self._trt.__version__}"

    def build(self, graph: bytes, file: Path, shapes: Shapes) -> bytes:
        """See `EngineBuilder.build`."""
        trt, log = self._trt, _log_of(self._trt)
        builder = trt.Builder(log)
        network = builder.create_network(_network_flags(trt))
        parser = trt.OnnxParser(network, log)
        if not parser.parse(graph, str(file)):
            raise Internal(f"TensorRT cannot read {file.name}: {log.summary()}")
        config = builder.create_builder_config()
        if shapes:
            profile = builder.create_optimization_profile()
            for name, (smallest, usual, largest) in shapes.items():
                profile.set_shape(name, smallest, usual, largest)
            config.add_optimization_profile(profile)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            raise Internal(f"TensorRT cannot build {file.name}: {log.summary()}")
        return bytes(engine)


def find_tensorrt() -> TensorRtBuilder:
    """A builder over the first package of TensorRT that can be imported.

    Raises FailedPrecondition (DEVICE_MISSING) with what each one says.
    """
    reasons = []
    for name in _MODULES:
        try:
            return TensorRtBuilder(importlib.import_module(name))
        except ImportError as error:
            reasons.append(f"{name}: {error}")
    raise FailedPrecondition(
        f"TensorRT is not installed ({'; '.join(reasons)}); requirements-tensorrt.txt says what can be",
        reason="DEVICE_MISSING",
        field="engines",
    )


def build_engines(
    artifact: Path,
    folder: Path,
    *,
    limits: EngineLimits | None = None,
    builder: EngineBuilder | None = None,
    architecture: str | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> list[Path]:
    """The artifact's engines in `folder`, of which those that are missing are built; one for each of `plan_engines`.

    Args:
        builder: Default `find_tensorrt()`.
        architecture: Of the GPU that will run them; default that of the one here, see `device_architecture`.
        progress: Called with what is being built and the fraction done, 0 to 1.

    Raises:
        ArtifactError: The artifact is none, or damaged.
        FailedPrecondition: It was not compiled for TensorRT, or TensorRT is not installed.
        Internal: TensorRT refuses a graph.
        OSError: An engine cannot be written.
    """
    manifest = load_manifest(artifact)
    specs = plan_engines(manifest, limits or EngineLimits())
    builder = builder or find_tensorrt()
    architecture = architecture or device_architecture()
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index, spec in enumerate(specs):
        if progress is not None:
            progress(f"building {spec.name}", index / len(specs))
        path = folder / engine_file(manifest, spec, version=builder.version, architecture=architecture)
        if not path.exists():
            source = artifact / manifest.graphs[0].file
            graph, shapes = specialise(source, spec.dims)
            _write(path, builder.build(graph, source, shapes))
        files.append(path)
    return files


def engine_file(manifest: Manifest, spec: EngineSpec, *, version: str, architecture: str) -> str:
    """The name of an engine's file: it changes with all that the engine depends on, which are the graph, its weights,
    the shapes, TensorRT's version and the GPU's architecture."""
    parts = [version, architecture, spec.name, repr(sorted(spec.dims.items()))]
    files = sorted(manifest.files.items())
    parts += [f"{name} {entry.sha256}" for name, entry in files if name.endswith(_GRAPH_SUFFIXES)]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return f"{spec.name}-{architecture}-{digest[:16]}.engine"


def device_architecture() -> str:
    """The architecture of the first GPU, as in "sm90"; "any" where there is none, for engines that suit every one."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "any"
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    failed = (
        cuda.cuInit(0)
        or cuda.cuDeviceGet(ctypes.byref(device), 0)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)
    )
    if failed:
        return "any"
    return f"sm{major.value}{minor.value}"


def _write(path: Path, engine: bytes) -> None:
    """Puts the file in place whole, since others may look for it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(engine)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _network_flags(trt: Any) -> int:
    """Types as the graph has them. TensorRT 11 and RTX know nothing else and have no flag for it."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _log_of(trt: Any) -> Any:
    """A logger of TensorRT's that keeps errors."""

    class Log(trt.ILogger):  # type: ignore[misc]  # the class comes from a module that is found at run time
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message.strip())

        def summary(self) -> str:
            return "; ".join(list(dict.fromkeys(self.errors))[:_MAX_ERRORS]) or "it does not say why"

    return Log()
