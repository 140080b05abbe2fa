"""What a balancer tells of itself, for metrics."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BalancerStats", "EndpointStats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointStats:
    """One endpoint's. Counts are of all time.

    Attributes:
        address: "host:port".
        state: CONNECTING, SERVING, NOT_SERVING or EJECTED.
        in_flight: Attempts that run on it.
        work: Their work, in tokens to decode.
        num_picks: Attempts sent to it.
        num_affinity_hits: Those that went there for their prompt.
        num_failures: UNAVAILABLE answers and failed connections.
        num_ejections: Times that it was ejected.
        num_blocks: Blocks of prompts that are remembered of it.
    """

    address: str
    state: str
    in_flight: int
    work: float
    num_picks: int
    num_affinity_hits: int
    num_failures: int
    num_ejections: int
    num_blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BalancerStats:
    """All of it. Counts are of all time.

    Attributes:
        endpoints: Those that are among the targets now.
        num_open: Calls that have begun and not ended.
        num_retries, num_hedges: Attempts beyond the first.
        num_budget_refusals: Retries and hedges that there was no budget for.
        num_affinity_overridden: Picks whose affinity gave way to load.
    """

    endpoints: tuple[EndpointStats, ...]
    num_open: int
    num_retries: int
    num_hedges: int
    num_budget_refusals: int
    num_affinity_overridden: int
