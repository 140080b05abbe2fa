"""Times of work on a device: medians of windows between two events of the device, or of the clock on a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Timing", "measure_calls"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of one call.

    Attributes:
        median_s, least_s, most_s: Over the windows.
        is_graph: Whether a CUDA graph was replayed, so that launching is no part of it.
    """

    median_s: float
    least_s: float
    most_s: float
    is_graph: bool


def measure_calls(
    calls: Sequence[Callable[[], Any]], device: str, *, windows: int = 15, rounds: int = 4, graph: bool = True
) -> Timing:
    """Times calls that do the same with buffers of their own: in turn, so that no cache holds what the next one reads.

    Args:
        calls: Each is called `rounds` times in a window, in this order.
        device: "cuda" or "cpu".
        windows: Of which the median is taken, after two that warm up.
        graph: Whether to try capturing a window as a CUDA graph. What cannot be captured is launched call by call.
    """

    def window() -> None:
        for _ in range(rounds):
            for call in calls:
                call()

    count = rounds * len(calls)
    if device == "cpu":
        window()
        times_s = []
        for _ in range(windows):
            begin_s = time.perf_counter()
            window()
            times_s.append((time.perf_counter() - begin_s) / count)
        return _timing(times_s, is_graph=False)
    import torch

    window()
    torch.cuda.synchronize()
    replay, is_graph = _captured(window) if graph else (window, False)
    replay()
    replay()
    torch.cuda.synchronize()
    times_s = []
    for _ in range(windows):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        replay()
        end.record()
        end.synchronize()
        times_s.append(begin.elapsed_time(end) / 1e3 / count)
    return _timing(times_s, is_graph=is_graph)


def _captured(window: Callable[[], None]) -> tuple[Callable[[], None], bool]:
    import torch

    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            window()
    except RuntimeError:
        torch.cuda.synchronize()
        return window, False
    return graph.replay, True


def _timing(times_s: Sequence[float], *, is_graph: bool) -> Timing:
    return Timing(median_s=statistics.median(times_s), least_s=min(times_s), most_s=max(times_s), is_graph=is_graph)
