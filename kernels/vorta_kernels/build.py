"""Builds of native libraries on first use: where they are kept, and how the compiler is run.

A library is kept in the user's cache folder under a name that says what it was built from, with what and for what, so
that it is built again exactly when one of these changes. Processes that want the same one build it once: the others
wait. A compiler that runs ends with the process that started it, however that one ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

__all__ = ["BuildError", "compiler", "kept", "run_compiler", "version"]

_COMPILERS = ("c++", "g++", "clang++")
_LOCK_INTERVAL_S = 0.1
# The compiler has a process group of its own, which a watcher ends when the pipe on standard input is closed: that
# happens when the starter wants it, and by the kernel's hand when the starter dies. A compiler's own children (cc1plus)
# would outlive it otherwise.
_WATCHED = (
    'exec 3<&0; (read -r _ <&3; kill -9 0) >/dev/null 2>&1 & "$@" </dev/null 3<&-; status=$?; kill -9 $!; exit $status'
)


class BuildError(RuntimeError):
    """A library cannot be built here; the message says why."""


def compiler() -> str | None:
    """The path of the C++ compiler; None where there is none."""
    return next((found for name in _COMPILERS if (found := shutil.which(name))), None)


@functools.cache
def version(program: str) -> str:
    """What a program says to `--version`. Raises BuildError when it cannot be run."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{program} cannot be run: {error}") from error
    return done.stdout


def kept(kind: str, name: str, parts: Iterable[str], sources: Iterable[Path]) -> Path:
    """Where the library of this name is kept.

    Args:
        kind: The folder in the cache.
        name: The stem of the file.
        parts: What decides what the library is, beside the sources.
        sources: The files that it is made of.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\0".encode())
    for file in sources:
        digest.update(file.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "vorta" / kind / f"{name}-{digest.hexdigest()[:16]}.so"


def run_compiler(command: Sequence[str], path: Path, *, timeout_s: float) -> None:
    """Builds `path` unless it is there: beside the place and then renamed, so that nobody sees half a library.

    Args:
        command: The compiler and its arguments, less `-o` and the result.
        path: The library. What the compiler said is beside it, with the ending `.log`.
        timeout_s: Until another's build, or one's own, must have ended.

    Raises:
        BuildError: The compiler failed or took too long, or the cache folder cannot be written.
    """
    if path.exists():
        return
    until_s = time.monotonic() + timeout_s
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.parent, until_s), tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            if path.exists():
                return
            result = Path(scratch) / path.name
            said = _run([*command, "-o", str(result)], Path(scratch), until_s)
            log = result.with_suffix(".log")
            log.write_text(said, encoding="utf-8")
            log.replace(path.with_suffix(".log"))  # First, so that a library is never without its log.
            result.replace(path)
    except (OSError, subprocess.TimeoutExpired, TimeoutError) as error:
        raise BuildError(f"building {path.name} failed: {error}") from error


@contextlib.contextmanager
def _alone(folder: Path, until_s: float) -> Iterator[None]:
    """Holds the lock of a folder, which ends with its holder. Raises TimeoutError when another has it for too long."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until_s:
                    raise TimeoutError("another process has been building for too long") from None
                time.sleep(_LOCK_INTERVAL_S)
        yield
    finally:
        os.close(descriptor)


def _run(command: Sequence[str], folder: Path, until_s: float) -> str:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as lifeline:
        try:
            process = subprocess.Popen(
                ["sh", "-c", _WATCHED, "sh", *command],
                stdin=reading,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
                cwd=folder,
            )
        finally:
            os.close(reading)
        with process:
            try:
                said, _ = process.communicate(timeout=max(0.0, until_s - time.monotonic()))
            finally:
                lifeline.close()  # before the process is waited for
    if process.returncode:
        raise BuildError(f"{command[0]} failed: {said.strip()[-3000:]}")
    return said
