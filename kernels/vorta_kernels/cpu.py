"""Vorta's operators for ONNX Runtime on a CPU: the library, built from `csrc/cpu` for this machine on first use.

The library is kept in the user's cache folder under a name that says what it was built from, with what and for which
processor, so that it is built again exactly when one of these changes. `csrc/cpu/ops.cpp` lists the operators.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

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
_COMPILERS = ("c++", "g++", "clang++")
_BUILD_TIMEOUT_S = 300


class BuildError(RuntimeError):
    """The library cannot be built here; the message says why."""


def compiler() -> str | None:
    """The path of the C++ compiler that builds the library; None where there is none."""
    return next((found for name in _COMPILERS if (found := shutil.which(name))), None)


@functools.cache
def library() -> Path:
    """The path of the library, built if need be (a few seconds).

    Raises:
        BuildError: There is no C++ compiler, it failed, or the cache folder cannot be written.
    """
    program = compiler()
    if program is None:
        raise BuildError(f"no C++ compiler ({', '.join(_COMPILERS)}) is installed")
    sources = sorted(_SOURCES.glob("*.cpp"))
    digest = hashlib.sha256()
    for part in (*_FLAGS, program, _compiler_version(program), _processor()):
        digest.update(f"{part}\0".encode())
    for file in sorted(_SOURCES.iterdir()):
        digest.update(file.read_bytes())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vorta" / "kernels"
    path = folder / f"vorta_cpu-{digest.hexdigest()[:16]}.so"
    if not path.exists():
        _build(program, sources, path)
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


def _build(program: str, sources: list[Path], path: Path) -> None:
    """Builds beside the place and renames, so that processes which build at once do not see half a library."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            result = Path(scratch) / path.name
            command = [program, *_FLAGS, "-o", str(result), *map(str, sources)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S, check=False)
            if done.returncode:
                raise BuildError(f"{program} failed: {done.stderr.strip()[-2000:]}")
            result.replace(path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"building {path.name} failed: {error}") from error


def _compiler_version(program: str) -> str:
    try:
        return subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=30, check=True
        ).stdout.partition("\n")[0]
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{program} cannot be run: {error}") from error


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
