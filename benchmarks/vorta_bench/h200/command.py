"""Runs a command for a cell and keeps what it said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from vorta_bench.h200.recording import Figure

__all__ = ["run_command", "run_module"]

_KEPT_CHARACTERS = 4000


def run_module(module: str, *arguments: str, timeout_s: float) -> Figure:
    """`python -m module arguments` with this interpreter; see `run_command`."""
    return run_command([sys.executable, "-m", module, *arguments], timeout_s=timeout_s)


def run_command(command: Sequence[str], *, timeout_s: float) -> Figure:
    """Runs a command and everything that it starts, for at most `timeout_s` seconds.

    Returns:
        {"ok", "status" (None when it was killed for time), "seconds", "output" (the end of both streams)}.
    """
    begin_s = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
    )
    status: int | None
    try:
        output, _ = process.communicate(timeout=max(1.0, timeout_s))
        status = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        status = None
    return {
        "ok": status == 0,
        "status": status,
        "seconds": round(time.perf_counter() - begin_s, 2),
        "output": output[-_KEPT_CHARACTERS:],
    }
