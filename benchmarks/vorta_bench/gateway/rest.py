"""Requests a second and CPU time a request, beside Envoy and peers."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from vorta_bench.gateway.measuring import cpu_s, ratio
from vorta_bench.gateway.servers import BODY, ROOT, running
from vorta_bench.wire import free_port

__all__ = ["rest"]

CONNECTIONS = 16
_CONTENT_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


class _Connection(asyncio.Protocol):
    """Asks again whenever it has its answer, until a time; `answered` then is how often.

    A bare protocol, because the client shares the cores with what is measured.
    """

    def __init__(self, request: bytes, until_s: float) -> None:
        self.answered: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._request = request
        self._until_s = until_s
        self._count = 0
        self._answer = b""
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, _, body = self._answer.partition(b"\r\n\r\n")
        length = _CONTENT_LENGTH.search(head)
        # Without a length it comes in chunks, of which the last one is empty.
        if not (len(body) >= int(length[1]) if length is not None else body.endswith(b"\r\n0\r\n\r\n")):
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.answered.set_exception(RuntimeError(self._answer.decode("latin-1")))
            self._transport.abort()
            return
        self._count += 1
        self._answer = b""
        if time.monotonic() < self._until_s:
            self._transport.write(self._request)
        else:
            self.answered.set_result(self._count)
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answered.done():
            self.answered.set_exception(ConnectionError(f"the connection was lost: {exc}"))


async def _load(port: int, path: str, body: bytes, seconds: float, connections: int = CONNECTIONS) -> int:
    """Requests answered in a time, each connection asking again when it has its answer."""
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    until_s = time.monotonic() + seconds
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(lambda: _Connection(head.encode() + body, until_s), "127.0.0.1", port)
        for _ in range(connections)
    ]
    return sum(await asyncio.gather(*(connection.answered for _, connection in made)))


def _envoy_config(folder: Path, port: int, upstream: int) -> Path:
    text = (ROOT / "deploy/envoy/envoy.yaml").read_text()
    for old, new in ((8080, port), (9901, free_port()), (50051, upstream)):
        text = text.replace(f"port_value: {old}}}", f"port_value: {new}}}")
    text = text[: text.index("      health_checks:")] + text[text.index("      circuit_breakers:") :]
    file = folder / "envoy.yaml"
    file.write_text(text)
    return file


def rest(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Requests a second, and CPU microseconds a request of the process that turns HTTP into RPCs."""
    body = json.dumps(BODY).encode()
    tool = Path(sys.executable)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        backend = free_port()
        this = [sys.executable, "-m", "vorta_bench.gateway"]
        stack.enter_context(running([*this, "backend", "--port", str(backend)], backend))
        target = f"127.0.0.1:{backend}"
        rest_path, connect_path = "/v1/inference", "/vorta.v1.InferenceService/Generate"
        peers: dict[str, tuple[int, int, str]] = {}

        def start(name: str, path: str, command: Callable[[int], list[str]], env: dict[str, str] | None = None) -> None:
            port = free_port()
            peers[name] = (stack.enter_context(running(command(port), port, env)), port, path)

        start("vorta, one process", rest_path, lambda port: [*this, "in-process", "--port", str(port)])
        start(
            "vorta gateway",
            rest_path,
            lambda port: [sys.executable, "-m", "vorta", "gateway", "--upstream", target, "--port", str(port)],
        )
        start(
            "envoy",
            rest_path,
            lambda port: [
                str(tool.with_name("envoy")),
                "-c",
                str(_envoy_config(folder, port, backend)),
                "--concurrency",
                "1",
                "--disable-hot-restart",
            ],
        )
        if arguments.peer_python:
            environment = {"PYTHONPATH": f"{ROOT / 'benchmarks'}:{ROOT / 'clients/python'}", "PATH": "/usr/bin:/bin"}
            for name, path in (("fastapi", rest_path), ("connectrpc", connect_path)):
                start(
                    name,
                    path,
                    lambda port, name=name: [  # type: ignore[misc]
                        arguments.peer_python,
                        "-m",
                        "vorta_bench.peers.http_gateway",
                        name,
                        target,
                        str(port),
                    ],
                    environment,
                )
        rates: dict[str, list[float]] = {}
        costs: dict[str, list[float]] = {}
        for number in range(arguments.rounds + 1):
            for name, (pid, port, path) in peers.items():
                before_s = cpu_s(pid)
                count = uvloop.run(_load(port, path, body, 1.0 if number == 0 else arguments.seconds))
                cost_s = (cpu_s(pid) - before_s) / count
                if number:
                    rates.setdefault(name, []).append(count / arguments.seconds)
                    costs.setdefault(name, []).append(cost_s)
                    print(f"{name:20} {rates[name][-1]:7.0f}/s {cost_s * 1e6:6.0f} us", flush=True)
    rows: list[dict[str, Any]] = []
    for name in rates:
        row: dict[str, Any] = {
            "name": name,
            "per_s": round(statistics.median(rates[name])),
            "cpu_us": round(statistics.median(costs[name]) * 1e6),
        }
        row["cpu_over_envoy"] = ratio(costs[name], costs["envoy"])
        for peer in ("fastapi", "connectrpc"):
            if peer in rates:
                row[f"rate_over_{peer}"] = ratio(rates[name], rates[peer])
        rows.append(row)
    return rows
