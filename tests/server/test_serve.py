"""`vorta serve` as a process, on the fake runner: start, stop, ports, settings, dying workers."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vorta.v1 import admin_pb2, admin_pb2_grpc, common_pb2, inference_pb2, inference_pb2_grpc
from vorta_server.serve import add_serve, run_serve
from vorta_server.settings import PREFIX

TIMEOUT_S = 120


class Server:
    """A `vorta serve` process."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        (folder / "tmp").mkdir(exist_ok=True)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        environment["TMPDIR"] = str(folder / "tmp")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "vorta_server.serve", "--runner", "fake", "--model", "fake=fake"),
                *("--grpc-port", "0", "--http-port", "0", "--data-dir", str(folder / "data")),
                *arguments,
            ],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        assert self.process.stderr is not None
        self.process.stderr.close()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first log line that matches."""
        deadline_s = time.monotonic() + TIMEOUT_S
        with self._changed:
            while True:
                for line in self.lines:
                    if match := re.search(pattern, line):
                        return match
                assert self._changed.wait(deadline_s - time.monotonic()), "\n".join(self.lines)

    def ready(self) -> Server:
        """Waits until it serves."""
        match = self.wait_for(r"serving \S+ on grpc \S+:(\d+), http://\S+:(\d+)")
        self.grpc_port, self.http_port = int(match[1]), int(match[2])
        return self

    @contextlib.contextmanager
    def channel(self):
        """A client's channel."""
        with grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}") as channel:
            yield channel

    def wait(self) -> int:
        """The exit code; and that nothing is left behind."""
        code = self.process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        with pytest.raises(ProcessLookupError):
            os.killpg(self.process.pid, 0)  # workers are in the server's process group
        assert not list((self.folder / "tmp").iterdir())
        return code

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()


def worker_pid(channel) -> int:
    reply = admin_pb2_grpc.AdminServiceStub(channel).GetModel(admin_pb2.GetModelRequest(model="fake"))
    return reply.model.load.worker_pid


def stream(channel, **fields):
    values = {"prompt": "hi", "max_tokens": 2000, "ignore_eos": True, **fields}
    return inference_pb2_grpc.InferenceServiceStub(channel).StreamGenerate(
        inference_pb2.StreamGenerateRequest(**values)
    )


def http_status(server, path):
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{server.http_port}{path}").status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_it_serves_and_stops_at_sigterm(tmp_path):
    with Server(tmp_path) as server:
        server.ready()
        with server.channel() as channel:
            reply = inference_pb2_grpc.InferenceServiceStub(channel).Generate(
                inference_pb2.GenerateRequest(prompt="hi", max_tokens=5, ignore_eos=True)
            )
            assert reply.usage.completion_tokens == 5
        assert [http_status(server, path) for path in ("/healthz", "/readyz", "/metrics")] == [200] * 3
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0


def test_a_killed_worker_ends_its_streams_and_is_replaced(tmp_path):
    with Server(tmp_path, "--set", "worker.fake_step_s=0.01") as server:
        server.ready()
        with server.channel() as channel:
            pid = worker_pid(channel)
            call = stream(channel)
            assert next(call).HasField("started")
            assert next(call).HasField("delta")
            os.kill(pid, signal.SIGKILL)
            events = list(call)
            assert [event.HasField("finished") for event in events].count(True) == 1
            last = events[-1].finished
            assert last.finish_reason == common_pb2.FINISH_REASON_ERROR
            assert (last.error.reason, last.error.retryable) == ("WORKER_DIED", True)
            health = health_pb2_grpc.HealthStub(channel)
            for update in health.Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S):
                # The first update may be from before the death was seen; the process id is 0 while there is no worker.
                if update.status == health_pb2.HealthCheckResponse.SERVING and worker_pid(channel) not in (0, pid):
                    break
            assert list(stream(channel, max_tokens=3))[-1].finished.usage.completion_tokens == 3
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0


def test_draining_finishes_what_runs_and_takes_nothing_new(tmp_path):
    with Server(tmp_path, "--set", "worker.fake_step_s=0.01") as server:
        server.ready()
        with server.channel() as channel:
            call = stream(channel, max_tokens=600)
            assert next(call).HasField("started")
            health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(health).status == health_pb2.HealthCheckResponse.SERVING
            server.process.send_signal(signal.SIGTERM)
            assert next(health).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert http_status(server, "/readyz") == 503
            with pytest.raises(grpc.RpcError) as caught:
                list(stream(channel))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            last = list(call)[-1].finished
            assert last.finish_reason == common_pb2.FINISH_REASON_LENGTH
            assert last.usage.completion_tokens == 600
        assert server.wait() == 0


def test_what_does_not_finish_in_the_grace_time_ends_with_draining(tmp_path):
    with Server(tmp_path, "--set", "worker.fake_step_s=0.02", "--drain-grace", "0.3") as server:
        server.ready()
        with server.channel() as channel:
            call = stream(channel)
            assert next(call).HasField("started")
            server.process.send_signal(signal.SIGTERM)
            assert list(call)[-1].finished.finish_reason == common_pb2.FINISH_REASON_DRAINING
        assert server.wait() == 0


def test_a_second_signal_stops_at_once(tmp_path):
    with Server(tmp_path, "--set", "worker.fake_step_s=0.02", "--drain-grace", "3000") as server:
        server.ready()
        with server.channel() as channel:
            call = stream(channel)
            assert next(call).HasField("started")
            server.process.send_signal(signal.SIGINT)
            server.wait_for("shutting down")
            server.process.send_signal(signal.SIGINT)
            events = list(call)
            assert events[-1].finished.finish_reason == common_pb2.FINISH_REASON_ERROR
        assert server.wait() == 0


def test_a_killed_server_leaves_no_worker(tmp_path):
    with Server(tmp_path) as server:
        server.ready()
        with server.channel() as channel:
            pid = worker_pid(channel)
        server.process.kill()
        server.process.wait(TIMEOUT_S)
        deadline_s = time.monotonic() + TIMEOUT_S
        while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
            assert time.monotonic() < deadline_s
            time.sleep(0.01)


@pytest.mark.parametrize("flag", ["--grpc-port", "--http-port"])
def test_a_taken_port_is_named_and_nothing_left(tmp_path, flag):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with Server(tmp_path, flag, port) as server:
            assert server.wait() == 1
            text = "".join(server.lines)
            assert port in text
            assert flag[2:].replace("-", ".") in text
            assert "Traceback" not in text


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("--set", "grpc.prot=1"), "grpc.prot"),
        (("--set", "nonsense"), "SECTION.FIELD=VALUE"),
        (("--grpc-port", "70000"), "grpc.port"),
        (("--config", "/no/such/file"), "/no/such/file"),
        (("--model", "="), "ID=PATH"),
        (("--runner", "onnx", "--model", "fake=nobody/nothing"), "nobody/nothing"),
        (("--set", "default_model=other"), "default_model"),
    ],
)
def test_bad_settings_are_named(tmp_path, arguments, field):
    with Server(tmp_path, *arguments) as server:
        assert server.wait() == 1
        text = "".join(server.lines)
        assert field in text
        assert "Traceback" not in text


def test_the_command_joins_a_command_line():
    parser = argparse.ArgumentParser()
    add_serve(parser.add_subparsers())
    arguments = parser.parse_args(["serve", "--model", "a=/x", "--model", "b=/y", "--grpc-port", "1"])
    assert arguments.run is run_serve
    assert arguments.model == ["a=/x", "b=/y"]
    assert arguments.grpc_port == 1
