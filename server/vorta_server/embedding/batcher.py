"""Which texts are computed together: batches within a token budget, over all calls, fair to each.

Fairness is start-time fair queueing (Goyal, Vin and Cheng, 1996) with tokens as cost: the texts of a call are spaced by
what they cost, so a call of one text, coming while another with thousands runs, is in the next batch. Where padding
costs (an encoder that takes rectangles), the oldest text is joined by those of the next in line that are nearest in
length.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["BatchLimits", "TokenBatcher"]

T = TypeVar("T")

# Texts that are looked at for equal lengths, in batches' worth of tokens: enough to find neighbours, few enough that
# none waits long.
_WINDOW_BATCHES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """Bounds of batches and of the queue.

    Attributes:
        max_tokens: Of a batch, padding included; a single text may have more.
        max_rows: Texts of a batch.
        max_waiting_tokens, max_waiting_texts: Of the queue.
    """

    max_tokens: int = 1024
    max_rows: int = 256
    max_waiting_tokens: int = 1 << 20
    max_waiting_texts: int = 1 << 16


class TokenBatcher(Generic[T]):
    """A queue of texts, by calls. Not thread-safe.

    Args:
        limits: Bounds.
        is_packed: Whether texts of unequal lengths cost no padding.
    """

    def __init__(self, limits: BatchLimits, *, is_packed: bool) -> None:
        self._limits = limits
        self._is_packed = is_packed
        # (tag, number, tokens, call, text): the number keeps equal tags in order of arrival.
        self._queue: list[tuple[int, int, int, Hashable, T]] = []
        self._waiting: dict[Hashable, tuple[int, int]] = {}
        self._num_added = 0
        self._now = 0
        self.num_waiting = 0
        self.waiting_tokens = 0

    def has_room(self, lengths: Sequence[int]) -> bool:
        """Whether texts of these lengths, in tokens, may join the queue. An empty queue takes any."""
        if not self.num_waiting:
            return True
        return (
            self.num_waiting + len(lengths) <= self._limits.max_waiting_texts
            and self.waiting_tokens + sum(lengths) <= self._limits.max_waiting_tokens
        )

    def add(self, call: Hashable, texts: Sequence[T], lengths: Sequence[int]) -> None:
        """Queues the texts of a call; once for each call."""
        tag = self._now
        for text, length in zip(texts, lengths, strict=True):
            heapq.heappush(self._queue, (tag, self._num_added, length, call, text))
            self._num_added += 1
            tag += length
        total = sum(lengths)
        self._waiting[call] = (len(texts), total)
        self.num_waiting += len(texts)
        self.waiting_tokens += total

    def remove(self, call: Hashable) -> None:
        """Drops what still waits of a call. Idempotent."""
        num_texts, tokens = self._waiting.pop(call, (0, 0))
        self.num_waiting -= num_texts
        self.waiting_tokens -= tokens
        if not self._waiting:
            self._queue.clear()

    def next(self, max_tokens: int | None = None) -> list[T]:
        """The next batch; empty when nothing waits. `max_tokens` in place of the limits' where nothing is padded."""
        limits = self._limits
        most = limits.max_tokens if max_tokens is None else max_tokens
        batch: list[T] = []
        if self._is_packed:
            tokens = 0
            while self._queue and len(batch) < limits.max_rows:
                tag, _, length, call, text = self._queue[0]
                if call not in self._waiting:
                    heapq.heappop(self._queue)
                    continue
                if batch and tokens + length > most:
                    break
                heapq.heappop(self._queue)
                tokens += length
                self._take(tag, length, call)
                batch.append(text)
            return batch
        window: list[tuple[int, int, int, Hashable, T]] = []
        tokens = 0
        while self._queue and tokens < _WINDOW_BATCHES * limits.max_tokens:
            entry = heapq.heappop(self._queue)
            if entry[3] in self._waiting:
                window.append(entry)
                tokens += entry[2]
        if not window:
            return batch
        oldest, *others = window
        others.sort(key=lambda entry: abs(entry[2] - oldest[2]))
        longest = oldest[2]
        chosen = [oldest]
        for entry in others:
            width = max(longest, entry[2])
            if len(chosen) == limits.max_rows or width * (len(chosen) + 1) > limits.max_tokens:
                break
            longest = width
            chosen.append(entry)
        for entry in others[len(chosen) - 1 :]:
            heapq.heappush(self._queue, entry)
        for tag, _, length, call, text in chosen:
            self._take(tag, length, call)
            batch.append(text)
        return batch

    def _take(self, tag: int, length: int, call: Hashable) -> None:
        self._now = max(self._now, tag)
        num_texts, tokens = self._waiting[call]
        if num_texts == 1:
            del self._waiting[call]
        else:
            self._waiting[call] = (num_texts - 1, tokens - length)
        self.num_waiting -= 1
        self.waiting_tokens -= length
