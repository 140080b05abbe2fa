"""The gateway against what else turns HTTP into RPCs, in turn, on the same cores.

    python -m vorta_bench.gateway codec   --out results/gateway_codec.json
    python -m vorta_bench.gateway rest    --peer-python PEERS/bin/python --out results/gateway_rest.json
    python -m vorta_bench.gateway client  --out results/gateway_client.json
    python -m vorta_bench.gateway streams --out results/gateway_streams.json
    python -m vorta_bench.gateway balance --out results/gateway_balance.json

codec    JSON to and from messages, over `google.protobuf.json_format`.
rest     requests a second and CPU time a request of `POST /v1/inference` before a gRPC server that answers at once:
         `vorta gateway`, Envoy, connectrpc, FastAPI over grpc.aio; and of the gateway in one process with what answers.
client   CPU time of a unary call before the same server: the gateway's own client and grpc.aio, 32 calls at a time.
streams  32 streams of the fake runner over gRPC, gRPC-Web and server-sent events: tokens a second, CPU time of the
         server.
balance  one replica and two behind the balancer, on simulated devices; the prefix cache's hits of conversations; a
         replica of three that dies under load.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx
import uvloop
from google.protobuf import json_format, struct_pb2

from vorta.v1 import embedding_pb2, inference_pb2, inference_pb2_grpc
from vorta_bench.wire import Server, free_port, serving
from vorta_gateway.channel import ChannelConfig, ChannelUpstream, make_channel
from vorta_gateway.fast import FastUpstream
from vorta_gateway.json import native
from vorta_gateway.json.codec import Codec
from vorta_gateway.upstream import RpcMethod, UpstreamCall

ROOT = Path(__file__).resolve().parents[2]
CONNECTIONS = 16
STREAMS = 32
STREAM_TOKENS = 400
_WEB_HEAD = "POST /vorta.v1.InferenceService/StreamGenerate HTTP/1.1\r\ncontent-type: application/grpc-web+proto\r\n"
_EVENTS_HEAD = "POST /v1/inference:stream HTTP/1.1\r\ncontent-type: application/json\r\naccept: text/event-stream\r\n"
_CONTENT_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
BODY = {"prompt": "What is machine learning?", "max_tokens": 100}


# codec


def codec(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """CPU microseconds both ways, and the ratios."""
    native.load()  # waits until it is built
    request = inference_pb2.GenerateRequest(
        model="vorta-mini", prompt="What is machine learning?", max_tokens=100, temperature=0.7, top_p=0.9, seed=3
    )
    request.stop.extend(["\n\n", "END"])
    source = random.Random(1)
    reply = embedding_pb2.EmbedResponse(model="all-MiniLM-L6-v2", dimensions=384)
    for index in range(32):
        values = [source.uniform(-0.2, 0.2) for _ in range(384)]
        reply.embeddings.add(index=index, values=values, num_tokens=12)
    struct = struct_pb2.Struct()
    struct.update(_nested(4))
    rows = []
    for name, message in (("GenerateRequest", request), ("EmbedResponse 32 x 384", reply), ("Struct, nested", struct)):
        kind: Any = type(message)
        ours = Codec()
        text = ours.text(message)
        theirs = json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None)
        assert json.loads(text) == json.loads(theirs)
        measures: dict[str, Callable[[], object]] = {
            "write": partial(ours.text, message),
            "write, json_format": partial(
                json_format.MessageToJson, message, preserving_proto_field_name=True, indent=None
            ),
            "read": partial(_read, ours, kind, text),
            "read, json_format": partial(_read_json_format, kind, theirs),
        }
        times: dict[str, list[float]] = {key: [] for key in measures}
        count = 5 if len(text) > 50_000 else 200
        for _ in range(arguments.rounds):
            for key, function in measures.items():
                times[key].append(_seconds(function, count))
        medians = {key: statistics.median(values) for key, values in times.items()}
        row = {"message": name, "bytes": len(text)}
        for way in ("write", "read"):
            row[f"{way}_us"] = round(medians[way] * 1e6, 1)
            row[f"{way}_json_format_us"] = round(medians[f"{way}, json_format"] * 1e6, 1)
            row[f"{way}_times"] = round(medians[f"{way}, json_format"] / medians[way], 1)
        rows.append(row)
        print(row, flush=True)
    return rows


def _read(codec: Codec, kind: Any, text: bytes) -> None:
    codec.parse(kind(), text)


def _read_json_format(kind: Any, text: str) -> None:
    json_format.Parse(text, kind())


def _nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {
        "name": "x",
        "number": 1.5,
        "ok": True,
        "none": None,
        "list": [1, 2, "three", {"a": [1, 2]}],
    }
    return {**value, "one": _nested(depth - 1), "two": _nested(depth - 1)} if depth else value


def _seconds(function: Callable[[], object], count: int) -> float:
    # Of this thread's CPU: what else runs on the machine would interrupt the longer of two measures more often.
    start_s = time.thread_time()
    for _ in range(count):
        function()
    return (time.thread_time() - start_s) / count


# rest


def _cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, with all its threads."""
    # By the scheduler's nanoseconds: clock ticks are too coarse for what is measured here.
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


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


def _backend(port: int) -> None:
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


def _in_process(port: int) -> None:
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
def _running(command: list[str], port: int, environment: dict[str, str] | None = None) -> Iterator[int]:
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
        stack.enter_context(_running([*this, "backend", "--port", str(backend)], backend))
        target = f"127.0.0.1:{backend}"
        rest_path, connect_path = "/v1/inference", "/vorta.v1.InferenceService/Generate"
        peers: dict[str, tuple[int, int, str]] = {}

        def start(name: str, path: str, command: Callable[[int], list[str]], env: dict[str, str] | None = None) -> None:
            port = free_port()
            peers[name] = (stack.enter_context(_running(command(port), port, env)), port, path)

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
                before_s = _cpu_s(pid)
                count = uvloop.run(_load(port, path, body, 1.0 if number == 0 else arguments.seconds))
                cost_s = (_cpu_s(pid) - before_s) / count
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
        row["cpu_over_envoy"] = _ratio(costs[name], costs["envoy"])
        for peer in ("fastapi", "connectrpc"):
            if peer in rates:
                row[f"rate_over_{peer}"] = _ratio(rates[name], rates[peer])
        rows.append(row)
    return rows


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return round(statistics.median([a / b for a, b in zip(ours, theirs, strict=True)]), 2)


# client


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
    with _running(command, backend):
        for number in range(arguments.rounds + 1):
            for name, values in costs.items():
                ask = _client_us(f"127.0.0.1:{backend}", 5000 if number else 500, is_fast=name == "FastUpstream")
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    cost_us = runner.run(ask)
                if number:
                    values.append(cost_us)
    grpc_us = costs["ChannelUpstream (grpc.aio)"]
    return [
        {"name": name, "cpu_us": round(statistics.median(values), 1), "over_grpc": _ratio(values, grpc_us)}
        for name, values in costs.items()
    ]


# streams


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
                before_s, start_s = _cpu_s(server.process.pid), time.perf_counter()
                count = asyncio.run(ask())
                total_s = time.perf_counter() - start_s
                assert count == STREAMS * STREAM_TOKENS, count
                if number:
                    rates.setdefault(name, []).append(count / total_s)
                    costs.setdefault(name, []).append((_cpu_s(server.process.pid) - before_s) / count)
                    print(
                        f"{name:10} {rates[name][-1]:8.0f} tokens/s, {costs[name][-1] * 1e6:.1f} us a token", flush=True
                    )
    return [
        {
            "name": name,
            "tokens_per_s": round(statistics.median(rates[name])),
            "front_cpu_us_per_token": round(statistics.median(costs[name]) * 1e6, 2),
            "rate_over_grpc": _ratio(rates[name], rates["gRPC"]),
            "cpu_over_grpc": _ratio(costs[name], costs["gRPC"]),
        }
        for name in rates
    ]


# balance


@contextlib.contextmanager
def _balanced(servers: list[Server]) -> Iterator[str]:
    """`vorta gateway` before servers; its address."""
    port = free_port()
    upstream = ",".join(server.address for server in servers)
    command = [sys.executable, "-m", "vorta", "gateway", "--upstream", upstream, "--port", str(port)]
    with _running(command, port):
        yield f"http://127.0.0.1:{port}"


def _replica(stack: contextlib.ExitStack, *, step_s: float = 0.02, running: int = 8) -> Server:
    arguments = ["--runner", "fake", "--model", "m=fake", "--set", f"worker.fake_step_s={step_s}"]
    arguments += ["--set", "worker.fake_prefill_token_s=0.0002", "--set", f"worker.max_running_requests={running}"]
    return stack.enter_context(serving([*arguments, "--vector-backend", "none"]))


async def _tokens_per_s(url: str, clients: int, requests: int, tokens: int) -> float:
    left = iter(range(requests))
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

        async def one() -> None:
            for number in left:
                body = {"prompt": f"{number} {random.random()}", "max_tokens": tokens, "ignore_eos": True}
                reply = await client.post("/v1/inference", json=body)
                reply.raise_for_status()

        start_s = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(clients)))
        return requests * tokens / (time.perf_counter() - start_s)


async def _hit_rate(url: str, conversations: int, turns: int) -> float:
    """The share of prompt tokens that came from a prefix cache, over conversations that go on in turn."""
    cached = total = 0
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        source = random.Random(3)
        histories = [
            [{"role": "user", "content": f"{number} " + "".join(source.choices("abcdefgh ", k=300))}]
            for number in range(conversations)
        ]

        async def turn(history: list[dict[str, str]]) -> None:
            nonlocal cached, total
            body = {"messages": history, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
            reply = (await client.post("/v1/chat", json=body)).json()
            usage = reply["usage"]
            cached += usage.get("cached_prompt_tokens", 0)
            total += usage["prompt_tokens"]
            history.append({"role": "assistant", "content": reply["text"]})
            history.append({"role": "user", "content": "".join(source.choices("abcdefgh ", k=40))})

        for _ in range(turns):
            source.shuffle(histories)
            await asyncio.gather(*(turn(history) for history in histories))
    return cached / total


async def _lost_requests(url: str, victim: Server, seconds: float) -> tuple[int, int]:
    """Requests answered, and lost, while a replica is killed in the middle."""
    answered = lost = 0
    until_s = time.monotonic() + seconds

    async def one(client: httpx.AsyncClient) -> None:
        nonlocal answered, lost
        while time.monotonic() < until_s:
            reply = await client.post("/v1/inference", json={"prompt": str(random.random()), "max_tokens": 5})
            if reply.status_code == 200:
                answered += 1
            else:
                lost += 1

    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        tasks = [asyncio.create_task(one(client)) for _ in range(24)]
        await asyncio.sleep(seconds / 2)
        os.kill(victim.process.pid, signal.SIGKILL)
        await asyncio.gather(*tasks)
    return answered, lost


def balance(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Two replicas over one, hits of the prefix cache, and a death."""
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        servers = [_replica(stack) for _ in range(2)]
        single = stack.enter_context(_balanced(servers[:1]))
        double = stack.enter_context(_balanced(servers))
        ratios = []
        for _ in range(arguments.rounds):
            one = asyncio.run(_tokens_per_s(single, 32, 96, 20))
            two = asyncio.run(_tokens_per_s(double, 32, 96, 20))
            ratios.append(two / one)
            print(f"one {one:.0f} tokens/s, two {two:.0f}", flush=True)
        rows.append({"name": "two replicas over one", "ratio": round(statistics.median(ratios), 2)})
    with contextlib.ExitStack() as stack:
        servers = [_replica(stack, step_s=0.002, running=16) for _ in range(3)]
        single = stack.enter_context(_balanced(servers[:1]))
        alone = asyncio.run(_hit_rate(single, 12, 8))
        double = stack.enter_context(_balanced(servers[1:]))
        spread = asyncio.run(_hit_rate(double, 12, 8))
        rows.append(
            {
                "name": "prefix cache hits, conversations",
                "one_replica": round(alone, 3),
                "two_replicas": round(spread, 3),
                "ratio": round(spread / alone, 3),
            }
        )
        print(rows[-1], flush=True)
    with contextlib.ExitStack() as stack:
        servers = [_replica(stack, step_s=0.005) for _ in range(3)]
        url = stack.enter_context(_balanced(servers))
        answered, lost = asyncio.run(_lost_requests(url, servers[1], 6.0))
        rows.append({"name": "one of three killed under load", "answered": answered, "lost": lost})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("codec", "rest", "client", "streams", "balance", "backend", "in-process"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--peer-python", default="")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.part in ("backend", "in-process"):
        (_backend if arguments.part == "backend" else _in_process)(arguments.port)
        return
    rows = {"codec": codec, "rest": rest, "client": client, "streams": streams, "balance": balance}[arguments.part](
        arguments
    )
    for row in rows:
        print(row)
    if arguments.out is not None:
        result = {
            "command": f"python -m vorta_bench.gateway {arguments.part}",
            "machine": platform.machine(),
            "python": platform.python_version(),
            "rows": rows,
        }
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
