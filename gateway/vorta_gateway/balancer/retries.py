"""When a call that failed is sent again, and where."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from vorta.errors import Unavailable, VortaError
from vorta.wire import error_from_status
from vorta_gateway.balancer.cluster import Cluster
from vorta_gateway.balancer.config import RetryConfig
from vorta_gateway.balancer.demand import Demand, accepts_first
from vorta_gateway.balancer.endpoint import Endpoint
from vorta_gateway.balancer.picker import Lease, Picker
from vorta_gateway.channel import NotSentError
from vorta_gateway.status import StatusError
from vorta_gateway.upstream import Idempotency, RpcMethod, UpstreamCall

__all__ = ["BalancedRoute", "RetryBudget", "RoutePlanner", "is_about_endpoint"]

_UNAVAILABLE = 14

_DRAINING = "DRAINING"
_MODEL_NOT_READY = "MODEL_NOT_READY"

# The server refuses so before it takes a request, and may end one so that ran.
_REFUSALS = frozenset({_DRAINING, _MODEL_NOT_READY})


class RetryBudget:
    """Keeps retries and hedges to a share of the calls, as Envoy's retry_budget does.

    Args:
        config: The share.
        num_calls: How many calls are open now.

    Attributes:
        active: Retries and hedges that wait or run.
        num_retries, num_hedges: Of all time.
        num_refused: Retries and hedges that there was no budget for.
    """

    def __init__(self, config: RetryConfig, num_calls: Callable[[], int]) -> None:
        self._config = config
        self._num_calls = num_calls
        self.active = 0
        self.num_retries = 0
        self.num_hedges = 0
        self.num_refused = 0

    def take(self) -> bool:
        """Begins a retry or a hedge if there may be one more."""
        limit = max(self._config.min_concurrency, self._num_calls() * self._config.budget_percent / 100)
        if self.active + 1 > limit:
            self.num_refused += 1
            return False
        self.active += 1
        return True

    def give_back(self) -> None:
        """Ends one that `take` began."""
        self.active -= 1


@dataclass(frozen=True, slots=True)
class RoutePlanner:
    """What all routes share: see their own arguments."""

    cluster: Cluster
    picker: Picker
    budget: RetryBudget
    config: RetryConfig


class BalancedRoute:
    """The endpoints that one call is sent to, one after the other.

    Args:
        planner: Picks them, and limits how many.
        call: Sent.
        demand: Of the call.
        tried: Endpoints that the call has been sent to; grows. Routes of one call share it.
        max_attempts: Of this route.
    """

    def __init__(
        self, planner: RoutePlanner, call: UpstreamCall, demand: Demand, *, tried: list[Endpoint], max_attempts: int
    ) -> None:
        self._planner = planner
        self._call = call
        self._demand = demand
        self._tried = tried
        self._max_attempts = max_attempts
        self._has_budget = False
        self.num_attempts = 0

    def first(self) -> Lease:
        """The first endpoint. Raises StatusError (UNAVAILABLE) if nothing serves."""
        lease = self._pick()
        if lease is None:
            error = Unavailable("no endpoint of the upstream serves now", reason="CONNECTION_FAILED", retry_delay_s=1.0)
            raise StatusError.of(error)
        return lease

    async def next(self, failure: StatusError, *, is_repeatable: bool) -> Lease:
        """The next endpoint, after a wait where it has failed already.

        Args:
            failure: Of the last attempt.
            is_repeatable: Whether the caller still has all of the request, and got nothing of the reply.

        Raises:
            StatusError: The failure itself, if it must not be repeated or nothing is left to try.
        """
        self.close()
        if not is_repeatable or self.num_attempts >= self._max_attempts or not may_repeat(self._call.method, failure):
            raise failure
        budget = self._planner.budget
        # What no server has seen is no load on any.
        if not isinstance(failure, NotSentError):
            if not budget.take():
                raise failure
            self._has_budget = True
        if all(one in self._tried for one in self._planner.picker.candidates(self._planner.cluster.endpoints)):
            await self._wait(failure)
        lease = self._pick()
        if lease is None:
            raise failure
        budget.num_retries += 1
        return lease

    def close(self) -> None:
        """Gives back what of the budget it holds. Idempotent."""
        if self._has_budget:
            self._has_budget = False
            self._planner.budget.give_back()

    def _pick(self) -> Lease | None:
        lease = self._planner.picker.pick(self._planner.cluster.endpoints, self._demand, self._tried)
        if lease is not None:
            self.num_attempts += 1
            if lease.endpoint not in self._tried:
                self._tried.append(lease.endpoint)
        return lease

    async def _wait(self, failure: StatusError) -> None:
        """Waits before an endpoint is tried again: it may have said how long."""
        config = self._planner.config
        delay_s = _error_of(failure).retry_delay_s or 0.0
        growth = 2.0 ** min(self.num_attempts - 1, 32)
        backoff_s = min(config.initial_backoff_s * growth, config.max_backoff_s) * random.uniform(0.5, 1)
        wait_s = max(delay_s, backoff_s)
        deadline_s = self._call.deadline_s
        is_late = deadline_s is not None and time.monotonic() + wait_s >= deadline_s
        if delay_s > config.max_retry_delay_s or is_late:
            raise failure
        await asyncio.sleep(wait_s)


def may_repeat(method: RpcMethod, failure: StatusError) -> bool:
    """Whether a call that failed may be sent again: it must do no harm if it ran, or certainly not have begun."""
    if failure.code != _UNAVAILABLE:
        return False
    if method.idempotency is not Idempotency.UNKNOWN or isinstance(failure, NotSentError):
        return True
    return accepts_first(method) and _error_of(failure).reason in _REFUSALS


def is_about_endpoint(failure: StatusError) -> bool:
    """Whether a failure tells that its endpoint is no good: it is UNAVAILABLE, and not only the model asked for."""
    return failure.code == _UNAVAILABLE and _error_of(failure).reason != _MODEL_NOT_READY


def _error_of(failure: StatusError) -> VortaError:
    return error_from_status(failure.code, failure.message, failure.details or None)
