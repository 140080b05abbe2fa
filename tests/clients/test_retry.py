"""Back-off, jitter and the retry budget."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vorta.errors import AlreadyExists, Internal, ResourceExhausted, Unavailable
from vorta.retry import Retrier, RetryBudget, RetryPolicy


@given(num_failures=st.integers(1, 10_000), draw=st.floats(0, 1, exclude_max=True))
def test_backoff_is_bounded(num_failures: int, draw: float) -> None:
    policy = RetryPolicy()
    wait_s = policy.backoff_s(num_failures, draw)
    full_s = min(0.1 * 2.0 ** min(num_failures - 1, 60), 5.0)
    assert full_s / 2 <= wait_s <= full_s


@given(st.integers(1, 3), st.floats(0, 100))
def test_the_servers_wish_is_a_lower_bound(num_failures: int, delay_s: float) -> None:
    wait_s = Retrier(RetryPolicy()).wait_s(Unavailable("x", retry_delay_s=delay_s), num_failures)
    assert wait_s is not None
    assert wait_s >= delay_s


def test_what_is_repeated() -> None:
    retrier = Retrier(RetryPolicy(max_attempts=3), random.Random(0))
    assert retrier.wait_s(Unavailable("x"), 1) is not None
    assert retrier.wait_s(Unavailable("x"), 3) is None
    assert retrier.wait_s(Unavailable("x", retry_delay_s=5), 1, remaining_s=4) is None
    assert retrier.wait_s(ResourceExhausted("x", retry_delay_s=1), 1) is None
    assert retrier.wait_s(Internal("x"), 1) is None
    # Its own first attempt is still ending on the server.
    assert retrier.wait_s(AlreadyExists("x"), 1) is None
    assert retrier.wait_s(AlreadyExists("x"), 2) is not None
    assert retrier.wait_s(AlreadyExists("x", reason="ALREADY_LOADED"), 2) is None


def test_the_budget_runs_dry_and_refills() -> None:
    budget = RetryBudget(RetryPolicy(budget_tokens=4, budget_refill=1))
    assert [budget.take() for _ in range(6)] == [True, True, False, False, False, False]
    assert not budget.take()
    for _ in range(3):
        budget.refill()
    assert budget.take()


def test_an_exhausted_budget_stops_retries() -> None:
    retrier = Retrier(RetryPolicy(budget_tokens=2))
    assert retrier.wait_s(Unavailable("x"), 1) is not None
    assert retrier.wait_s(Unavailable("x"), 1) is None
    for _ in range(20):
        retrier.count_success()
    assert retrier.wait_s(Unavailable("x"), 1) is not None


@pytest.mark.parametrize(
    "field", ["max_attempts", "initial_backoff_s", "multiplier", "max_backoff_s", "jitter", "budget_tokens"]
)
@pytest.mark.parametrize("value", [-1, float("nan")])
def test_a_bad_policy_names_its_field(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        RetryPolicy(**{field: value})  # type: ignore[arg-type]
