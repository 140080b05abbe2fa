"""When a failed call is sent again, and how long to wait before.

Knows nothing of grpc: it judges errors of `vorta.errors` and answers with seconds.
"""

from __future__ import annotations

import math
import random
import threading
from dataclasses import dataclass

from vorta.errors import AlreadyExists, Unavailable, VortaError

__all__ = ["Retrier", "RetryBudget", "RetryPolicy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how fast failed calls are sent again.

    Only idempotent calls are retried, and only when the server was unavailable. Streams are not sent again but
    resumed where they broke.
    """

    max_attempts: int = 4
    """Attempts of a call, the first included. 1 turns retries off."""
    initial_backoff_s: float = 0.1
    multiplier: float = 2.0
    max_backoff_s: float = 5.0
    jitter: float = 0.5
    """Each wait is drawn between (1 - jitter) and 1 times the back-off."""
    max_resume_attempts: int = 8
    """Attempts in a row to resume one broken stream without a new event coming through."""
    budget_tokens: float = 20.0
    """Retries stop while less than half of this many tokens are left: each failure takes one. 0 turns the
    budget off."""
    budget_refill: float = 0.1
    """Tokens that each successful call gives back."""

    def __post_init__(self) -> None:
        bounds = {
            "max_attempts": (self.max_attempts, 1, 100),
            "initial_backoff_s": (self.initial_backoff_s, 0.0, 3600.0),
            "multiplier": (self.multiplier, 1.0, 100.0),
            "max_backoff_s": (self.max_backoff_s, 0.0, 3600.0),
            "jitter": (self.jitter, 0.0, 1.0),
            "max_resume_attempts": (self.max_resume_attempts, 0, 1000),
            "budget_tokens": (self.budget_tokens, 0.0, 1e9),
            "budget_refill": (self.budget_refill, 0.0, 1e9),
        }
        for name, (value, low, high) in bounds.items():
            if not low <= value <= high:
                raise ValueError(f"{name} must be between {low} and {high}, not {value}")

    def backoff_s(self, num_failures: int, draw: float) -> float:
        """Seconds to wait after the given number of failures in a row (from 1); `draw` is in [0, 1)."""
        # The exponent is bounded: 2.0 ** 5000 would overflow.
        growth = self.multiplier ** min(num_failures - 1, 64)
        return min(self.initial_backoff_s * growth, self.max_backoff_s) * (1 - self.jitter * draw)


class RetryBudget:
    """Keeps retries from multiplying the load on a server that is down (gRFC A6's throttling). Thread-safe."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._max = policy.budget_tokens
        self._refill = policy.budget_refill
        self._tokens = self._max
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Counts a failure; whether a retry is within the budget."""
        with self._lock:
            self._tokens = max(0.0, self._tokens - 1)
            return self._max == 0 or self._tokens >= self._max / 2

    def refill(self) -> None:
        """Counts a success."""
        with self._lock:
            self._tokens = min(self._max, self._tokens + self._refill)


class Retrier:
    """One client's retries. Thread-safe."""

    def __init__(self, policy: RetryPolicy, source: random.Random | None = None) -> None:
        self.policy = policy
        self._budget = RetryBudget(policy)
        self._random = source or random.Random()

    def wait_s(self, error: VortaError, num_failures: int, remaining_s: float = math.inf) -> float | None:
        """Seconds to wait before sending an idempotent call again, or None to give up.

        Args:
            num_failures: Failures of this call so far, this one included.
            remaining_s: What is left of the call's time; a wait that would use it up is not worth it.
        """
        if not _is_worth_repeating(error, num_failures) or num_failures >= self.policy.max_attempts:
            return None
        if not self._budget.take():
            return None
        wait_s = self.backoff_s(error, num_failures)
        return wait_s if wait_s < remaining_s else None

    def backoff_s(self, error: VortaError, num_failures: int) -> float:
        """Seconds to wait: the back-off, or the server's own wish when that is longer."""
        return max(self.policy.backoff_s(num_failures, self._random.random()), error.retry_delay_s or 0.0)

    def count_success(self) -> None:
        """Tells that a call succeeded."""
        self._budget.refill()


def _is_worth_repeating(error: VortaError, num_failures: int) -> bool:
    if isinstance(error, Unavailable):
        return True
    # The first attempt's connection broke and the server is still ending that request.
    return num_failures > 1 and isinstance(error, AlreadyExists) and error.reason == "REQUEST_ALREADY_EXISTS"
