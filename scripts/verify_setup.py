"""Checks an installation: the server starts, serves the default model, answers, and stops without leaving a process."""

from __future__ import annotations

import importlib.metadata
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vorta import Client, Point
from vorta.errors import VortaError
from vorta_kernels import cpu


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _check_vectors(client: Client) -> None:
    """Embeds, stores, finds and answers."""
    until = time.monotonic() + 60
    while True:
        try:
            client.create_collection("check", text_fields=["text"])
            break
        except VortaError as error:
            if not error.is_retryable or time.monotonic() > until:
                print(f"no collection: {error}", file=sys.stderr)
                raise SystemExit(1) from error
            time.sleep(0.2)
    check = client.collection("check")
    texts = {"a": "Vornesta was founded by Mira Kalden.", "b": "Tobin Ashel works as a baker."}
    check.upsert([Point(name, text=text) for name, text in texts.items()])
    answer = client.answer("Who founded Vornesta?", "check", temperature=0)
    text = answer.result().text
    print(f"found and answered: {text!r}, citing {list(answer.cited_ids)}")
    if "Mira Kalden" not in text or list(answer.cited_ids) != ["a"]:
        raise SystemExit("the answer does not rest on the collection")


def main() -> None:
    """Runs the checks; exits with 1 at the first that fails."""
    for name in ("grpcio", "protobuf", "onnxruntime", "faiss-cpu", "tokenizers", "uvloop"):
        print(f"{name} {importlib.metadata.version(name)}")
    try:
        print(f"kernels {cpu.library().name}")
    except cpu.BuildError as error:
        print(f"kernels are not built, models run slower: {error}")
    with tempfile.TemporaryDirectory() as folder:
        port, log = _free_port(), Path(folder) / "server.log"
        command = [sys.executable, "-m", "vorta", "serve", "--grpc-port", str(port)]
        command += ["--http-port", str(_free_port()), "--data-dir", folder]
        started = time.monotonic()
        with log.open("wb") as output:
            server = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            reply = None
            with Client(f"localhost:{port}", timeout_s=60) as client:
                while reply is None:
                    try:
                        reply = client.generate("What is machine learning?", max_tokens=100, temperature=0)
                    except VortaError as error:
                        if server.poll() is not None or time.monotonic() - started > 60:
                            print(log.read_text(), f"no answer: {error}", sep="\n", file=sys.stderr)
                            raise SystemExit(1) from error
                        time.sleep(0.2)
            print(f"first answer {time.monotonic() - started:.1f} s after the start: {reply.text!r}")
            print(f"{reply.usage.completion_tokens} tokens, {reply.tokens_per_second:.0f} tokens/s")
            with Client(f"localhost:{port}", timeout_s=60) as client:
                _check_vectors(client)
        finally:
            server.send_signal(signal.SIGTERM)
            status = server.wait(60)
        if status != 0:
            print(log.read_text(), f"the server ended with status {status}", sep="\n", file=sys.stderr)
            raise SystemExit(1)
    print("the setup works")


if __name__ == "__main__":
    main()
