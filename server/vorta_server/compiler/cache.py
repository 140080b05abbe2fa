"""Artifacts compiled on first use, kept in a folder and shared by processes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from vorta_server.compiler.artifact import ArtifactError, load_manifest, remove_leftovers
from vorta_server.compiler.checkpoint import Checkpoint
from vorta_server.compiler.compile import COMPILER_VERSION, Progress, check_request, compile_checkpoint
from vorta_server.compiler.plan import Kernels

_POLL_S = 0.05


class CacheBusyError(TimeoutError):
    """Another process held the artifact's lock for longer than the caller would wait."""


def artifact_for(
    source: Path,
    *,
    precision: str,
    kernels: Kernels = "portable",
    block: int | None = None,
    cache_dir: Path,
    target: str = "cpu",
    max_model_len: int | None = None,
    progress: Progress | None = None,
    lock_timeout_s: float = 900.0,
) -> Path:
    """The artifact of a checkpoint, compiled into cache_dir unless a sound one is there already.

    Keyed by the checkpoint's fingerprint, target, precision, kernels, block, length and the compiler's version.
    Processes that ask at once compile once; an artifact that was damaged is compiled anew.

    Raises what compile_checkpoint raises, and CacheBusyError after lock_timeout_s.
    """
    check_request(target, precision)
    with Checkpoint(source) as checkpoint:
        fingerprint = checkpoint.fingerprint()
    key = f"{fingerprint}\0{target}\0{precision}\0{kernels}\0{block}\0{max_model_len}\0{COMPILER_VERSION}"
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", source.resolve().name).strip(".-") or "model"
    out = cache_dir / f"{name}-{precision}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    cache_dir.mkdir(parents=True, exist_ok=True)
    with _locked(cache_dir / f"{out.name}.lock", lock_timeout_s):
        try:
            load_manifest(out)
        except ArtifactError:
            remove_leftovers(out)
            if out.exists():
                shutil.rmtree(out)
            compile_checkpoint(
                source,
                out,
                target=target,
                precision=precision,
                kernels=kernels,
                block=block,
                max_model_len=max_model_len,
                progress=progress,
            )
    return out


@contextlib.contextmanager
def _locked(file: Path, timeout_s: float) -> Iterator[None]:
    """Holds the file's lock between processes (and threads: each call opens the file for itself).

    The lock ends with its holder's process, so a killed one leaves nothing to clear away.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise CacheBusyError(f"{file} is still locked after {timeout_s:g} s") from None
                time.sleep(_POLL_S)
        yield
    finally:
        os.close(descriptor)
