"""The memory of this process."""

from __future__ import annotations

import resource

__all__ = ["rss_bytes"]


def rss_bytes() -> int:
    """Resident memory in bytes; 0 where it cannot be known."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0
