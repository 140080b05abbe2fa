"""Closed-loop clients in processes of their own, so that the clients' Python is not what is measured.

Each process, `python -m vorta_bench.h200.clients`, reads a line of JSON, runs a load (`vorta_bench.load`) from the time
that the line names, and answers with a line: the moment it began and what became of each request.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

__all__ = ["Clients", "Request"]

_LEAD_S = 0.3
"""Between telling the processes and their common start."""


@dataclass(frozen=True, slots=True)
class Request:
    """What became of one request; times in seconds from the common start. No tokens: there is no first or last."""

    sent_s: float
    first_s: float
    last_s: float
    end_s: float
    first_tokens: int
    tokens: int
    longest_gap_s: float
    error: str

    @property
    def ttft_s(self) -> float:
        """From sending to the first tokens."""
        return self.first_s - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """Per token after the first message; None without any."""
        after = self.tokens - self.first_tokens
        return (self.last_s - self.first_s) / after if after else None

    def tokens_until(self, at_s: float) -> float:
        """Tokens that had arrived by then, taken as evenly spread between the first and the last."""
        if not self.tokens or at_s < self.first_s:
            return 0.0
        if at_s >= self.last_s:
            return float(self.tokens)
        share = (at_s - self.first_s) / (self.last_s - self.first_s)
        return self.first_tokens + (self.tokens - self.first_tokens) * share


class Clients:
    """Processes that load one server together. A context manager: its end ends them."""

    def __init__(self, address: str, num_processes: int) -> None:
        self._address = address
        self._seed = 0
        command = [sys.executable, "-m", "vorta_bench.h200.clients"]
        self._processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(num_processes)
        ]

    def __enter__(self) -> Clients:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.kill()
            process.wait()

    def run(
        self,
        *,
        streams: int,
        prompt_tokens: int,
        max_tokens: int,
        requests: int | None = None,
        duration_s: float | None = None,
    ) -> list[Request]:
        """Keeps `streams` requests in flight, `requests` in all or until `duration_s`, and waits for their ends.

        Raises RuntimeError when a client process died.
        """
        self._seed += len(self._processes)
        at_s = time.time() + _LEAD_S
        busy = self._processes[: min(len(self._processes), streams)]
        for index, process in enumerate(busy):
            share = _share(streams, len(busy), index)
            order = {
                "server": self._address,
                "concurrency": share,
                "requests": None if requests is None else max(share, _share(requests, len(busy), index)),
                "duration_s": duration_s,
                "timeout_s": 600.0,
                "seed": self._seed + index,
                "prompt_tokens": prompt_tokens,
                "max_tokens": max_tokens,
            }
            assert process.stdin is not None
            process.stdin.write(json.dumps({"at_s": at_s, "options": order}) + "\n")
            process.stdin.flush()
        found: list[Request] = []
        for process in busy:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"a client process ended with status {process.wait()}")
            answer = json.loads(line)
            late_s = answer["began_s"] - at_s
            found += [_request(row, late_s) for row in answer["requests"]]
        return found


def _share(count: int, num_parts: int, index: int) -> int:
    return count // num_parts + (index < count % num_parts)


def _request(row: Sequence[Any], late_s: float) -> Request:
    sent, first, last, end, first_tokens, tokens, longest, error = row
    return Request(
        sent + late_s, (first or 0.0) + late_s, last + late_s, end + late_s, first_tokens, tokens, longest, error
    )


def main() -> None:
    """Serves lines until there are no more."""
    import uvloop

    from vorta_bench.load import Load, LoadOptions

    for line in sys.stdin:
        asked = json.loads(line)
        load = Load(LoadOptions(**asked["options"]))
        time.sleep(max(0.0, asked["at_s"] - time.time()))
        begin_s = time.time()
        run = uvloop.run(load.run())
        # The run's own clock begins when its channel is made.
        began_s = max(begin_s, run.started.timestamp())
        rows = [
            (
                record.sent_s or 0.0,
                record.first_s,
                record.last_s,
                record.end_s or 0.0,
                record.first_tokens,
                record.tokens,
                max(record.gaps_s, default=0.0),
                record.error,
            )
            for record in run.records
        ]
        print(json.dumps({"began_s": began_s, "requests": rows}), flush=True)


if __name__ == "__main__":
    main()
