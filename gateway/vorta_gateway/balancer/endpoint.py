"""One endpoint: what is known of it, and what runs on it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from enum import Enum

from vorta_gateway.balancer.affinity import PrefixIndex
from vorta_gateway.upstream import Upstream

__all__ = ["Ejections", "Endpoint", "Health"]


class Health(Enum):
    """What its health service says, or its connection where it has none."""

    CONNECTING = "CONNECTING"
    SERVING = "SERVING"
    NOT_SERVING = "NOT_SERVING"


@dataclass(slots=True)
class Ejections:
    """An endpoint's outlier detection.

    Attributes:
        num_failures: In a row.
        until_s: `time.monotonic()` at which the last ejection ends.
        multiplier: Of the next ejection's time, less one.
        total: Of all time.
    """

    num_failures: int = 0
    until_s: float = 0.0
    multiplier: int = 0
    total: int = 0

    def lift(self) -> None:
        """Ends an ejection, because the endpoint says, over a new connection, that it serves."""
        self.num_failures = 0
        self.until_s = min(self.until_s, time.monotonic())


class Endpoint:
    """See the module.

    Args:
        address: "host:port".
        upstream: To it.
        max_blocks: See `PrefixIndex`.

    Attributes:
        health: Set by who watches it.
        has_left: Whether it is no longer among the name's addresses: it gets no new calls.
        in_flight: Attempts that run on it.
        work: Their work.
        last_pick: Number of the last pick that was this, of all picks; 0 for never.
        num_picks, num_affinity_hits, num_failures: Of all time.
    """

    __slots__ = (
        "_idle",
        "address",
        "ejections",
        "has_left",
        "health",
        "in_flight",
        "last_pick",
        "num_affinity_hits",
        "num_failures",
        "num_picks",
        "prefixes",
        "upstream",
        "work",
    )

    def __init__(self, address: str, upstream: Upstream, *, max_blocks: int) -> None:
        self.address = address
        self.upstream = upstream
        self.prefixes = PrefixIndex(max_blocks)
        self.ejections = Ejections()
        self.health = Health.CONNECTING
        self.has_left = False
        self.in_flight = 0
        self.work = 0.0
        self.last_pick = 0
        self.num_picks = 0
        self.num_affinity_hits = 0
        self.num_failures = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def begin(self, work: float) -> None:
        """Counts an attempt."""
        self.in_flight += 1
        self.work += work
        self._idle.clear()

    def end(self, work: float) -> None:
        """Counts the end of one that `begin` counted with the same work."""
        self.in_flight -= 1
        self.work -= work
        if self.in_flight == 0:
            self.work = 0.0  # what rounding left
            self._idle.set()

    async def wait_idle(self) -> None:
        """Returns when nothing runs on it."""
        await self._idle.wait()
