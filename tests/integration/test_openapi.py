"""schemathesis asks what the OpenAPI document allows and much that it does not, and no answer is a server error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.served import serving


@pytest.mark.timeout(900)  # some thousand requests: half a minute on a machine that does nothing else
def test_no_request_fails_the_server(tmp_path: Path) -> None:
    models = ("--model", "m=fake", "--model", "e=fake-embedding", "--model", "r=fake-rerank")
    with serving(tmp_path, "--runner", "fake", *models) as served:
        url = f"http://127.0.0.1:{served.http_port}/openapi.json"
        command = [str(Path(sys.executable).with_name("st")), "run", url, "--checks", "not_a_server_error"]
        command += [
            "--phases",
            "examples,coverage,fuzzing",
            "--max-examples",
            "8",
            "--seed",
            "1",
            "--request-timeout",
            "20",
        ]
        # A model that was unloaded answers 503, which is right and would count as a failure.
        command += ["--exclude-path-regex", ":unload$", "--no-color"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
        assert served.is_ready()
        assert " ERROR " not in served.log.read_text()
