"""What holds for all tests."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

# A loaded machine is no reason to fail: tests judge outcomes, not times. `make test` chooses another profile behind
# this one, by --hypothesis-profile, so no other conftest may load one.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# A shell's background jobs ignore interrupts, and what they start does too: tests that interrupt a process would wait.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests of these files share a server or a library that takes long to make.
WHOLE = ("tests/integration/", "tests/benchmarks/test_load.py", "tests/kernels/cuda/test_build.py")


class _FilesWhole(LoadScopeScheduling):
    """Gives each test to a free process, but those of a file in `WHOLE` to one.

    Marks for `--dist loadgroup` would say it in the files, but pytest 9.2 took away how xdist passes them on
    (pytest-xdist's issue 1386), and nothing says that they are ignored.
    """

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.partition("::")[0] if nodeid.startswith(WHOLE) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """How tests are given to processes where the command line asks for nothing else."""
    return _FilesWhole(config, log) if config.getoption("dist") == "load" else None
