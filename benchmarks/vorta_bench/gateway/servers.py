"""What is measured before, and processes that listen."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import uvloop

from vorta.v1 import inference_pb2

__all__ = ["BODY", "ROOT", "backend_server", "in_process_server", "running"]

ROOT = Path(__file__).resolve().parents[3]
BODY = {"prompt": "What is machine learning?", "max_tokens": 100}


def backend_server(port: int) -> None:
    """A gRPC server that answers every Generate at once."""
    from vorta_server.front.reflection import reflection_handlers

    reply = inference_pb2.GenerateResponse(
        request_id="r", model="m", text="machine learning is " * 20, tokens_per_second=1000.0, token_ids=range(100)
    ).SerializeToString()

    async def answer(_: bytes, __: Any) -> bytes:
        return reply

    async def serve() -> None:
        server = grpc.aio.server()
        handler: Any = grpc.unary_unary_rpc_method_handler(answer)
        generic = grpc.method_handlers_generic_handler("vorta.v1.InferenceService", {"Generate": handler})
        server.add_generic_rpc_handlers([generic, *reflection_handlers(["vorta.v1.InferenceService"])])
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await server.wait_for_termination()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


def in_process_server(port: int) -> None:
    """The gateway with what answers in its own process, as in `vorta serve`, but for the model."""
    from vorta_gateway.app import Gateway
    from vorta_gateway.server import HttpServer

    reply = inference_pb2.GenerateResponse(
        request_id="r", model="m", text="machine learning is " * 20, tokens_per_second=1000.0, token_ids=range(100)
    )

    class Constant:
        async def unary(self, call: Any, request: Any) -> Any:
            return reply

    async def serve() -> None:
        service = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
        server = HttpServer(Gateway([service], Constant()), host="127.0.0.1", port=port)  # type: ignore[arg-type]
        await server.start()
        await asyncio.Event().wait()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


@contextlib.contextmanager
def running(command: list[str], port: int, environment: dict[str, str] | None = None) -> Iterator[int]:
    """A process that listens on a port; its id."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment, cwd=ROOT)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None:
                raise SystemExit(f"{command} ended with {process.returncode}")
            time.sleep(0.1)
        yield process.pid
    finally:
        process.kill()
        process.wait()
