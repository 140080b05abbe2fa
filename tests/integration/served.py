"""Starts `vorta serve` as a user would: a process of its own, real ports, a real worker."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vorta.errors import VortaError
from vorta.v1 import admin_pb2, admin_pb2_grpc, embedding_pb2_grpc, inference_pb2_grpc, vector_pb2_grpc
from vorta.wire import error_from_rpc

START_TIMEOUT_S = 90.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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

    def workers(self) -> dict[int, str]:
        """The command lines of the server's workers by process id."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return {int(pid): Path(f"/proc/{pid}/cmdline").read_text() for pid in children}

    def wait_until_serving(self, timeout_s: float = START_TIMEOUT_S) -> None:
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log.read_text()}")
            try:
                if self.is_ready():
                    return
            except grpc.RpcError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"not serving after {timeout_s} s:\n{self.log.read_text()}")

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def serve_command(*arguments: str, grpc_port: int, http_port: int, data_dir: Path) -> list[str]:
    command = [sys.executable, "-m", "vorta", "serve", "--grpc-port", str(grpc_port)]
    return [*command, "--http-port", str(http_port), "--data-dir", str(data_dir), *arguments]


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[Served]:
    """A server that serves; it is stopped in the end, and must not leave a process behind."""
    grpc_port, http_port = free_port(), free_port()
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            serve_command(*arguments, grpc_port=grpc_port, http_port=http_port, data_dir=folder / "data"),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        served = Served(process, grpc_port, http_port, log, channel)
        try:
            served.wait_until_serving()
            yield served
        finally:
            status = served.stop()
            left = processes_of_group(process.pid)
            for pid in left:
                os.kill(pid, signal.SIGKILL)
    assert not left, f"processes left behind: {left}"
    assert status == 0, log.read_text()


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
