"""The arithmetic of streams: what counts inside a window, TTFT, TPOT and goodput."""

from __future__ import annotations

import pytest

from vorta_bench.h200.clients import Request
from vorta_bench.h200.wire import summarise_requests


def request(sent_s: float, first_s: float, last_s: float, tokens: int = 101, error: str = "") -> Request:
    return Request(sent_s, first_s, last_s, last_s, 1, tokens, 0.25, error)


def test_tokens_are_spread_between_the_first_and_the_last() -> None:
    one = request(0.0, 1.0, 2.0)
    assert [one.tokens_until(at_s) for at_s in (0.5, 1.0, 1.5, 2.0, 3.0)] == [0, 1, 51, 101, 101]
    assert (one.ttft_s, one.tpot_s) == (1.0, 0.01)
    assert request(0.0, 1.0, 1.0, tokens=1).tpot_s is None


def test_a_window_counts_its_own_tokens_and_goodput_those_in_time() -> None:
    quick, slow = request(1.0, 1.5, 2.0), request(1.0, 2.0, 4.0)  # 5 ms and 20 ms between tokens
    figure = summarise_requests([quick, slow, request(0.0, 0.0, 0.0, tokens=0, error="gone")], 1.0, 3.0)
    assert (figure["requests"], figure["failed"]) == (3, 1)
    assert figure["output_tokens"] == pytest.approx(101 + 51)
    assert figure["output_tokens_per_s"] == pytest.approx(76)
    assert figure["goodput_tokens_per_s"] == pytest.approx(50.5)
    assert (figure["ttft_p50_s"], figure["ttft_p99_s"]) == (0.5, 1.0)
    assert (figure["tpot_p50_s"], figure["tpot_p99_s"]) == (0.005, 0.02)


def test_a_run_in_which_nothing_ended_well_is_no_figure() -> None:
    with pytest.raises(RuntimeError, match="gone"):
        summarise_requests([request(0.0, 0.0, 0.0, tokens=0, error="gone")], 0.0, 1.0)
