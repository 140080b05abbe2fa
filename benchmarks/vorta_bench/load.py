"""Loads a server with `StreamGenerate` calls over gRPC: `python -m vorta_bench.load`.

Closed loop (`--concurrency N`): N workers, each sends its next request when the last one ended. Open loop
(`--rate R`): Poisson arrivals that wait for no answer; TTFT and latency count from the scheduled arrival, so that time
in a queue, the client's own included, is part of them. Every run is bounded by requests, by time, or by both, and every
request by a deadline. The report has ghz's JSON keys and units, and Vorta's own under `vorta`. Workloads:

chat   prompts of 20 to 200 tokens with one system prompt in common, 20 to 150 output tokens.
long   prompts of 1,000 to 2,000 tokens, 32 output tokens.
burst  chat in groups: of 8 at once in open loop, of N that wait for each other in closed loop.

The client is one Python process: on a shared machine it takes cores from the server. `vorta.send_delay` says how late
it sent; a run whose delays are near its latencies measured the client. Exit status: 0; 1 when no request ended well;
130 after Ctrl-C, with the report of what was done.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import secrets
import signal
import sys
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import uvloop

from vorta.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from vorta.wire import error_from_reason
from vorta_bench.wire import serving

__all__ = ["Load", "LoadOptions", "Record", "Run", "build_report", "main", "summarise"]

CALL = "vorta.v1.InferenceService.StreamGenerate"
DEFAULT_REQUESTS = 200
MAX_REQUESTS = 1_000_000
"""Of one run: each leaves a record in memory, and a server that is gone answers thousands a second."""
BURST_SIZE = 8
SYSTEM_TOKENS = 16
DROPPED = "DROPPED"
"""Status of an arrival that was not sent; no gRPC status has this name."""

_ENDS_OF_FINISH_REASONS = {
    common_pb2.FINISH_REASON_CANCELLED: grpc.StatusCode.CANCELLED,
    common_pb2.FINISH_REASON_DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
    common_pb2.FINISH_REASON_DRAINING: grpc.StatusCode.UNAVAILABLE,
}
_STATUS_NAMES: dict[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class Work:
    """What one request asks for: its prompt, and the number of tokens to generate."""

    prompt_token_ids: list[int]
    max_tokens: int


def chat_work(seed: int, index: int) -> Work:
    """Request `index` of the chat workload; its prompt begins with the system prompt of all chats of this seed."""
    system = _draw_token_ids(random.Random(f"{seed}/system"), SYSTEM_TOKENS)
    draws = random.Random(f"{seed}/chat/{index}")
    num_prompt = _draw_length(draws, 20, 200)
    return Work(system + _draw_token_ids(draws, num_prompt - SYSTEM_TOKENS), _draw_length(draws, 20, 150))


def long_work(seed: int, index: int) -> Work:
    """Request `index` of the long workload; its prompt has nothing in common with others."""
    draws = random.Random(f"{seed}/long/{index}")
    return Work(_draw_token_ids(draws, draws.randint(1000, 2000)), 32)


def prompt_of(seed: int, index: int, num_tokens: int) -> list[int]:
    """Prompt `index` of this many tokens; it has nothing in common with others."""
    return _draw_token_ids(random.Random(f"{seed}/prompt/{index}"), num_tokens)


WORKLOADS: dict[str, Callable[[int, int], Work]] = {"chat": chat_work, "long": long_work, "burst": chat_work}


def _draw_token_ids(draws: random.Random, count: int) -> list[int]:
    return [draws.randrange(10, 3010) for _ in range(count)]


def _draw_length(draws: random.Random, low: int, high: int) -> int:
    # The mean of three uniform draws has a bell's shape and, unlike a normal distribution, ends.
    return low + round((high - low) * (draws.random() + draws.random() + draws.random()) / 3)


def poisson_arrivals(rate: float, seed: int, group: int = 1) -> Iterator[float]:
    """Endless arrival times in seconds from the run's start, `rate` a second on average, in groups at one time."""
    draws = random.Random(f"{seed}/arrivals")
    at_s = 0.0
    while True:
        at_s += draws.expovariate(rate / group)
        for _ in range(group):
            yield at_s


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """One run. Without `rate` (requests/s) it is a closed loop; without `requests` and `duration_s`, 200 requests.

    `duration_s` bounds the time in which requests begin; those in flight then may end within `timeout_s`, the deadline
    of each. `max_tokens` takes the place of the workload's output tokens, `prompt_tokens` that of its prompts: so many
    tokens, which begin like no other prompt. In open loop, arrivals that find `max_in_flight` requests unanswered are
    dropped, and recorded as such.

    Raises:
        ValueError: A value is out of range; the message begins with its argument.
    """

    server: str = "127.0.0.1:50051"
    workload: str = "chat"
    concurrency: int = 8
    rate: float | None = None
    requests: int | None = None
    duration_s: float | None = None
    timeout_s: float = 60.0
    seed: int = 0
    max_tokens: int | None = None
    prompt_tokens: int | None = None
    max_in_flight: int = 1024

    def __post_init__(self) -> None:
        host, _, port = self.server.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(f"--server: must be HOST:PORT, not {self.server!r}")
        if self.workload not in WORKLOADS:
            raise ValueError(f"--workload: must be one of {', '.join(WORKLOADS)}, not {self.workload!r}")
        most = {"concurrency": 10_000, "requests": MAX_REQUESTS, "max_tokens": 1_000_000, "max_in_flight": 100_000}
        most |= {"prompt_tokens": 1_000_000, "rate": 100_000, "duration_s": 86_400, "timeout_s": 86_400}
        for name, top in most.items():
            value = getattr(self, name)
            if value is not None and not 0 < value <= top:
                argument = name.removesuffix("_s").replace("_", "-")
                raise ValueError(f"--{argument}: must be above 0 and at most {top}, not {value}")

    @property
    def most_requests(self) -> int:
        """Arrivals after which the run ends."""
        return self.requests or (DEFAULT_REQUESTS if self.duration_s is None else MAX_REQUESTS)


@dataclass(slots=True)
class Record:
    """What became of one request. Times are in seconds from the run's start."""

    index: int
    scheduled_s: float
    sent_s: float | None = None
    first_s: float | None = None
    last_s: float = 0.0
    end_s: float | None = None
    first_tokens: int = 0
    tokens: int = 0
    gaps_s: list[float] = field(default_factory=list)
    status: str = "CANCELLED"
    error: str = "the run ended"

    def add_delta(self, at_s: float, tokens: int) -> None:
        """Notes the arrival of tokens."""
        if self.first_s is None:
            self.first_s, self.first_tokens = at_s, tokens
        else:
            self.gaps_s.append(at_s - self.last_s)
        self.last_s = at_s
        self.tokens += tokens

    @property
    def latency_s(self) -> float:
        """From the scheduled arrival to the end; 0 for a request that was not sent."""
        return 0.0 if self.end_s is None else self.end_s - self.scheduled_s

    @property
    def ttft_s(self) -> float | None:
        """From the scheduled arrival to the first tokens; None when there were none."""
        return None if self.first_s is None else self.first_s - self.scheduled_s

    @property
    def tpot_s(self) -> float | None:
        """Per token after the first delta's; None when that one had all. Merged tokens so count as they arrived."""
        after = self.tokens - self.first_tokens
        return (self.last_s - self.first_s) / after if after and self.first_s is not None else None


@dataclass(slots=True)
class Run:
    """A run that ended; `end_reason` is "normal", "timeout" (the duration is over) or "cancel"."""

    options: LoadOptions
    run_id: str
    started: datetime
    total_s: float
    end_reason: str
    records: list[Record]


class Load:
    """Sends the requests of one run. `records` grows while it runs."""

    def __init__(self, options: LoadOptions) -> None:
        self.records: list[Record] = []
        self._options = options
        self._run_id = secrets.token_hex(4)
        self._num_taken = 0
        self._in_flight = 0
        self._end_reason = "normal"

    async def run(self, stop: asyncio.Event | None = None) -> Run:
        """Runs to the bounds of the options, or until `stop` is set: that cancels what is in flight."""
        stop = stop or asyncio.Event()
        async with grpc.aio.insecure_channel(self._options.server) as channel:
            self._stub = inference_pb2_grpc.InferenceServiceStub(channel)
            started = datetime.now().astimezone()
            self._start_s = time.perf_counter()
            loop = self._closed_loop() if self._options.rate is None else self._open_loop(self._options.rate)
            driver, stopped = asyncio.create_task(loop), asyncio.create_task(stop.wait())
            await asyncio.wait({driver, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not driver.done():
                self._end_reason = "cancel"
                driver.cancel()
                await asyncio.wait({driver})
            stopped.cancel()
            if not driver.cancelled():
                driver.result()
            total_s = self._now_s()
        return Run(self._options, self._run_id, started, total_s, self._end_reason, self.records)

    def _now_s(self) -> float:
        return time.perf_counter() - self._start_s

    def _take(self, at_s: float) -> int | None:
        """The index of a request that begins at this time; None when the run is over."""
        if self._num_taken >= self._options.most_requests:
            return None
        if self._options.duration_s is not None and at_s >= self._options.duration_s:
            self._end_reason = "timeout"
            return None
        self._num_taken += 1
        return self._num_taken - 1

    async def _closed_loop(self) -> None:
        if self._options.workload == "burst":
            await self._send_groups()
            return
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(self._options.concurrency, self._options.most_requests)):
                workers.create_task(self._work_on())

    async def _work_on(self) -> None:
        while (index := self._take(self._now_s())) is not None:
            request = self._request(index)
            await self._send(self._record(index, self._now_s()), request)

    async def _send_groups(self) -> None:
        while True:
            taken = [self._take(self._now_s()) for _ in range(self._options.concurrency)]
            requests = [(index, self._request(index)) for index in taken if index is not None]
            if not requests:
                return
            async with asyncio.TaskGroup() as group:
                for index, request in requests:
                    group.create_task(self._send(self._record(index, self._now_s()), request))

    async def _open_loop(self, rate: float) -> None:
        group = BURST_SIZE if self._options.workload == "burst" else 1
        async with asyncio.TaskGroup() as requests:
            for at_s in poisson_arrivals(rate, self._options.seed, group):
                index = self._take(at_s)
                if index is None:
                    return
                # Made before its time, so that making it is no part of its latency.
                request = self._request(index)
                await asyncio.sleep(max(0.0, at_s - self._now_s()))
                record = self._record(index, at_s)
                if self._in_flight >= self._options.max_in_flight:
                    record.status, record.error = DROPPED, f"dropped: {self._options.max_in_flight} requests in flight"
                    continue
                self._in_flight += 1
                requests.create_task(self._send(record, request)).add_done_callback(self._land)

    def _land(self, _: asyncio.Task[None]) -> None:
        self._in_flight -= 1

    def _record(self, index: int, scheduled_s: float) -> Record:
        self.records.append(Record(index, scheduled_s))
        return self.records[-1]

    def _request(self, index: int) -> inference_pb2.StreamGenerateRequest:
        work = WORKLOADS[self._options.workload](self._options.seed, index)
        if self._options.prompt_tokens is not None:
            work = Work(prompt_of(self._options.seed, index, self._options.prompt_tokens), work.max_tokens)
        return inference_pb2.StreamGenerateRequest(
            prompt_token_ids=work.prompt_token_ids,
            max_tokens=self._options.max_tokens or work.max_tokens,
            temperature=0.0,
            ignore_eos=True,
            request_id=f"load-{self._run_id}-{index}",
        )

    async def _send(self, record: Record, request: inference_pb2.StreamGenerateRequest) -> None:
        record.sent_s = self._now_s()
        finished: common_pb2.StreamFinished | None = None
        try:
            async for event in self._stub.StreamGenerate(request, timeout=self._options.timeout_s):
                if event.HasField("delta") and event.delta.token_ids:
                    record.add_delta(self._now_s(), len(event.delta.token_ids))
                elif event.HasField("finished"):
                    finished = event.finished
            record.status, record.error = _end_of(finished)
        except grpc.aio.AioRpcError as error:
            record.status, record.error = error.code().name, error.details() or error.code().name
        finally:
            record.end_s = self._now_s()


def _end_of(finished: common_pb2.StreamFinished | None) -> tuple[str, str]:
    """Status and error of a stream that gRPC calls OK: its last event may still say that the request failed."""
    if finished is None:
        return grpc.StatusCode.UNKNOWN.name, "the stream ended without its finished event"
    reason = finished.finish_reason
    if reason in (common_pb2.FINISH_REASON_STOP, common_pb2.FINISH_REASON_LENGTH):
        return grpc.StatusCode.OK.name, ""
    if reason in _ENDS_OF_FINISH_REASONS:
        return _ENDS_OF_FINISH_REASONS[reason].name, f"finished with {common_pb2.FinishReason.Name(reason)}"
    failure = finished.error
    code = error_from_reason(failure.reason, failure.message, retryable=failure.retryable).code
    return _STATUS_NAMES[code], f"{failure.reason}: {failure.message}"


def percentile(ordered: Sequence[float], percent: int) -> float:
    """The smallest of the ascending values, at least one, that this percentage of them does not exceed."""
    return ordered[max(0, math.ceil(percent * len(ordered) / 100) - 1)]


def _nanoseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1e9)


def _statistics(values_s: Iterable[float | None]) -> dict[str, int | None]:
    """Count, mean and percentiles of the values that are there, in nanoseconds; None without any."""
    ordered = sorted(value for value in values_s if value is not None)
    row = {"count": len(ordered), "average": _nanoseconds(sum(ordered) / len(ordered) if ordered else None)}
    shares = (50, 90, 95, 99)
    return row | {f"p{share}": _nanoseconds(percentile(ordered, share) if ordered else None) for share in shares}


def _histogram(ordered: Sequence[float]) -> list[dict[str, float | int]]:
    """Eleven marks from the fastest to the slowest; each counts what lies above the mark before and up to it."""
    if not ordered:
        return []
    step_s = (ordered[-1] - ordered[0]) / 10
    marks = [ordered[0] + step_s * place for place in range(10)] + [ordered[-1]]
    counts = [upper - lower for lower, upper in pairwise([0, *(bisect_right(ordered, mark) for mark in marks)])]
    pairs = zip(marks, counts, strict=True)
    return [{"mark": mark, "count": count, "frequency": count / len(ordered)} for mark, count in pairs]


def build_report(run: Run) -> dict[str, Any]:
    """The run as ghz's report: times in ns, marks of the histogram in s.

    As in ghz `count`, `rps` and the distributions of errors and statuses are over all requests, latencies over those
    that ended well. What was not sent has no latency and is left out of `average`.
    """
    options, records, total_s = run.options, run.records, run.total_s
    good = [record for record in records if not record.error]
    ordered = sorted(record.latency_s for record in good)
    sent = [record for record in records if record.sent_s is not None]
    tokens = sum(record.tokens for record in records)
    is_open = options.rate is not None
    name = f"vorta {options.workload}"
    asked = {
        "call": CALL,
        "host": options.server,
        "insecure": True,
        # ghz reads a whole number; the exact rate is among Vorta's own keys.
        "rps": None if options.rate is None else max(1, round(options.rate)),
        "concurrency": options.max_in_flight if is_open else options.concurrency,
        "total": options.most_requests,
        "async": is_open,
        "connections": 1,
        "duration": _nanoseconds(options.duration_s),
        "timeout": _nanoseconds(options.timeout_s),
        "name": name,
    }
    return {
        "name": name,
        "date": run.started.isoformat(timespec="seconds"),
        "endReason": run.end_reason,
        "options": {key: value for key, value in asked.items() if value is not None},
        "count": len(records),
        "total": _nanoseconds(total_s),
        "average": _nanoseconds(sum(record.latency_s for record in sent) / max(1, len(sent))),
        "fastest": _nanoseconds(ordered[0] if ordered else 0.0),
        "slowest": _nanoseconds(ordered[-1] if ordered else 0.0),
        "rps": len(records) / total_s,
        "errorDistribution": dict(Counter(record.error for record in records if record.error)),
        "statusCodeDistribution": dict(Counter(record.status for record in records)),
        "latencyDistribution": [
            {"percentage": percent, "latency": _nanoseconds(percentile(ordered, percent))}
            for percent in (10, 25, 50, 75, 90, 95, 99)
            if ordered
        ],
        "histogram": _histogram(ordered),
        "details": [
            {
                "timestamp": (run.started + timedelta(seconds=record.scheduled_s)).isoformat(timespec="microseconds"),
                "latency": _nanoseconds(record.latency_s),
                "error": record.error,
                "status": record.status,
            }
            for record in records
        ],
        "vorta": {
            "run_id": run.run_id,
            "workload": options.workload,
            "rate": options.rate,
            "seed": options.seed,
            "ok": len(good),
            "ok_per_second": len(good) / total_s,
            "dropped": sum(record.status == DROPPED for record in records),
            "tokens": {"output": tokens, "output_per_second": tokens / total_s},
            "ttft": _statistics(record.ttft_s for record in good),
            "tpot": _statistics(record.tpot_s for record in good),
            "gap": _statistics(gap_s for record in good for gap_s in record.gaps_s),
            "latency": _statistics(ordered),
            "send_delay": _statistics(
                record.sent_s - record.scheduled_s for record in sent if record.sent_s is not None
            ),
            # In the order of ghz's details.
            "requests": [
                {
                    "index": record.index,
                    "tokens": record.tokens,
                    "ttft": _nanoseconds(record.ttft_s),
                    "tpot": _nanoseconds(record.tpot_s),
                    "longest_gap": _nanoseconds(max(record.gaps_s, default=None)),
                }
                for record in records
            ],
        },
    }


def summarise(report: dict[str, Any]) -> str:
    """The report for a person, laid out as ghz's summary; times in ms unless they say otherwise."""
    ours, histogram = report["vorta"], report["histogram"]
    lines = [
        f"{report['name']}, {'open' if report['options']['async'] else 'closed'} loop, ended: {report['endReason']}",
        "\nSummary:",
        f"  Count:              {report['count']} ({ours['ok']} ok, {ours['dropped']} dropped)",
        f"  Total:              {report['total'] / 1e9:.2f} s",
        *(f"  {key.capitalize() + ':':19} {report[key] / 1e6:.2f} ms" for key in ("slowest", "fastest", "average")),
        f"  Requests/sec:       {report['rps']:.2f}",
        f"  Output tokens/sec:  {ours['tokens']['output_per_second']:.1f}",
        "\nResponse time histogram (ms):",
    ]
    most = max((bucket["count"] for bucket in histogram), default=1)
    for bucket in histogram:
        lines.append(f"  {bucket['mark'] * 1e3:10.2f} [{bucket['count']}]\t|{'∎' * round(40 * bucket['count'] / most)}")
    lines.append("\nLatency distribution:")
    lines += [f"  {row['percentage']} % in {row['latency'] / 1e6:.2f} ms" for row in report["latencyDistribution"]]
    percents = ("p50", "p90", "p95", "p99")
    lines.append("\nMilliseconds: " + "".join(f"{percent:>11}" for percent in percents))
    for key in ("ttft", "tpot", "gap", "latency", "send_delay"):
        cells = ("-" if ours[key][percent] is None else f"{ours[key][percent] / 1e6:.2f}" for percent in percents)
        lines.append(f"  {key:12}" + "".join(f"{cell:>11}" for cell in cells))
    lines.append("\nStatus code distribution:")
    lines += [f"  [{status}] {count} responses" for status, count in report["statusCodeDistribution"].items()]
    if report["errorDistribution"]:
        lines.append("\nError distribution:")
        lines += [f"  [{count}] {error}" for error, count in report["errorDistribution"].items()]
    return "\n".join(lines)


async def _run_until_signal(options: LoadOptions) -> Run:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        loop.add_signal_handler(number, stop.set)
    try:
        return await Load(options).run(stop)
    finally:
        # uvloop leaves its handlers in place when it closes, and nothing could interrupt the server's stop.
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vorta_bench.load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--server", metavar="HOST:PORT", help="a running server (default: start vorta serve)")
    add("--model", help="model of the server that is started: artifact folder or id (default: its default model)")
    add("--workload", choices=list(WORKLOADS), help="default: chat")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--concurrency", type=int, metavar="N", help="closed loop (default: 8)")
    mode.add_argument("--rate", type=float, metavar="R", help="open loop: requests/s")
    add("--requests", type=int, metavar="N", help=f"default: {DEFAULT_REQUESTS}, or {MAX_REQUESTS} with --duration")
    add("--duration", type=float, dest="duration_s", metavar="S", help="seconds in which requests begin")
    add("--timeout", type=float, dest="timeout_s", metavar="S", help="a request's deadline in s (default: 60)")
    add("--max-in-flight", type=int, metavar="N", help="open loop: more are dropped (default: 1024)")
    add("--max-tokens", type=int, metavar="N", help="output tokens of each request (default: the workload's)")
    add("--prompt-tokens", type=int, metavar="N", help="tokens of each prompt (default: the workload's)")
    add("--seed", type=int, help="of prompts, lengths and arrivals (default: 0)")
    add("--out", type=Path, metavar="FILE", help="write the report as JSON")
    add("--format", choices=["summary", "json"], default="summary", help="on stdout (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit status; SystemExit 2 when an argument is wrong."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.server is not None and arguments.model is not None:
        parser.error("--model: only without --server, for the server that is started")
    given = {item.name: getattr(arguments, item.name) for item in fields(LoadOptions)}
    try:
        options = LoadOptions(**{name: value for name, value in given.items() if value is not None})
        if arguments.out is not None:
            # A run may be long: a file that cannot be written is told before it, not after.
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.open("a").close()
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"--out: {error}")
    try:
        if arguments.server is not None:
            run = uvloop.run(_run_until_signal(options))
        else:
            with serving([] if arguments.model is None else ["--model", arguments.model]) as server:
                run = uvloop.run(_run_until_signal(replace(options, server=server.address)))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted before the run began\n")
        return 130
    report = build_report(run)
    text = json.dumps(report, indent=1)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")
    print(text if arguments.format == "json" else summarise(report), flush=True)
    if run.end_reason == "cancel":
        return 130
    return 0 if report["vorta"]["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
