"""A bounded number of things at once: order, errors, cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from vorta_server.front.concurrent import concurrently


async def numbers(count: int, fail_at: int = -1) -> AsyncIterator[int]:
    for number in range(1, count + 1):
        if number == fail_at:
            raise ValueError("a bad item")
        await asyncio.sleep(0)
        yield number


async def collect(results: AsyncIterator[int], found: list[int]) -> None:
    async for result in results:
        found.append(result)


async def test_the_window_is_kept_and_every_result_comes() -> None:
    running = most = 0

    async def work(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001 * (number % 3))
        running -= 1
        return number

    found = [result async for result in concurrently(numbers(40), work, window=5)]
    assert sorted(found) == list(range(1, 41))
    assert most == 5
    assert [result async for result in concurrently(numbers(40), work, window=5, ordered=True)] == list(range(1, 41))


@pytest.mark.parametrize("ordered", [True, False])
async def test_results_before_an_error_come_first(ordered: bool) -> None:
    async def work(number: int) -> int:
        await asyncio.sleep(0.001)
        return number

    found: list[int] = []
    with pytest.raises(ValueError, match="a bad item"):
        await collect(concurrently(numbers(9, fail_at=6), work, window=3, ordered=ordered), found)
    assert sorted(found) == [1, 2, 3, 4, 5]


async def test_in_order_a_failure_ends_the_stream_behind_earlier_results() -> None:
    cancelled: list[int] = []

    async def work(number: int) -> int:
        try:
            await asyncio.sleep(0.002 if number < 4 else 0.0 if number == 4 else 1.0)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        if number == 4:
            raise ValueError("the fourth")
        return number

    found: list[int] = []
    with pytest.raises(ValueError, match="the fourth"):
        await collect(concurrently(numbers(9), work, window=4, ordered=True), found)
    assert found == [1, 2, 3]
    assert set(cancelled) <= {5, 6, 7}


async def test_leaving_early_cancels_what_is_under_way() -> None:
    cancelled: list[int] = []

    async def work(number: int) -> int:
        if number == 1:
            return number
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        return number

    async with aclosing(concurrently(numbers(9), work, window=3)) as results:
        async for result in results:
            assert result == 1
            await asyncio.sleep(0.01)
            break
    assert set(cancelled) >= {2}
