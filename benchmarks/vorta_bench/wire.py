"""Measures a server over the wire against the bare runner loop, in turn, on the same cores.

`python -m vorta_bench.wire` starts `vorta serve` as a process and a second process that drives the same artifact's
runner in a plain greedy loop; rounds alternate between the two. The client shares the cores with the server, as it
would on a laptop. Scenarios:

throughput  tokens/s of 1, 8 and 32 streams, prompts included, over the bare loop's.
peer        tokens/s of 8 and 32 streams over llama-cpp-python's own server with the same checkpoint.
stall       p99 inter-token time of 8 streams while a long prompt arrives, over the same without it.
soak        full load for a time; resident memory of front and worker at intervals.
single      one request of 100 tokens: seconds end to end and the reported tokens_per_second.
account     what a step costs beside the model, and each process's CPU by step, message and token (`account.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vorta.v1 import inference_pb2, inference_pb2_grpc
from vorta_bench import account

__all__ = ["main", "prompt_token_ids", "serving"]

PROMPT_TOKENS = 16


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(slots=True)
class Server:
    """A running `vorta serve`."""

    process: subprocess.Popen[bytes]
    address: str
    http_port: int

    def workers(self, model: Path | None = None) -> list[int]:
        """Process ids of its workers: all of them, or the one that serves a model's folder."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
        wanted = b"workers.main" if model is None else str(model).encode()
        return [pid for pid, command in commands.items() if b"workers.main" in command and wanted in command]

    def resident_bytes(self) -> dict[str, int]:
        """Resident memory by process: the front, and its workers together."""
        sizes = {"front": _resident_bytes(self.process.pid)}
        for worker in self.workers():
            sizes["worker"] = sizes.get("worker", 0) + _resident_bytes(worker)
        return sizes


def _resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


@contextmanager
def serving(arguments: list[str]) -> Iterator[Server]:
    """Starts a server and waits until everything serves."""
    port, http_port = free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "vorta_server.serve",
            "--grpc-port",
            str(port),
            "--http-port",
            str(http_port),
        ]
        command += ["--data-dir", folder, *arguments]
        log = Path(folder) / "server.log"
        with log.open("wb", buffering=0) as output:
            process = subprocess.Popen(command, stderr=output)
        try:
            asyncio.run(_wait_until_serving(f"127.0.0.1:{port}", process))
            yield Server(process, f"127.0.0.1:{port}", http_port)
        except RuntimeError as error:
            raise SystemExit(f"{error}\n{log.read_text()}") from error
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


async def _wait_until_serving(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + 300
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while time.monotonic() < deadline_s:
            if process.poll() is not None:
                raise RuntimeError(f"vorta serve ended with status {process.returncode}")
            try:
                reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
                if reply.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            except grpc.aio.AioRpcError:
                pass
            await asyncio.sleep(0.1)
    raise SystemExit("the server did not begin to serve within 300 s")


def prompt_token_ids(index: int, num_tokens: int = PROMPT_TOKENS) -> list[int]:
    """The prompt of the stream of this index."""
    return [10 + (index * 7919 + i * 104729) % 3000 for i in range(num_tokens)]


def _request(index: int, num_tokens: int, prompt_tokens: int = PROMPT_TOKENS) -> inference_pb2.StreamGenerateRequest:
    return inference_pb2.StreamGenerateRequest(
        prompt_token_ids=prompt_token_ids(index, prompt_tokens),
        max_tokens=num_tokens,
        temperature=0.0,
        ignore_eos=True,
    )


async def _stream(
    stub: inference_pb2_grpc.InferenceServiceStub, request: inference_pb2.StreamGenerateRequest
) -> list[tuple[float, int]]:
    """The time of each delta and its number of tokens."""
    arrivals: list[tuple[float, int]] = []
    finished = False
    async for event in stub.StreamGenerate(request):
        if event.HasField("delta"):
            arrivals.append((time.perf_counter(), len(event.delta.token_ids)))
        elif event.HasField("finished"):
            finished = True
    if not finished:
        raise RuntimeError("a stream ended without its finished event")
    return arrivals


async def _wire_round(address: str, streams: int, num_tokens: int) -> float:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        await _stream(stub, _request(99, 2))
        started = time.perf_counter()
        results = await asyncio.gather(*(_stream(stub, _request(i, num_tokens)) for i in range(streams)))
        elapsed_s = time.perf_counter() - started
    total = sum(count for arrivals in results for _, count in arrivals)
    if total != streams * num_tokens:
        raise RuntimeError(f"expected {streams * num_tokens} tokens, got {total}")
    return total / elapsed_s


def bare_loop(artifact: Path, threads: int) -> None:
    """Reads lines "streams tokens" and prints the tokens/s of a plain greedy loop over the runner."""
    import numpy as np

    from vorta_server.engine.runner import LogitsWanted, PrefillChunk, StepBatch
    from vorta_server.runners.onnx import OnnxRunner

    runner = OnnxRunner(artifact, num_slots=33, threads=threads)
    none = np.zeros(0, np.int64)
    for line in sys.stdin:
        streams, num_tokens = map(int, line.split())
        started = time.perf_counter()
        first: list[int] = []
        for index in range(streams):
            prompt = np.asarray(_request(index, 1).prompt_token_ids, np.int64)
            chunk = PrefillChunk(slot=index, token_ids=prompt, num_past=0, logits=LogitsWanted.LAST)
            result = runner.run(StepBatch(prefills=[chunk], decode_token_ids=none, decode_lengths=none))
            logits = result.prefill_logits[0]
            assert logits is not None
            first.append(int(logits[0].argmax()))
        token_ids = np.array(first, np.int64)
        lengths = np.full(streams, PROMPT_TOKENS, np.int64)
        batch = StepBatch(prefills=(), decode_token_ids=token_ids, decode_lengths=lengths)
        for _ in range(num_tokens - 1):
            decoded = runner.run(batch).decode_logits
            assert decoded is not None
            token_ids[:] = decoded.argmax(1)
            lengths += 1
        print(streams * num_tokens / (time.perf_counter() - started), flush=True)


def _throughput(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    bare = subprocess.Popen(
        [sys.executable, "-m", "vorta_bench.wire", "--bare", str(arguments.model), "--threads", str(arguments.threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert bare.stdin is not None
    assert bare.stdout is not None

    def bare_round(streams: int, num_tokens: int) -> float:
        assert bare.stdin is not None
        assert bare.stdout is not None
        bare.stdin.write(f"{streams} {num_tokens}\n")
        bare.stdin.flush()
        return float(bare.stdout.readline())

    rows: list[dict[str, Any]] = []
    try:
        with serving(_serve_arguments(arguments)) as server:
            for streams in arguments.streams:
                num_tokens = arguments.tokens
                bare_round(streams, 4)
                uvloop.run(_wire_round(server.address, streams, 4))
                wire_rates, bare_rates = [], []
                for _ in range(arguments.rounds):
                    bare_rates.append(bare_round(streams, num_tokens))
                    wire_rates.append(uvloop.run(_wire_round(server.address, streams, num_tokens)))
                ratios = [wire / base for wire, base in zip(wire_rates, bare_rates, strict=True)]
                row = {
                    "streams": streams,
                    "tokens": num_tokens,
                    "wire_tokens_per_second": statistics.median(wire_rates),
                    "bare_tokens_per_second": statistics.median(bare_rates),
                    "ratio_median": statistics.median(ratios),
                    "ratios": ratios,
                }
                rows.append(row)
                print(
                    f"{streams:3d} streams: wire {row['wire_tokens_per_second']:8.1f} tokens/s, bare loop "
                    f"{row['bare_tokens_per_second']:8.1f}, ratio {row['ratio_median']:.3f}",
                    flush=True,
                )
    finally:
        bare.stdin.close()
        bare.wait(30)
    return rows


def _peer(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from vorta_bench.peers.llama_server import serving_llama

    rows: list[dict[str, Any]] = []
    with (
        serving(_serve_arguments(arguments)) as server,
        serving_llama(arguments.peer_python, arguments.gguf, threads=arguments.threads or 2) as peer,
    ):
        for streams in arguments.streams:
            uvloop.run(_wire_round(server.address, streams, 4))
            asyncio.run(peer.rate(streams, 4, PROMPT_TOKENS))
            ours, theirs = [], []
            for _ in range(arguments.rounds):
                theirs.append(asyncio.run(peer.rate(streams, arguments.tokens, PROMPT_TOKENS)))
                ours.append(uvloop.run(_wire_round(server.address, streams, arguments.tokens)))
            ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
            row = {
                "streams": streams,
                "tokens": arguments.tokens,
                "vorta_tokens_per_second": statistics.median(ours),
                "llama_cpp_server_tokens_per_second": statistics.median(theirs),
                "ratio_median": statistics.median(ratios),
                "ratios": ratios,
            }
            rows.append(row)
            print(
                f"{streams:3d} streams: vorta {row['vorta_tokens_per_second']:8.1f} tokens/s, llama_cpp.server "
                f"{row['llama_cpp_server_tokens_per_second']:8.1f}, ratio {row['ratio_median']:.2f}",
                flush=True,
            )
    return rows


def _gaps(arrivals: list[tuple[float, int]], start_s: float, end_s: float) -> list[float]:
    times = [at for at, _ in arrivals if start_s <= at <= end_s]
    return [later - earlier for earlier, later in pairwise(times)]


def _percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def _stall_round(address: str, num_tokens: int, prompt_tokens: int) -> tuple[float, float, float]:
    """p99 gap before the long prompt, p99 gap during its prefill, and its time to the first token."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        streams = [asyncio.create_task(_stream(stub, _request(i, num_tokens))) for i in range(8)]
        started = time.perf_counter()
        await asyncio.sleep(3.0)
        quiet_start, quiet_end = started + 1.0, time.perf_counter()
        long_arrivals = await _stream(stub, _request(1000 + time.time_ns() % 997, 2, prompt_tokens))
        first_s = long_arrivals[0][0]
        results = await asyncio.gather(*streams)
    quiet = [gap for arrivals in results for gap in _gaps(arrivals, quiet_start, quiet_end)]
    busy = [gap for arrivals in results for gap in _gaps(arrivals, quiet_end, first_s)]
    if not quiet or not busy:
        raise RuntimeError("the streams ended before the long prompt was computed; raise --tokens")
    return _percentile(quiet, 0.99), _percentile(busy, 0.99), first_s - quiet_end


def _stall(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    with serving([*_serve_arguments(arguments)]) as server:
        for _ in range(arguments.rounds):
            quiet_s, busy_s, ttft_s = uvloop.run(
                _stall_round(server.address, arguments.tokens, arguments.prompt_tokens)
            )
            rows.append({"quiet_p99_s": quiet_s, "busy_p99_s": busy_s, "stretch": busy_s / quiet_s, "ttft_s": ttft_s})
            print(
                f"8 streams: p99 gap {quiet_s * 1e3:.1f} ms, with a prompt of {arguments.prompt_tokens} tokens "
                f"{busy_s * 1e3:.1f} ms, stretch {busy_s / quiet_s:.2f}; the prompt's first token after {ttft_s:.2f} s",
                flush=True,
            )
    return rows


async def _load(address: str, streams: int, until_s: float) -> int:
    requests = 0
    async with grpc.aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)

        async def loop(index: int) -> None:
            nonlocal requests
            while time.monotonic() < until_s:
                await _stream(stub, _request(index + requests, 20 + requests % 60, 8 + requests % 90))
                requests += 1

        await asyncio.gather(*(loop(index) for index in range(streams)))
    return requests


def _soak(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    with serving(_serve_arguments(arguments)) as server:
        rows.append({"at_s": 0.0, "requests": 0, **server.resident_bytes()})
        started, requests = time.monotonic(), 0
        while time.monotonic() - started < arguments.seconds:
            requests += uvloop.run(_load(server.address, 32, time.monotonic() + min(30.0, arguments.seconds)))
            rows.append({"at_s": time.monotonic() - started, "requests": requests, **server.resident_bytes()})
            row = rows[-1]
            print(
                f"{row['at_s']:6.0f} s  {row['requests']:6d} requests  front {row['front'] / 2**20:6.1f} MiB  "
                f"worker {row['worker'] / 2**20:7.1f} MiB",
                flush=True,
            )
    return rows


async def _single_round(address: str) -> tuple[float, float]:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        request = inference_pb2.GenerateRequest(prompt="What is machine learning?", max_tokens=100, ignore_eos=True)
        started = time.perf_counter()
        reply = await stub.Generate(request)
        return time.perf_counter() - started, reply.tokens_per_second


def _single(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    with serving(_serve_arguments(arguments)) as server:
        for _ in range(arguments.rounds):
            total_s, rate = uvloop.run(_single_round(server.address))
            rows.append({"total_s": total_s, "tokens_per_second": rate})
            print(f"100 tokens in {total_s:.3f} s, tokens_per_second {rate:.0f}", flush=True)
    return rows


async def _account_round(server: Server, model: Path, streams: int, num_tokens: int) -> dict[str, float]:
    (worker,) = server.workers(model)
    pids = {"client": os.getpid(), "front": server.process.pid, "worker": worker}
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        await _stream(stub, _request(99, 2))

        async def read() -> tuple[int, int]:
            results = await asyncio.gather(*(_stream(stub, _request(i, num_tokens)) for i in range(streams)))
            return sum(map(len, results)), sum(count for arrivals in results for _, count in arrivals)

        return await account.whole(pids, read, streams=streams)


def _account(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for streams in arguments.streams:
        alone = account.worker_alone(arguments.model, streams, arguments.tokens, arguments.threads)
        rows.append({"streams": streams, "tokens": arguments.tokens, "worker_alone": alone})
    with serving(_serve_arguments(arguments)) as server:
        for row in rows:
            streams = row["streams"]
            uvloop.run(_wire_round(server.address, streams, 4))
            rounds = [
                uvloop.run(_account_round(server, arguments.model, streams, arguments.tokens))
                for _ in range(arguments.rounds)
            ]
            row["whole"] = {key: statistics.median(part[key] for part in rounds) for key in rounds[0]}
            for name in ("worker_alone", "whole"):
                values = ", ".join(f"{key} {value:.4g}" for key, value in row[name].items())
                print(f"{streams:3d} streams, {name.replace('_', ' ')}: {values}", flush=True)
    return rows


def _serve_arguments(arguments: argparse.Namespace) -> list[str]:
    return [] if arguments.model is None else ["--model", str(arguments.model), *arguments.serve]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "scenario", nargs="?", choices=["throughput", "peer", "stall", "soak", "single", "account"], default="single"
    )
    parser.add_argument("--model", type=Path, help="artifact folder; needed by throughput. Default: the default model")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=128, help="tokens a stream (default %(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=2000, help="of the long prompt (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600, help="of the soak (default %(default)s)")
    parser.add_argument("--serve", nargs="*", default=[], help="further arguments of vorta serve")
    parser.add_argument("--peer-python", help="interpreter with llama-cpp-python[server]; needed by peer")
    parser.add_argument("--gguf", type=Path, help="the checkpoint as GGUF; needed by peer")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--drain-worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare is not None:
        bare_loop(arguments.bare, arguments.threads)
        return
    if arguments.drain_worker is not None:
        path, streams, tokens = arguments.drain_worker
        account.drain_worker(Path(path), int(streams), int(tokens))
        return
    if arguments.scenario in ("throughput", "account") and arguments.model is None:
        parser.error(f"{arguments.scenario} needs --model ARTIFACT")
    if arguments.scenario == "peer" and (arguments.peer_python is None or arguments.gguf is None):
        parser.error("peer needs --peer-python and --gguf")
    scenarios = {
        "throughput": _throughput,
        "peer": _peer,
        "stall": _stall,
        "soak": _soak,
        "single": _single,
        "account": _account,
    }
    rows = scenarios[arguments.scenario](arguments)
    if arguments.out is not None:
        document = {
            "command": " ".join(["python -m vorta_bench.wire", *sys.argv[1:]]),
            "machine": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "scenario": arguments.scenario,
            "rows": rows,
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
