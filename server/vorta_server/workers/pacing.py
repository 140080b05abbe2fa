"""How often streams are written to: worker and front follow one clock, so that what the one sends the other passes on
at once."""

from __future__ import annotations

__all__ = ["WritePacer"]


class WritePacer:
    """How long a stream waits between two messages.

    A streamed message costs the server CPU, and a client beside it as much again. So that all streams together spend a
    bounded share of the machine on it, each of N open streams writes at most every N * interval_per_stream_s seconds,
    never slower than `max_interval_s` nor faster than `min_interval_s`. A model that is slower than that sends every
    token at once.

    Attributes:
        num_streams: Those that are open now.
    """

    __slots__ = ("_interval_per_stream_s", "_max_interval_s", "_min_interval_s", "num_streams")

    def __init__(self, *, interval_per_stream_s: float, max_interval_s: float, min_interval_s: float = 0.0) -> None:
        self._interval_per_stream_s = interval_per_stream_s
        self._max_interval_s = max_interval_s
        self._min_interval_s = min_interval_s
        self.num_streams = 0

    @property
    def interval_s(self) -> float:
        """Seconds between two messages of one stream."""
        return max(self._min_interval_s, min(self.num_streams * self._interval_per_stream_s, self._max_interval_s))

    def next_write_s(self, now_s: float) -> float:
        """When a stream that writes at this `time.monotonic()` may write again: at the next tick, which all share.

        Writes of one moment share their wake-ups and packets, on both sides. The clock is one for all processes of a
        machine, and so are the ticks.
        """
        interval_s = self.interval_s
        return (now_s // interval_s + 1.0) * interval_s if interval_s > 0 else now_s
