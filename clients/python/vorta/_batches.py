"""Cuts what comes one by one into lists."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import TypeVar

_T = TypeVar("_T")


def batches_of(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Lists of `size` items, the last one maybe shorter, none empty; items are taken as lists are asked for."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


async def async_batches_of(items: Iterable[_T] | AsyncIterable[_T], size: int) -> AsyncIterator[list[_T]]:
    """As `batches_of`, of items that may come asynchronously."""
    if not isinstance(items, AsyncIterable):
        for batch in batches_of(items, size):
            yield batch
        return
    batch = []
    async for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
