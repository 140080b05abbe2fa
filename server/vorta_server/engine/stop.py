"""Finds stop strings in text that arrives in pieces, holding back no more than could still become one.

Which stop wins does not depend on how the text is cut: the match that starts first; of those that start together, the
shortest, since it is complete first. A match that is complete waits while an earlier start may still become one, which
takes at most as many characters as the longest stop string has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["StopMatcher", "StopStep"]


@dataclass(frozen=True, slots=True)
class StopStep:
    """What a piece of text led to.

    Attributes:
        emit: Text that is certain now; with the stop string at its end when the matcher includes it.
        matched: The stop string found; nothing after it is emitted any more.
    """

    emit: str
    matched: str | None


class StopMatcher:
    """Cuts a text at its first stop string.

    Args:
        stop: Stop strings, none empty.
        include_stop: Whether the matched stop string is emitted.
    """

    def __init__(self, stop: Sequence[str], include_stop: bool) -> None:
        if not all(stop):
            raise ValueError("a stop string is empty")
        # The shortest first, so that it wins among those that start together.
        self._stop = sorted(set(stop), key=len)
        self._first_characters = tuple({text[0] for text in self._stop})
        self._include_stop = include_stop
        self._held = ""
        self._matched: str | None = None

    @property
    def matched(self) -> str | None:
        """The stop string that ended the text, None while there is none."""
        return self._matched

    def feed(self, text: str) -> StopStep:
        """Takes the next piece of text. After a match nothing is emitted."""
        if self._matched is not None:
            return StopStep("", self._matched)
        if not self._held:
            for character in self._first_characters:
                if character in text:
                    break
            else:
                return StopStep(text, None)
        text = self._held + text
        start, stop = self._find(text)
        hold = self._find_partial(text)
        if stop is not None and start <= hold:
            return self._finish(text, start, stop)
        self._held = text[hold:]
        return StopStep(text[:hold], None)

    def flush(self) -> str:
        """The text held back, when no more comes: up to a match that had waited for an earlier one, else all of it."""
        text, self._held = self._held, ""
        if self._matched is not None:
            return ""
        start, stop = self._find(text)
        return text if stop is None else self._finish(text, start, stop).emit

    def _finish(self, text: str, start: int, stop: str) -> StopStep:
        self._matched = stop
        self._held = ""
        return StopStep(text[: start + len(stop)] if self._include_stop else text[:start], stop)

    def _find(self, text: str) -> tuple[int, str | None]:
        """Where the first whole stop string starts, and which; (len(text), None) when there is none."""
        best, matched = len(text), None
        for stop in self._stop:
            position = text.find(stop)
            if 0 <= position < best:
                best, matched = position, stop
        return best, matched

    def _find_partial(self, text: str) -> int:
        """The first position from which the text to its end is a proper prefix of a stop string, else its length."""
        best = len(text)
        for stop in self._stop:
            position = text.find(stop[0], max(0, len(text) - len(stop) + 1), best)
            while position >= 0:
                if stop.startswith(text[position:]):
                    best = position
                    break
                position = text.find(stop[0], position + 1, best)
        return best
