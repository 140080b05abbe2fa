"""CPU time of a unary call: the gateway's own client and grpc.aio."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from typing import Any

import uvloop
from google.protobuf import json_format

from vorta.v1 import inference_pb2
from vorta_bench.gateway.measuring import ratio
from vorta_bench.gateway.servers import BODY, running
from vorta_bench.wire import free_port
from vorta_gateway.channel import ChannelConfig, ChannelUpstream, make_channel
from vorta_gateway.fast import FastUpstream
from vorta_gateway.upstream import RpcMethod, UpstreamCall

__all__ = ["client"]


async def _client_us(target: str, count: int, *, is_fast: bool) -> float:
    """CPU microseconds of this process a unary call."""
    config = ChannelConfig()
    method = RpcMethod.of(inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].methods_by_name["Generate"])
    request = json_format.ParseDict(BODY, inference_pb2.GenerateRequest()).SerializeToString()
    upstream: FastUpstream | ChannelUpstream
    if is_fast:
        upstream = FastUpstream(target, make_channel(target, config), config)
        if not await upstream.connect():
            raise RuntimeError("no connection")
    else:
        upstream = ChannelUpstream(make_channel(target, config))
    left = iter(range(count))

    async def ask() -> None:
        for _ in left:
            await upstream.unary(UpstreamCall(method=method, metadata={}), request)

    await upstream.unary(UpstreamCall(method=method, metadata={}), request)
    start_s = time.process_time()
    await asyncio.gather(*(ask() for _ in range(32)))
    cost_s = time.process_time() - start_s
    await upstream.close()
    return cost_s / count * 1e6


def client(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """CPU microseconds a unary call, in turn."""
    costs: dict[str, list[float]] = {"FastUpstream": [], "ChannelUpstream (grpc.aio)": []}
    backend = free_port()
    command = [sys.executable, "-m", "vorta_bench.gateway", "backend", "--port", str(backend)]
    with running(command, backend):
        for number in range(arguments.rounds + 1):
            for name, values in costs.items():
                ask = _client_us(f"127.0.0.1:{backend}", 5000 if number else 500, is_fast=name == "FastUpstream")
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    cost_us = runner.run(ask)
                if number:
                    values.append(cost_us)
    grpc_us = costs["ChannelUpstream (grpc.aio)"]
    return [
        {"name": name, "cpu_us": round(statistics.median(values), 1), "over_grpc": ratio(values, grpc_us)}
        for name, values in costs.items()
    ]
