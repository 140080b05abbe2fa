"""Stopping a server: what runs is finished, nothing new is taken, no process stays."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from tests.integration.served import serving
from vorta.v1 import common_pb2, inference_pb2


@pytest.mark.parametrize("goes_to_group", [False, True], ids=["server", "process group"])
def test_running_streams_finish_after_sigterm(tmp_path: Path, goes_to_group: bool) -> None:
    slow = ["--set", "worker.fake_step_s=0.02"]
    with serving(tmp_path, "--runner", "fake", "--model", f"fake={tmp_path}", *slow) as server:
        stream = server.inference.StreamGenerate(
            inference_pb2.StreamGenerateRequest(prompt="hello", max_tokens=60), timeout=60
        )
        next(stream)
        events: list[inference_pb2.StreamGenerateResponse] = []
        reader = threading.Thread(target=lambda: events.extend(stream))
        reader.start()
        if goes_to_group:
            os.killpg(server.process.pid, signal.SIGTERM)
        else:
            server.process.send_signal(signal.SIGTERM)
        reader.join(30)
        assert not reader.is_alive()
        assert events[-1].finished.finish_reason == common_pb2.FINISH_REASON_LENGTH
        assert sum(len(event.delta.token_ids) for event in events) == 60
        assert server.process.wait(30) == 0
