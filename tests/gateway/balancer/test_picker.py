"""The picker's choices and its books, without a wire."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from vorta_gateway.balancer.config import AffinityConfig, OutlierConfig
from vorta_gateway.balancer.demand import Demand
from vorta_gateway.balancer.endpoint import Endpoint, Health
from vorta_gateway.balancer.outliers import OutlierDetector
from vorta_gateway.balancer.picker import Lease, Picker

NO_UPSTREAM: Any = None


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def made(num_endpoints: int, config: AffinityConfig | None = None) -> tuple[Picker, list[Endpoint]]:
    endpoints = [Endpoint(f"e{number}:1", NO_UPSTREAM, max_blocks=100) for number in range(num_endpoints)]
    for endpoint in endpoints:
        endpoint.health = Health.SERVING
    return Picker(config or AffinityConfig(), OutlierDetector(OutlierConfig())), endpoints


def picked(picker: Picker, endpoints: list[Endpoint], demand: Demand, *tried: Endpoint) -> Lease:
    lease = picker.pick(endpoints, demand, tried)
    assert lease is not None
    return lease


ONE = Demand(work=1)


def test_equals_take_turns() -> None:
    picker, endpoints = made(3)
    order = []
    for _ in range(6):
        lease = picked(picker, endpoints, ONE)
        order.append(lease.endpoint.address)
        lease.release()
    assert order == ["e0:1", "e1:1", "e2:1"] * 2


def test_the_least_outstanding_work_wins_not_the_fewest_calls() -> None:
    picker, endpoints = made(2)
    big = picked(picker, endpoints, Demand(work=100))
    small = [picked(picker, endpoints, Demand(work=10)) for _ in range(3)]
    assert [lease.endpoint.address for lease in small] == ["e1:1"] * 3
    big.release()
    assert picked(picker, endpoints, ONE).endpoint is big.endpoint


def test_a_known_prompt_goes_where_it_went_and_costs_what_is_new() -> None:
    picker, endpoints = made(3)
    chain = tuple(range(10))
    first = picked(picker, endpoints, Demand(work=1, prompt_work=8, chain=chain[:6]))
    again = picked(picker, endpoints, Demand(work=1, prompt_work=10, chain=chain))
    assert again.endpoint is first.endpoint
    assert first.work == 9
    assert again.work == 5
    assert again.endpoint.num_affinity_hits == 1
    other = picked(picker, endpoints, Demand(work=1, prompt_work=8, chain=tuple(range(100, 110))))
    assert other.endpoint is not first.endpoint


def test_too_little_in_common_is_no_affinity() -> None:
    picker, endpoints = made(2, AffinityConfig(min_match=0.5))
    chain = tuple(range(10))
    first = picked(picker, endpoints, Demand(work=1, chain=chain[:4]))
    assert picked(picker, endpoints, Demand(work=1, chain=chain)).endpoint is not first.endpoint


def test_load_overrides_affinity_by_factor_and_margin() -> None:
    picker, endpoints = made(2, AffinityConfig(load_factor=2, load_margin=50))
    chain = tuple(range(10))
    picked(picker, endpoints, Demand(work=40, chain=chain))
    other = picked(picker, endpoints, Demand(work=20))
    # 40 is twice 20, but not 50 above it.
    assert picked(picker, endpoints, Demand(work=60, chain=chain)).endpoint is endpoints[0]
    # 100 is both.
    assert picked(picker, endpoints, Demand(work=60, chain=chain)).endpoint is other.endpoint
    assert picker.num_overridden == 1
    # Now both have the prompt, and the less loaded of them gets it.
    assert picked(picker, endpoints, Demand(work=1, chain=chain)).endpoint is other.endpoint


def test_tried_endpoints_come_last_and_unhealthy_ones_not_at_all() -> None:
    picker, endpoints = made(3)
    endpoints[2].health = Health.NOT_SERVING
    assert picked(picker, endpoints, ONE, endpoints[0]).endpoint is endpoints[1]
    assert picked(picker, endpoints, ONE, endpoints[0], endpoints[1]).endpoint is endpoints[0]
    endpoints[0].health = endpoints[1].health = Health.CONNECTING
    assert picker.candidates(endpoints) == endpoints[:2]
    endpoints[0].health = endpoints[1].health = Health.NOT_SERVING
    assert picker.pick(endpoints, ONE) is None
    assert picker.pick([], ONE) is None


def detector(**changes: Any) -> tuple[OutlierDetector, Clock]:
    clock = Clock()
    config: dict[str, Any] = {"consecutive_failures": 3, "base_ejection_s": 10, "interval_s": 10} | changes
    return OutlierDetector(OutlierConfig(**config), clock), clock


def fail(outliers: OutlierDetector, endpoint: Endpoint, endpoints: list[Endpoint], times: int = 3) -> None:
    for _ in range(times):
        outliers.failed(endpoint, endpoints)


def test_consecutive_failures_eject_longer_each_time() -> None:
    _, endpoints = made(3)
    outliers, clock = detector()
    bad = endpoints[0]
    fail(outliers, bad, endpoints, 2)
    outliers.succeeded(bad)
    fail(outliers, bad, endpoints, 2)
    assert not outliers.is_ejected(bad)
    fail(outliers, bad, endpoints, 1)
    assert outliers.is_ejected(bad)
    clock.now_s += 10
    assert not outliers.is_ejected(bad)
    fail(outliers, bad, endpoints)
    clock.now_s += 19.9
    assert outliers.is_ejected(bad)
    clock.now_s += 0.1
    assert not outliers.is_ejected(bad)
    clock.now_s += 25  # two good intervals make the third ejection the first again
    fail(outliers, bad, endpoints)
    clock.now_s += 10
    assert not outliers.is_ejected(bad)
    assert bad.ejections.total == 3


def test_no_more_are_ejected_than_the_percentage() -> None:
    _, endpoints = made(4)
    outliers, _ = detector(max_ejection_percent=50)
    for endpoint in endpoints:
        fail(outliers, endpoint, endpoints)
    assert [outliers.is_ejected(one) for one in endpoints] == [True, True, False, False]
    _, alone = made(1)
    fail(outliers, alone[0], alone)
    assert not outliers.is_ejected(alone[0])


def test_when_all_are_ejected_all_are_used() -> None:
    _, endpoints = made(2)
    outliers, _ = detector(max_ejection_percent=100)
    picker = Picker(AffinityConfig(), outliers)
    fail(outliers, endpoints[0], endpoints)
    assert picker.candidates(endpoints) == endpoints[1:]
    fail(outliers, endpoints[1], endpoints)
    assert picker.candidates(endpoints) == endpoints


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), num_endpoints=st.integers(1, 5), num_steps=st.integers(1, 120))
def test_the_books_balance_whatever_happens(seed: int, num_endpoints: int, num_steps: int) -> None:
    source = random.Random(seed)
    outliers, clock = detector()
    _, endpoints = made(num_endpoints)
    picker = Picker(AffinityConfig(load_margin=5), outliers)
    leases: list[Lease] = []
    num_picks = 0
    for _ in range(num_steps):
        match source.randrange(6):
            case 0 | 1 | 2:
                chain = tuple(range(source.choice([0, 10]), source.choice([10, 14])))
                demand = Demand(work=source.random() * 10, prompt_work=source.random(), chain=chain)
                lease = picker.pick(endpoints, demand, source.sample(endpoints, source.randint(0, num_endpoints)))
                if lease is None:
                    assert all(one.health is Health.NOT_SERVING for one in endpoints)
                else:
                    assert lease.endpoint.health is not Health.NOT_SERVING
                    num_picks += 1
                    leases.append(lease)
            case 3 if leases:
                lease = leases.pop(source.randrange(len(leases)))
                lease.release()
                lease.release()
            case 4:
                source.choice(endpoints).health = source.choice(list(Health))
            case _:
                clock.now_s += source.random() * 5
                outliers.failed(source.choice(endpoints), endpoints)
        assert all(one.in_flight >= 0 and one.work >= -1e-6 for one in endpoints)
        assert sum(one.in_flight for one in endpoints) == len(leases)
        assert abs(sum(one.work for one in endpoints) - sum(lease.work for lease in leases)) < 1e-6
        assert sum(one.num_picks for one in endpoints) == num_picks
        assert sum(map(outliers.is_ejected, endpoints)) * 2 <= num_endpoints
    for lease in leases:
        lease.release()
    assert [(one.in_flight, one.work) for one in endpoints] == [(0, 0.0)] * num_endpoints
