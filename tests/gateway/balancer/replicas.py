"""Replicas to balance over: real gRPC servers with a hand-made service, vorta.v1's, and health."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, wrappers_pb2
from google.protobuf.message import Message

from vorta.v1 import inference_pb2
from vorta_gateway.upstream import RpcMethod, UpstreamCall

WAIT_S = 20.0
"""Bound of every wait; far more than any of them takes."""

ECHO = "/test.Echo/"
INFERENCE = "/vorta.v1.InferenceService/"


def _echo_service() -> Any:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(
        name="test/echo.proto", package="test", syntax="proto3", dependency=["google/protobuf/wrappers.proto"]
    )
    service = file.service.add(name="Echo")
    levels = descriptor_pb2.MethodOptions
    for name, is_client_streaming, is_streaming, level in (
        ("Get", False, False, levels.NO_SIDE_EFFECTS),
        ("Put", False, False, levels.IDEMPOTENCY_UNKNOWN),
        ("List", False, True, levels.NO_SIDE_EFFECTS),
        ("Collect", True, False, levels.IDEMPOTENCY_UNKNOWN),
        ("Talk", True, True, levels.IDEMPOTENCY_UNKNOWN),
    ):
        method = service.method.add(
            name=name,
            input_type=".google.protobuf.StringValue",
            output_type=".google.protobuf.StringValue",
            client_streaming=is_client_streaming,
            server_streaming=is_streaming,
        )
        method.options.idempotency_level = level
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindServiceByName("test.Echo")


METHODS = {
    f"/{service.full_name}/{method.name}": RpcMethod.of(method)
    for service in (_echo_service(), inference_pb2.DESCRIPTOR.services_by_name["InferenceService"])
    for method in service.methods
}


def call_of(path: str, *, timeout_s: float | None = None, **metadata: str | bytes) -> UpstreamCall:
    """A call; underscores in metadata names stand for dashes."""
    return UpstreamCall(
        method=METHODS[path],
        metadata={name.replace("_", "-"): value for name, value in metadata.items()},
        deadline_s=None if timeout_s is None else time.monotonic() + timeout_s,
    )


def text(value: str) -> bytes:
    return wrappers_pb2.StringValue(value=value).SerializeToString()


def value_of(reply: Message | bytes) -> str:
    assert isinstance(reply, bytes)
    return wrappers_pb2.StringValue.FromString(reply).value


async def until(condition: Callable[[], bool]) -> None:
    """Waits for a condition that other tasks bring about; bounded."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.005)


Answer = Callable[["Replica", str, Any, grpc.aio.ServicerContext[Any, Any]], Awaitable[bytes]]


class Replica:
    """One server, behind a relay of its bytes, so that it can die as if it were a process: without a word.

    Attributes:
        name: Echo's replies begin with it.
        port: It keeps it when it is started again.
        calls: (RPC name, metadata) of every call, in order; not of health.
        num_open: Calls that have begun and not ended; not of health.
        gate: Replies wait for it; set at first.
        fail_with: (code, message, trailers) that calls end with at once; None for none.
        request_ids: Requests that CancelGenerate and ResumeGenerate find here.
    """

    def __init__(self, name: str, *, has_health: bool = True) -> None:
        self.name = name
        self.port = 0
        self.calls: list[tuple[str, dict[str, str | bytes]]] = []
        self.num_open = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.fail_with: tuple[grpc.StatusCode, str, tuple[tuple[str, str | bytes], ...]] | None = None
        self.request_ids: set[str] = set()
        self._has_health = has_health
        self._is_serving = True
        self._health_changed = asyncio.Condition()
        self._server: grpc.aio.Server | None = None
        self._inner_port = 0
        self._relay: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def count(self, name: str) -> int:
        """Calls of an RPC."""
        return sum(1 for called, _ in self.calls if called == name)

    async def start(self) -> Replica:
        server = self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers([_Handlers(self)])
        self._inner_port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self._relay = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._relay.sockets[0].getsockname()[1]
        return self

    async def kill(self) -> None:
        """Cuts every connection. Idempotent."""
        if self._server is None or self._relay is None:
            return
        self._relay.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await self._server.stop(None)
        self._server = self._relay = None

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner = await asyncio.open_connection("127.0.0.1", self._inner_port)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, inner[1]}
        self._writers |= pair
        try:
            await asyncio.gather(_relay(reader, inner[1]), _relay(inner[0], writer))
        finally:
            self._writers -= pair
            for one in pair:
                one.transport.abort()

    async def set_serving(self, is_serving: bool) -> None:
        async with self._health_changed:
            self._is_serving = is_serving
            self._health_changed.notify_all()

    async def watch(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        async with self._health_changed:
            while True:
                yield wrappers_pb2.Int32Value(value=1 if self._is_serving else 2).SerializeToString()
                await self._health_changed.wait()

    async def answer(self, path: str, request: Any, context: Any) -> AsyncIterator[bytes]:
        metadata = dict(context.invocation_metadata() or ())
        name = path.rpartition("/")[2]
        self.calls.append((name, metadata))
        self.num_open += 1
        try:
            if self.fail_with is not None:
                code, message, trailers = self.fail_with
                await context.abort(code, message, trailers)
            await context.send_initial_metadata((("x-replica", self.name), ("x-raw-bin", b"\x00\xff")))
            if path.startswith(INFERENCE):
                async for reply in self._infer(name, request, metadata, context):
                    yield reply
            else:
                async for reply in self._echo(name, request):
                    yield reply
            context.set_trailing_metadata((("x-end", self.name),))
        finally:
            self.num_open -= 1

    async def _echo(self, name: str, request: Any) -> AsyncIterator[bytes]:
        match name:
            case "Get" | "Put":
                await self.gate.wait()
                yield text(f"{self.name}:{value_of(request)}")
            case "List":
                for part in value_of(request).split(","):
                    yield text(f"{self.name}:{part}")
                    await self.gate.wait()
            case "Collect":
                parts = [value_of(one) async for one in request]
                yield text(f"{self.name}:{'+'.join(parts)}")
            case "Talk":
                async for one in request:
                    yield text(f"{self.name}:{value_of(one)}")

    async def _infer(self, name: str, request: bytes, metadata: Any, context: Any) -> AsyncIterator[bytes]:
        message: Any = METHODS[INFERENCE + name].request_type.FromString(request)
        request_id = getattr(message, "request_id", "") or metadata.get("x-request-id", "") or f"{self.name}-made"
        if name in ("CancelGenerate", "ResumeGenerate"):
            if request_id not in self.request_ids:
                await context.abort(grpc.StatusCode.NOT_FOUND, "no such request")
            if name == "CancelGenerate":
                yield b""
                return
            yield inference_pb2.ResumeGenerateResponse(index=message.next_index).SerializeToString()
            return
        self.request_ids.add(request_id)
        if name in ("Generate", "Chat"):
            await self.gate.wait()
            # Both responses have these fields under the same numbers.
            yield inference_pb2.GenerateResponse(request_id=request_id, text=self.name).SerializeToString()
            return
        response = METHODS[INFERENCE + name].response_type
        started: Any = response(index=0)
        if name == "StreamAnswer":
            started.hits.SetInParent()
            yield started.SerializeToString()
            started = response(index=1)
        started.started.request_id = request_id
        yield started.SerializeToString()
        await self.gate.wait()
        delta: Any = response(index=2)
        delta.delta.text = self.name
        yield delta.SerializeToString()
        finished: Any = response(index=3)
        finished.finished.SetInParent()
        yield finished.SerializeToString()


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        path: Any = handler_call_details.method
        if path == "/grpc.health.v1.Health/Watch" and self._replica._has_health:
            return grpc.unary_stream_rpc_method_handler(self._replica.watch)
        method = METHODS.get(path)
        if method is None:
            return None
        replica = self._replica

        async def many(request: Any, context: Any) -> AsyncIterator[bytes]:
            async for reply in replica.answer(path, request, context):
                yield reply

        async def one(request: Any, context: Any) -> bytes:
            replies = [reply async for reply in replica.answer(path, request, context)]
            return replies[0]

        make: Any
        match method.is_client_streaming, method.is_streaming:
            case False, False:
                make = grpc.unary_unary_rpc_method_handler(one)
            case False, True:
                make = grpc.unary_stream_rpc_method_handler(many)
            case True, False:
                make = grpc.stream_unary_rpc_method_handler(one)
            case _:
                make = grpc.stream_stream_rpc_method_handler(many)
        return make
