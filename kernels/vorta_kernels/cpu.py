"""Vorta's operators for ONNX Runtime on a CPU: the library, built from `csrc/cpu` for this machine on first use.

It is kept by `build`, and built again when the sources, the compiler or the processor change. `csrc/cpu/ops.cpp` lists
the operators.
"""

from __future__ import annotations

import functools
import logging
import platform
from pathlib import Path

from vorta_kernels import build
from vorta_kernels.build import BuildError, compiler

__all__ = ["BuildError", "compiler", "is_available", "library"]

logger = logging.getLogger(__name__)

_SOURCES = Path(__file__).parent / "csrc" / "cpu"
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-Wno-psabi",
)
_BUILD_TIMEOUT_S = 300


@functools.cache
def library() -> Path:
    """The path of the library, built if need be (half a minute).

    Raises:
        BuildError: There is no C++ compiler, it failed, or the cache folder cannot be written.
    """
    program = compiler()
    if program is None:
        raise BuildError("no C++ compiler is installed")
    parts = (*_FLAGS, program, build.version(program), _processor())
    path = build.kept("kernels", "vorta_cpu", parts, sorted(_SOURCES.iterdir()))
    build.run_compiler([program, *_FLAGS, *map(str, sorted(_SOURCES.glob("*.cpp")))], path, timeout_s=_BUILD_TIMEOUT_S)
    return path


@functools.cache
def is_available() -> bool:
    """Whether the library is there or can be built; logs once why not, since what runs without it is slower."""
    try:
        library()
    except BuildError as error:
        logger.warning("without Vorta's kernels, on slower operators: %s", error)
        return False
    return True


def _processor() -> str:
    """What decides which instructions `-march=native` uses."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = [line for line in file if line.startswith(("flags", "Features", "model name"))]
    except OSError:
        lines = []
    return platform.machine() + "".join(sorted(set(lines)))


if __name__ == "__main__":  # `python -m vorta_kernels.cpu` builds the library and prints its path
    print(library())  # noqa: T201
