"""A bounded number of things done at once, over a stream of them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

__all__ = ["concurrently"]

T = TypeVar("T")
R = TypeVar("R")


async def concurrently(
    items: AsyncIterator[T], work: Callable[[T], Awaitable[R]], *, window: int, ordered: bool = False
) -> AsyncGenerator[R, None]:
    """What `work` makes of each item (none of them None), at most `window` of them under way; no item is
    taken before it can begin.

    Results come as they are done, or in the items' order. The first error, of the items or of `work`, ends the stream
    behind the results that came before it: of earlier items when ordered. Closing the generator cancels what is under
    way.
    """
    tasks: deque[asyncio.Task[R]] = deque()
    taking: asyncio.Task[T | None] | None = None
    is_at_end = False
    error: BaseException | None = None
    try:
        while True:
            if taking is None and not is_at_end and error is None and len(tasks) < window:
                taking = asyncio.ensure_future(anext(items, None))
            if taking is None and not tasks:
                break
            waiting: set[asyncio.Future[Any]] = set(list(tasks)[:1] if ordered else tasks)
            if taking is not None:
                waiting.add(taking)
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if taking is not None and taking.done():
                try:
                    item = taking.result()
                except Exception as problem:
                    error = problem
                else:
                    if item is None:
                        is_at_end = True
                    else:
                        tasks.append(asyncio.ensure_future(work(item)))
                taking = None
            done = [task for task in (list(tasks)[:1] if ordered else tasks) if task.done()]
            for task in done:
                tasks.remove(task)
                yield task.result()
        if error is not None:
            raise error
    finally:
        left: list[asyncio.Future[Any]] = [*tasks, *([taking] if taking is not None else [])]
        for future in left:
            future.cancel()
        await asyncio.gather(*left, return_exceptions=True)
