"""The load generator: workloads and arrivals by themselves, the report's arithmetic, and runs against a real server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.clients.fake_server import FakeServer
from tests.integration.served import Served, refusing_port, serving
from vorta.v1 import common_pb2
from vorta_bench.load import (
    DROPPED,
    Load,
    LoadOptions,
    Record,
    Run,
    build_report,
    chat_work,
    long_work,
    main,
    percentile,
    poisson_arrivals,
    summarise,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("load")) as served:
        yield served


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.close()


def options_for(server: Served, **values: object) -> LoadOptions:
    return LoadOptions(server=f"127.0.0.1:{server.grpc_port}", max_tokens=4, **values)  # type: ignore[arg-type]


def test_workloads_stay_in_their_bounds_and_repeat_with_the_seed() -> None:
    chats = [chat_work(3, index) for index in range(200)]
    assert all(20 <= len(work.prompt_token_ids) <= 200 and 20 <= work.max_tokens <= 150 for work in chats)
    assert len({tuple(work.prompt_token_ids[:16]) for work in chats}) == 1
    assert chats == [chat_work(3, index) for index in range(200)]
    assert chats != [chat_work(4, index) for index in range(200)]
    longs = [long_work(3, index) for index in range(50)]
    assert all(1000 <= len(work.prompt_token_ids) <= 2000 and work.max_tokens == 32 for work in longs)


def test_arrivals_repeat_with_the_seed_and_keep_the_rate() -> None:
    times = list(islice(poisson_arrivals(50, 1), 5000))
    assert times == list(islice(poisson_arrivals(50, 1), 5000))
    assert times[-1] == pytest.approx(100, rel=0.1)
    assert all(later >= earlier for earlier, later in pairwise(times))
    bursts = list(islice(poisson_arrivals(50, 1, 8), 80))
    assert [bursts.count(at_s) for at_s in dict.fromkeys(bursts)] == [8] * 10


def test_percentiles_are_values_that_occurred() -> None:
    ordered = [1.0, 2.0, 3.0, 4.0]
    assert [percentile(ordered, percent) for percent in (0, 25, 50, 51, 99, 100)] == [1, 1, 2, 3, 4, 4]


def finished_run() -> Run:
    """Four requests of 1 to 4 s with 3 tokens, one that failed, and one that was dropped."""
    records = []
    for index in range(4):
        record = Record(index, 10.0, sent_s=10.0, end_s=11.0 + index, status="OK", error="")
        for at_s in (10.25, 10.5, 10.75):
            record.add_delta(at_s, 1)
        records.append(record)
    records.append(Record(4, 10.0, sent_s=10.0, end_s=10.5, status="UNAVAILABLE", error="gone"))
    records.append(Record(5, 10.0, status=DROPPED, error="dropped: 1 requests in flight"))
    return Run(LoadOptions(rate=2.0), "run", datetime(2026, 1, 1, tzinfo=UTC), 20.0, "normal", records)


def test_the_report_adds_up() -> None:
    report = build_report(finished_run())
    assert (report["count"], report["total"], report["rps"]) == (6, 20_000_000_000, 0.3)
    assert (report["fastest"], report["slowest"]) == (1_000_000_000, 4_000_000_000)
    assert report["average"] == pytest.approx((1 + 2 + 3 + 4 + 0.5) / 5 * 1e9)
    assert report["statusCodeDistribution"] == {"OK": 4, "UNAVAILABLE": 1, DROPPED: 1}
    assert sum(bucket["count"] for bucket in report["histogram"]) == 4
    assert {row["percentage"]: row["latency"] for row in report["latencyDistribution"]}[50] == 2_000_000_000
    ours = report["vorta"]
    assert (ours["ok"], ours["dropped"], ours["tokens"]["output"]) == (4, 1, 12)
    assert ours["ttft"]["p50"] == ours["tpot"]["p99"] == ours["gap"]["average"] == 250_000_000
    assert len(report["details"]) == len(ours["requests"]) == 6
    assert "[4]" not in summarise(report).splitlines()[0]
    json.dumps(report, allow_nan=False)


def test_options_are_of_the_types_that_ghz_reads() -> None:
    options = build_report(finished_run())["options"]
    assert (options["rps"], options["timeout"], options["async"]) == (2, 60_000_000_000, True)
    assert {type(options[key]) for key in ("rps", "timeout", "total", "concurrency", "connections")} == {int}
    assert "duration" not in options


def test_tokens_of_a_merged_delta_count_as_they_arrived() -> None:
    record = Record(0, 1.0)
    for at_s, tokens in ((2.0, 3), (4.0, 4)):
        record.add_delta(at_s, tokens)
    assert (record.ttft_s, record.tpot_s, record.tokens, record.gaps_s) == (1.0, 0.5, 7, [2.0])


def test_a_report_without_any_request() -> None:
    report = build_report(Run(LoadOptions(), "run", datetime(2026, 1, 1, tzinfo=UTC), 1.0, "cancel", []))
    assert (report["count"], report["histogram"], report["fastest"]) == (0, [], 0)
    assert "ended: cancel" in summarise(report)


@pytest.mark.parametrize("workload", ["chat", "burst"])
async def test_a_closed_loop(server: Served, workload: str) -> None:
    run = await Load(options_for(server, workload=workload, concurrency=3, requests=10)).run()
    report = build_report(run)
    assert (report["count"], report["endReason"]) == (10, "normal")
    assert report["statusCodeDistribution"] == {"OK": 10}
    assert report["vorta"]["tokens"]["output"] == 40


async def test_an_open_loop(server: Served) -> None:
    report = build_report(await Load(options_for(server, rate=200.0, requests=30)).run())
    assert report["statusCodeDistribution"] == {"OK": 30}
    assert report["options"]["async"]


async def test_arrivals_beyond_what_may_be_in_flight_are_dropped_and_counted(server: Served) -> None:
    report = build_report(await Load(options_for(server, rate=50_000.0, requests=60, max_in_flight=2)).run())
    assert report["count"] == 60
    assert report["vorta"]["dropped"] == report["statusCodeDistribution"][DROPPED] > 0
    assert sum(report["statusCodeDistribution"].values()) == 60


async def test_a_run_that_is_stopped_reports_what_was_done(fake: FakeServer) -> None:
    stop, held = asyncio.Event(), 2
    loop = asyncio.get_running_loop()

    def hold(request_id: str, index: int) -> None:
        if int(request_id.rpartition("-")[2]) >= held:
            loop.call_soon_threadsafe(stop.set)
            fake.block.wait(20)

    fake.on_event = hold
    options = LoadOptions(server=fake.target, concurrency=1, requests=10, max_tokens=3)
    report = build_report(await Load(options).run(stop))
    assert (report["endReason"], report["count"]) == ("cancel", held + 1)
    assert report["statusCodeDistribution"] == {"OK": held, "CANCELLED": 1}


def test_ctrl_c_ends_the_command_with_its_report(fake: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(request_id: str, index: int) -> None:
        if request_id.endswith("-3") and index == 0:
            os.kill(os.getpid(), signal.SIGINT)
            fake.block.wait(20)

    fake.on_event = interrupt
    arguments = ["--server", fake.target, "--concurrency", "1", "--duration", "60", "--max-tokens", "3"]
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main([*arguments, "--format", "json"]) == 130
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    report = json.loads(capsys.readouterr().out)
    assert (report["endReason"], report["statusCodeDistribution"]) == ("cancel", {"OK": 3, "CANCELLED": 1})


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"finish_reason": common_pb2.FINISH_REASON_DRAINING}, "UNAVAILABLE"),
        ({"finish_reason": common_pb2.FINISH_REASON_DEADLINE}, "DEADLINE_EXCEEDED"),
        (
            {
                "finish_reason": common_pb2.FINISH_REASON_ERROR,
                "stream_error": common_pb2.RequestError(reason="INTERNAL", message="broken"),
            },
            "INTERNAL",
        ),
    ],
)
async def test_a_failure_that_the_last_event_tells_is_no_success(
    fake: FakeServer, changes: dict[str, Any], status: str
) -> None:
    for name, value in changes.items():
        setattr(fake, name, value)
    report = build_report(await Load(LoadOptions(server=fake.target, concurrency=1, requests=2)).run())
    assert report["statusCodeDistribution"] == {status: 2}
    assert sum(report["errorDistribution"].values()) == 2
    assert (report["vorta"]["ok"], report["histogram"]) == (0, [])


async def test_a_request_ends_at_its_deadline(fake: FakeServer) -> None:
    fake.on_event = lambda request_id, index: fake.block.wait(20) and None
    report = build_report(await Load(LoadOptions(server=fake.target, requests=1, timeout_s=0.2)).run())
    assert report["statusCodeDistribution"] == {"DEADLINE_EXCEEDED": 1}


async def test_the_duration_ends_a_run(fake: FakeServer) -> None:
    options = LoadOptions(server=fake.target, concurrency=2, duration_s=0.1, max_tokens=1)
    report = build_report(await Load(options).run())
    assert report["endReason"] == "timeout"
    assert set(report["statusCodeDistribution"]) <= {"OK"}


async def test_a_server_that_is_not_there() -> None:
    with refusing_port() as port:
        run = await Load(LoadOptions(server=f"127.0.0.1:{port}", requests=3, concurrency=1, timeout_s=60)).run()
    assert build_report(run)["statusCodeDistribution"] == {"UNAVAILABLE": 3}


def test_the_command_writes_the_report(server: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report.json"
    arguments = ["--server", f"127.0.0.1:{server.grpc_port}", "--requests", "4", "--max-tokens", "2"]
    assert main([*arguments, "--format", "json", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["count"] == json.loads(capsys.readouterr().out)["count"] == 4


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--server", "nowhere"], "--server"),
        (["--concurrency", "0"], "--concurrency"),
        (["--rate", "-1"], "--rate"),
        (["--duration", "0"], "--duration"),
        (["--timeout", "1e9"], "--timeout"),
        (["--requests", "0"], "--requests"),
        (["--server", "a:1", "--model", "x"], "--model"),
        (["--out", "/proc/nowhere/report.json"], "--out"),
    ],
)
def test_a_wrong_argument_is_named(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]
