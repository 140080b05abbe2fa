"""One thread for torch: its operations are tiny here, and test processes share the cores."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
