"""Fixtures: runs commands, in this process or in one of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vorta
from tests.clients.fake_server import FakeServer
from vorta.cli import main

ROOT = str(Path(vorta.__file__).parent.parent)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(server: FakeServer, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process: exit code, stdout, stderr."""

    def run(*words: str, target: str = server.target) -> tuple[int, str, str]:
        try:
            code = main([*words, "--server", target])
        except SystemExit as exc:
            code = int(exc.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return run


def spawn(*words: str, **options: Any) -> subprocess.Popen[str]:
    """Runs the command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": ROOT, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "vorta", *words],
        env={**environment, **options.pop("env", {})},
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=options.pop("stderr", subprocess.PIPE),
        stdin=options.pop("stdin", subprocess.DEVNULL),
        text=True,
        **options,
    )
