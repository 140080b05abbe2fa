"""Outlier detection: an endpoint that fails call after call is left alone for a while, as Envoy does it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence

from vorta_gateway.balancer.config import OutlierConfig
from vorta_gateway.balancer.endpoint import Endpoint

__all__ = ["OutlierDetector"]

logger = logging.getLogger(__name__)


class OutlierDetector:
    """Ejects endpoints. They come back by themselves when their time is over.

    Args:
        config: When and how long.
        clock_s: Seconds that only grow.
    """

    def __init__(self, config: OutlierConfig, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock_s = clock_s

    def is_ejected(self, endpoint: Endpoint) -> bool:
        """Whether it is ejected now."""
        return endpoint.ejections.until_s > self._clock_s()

    def succeeded(self, endpoint: Endpoint) -> None:
        """An endpoint answered, with whatever but UNAVAILABLE."""
        endpoint.ejections.num_failures = 0

    def failed(self, endpoint: Endpoint, endpoints: Sequence[Endpoint]) -> None:
        """An endpoint answered with UNAVAILABLE, or not at all; it is one of the given ones."""
        state = endpoint.ejections
        now_s = self._clock_s()
        endpoint.num_failures += 1
        if state.until_s > now_s:
            return  # calls that were open when it was ejected, or a panic's, do not prolong it
        state.num_failures += 1
        if not self._config.consecutive_failures or state.num_failures < self._config.consecutive_failures:
            return
        if not self._may_eject(endpoints):
            return
        good_intervals = int((now_s - state.until_s) / self._config.interval_s) if state.total else 0
        state.multiplier = max(0, state.multiplier - good_intervals) + 1
        ejection_s = min(self._config.base_ejection_s * state.multiplier, self._config.max_ejection_s)
        state.until_s = now_s + ejection_s
        state.num_failures = 0
        state.total += 1
        logger.warning("endpoint %s is ejected for %g s", endpoint.address, ejection_s)

    def _may_eject(self, endpoints: Iterable[Endpoint]) -> bool:
        are_ejected = [self.is_ejected(one) for one in endpoints]
        return (sum(are_ejected) + 1) * 100 <= self._config.max_ejection_percent * len(are_ejected)
