"""Which endpoint gets a call: the one with the least outstanding work, or the one that knows its prompt."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from vorta_gateway.balancer.config import AffinityConfig
from vorta_gateway.balancer.demand import Demand
from vorta_gateway.balancer.endpoint import Endpoint, Health
from vorta_gateway.balancer.outliers import OutlierDetector

__all__ = ["Lease", "Picker"]


class Lease:
    """A place on an endpoint, from the pick until the release.

    Attributes:
        endpoint: Whose.
        work: That it counts as.
    """

    __slots__ = ("_is_released", "endpoint", "work")

    def __init__(self, endpoint: Endpoint, work: float) -> None:
        self.endpoint = endpoint
        self.work = work
        self._is_released = False
        endpoint.begin(work)

    def release(self) -> None:
        """Gives the place back. Idempotent."""
        if not self._is_released:
            self._is_released = True
            self.endpoint.end(self.work)


class Picker:
    """Picks. The same picks and releases give the same endpoints.

    Args:
        config: Of affinity.
        outliers: Tells which endpoints are ejected.

    Attributes:
        num_overridden: Picks whose affinity gave way to load.
    """

    def __init__(self, config: AffinityConfig, outliers: OutlierDetector) -> None:
        self._config = config
        self._outliers = outliers
        self._num_picks = 0
        self.num_overridden = 0

    def candidates(self, endpoints: Sequence[Endpoint]) -> list[Endpoint]:
        """The endpoints that may get a call now: those that serve, without the ejected ones unless all are.

        While none serves these are the ones that are being connected to, whose channels let calls wait or fail them at
        once. One that is NOT_SERVING gets none.
        """
        serving = [one for one in endpoints if one.health is Health.SERVING]
        if not serving:
            return [one for one in endpoints if one.health is Health.CONNECTING]
        return [one for one in serving if not self._outliers.is_ejected(one)] or serving

    def pick(self, endpoints: Sequence[Endpoint], demand: Demand, tried: Collection[Endpoint] = ()) -> Lease | None:
        """A place for a call, on an endpoint that was not tried where there is one; None where nothing serves."""
        candidates = self.candidates(endpoints)
        candidates = [one for one in candidates if one not in tried] or candidates
        if not candidates:
            return None
        least = min(candidates, key=_load)
        chosen, matched = self._by_affinity(candidates, least, demand.chain)
        share = matched / len(demand.chain) if demand.chain else 0.0
        return self.take(chosen, demand, cached_share=share)

    def take(self, endpoint: Endpoint, demand: Demand, *, cached_share: float = 0.0) -> Lease:
        """A place on a certain endpoint, which has a share of the prompt cached."""
        self._num_picks += 1
        endpoint.last_pick = self._num_picks
        endpoint.num_picks += 1
        if demand.chain:
            endpoint.prefixes.add(demand.chain)
        return Lease(endpoint, demand.work + demand.prompt_work * (1 - cached_share))

    def _by_affinity(
        self, candidates: Sequence[Endpoint], least: Endpoint, chain: tuple[int, ...]
    ) -> tuple[Endpoint, int]:
        """The endpoint to take, and how many blocks of the prompt it has."""
        if not chain:
            return least, 0
        matches = {one: one.prefixes.match(chain) for one in candidates}
        most = max(matches.values())
        if not most or most < self._config.min_match * len(chain):
            return least, matches[least]
        best = min((one for one in candidates if matches[one] == most), key=_load)
        limit = max(least.work * self._config.load_factor, least.work + self._config.load_margin)
        if best.work > limit:
            self.num_overridden += 1
            return least, matches[least]
        best.num_affinity_hits += 1
        return best, most


def _load(endpoint: Endpoint) -> tuple[float, int, int]:
    # Equals take turns; the first of those never picked is the first of the list.
    return endpoint.work, endpoint.in_flight, endpoint.last_pick
