"""Streams over gRPC, gRPC-Web and server-sent events."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import grpc

from vorta.v1 import inference_pb2, inference_pb2_grpc
from vorta_bench.gateway.measuring import cpu_s, ratio
from vorta_bench.wire import Server, serving

__all__ = ["streams"]

STREAMS = 32
STREAM_TOKENS = 400
_WEB_HEAD = "POST /vorta.v1.InferenceService/StreamGenerate HTTP/1.1\r\ncontent-type: application/grpc-web+proto\r\n"
_EVENTS_HEAD = "POST /v1/inference:stream HTTP/1.1\r\ncontent-type: application/json\r\naccept: text/event-stream\r\n"


async def _grpc_streams(server: Server) -> int:
    async with grpc.aio.insecure_channel(server.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)

        async def one(index: int) -> int:
            count = 0
            request = inference_pb2.StreamGenerateRequest(
                prompt=f"p{index}", max_tokens=STREAM_TOKENS, temperature=0.0, ignore_eos=True
            )
            async for event in stub.StreamGenerate(request):
                count += len(event.delta.token_ids)
            return count

        return sum(await asyncio.gather(*(one(index) for index in range(STREAMS))))


async def _http_streams(port: int, *, is_web: bool) -> int:
    async def one(index: int) -> int:
        if is_web:
            message = inference_pb2.StreamGenerateRequest(
                prompt=f"p{index}", max_tokens=STREAM_TOKENS, temperature=0.0, ignore_eos=True
            ).SerializeToString()
            body = b"\0" + len(message).to_bytes(4, "big") + message
            head = _WEB_HEAD
        else:
            body = json.dumps(
                {"prompt": f"p{index}", "max_tokens": STREAM_TOKENS, "temperature": 0, "ignore_eos": True}
            ).encode()
            head = _EVENTS_HEAD
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        writer.write(f"{head}host: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in answer, answer
        data = bytearray()
        while size := int((await reader.readline()).strip(), 16):
            data += (await reader.readexactly(size + 2))[:-2]
        writer.close()
        return _web_tokens(bytes(data)) if is_web else _event_tokens(bytes(data))

    return sum(await asyncio.gather(*(one(index) for index in range(STREAMS))))


def _web_tokens(data: bytes) -> int:
    count = at = 0
    while at < len(data):
        size = int.from_bytes(data[at + 1 : at + 5], "big")
        if data[at] == 0:
            count += len(inference_pb2.StreamGenerateResponse.FromString(data[at + 5 : at + 5 + size]).delta.token_ids)
        at += 5 + size
    return count


def _event_tokens(data: bytes) -> int:
    events = [json.loads(line[6:]) for line in data.split(b"\n") if line.startswith(b"data: ")]
    return sum(len(event.get("delta", {}).get("token_ids", ())) for event in events)


def streams(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Tokens a second of 32 streams, and the front's CPU microseconds a token."""
    rates: dict[str, list[float]] = {}
    costs: dict[str, list[float]] = {}
    with serving(["--runner", "fake", "--model", "m=fake"]) as server:
        http_port = server.http_port
        wires: dict[str, Callable[[], Any]] = {
            "gRPC": lambda: _grpc_streams(server),
            "gRPC-Web": lambda: _http_streams(http_port, is_web=True),
            "SSE": lambda: _http_streams(http_port, is_web=False),
        }
        for number in range(arguments.rounds + 1):
            for name, ask in wires.items():
                before_s, start_s = cpu_s(server.process.pid), time.perf_counter()
                count = asyncio.run(ask())
                total_s = time.perf_counter() - start_s
                assert count == STREAMS * STREAM_TOKENS, count
                if number:
                    rates.setdefault(name, []).append(count / total_s)
                    costs.setdefault(name, []).append((cpu_s(server.process.pid) - before_s) / count)
                    print(
                        f"{name:10} {rates[name][-1]:8.0f} tokens/s, {costs[name][-1] * 1e6:.1f} us a token", flush=True
                    )
    return [
        {
            "name": name,
            "tokens_per_s": round(statistics.median(rates[name])),
            "front_cpu_us_per_token": round(statistics.median(costs[name]) * 1e6, 2),
            "rate_over_grpc": ratio(rates[name], rates["gRPC"]),
            "cpu_over_grpc": ratio(costs[name], costs["gRPC"]),
        }
        for name in rates
    ]
