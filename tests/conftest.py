"""What holds for all tests."""

from __future__ import annotations

import signal

from hypothesis import settings

# A loaded machine is no reason to fail: tests judge outcomes, not times. `make test` chooses another profile behind
# this one, by --hypothesis-profile, so no other conftest may load one.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell's background jobs ignore interrupts, and what they start does too: tests that interrupt a process would wait.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
