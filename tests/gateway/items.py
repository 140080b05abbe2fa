"""The test services: compiled, answered, and asked over ASGI."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import json
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import google.api
from google.api import httpbody_pb2
from google.protobuf import any_pb2, empty_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_tools import protoc

from vorta_gateway.app import Gateway, GatewayConfig
from vorta_gateway.status import StatusError
from vorta_gateway.upstream import UpstreamCall

FOLDER = Path(__file__).parent


@functools.cache
def items_pb2() -> ModuleType:
    """The generated module of items.proto."""
    out = Path(tempfile.mkdtemp(prefix="vorta-items-"))
    include = Path(next(iter(google.api.__path__))).parents[1]
    well_known = Path(protoc.__file__).parent / "_proto"
    code = protoc.main(
        ["", f"-I{FOLDER}", f"-I{include}", f"-I{well_known}", f"--python_out={out}", str(FOLDER / "items.proto")]
    )
    assert code == 0
    return load_module("items_pb2", out / "items_pb2.py")


def load_module(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def service() -> Any:
    return items_pb2().DESCRIPTOR.services_by_name["Items"]


def failure(code: int, message: str) -> StatusError:
    """A status with a detail that is known and one that is not."""
    info = any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason="WHY", domain="test"))
    unknown = any_pb2.Any(type_url="type.googleapis.com/nobody.knows.It", value=b"\x08\x01")
    status = status_pb2.Status(code=code, message=message, details=[info, unknown])
    return StatusError(code, message, details=status.SerializeToString())


class ItemsUpstream:
    """Answers the test services in process.

    Attributes:
        calls: Every call, in order.
        num_open: Calls that have begun and not ended.
        as_bytes: Whether replies are bytes, as over a channel.
    """

    def __init__(self, *, as_bytes: bool = False) -> None:
        self.calls: list[UpstreamCall] = []
        self.num_open = 0
        self.as_bytes = as_bytes

    async def unary(self, call: UpstreamCall, request: Any) -> Any:
        async with aclosing_count(self, call):
            replies = self._answers(call, self._message(call, request))
            async for reply in replies:
                return self._made(reply)
        raise AssertionError("no reply")

    async def stream(self, call: UpstreamCall, requests: Any) -> AsyncGenerator[Any, None]:
        async with aclosing_count(self, call):
            if isinstance(requests, AsyncIterable):
                asked: Any = (self._message(call, request) async for request in requests)
            else:
                asked = self._message(call, requests)
            async for reply in self._answers(call, asked):
                yield self._made(reply)

    async def close(self) -> None:
        pass

    def _message(self, call: UpstreamCall, request: Any) -> Any:
        if isinstance(request, bytes):
            try:
                return call.method.request_type.FromString(request)
            except DecodeError:
                raise StatusError(3, "malformed") from None
        return call.method.request_type.FromString(request.SerializeToString())

    def _made(self, reply: Any) -> Any:
        return reply.SerializeToString() if self.as_bytes else reply

    async def _answers(self, call: UpstreamCall, request: Any) -> AsyncIterator[Any]:
        pb = items_pb2()
        call.header = (("x-request-id", "id-1"), ("color", "blue"))
        match call.method.path.rpartition("/")[2]:
            case "Delete":
                yield empty_pb2.Empty()
            case "Lists":
                names = [] if request.name == "empty" else ["a", "b"]
                yield pb.ListReply(items=[pb.Item(id=name) for name in names])
            case "Note":
                yield pb.ListReply(note=request.name)
            case "Page":
                yield httpbody_pb2.HttpBody(content_type="text/html", data=b"<p>" + request.name.encode())
            case "PageStream":
                for data in (b"<p>", b"one", b"</p>"):
                    yield httpbody_pb2.HttpBody(content_type="text/html", data=data)
            case "List":
                for number in range(request.code):
                    yield pb.Item(id=str(number))
            case "Bulk":
                yield pb.Req(code=len([item async for item in request]))
            case "Chat":
                async for item in request:
                    yield item
            case "Fail":
                raise failure(request.code, "boom é")
            case "FailStream":
                for number in range(request.code):
                    yield pb.Item(id=str(number))
                raise failure(5, "late")
            case "Wait" | "WaitStream":
                if call.method.is_streaming:
                    yield pb.Item(id="first")
                await asyncio.sleep(60)
            case _:
                yield request


class aclosing_count:
    """Counts a call while it is open."""

    def __init__(self, upstream: ItemsUpstream, call: UpstreamCall) -> None:
        self._upstream = upstream
        upstream.calls.append(call)

    async def __aenter__(self) -> None:
        self._upstream.num_open += 1

    async def __aexit__(self, *_: object) -> None:
        self._upstream.num_open -= 1


@dataclass
class Reply:
    """What an application answered."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    chunks: list[bytes] = field(default_factory=list)
    is_broken: bool = False


async def ask(
    app: Any,
    method: str,
    target: str,
    body: bytes | Iterable[bytes] = b"",
    headers: dict[str, str] | None = None,
    *,
    leave_after_chunks: int | None = None,
) -> Reply:
    """One request to an ASGI application, its target as it stands on the wire."""
    path, _, query = target.partition("?")
    chunks = [body] if isinstance(body, bytes) else list(body)
    sent = dict(headers or {})
    if any(chunks) and "content-type" not in {name.lower() for name in sent}:
        sent["content-type"] = "application/json"
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode("latin-1"),
        "query_string": query.encode("latin-1"),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in sent.items()],
    }
    reply = Reply()
    gone = asyncio.Event()
    incoming = [
        {"type": "http.request", "body": chunk, "more_body": index + 1 < len(chunks)}
        for index, chunk in enumerate(chunks)
    ]

    async def receive() -> dict[str, Any]:
        if incoming:
            return incoming.pop(0)
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            reply.status = message["status"]
            reply.headers = {name.decode(): value.decode("latin-1") for name, value in message["headers"]}
        else:
            if message.get("body"):
                reply.chunks.append(message["body"])
            if leave_after_chunks is not None and len(reply.chunks) >= leave_after_chunks:
                gone.set()

    if leave_after_chunks == 0:
        gone.set()
    try:
        await asyncio.wait_for(app(scope, receive, send), 30)
    except ConnectionAbortedError:
        reply.is_broken = True
    reply.body = b"".join(reply.chunks)
    return reply


def gateway(upstream: ItemsUpstream | None = None, **config: Any) -> Gateway:
    """A gateway of the test services."""
    return Gateway([service()], upstream or ItemsUpstream(), GatewayConfig(**config))


def error_of(reply: Reply, status: int = 400, code: int = 3) -> dict[str, Any]:
    """The error that a call is answered with, by its HTTP status and gRPC's code."""
    assert reply.status == status, reply.body
    assert reply.headers["content-type"] == "application/json"
    error: dict[str, Any] = json.loads(reply.body)
    assert error["code"] == code
    assert set(error) == {"code", "message", "details"}
    return error


def fields_of(error: dict[str, Any]) -> list[str]:
    """The fields that an error names."""
    return [violation["field"] for detail in error["details"] for violation in detail.get("field_violations", ())]


async def echo(query: str, **config: Any) -> Any:
    """What a query is answered with that is said back."""
    reply = await ask(gateway(**config), "GET", f"/v1/echo?{query}")
    assert reply.status == 200, reply.body
    return json.loads(reply.body)
