"""Stop strings over text cut at random, against a search in the whole text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vorta_server.engine.stop import StopMatcher, StopStep

stops = st.lists(st.text("abc", min_size=1, max_size=5), max_size=4)


def expected(text: str, stop: list[str], include_stop: bool) -> tuple[str, str | None]:
    """The earliest start wins, then the shortest."""
    found = [(text.find(s), len(s), s) for s in stop if s in text]
    if not found:
        return text, None
    start, size, matched = min(found)
    return text[: start + size * include_stop], matched


def run(pieces: list[str], stop: list[str], include_stop: bool) -> tuple[str, str | None]:
    matcher = StopMatcher(stop, include_stop)
    emitted = "".join(matcher.feed(piece).emit for piece in pieces)
    return emitted + matcher.flush(), matcher.matched


@settings(max_examples=500, deadline=None)
@given(st.lists(st.text("abcd", max_size=5), max_size=12), stops, st.booleans())
def test_cuts_do_not_matter(pieces: list[str], stop: list[str], include_stop: bool) -> None:
    assert run(pieces, stop, include_stop) == expected("".join(pieces), stop, include_stop)


@settings(max_examples=300, deadline=None)
@given(st.text("abcd", max_size=20), stops)
def test_holds_back_exactly_what_may_become_a_stop(text: str, stop: list[str]) -> None:
    matcher = StopMatcher(stop, False)
    emitted = ""
    for character in text:
        step = matcher.feed(character)
        emitted += step.emit
        if step.matched is not None:
            return
    held = text[len(emitted) :]
    assert emitted == text[: len(emitted)]
    # The held text begins with the longest ending that is a proper prefix of a stop string.
    longest = max(
        (size for size in range(len(text) + 1) for s in stop if size < len(s) and text.endswith(s[:size]) and size),
        default=0,
    )
    assert len(held) == longest


def test_a_match_across_pieces() -> None:
    matcher = StopMatcher(["\n\nUser:"], False)
    assert matcher.feed("Hi.\n") == StopStep("Hi.", None)
    assert matcher.feed("\nUs") == StopStep("", None)
    assert matcher.feed("er: more") == StopStep("", "\n\nUser:")
    assert matcher.feed("ignored") == StopStep("", "\n\nUser:")
    assert matcher.flush() == ""


def test_text_that_was_not_a_stop_comes_out() -> None:
    matcher = StopMatcher(["END"], True)
    assert matcher.feed("aEN") == StopStep("a", None)
    assert matcher.feed("Eb") == StopStep("ENEb", None)
    assert matcher.feed("EN").emit == ""
    assert matcher.flush() == "EN"


def test_a_complete_match_waits_for_an_earlier_start() -> None:
    matcher = StopMatcher(["abcd", "c"], False)
    assert matcher.feed("xabc") == StopStep("x", None)
    assert matcher.feed("d") == StopStep("", "abcd")
    matcher = StopMatcher(["abcd", "c"], False)
    matcher.feed("xabc")
    assert matcher.feed("e") == StopStep("ab", "c")
    matcher = StopMatcher(["abcd", "c"], False)
    matcher.feed("xabc")
    assert (matcher.flush(), matcher.matched) == ("ab", "c")


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher([""], False)


def test_no_stop_strings_hold_nothing() -> None:
    assert StopMatcher([], False).feed("abc") == StopStep("abc", None)
