"""Requests that are taken once and given more than once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from tests.gateway.balancer.replicas import WAIT_S
from vorta_gateway.balancer.replay import ReplayableRequests


class Caller:
    """Gives what it is told to."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()

    def tell(self, *requests: bytes | Exception | None) -> None:
        for request in requests:
            self.queue.put_nowait(request)

    async def requests(self) -> AsyncIterator[bytes]:
        while (request := await self.queue.get()) is not None:
            if isinstance(request, Exception):
                raise request
            yield request


async def taken(requests: ReplayableRequests, number: int) -> list[Any]:
    """The first requests of a new iteration, which then ends."""
    iteration: AsyncGenerator[Any, None] = requests.__aiter__()
    async with aclosing(iteration):
        return [await asyncio.wait_for(anext(iteration), WAIT_S) for _ in range(number)]


async def test_every_iteration_begins_with_the_first() -> None:
    caller = Caller()
    requests = ReplayableRequests(caller.requests(), 100)
    caller.tell(b"a", b"b", b"c", None)
    assert await taken(requests, 1) == [b"a"]
    assert await taken(requests, 2) == [b"a", b"b"]
    for _ in range(2):
        assert [request async for request in requests] == [b"a", b"b", b"c"]
    assert requests.is_replayable
    await requests.close()


async def test_an_iteration_that_is_cancelled_while_it_waits_takes_nothing() -> None:
    caller = Caller()
    requests = ReplayableRequests(caller.requests(), 100)
    waiting = asyncio.create_task(taken(requests, 1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    caller.tell(b"a", None)
    assert [request async for request in requests] == [b"a"]
    await requests.close()


async def test_what_is_forgotten_is_not_kept() -> None:
    caller = Caller()
    requests = ReplayableRequests(caller.requests(), 100)
    caller.tell(b"a", b"b", b"c", b"d", None)
    given = []
    async for request in requests:
        given.append(request)
        if request == b"b":
            requests.forget()
        if request == b"d":
            assert len(requests._kept) == 0
    assert given == [b"a", b"b", b"c", b"d"]
    assert not requests.is_replayable


async def test_no_more_is_kept_than_the_bound() -> None:
    caller = Caller()
    requests = ReplayableRequests(caller.requests(), 3)
    caller.tell(b"ab", b"cd", b"ef", None)
    assert await taken(requests, 1) == [b"ab"]
    assert requests.is_replayable
    assert [request async for request in requests] == [b"ab", b"cd", b"ef"]
    assert not requests.is_replayable


async def test_what_goes_wrong_goes_wrong_each_time() -> None:
    caller = Caller()
    requests = ReplayableRequests(caller.requests(), 100)
    error = ValueError("broken")
    caller.tell(b"a", error)
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            await taken(requests, 2)
    assert requests.error is error
    await requests.close()


async def test_closing_ends_a_wait_for_the_caller() -> None:
    caller = Caller()
    requests = ReplayableRequests(caller.requests(), 100)
    waiting = asyncio.create_task(taken(requests, 1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.wait_for(requests.close(), WAIT_S)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiting, WAIT_S)
