"""Where the time of a streamed token goes, beside the model: `python -m vorta_bench.wire account`.

Two accounts for each number of streams:

- The worker by itself: `WorkerHost` with its engine, socket and all, in this process; its reader is a process that
  only drains the socket. What passes between two runs of the model is what the worker's Python costs a step.
- The whole: server and client as in `throughput`; the CPU that each process used, by thread of the worker, divided by
  steps, by messages and by tokens, from the kernel's own accounts (/proc/<pid>/task/<tid>/schedstat).
"""

from __future__ import annotations

import itertools
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from vorta_server.engine.request import SamplingParams
from vorta_server.engine.runner import ModelRunner, StepBatch, StepResult
from vorta_server.workers.protocol import Drain, Prompt, Submit, encode

__all__ = ["cpu_seconds", "drain_worker", "whole", "worker_alone"]


class _TimedRunner:
    """A runner that notes when its decode steps begin and end."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self.marks: list[tuple[float, float]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def run(self, batch: StepBatch) -> StepResult:
        """Runs the step."""
        begin = time.perf_counter()
        result = self._runner.run(batch)
        self.marks.append((begin, time.perf_counter()))
        return result


def worker_alone(artifact: Path, streams: int, num_tokens: int, threads: int) -> dict[str, float]:
    """Microseconds of a step inside the model and between two of them, medians and means of those with all streams."""
    from vorta_server.settings import FrontSettings
    from vorta_server.workers.config import WorkerConfig
    from vorta_server.workers.generation import build_generation
    from vorta_server.workers.host import WorkerHost
    from vorta_server.workers.pacing import WritePacer
    from vorta_server.workers.transport import WorkerTransport

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "worker.sock"
        model = build_generation(
            WorkerConfig(
                model="model",
                source=str(artifact),
                socket_path=str(path),
                threads=threads,
                precision=_precision(artifact),
            )
        )
        timed = _TimedRunner(model.engine._runner)
        model.engine._runner = timed
        host = WorkerHost(
            engine=model.engine,
            codec=model.codec,
            card=model.card,
            transport=WorkerTransport(path),
            pacer=WritePacer(
                interval_per_stream_s=FrontSettings().write_interval_per_stream_s,
                max_interval_s=FrontSettings().max_write_interval_s,
            ),
        )
        reader = subprocess.Popen(
            [sys.executable, "-m", "vorta_bench.wire", "--drain-worker", str(path), str(streams), str(num_tokens)]
        )
        host.run()
        reader.wait(30)
    # The steps in the middle: all streams decode and none ends.
    marks = timed.marks[len(timed.marks) // 4 : -len(timed.marks) // 8 or None]
    inside = [end - begin for begin, end in marks]
    between = [later[0] - earlier[1] for earlier, later in itertools.pairwise(marks)]
    return {
        "model_us": 1e6 * statistics.median(inside),
        "between_us": 1e6 * statistics.median(between),
        "between_mean_us": 1e6 * statistics.fmean(sorted(between)[: -len(between) // 100 or None]),
    }


def _precision(artifact: Path) -> str:
    from vorta_server.compiler.artifact import load_manifest

    return load_manifest(artifact).precision


def drain_worker(path: Path, streams: int, num_tokens: int) -> None:
    """Connects to a worker, asks for streams, and reads what comes without looking at it."""
    from vorta_bench.wire import prompt_token_ids

    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        sampling = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        for index in range(streams):
            prompt = Prompt(token_ids=prompt_token_ids(index))
            connection.sendall(encode(Submit(request_id=str(index), prompt=prompt, sampling=sampling)))
        connection.sendall(encode(Drain(300.0)))
        while connection.recv(1 << 16):
            pass


def cpu_seconds(pid: int) -> dict[int, float]:
    """CPU seconds of each thread of a process; the process's id is its main thread's."""
    seconds: dict[int, float] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            seconds[int(task.name)] = int((task / "schedstat").read_text().split()[0]) / 1e9
        except (OSError, ValueError):  # the thread has ended
            continue
    return seconds


async def whole(
    pids: dict[str, int], read: Callable[[], Awaitable[tuple[int, int]]], *, streams: int
) -> dict[str, float]:
    """The CPU that a round of streams takes.

    Args:
        pids: Of client, front and worker.
        read: Reads all streams and returns how many messages and tokens there were.
        streams: How many.
    """
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    started = time.perf_counter()
    messages, tokens = await read()
    elapsed_s = time.perf_counter() - started
    used: dict[str, dict[int, float]] = {}
    for name, pid in pids.items():
        after = cpu_seconds(pid)
        used[name] = {task: after[task] - before[name].get(task, 0.0) for task in after}
    steps = tokens / streams
    worker = used["worker"]
    main_s = worker[pids["worker"]]
    row: dict[str, float] = {"step_us": 1e6 * elapsed_s / steps, "tokens_per_message": tokens / messages}
    row["worker_main_us_per_step"] = 1e6 * main_s / steps
    row["worker_others_us_per_step"] = 1e6 * (sum(worker.values()) - main_s) / steps
    for name in ("front", "client"):
        total_s = sum(used[name].values())
        row[f"{name}_us_per_step"] = 1e6 * total_s / steps
        row[f"{name}_us_per_message"] = 1e6 * total_s / messages
        row[f"{name}_share_of_a_core"] = total_s / elapsed_s
    return row
