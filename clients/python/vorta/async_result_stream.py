"""Results that come as they are computed, and a summary at the end; the twin for threads is `vorta.result_stream`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from vorta.errors import Internal

__all__ = ["AsyncResultStream"]

_Item = TypeVar("_Item")
_Summary = TypeVar("_Summary")


class AsyncResultStream(Generic[_Item, _Summary]):
    """As `vorta.ResultStream`, with `async for` and `async with`. One task reads."""

    def __init__(
        self, messages: AsyncGenerator[Any, None], parse: Callable[[Any], tuple[Iterable[_Item], _Summary | None]]
    ) -> None:
        self._summary: _Summary | None = None
        self._items = self._read(messages, parse)

    @property
    def summary(self) -> _Summary | None:
        """The end of the stream, once it has arrived."""
        return self._summary

    async def result(self) -> _Summary:
        """Reads to the end and returns the summary."""
        async for _ in self:
            pass
        if self._summary is None:
            raise Internal("the stream was closed before its end")
        return self._summary

    async def aclose(self) -> None:
        """Ends the stream. Idempotent."""
        await self._items.aclose()

    def __aiter__(self) -> AsyncIterator[_Item]:
        return self

    async def __anext__(self) -> _Item:
        return await anext(self._items)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _read(
        self, messages: AsyncGenerator[Any, None], parse: Callable[[Any], tuple[Iterable[_Item], _Summary | None]]
    ) -> AsyncGenerator[_Item, None]:
        try:
            async for message in messages:
                items, summary = parse(message)
                if summary is not None:
                    self._summary = summary
                for item in items:
                    yield item
        finally:
            await messages.aclose()
        if self._summary is None:
            raise Internal("the server ended the stream without a finished event")
