"""Results that come as they are computed, and a summary at the end; the asyncio twin is `vorta.async_result_stream`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from vorta.errors import Internal

__all__ = ["ResultStream"]

_Item = TypeVar("_Item")
_Summary = TypeVar("_Summary")


class ResultStream(Generic[_Item, _Summary]):
    """Results in the order in which they are computed: iterate over it; `summary` is there afterwards.

    Iterating raises the call's error, and Internal when the server ended without a summary. `close`, or the end of a
    `with` block, ends a call that is still running. Nothing is sent before the first result is asked for. One thread
    reads.
    """

    def __init__(
        self, messages: Generator[Any, None, None], parse: Callable[[Any], tuple[Iterable[_Item], _Summary | None]]
    ) -> None:
        self._summary: _Summary | None = None
        self._items = self._read(messages, parse)

    @property
    def summary(self) -> _Summary | None:
        """The end of the stream, once it has arrived."""
        return self._summary

    def result(self) -> _Summary:
        """Reads to the end and returns the summary."""
        for _ in self:
            pass
        if self._summary is None:
            raise Internal("the stream was closed before its end")
        return self._summary

    def close(self) -> None:
        """Ends the stream. Idempotent."""
        self._items.close()

    def __iter__(self) -> Iterator[_Item]:
        return self

    def __next__(self) -> _Item:
        return next(self._items)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(
        self, messages: Generator[Any, None, None], parse: Callable[[Any], tuple[Iterable[_Item], _Summary | None]]
    ) -> Generator[_Item, None, None]:
        try:
            for message in messages:
                items, summary = parse(message)
                if summary is not None:
                    self._summary = summary
                yield from items
        finally:
            messages.close()
        if self._summary is None:
            raise Internal("the server ended the stream without a finished event")
