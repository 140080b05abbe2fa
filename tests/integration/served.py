"""Starts `vorta serve` as a user would: a process of its own, real ports, a real worker."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vorta.errors import VortaError
from vorta.v1 import admin_pb2, admin_pb2_grpc, embedding_pb2_grpc, inference_pb2_grpc, vector_pb2_grpc
from vorta.wire import error_from_rpc

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 60.0
_LISTENING = re.compile(r"listening: grpc \S+:(\d+), http \S+:(\d+)")
_T = TypeVar("_T")


@contextmanager
def refusing_port() -> Iterator[int]:
    """A port at which nobody listens, and nobody else will meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])


def wait_for(
    process: subprocess.Popen[bytes], log: Path, what: Callable[[], _T | None], timeout_s: float = START_TIMEOUT_S
) -> _T:
    """What `what` answers once it is true; fails with the log when the process ends before, or it takes too long."""
    until = time.monotonic() + timeout_s
    while True:
        if found := what():
            return found
        ended = process.poll()
        assert ended is None, f"it ended with {ended}:\n{log.read_text()}"
        assert time.monotonic() < until, f"not so after {timeout_s} s:\n{log.read_text()}"
        time.sleep(0.05)


def ports_of(process: subprocess.Popen[bytes], log: Path) -> tuple[int, int]:
    """The ports of gRPC and HTTP that a starting server chose, by its log."""
    found = wait_for(process, log, lambda: _LISTENING.search(log.read_text()))
    return int(found[1]), int(found[2])


@dataclass(slots=True)
class Served:
    """A running server."""

    process: subprocess.Popen[bytes]
    grpc_port: int
    http_port: int
    log: Path
    channel: grpc.Channel

    @property
    def inference(self) -> inference_pb2_grpc.InferenceServiceStub:
        return inference_pb2_grpc.InferenceServiceStub(self.channel)

    @property
    def admin(self) -> admin_pb2_grpc.AdminServiceStub:
        return admin_pb2_grpc.AdminServiceStub(self.channel)

    @property
    def embedding(self) -> embedding_pb2_grpc.EmbeddingServiceStub:
        return embedding_pb2_grpc.EmbeddingServiceStub(self.channel)

    @property
    def vectors(self) -> vector_pb2_grpc.VectorServiceStub:
        return vector_pb2_grpc.VectorServiceStub(self.channel)

    def model(self, name: str = "") -> admin_pb2.Model:
        """The model of this id, or the default one that generates."""
        name = name or self.admin.GetServerInfo(admin_pb2.GetServerInfoRequest(), timeout=10).default_model
        return self.admin.GetModel(admin_pb2.GetModelRequest(model=name), timeout=10).model

    def is_ready(self) -> bool:
        request = health_pb2.HealthCheckRequest()
        status = health_pb2_grpc.HealthStub(self.channel).Check(request, timeout=10).status
        return bool(status == health_pb2.HealthCheckResponse.SERVING)

    def _is_ready_or_will_be(self) -> bool:
        try:
            return self.is_ready()
        except grpc.RpcError:
            return False

    def workers(self) -> dict[int, str]:
        """The command lines of the server's workers by process id."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return {int(pid): Path(f"/proc/{pid}/cmdline").read_text() for pid in children}

    def wait_until_serving(self) -> None:
        wait_for(self.process, self.log, self._is_ready_or_will_be)


def serve_command(*arguments: str, data_dir: Path, grpc_port: int = 0, http_port: int = 0) -> list[str]:
    """The command of a server; on free ports, for a port that was free a moment ago may be taken now."""
    command = [sys.executable, "-m", "vorta", "serve", "--grpc-port", str(grpc_port)]
    return [*command, "--http-port", str(http_port), "--data-dir", str(data_dir), *arguments]


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[Served]:
    """A server that serves; it is stopped in the end, and must not leave a process behind."""
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            serve_command(*arguments, data_dir=folder / "data"),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        grpc_port, http_port = ports_of(process, log)
        with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            served = Served(process, grpc_port, http_port, log, channel)
            served.wait_until_serving()
            yield served
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
        left = processes_of_group(process.pid)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    assert not left, f"processes left behind: {left}"
    assert process.returncode == 0, log.read_text()


def processes_of_group(group: int) -> list[int]:
    """The living processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, pgrp = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(pgrp) == group and state != "Z":
                found.append(int(entry.name))
    return found


def error_of(call: object, *arguments: object, **options: object) -> VortaError:
    """The error that a unary call, or reading a stream to its end, answers with."""
    try:
        reply = call(*arguments, timeout=30, **options)  # type: ignore[operator]
        if hasattr(reply, "__next__"):
            for _ in reply:
                pass
    except grpc.RpcError as error:
        return error_from_rpc(error)
    raise AssertionError("the call succeeded")
