"""Replies, errors, streams, deadlines and headers of transcoding: the acceptance list from 76 on, over ASGI."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from google.protobuf import json_format

from tests.gateway.items import ItemsUpstream, ask, echo, error_of, fields_of, gateway, items_pb2, service
from vorta_gateway.app import Gateway
from vorta_gateway.rest.routes import RouteOptions


async def test_empty_replies() -> None:  # 76
    reply = await ask(gateway(), "DELETE", "/v1/items/abc")
    assert (reply.status, reply.body, reply.headers["content-length"]) == (200, b"{}", "2")


@pytest.mark.parametrize("as_bytes", [False, True])
async def test_http_bodies(as_bytes: bool) -> None:  # 77
    app = gateway(ItemsUpstream(as_bytes=as_bytes))
    reply = await ask(app, "GET", "/v1/pages/x")
    assert (reply.body, reply.headers["content-type"]) == (b"<p>x", "text/html")
    reply = await ask(app, "GET", "/v1/pages/x:stream")
    assert (reply.body, reply.headers["content-type"]) == (b"<p>one</p>", "text/html")


async def test_response_body() -> None:
    assert json.loads((await ask(gateway(), "GET", "/v1/lists/x")).body) == [{"id": "a"}, {"id": "b"}]
    assert (await ask(gateway(), "GET", "/v1/lists/empty")).body == b"[]"
    assert (await ask(gateway(), "GET", "/v1/notes/hi")).body == b'"hi"'


async def test_print_options() -> None:  # 78
    assert await echo("item.title=", routes={"": RouteOptions(always_print=True)}) == {
        "name": "",
        "item": _defaults(),
        "code": 0,
        "books": [],
    }
    options = RouteOptions(camel_case=True, enum_numbers=True)
    assert await echo("item.snake_case=x&item.e=ONE", routes={"": options}) == {"item": {"snakeCase": "x", "e": 1}}
    by_path = {"/vorta.test.Items/Echo": RouteOptions(enum_numbers=True)}
    assert await echo("item.e=ONE", routes=by_path) == {"item": {"e": 1}}


def _defaults() -> dict[str, Any]:
    made: dict[str, Any] = json_format.MessageToDict(
        items_pb2().Item(), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return made


async def test_unknown_fields_of_a_reply_are_dropped() -> None:  # 79
    class Unknown(ItemsUpstream):
        async def unary(self, call: Any, request: Any) -> bytes:
            return request.SerializeToString() + b"\xf8\x3f\x01"

    reply = await ask(gateway(Unknown()), "GET", "/v1/echo?name=x")
    assert json.loads(reply.body) == {"name": "x"}


async def test_a_reply_that_is_no_message() -> None:
    class Broken(ItemsUpstream):
        async def unary(self, call: Any, request: Any) -> bytes:
            return b"\xff\xff"

    error_of(await ask(gateway(Broken()), "GET", "/v1/echo"), 500, 13)


# Errors and streams

_CODES = {1: 499, 2: 500, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 400, 10: 409, 11: 400, 12: 501}
_CODES |= {13: 500, 14: 503, 15: 500, 16: 401}


@pytest.mark.parametrize("code", range(1, 17))
async def test_statuses(code: int) -> None:  # 80, 81
    reply = await ask(gateway(), "GET", f"/v1/fail/{code}")
    error = error_of(reply, _CODES[code], code)
    assert error["message"] == "boom é"
    assert "boom é".encode() in reply.body
    known, unknown = error["details"]
    assert known == {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "WHY", "domain": "test"}
    assert unknown == {"@type": "type.googleapis.com/nobody.knows.It", "value": "CAE="}
    assert ("www-authenticate" in reply.headers) == (code == 16)


_SSE = {"accept": "text/event-stream"}
_LINES = {"accept": "application/x-ndjson"}


async def test_streams_in_three_formats() -> None:
    reply = await ask(gateway(), "GET", "/v1/items:stream?code=2")
    assert json.loads(reply.body) == [{"id": "0"}, {"id": "1"}]
    assert reply.headers["content-type"] == "application/json"
    assert len(reply.chunks) == 3  # as they come
    reply = await ask(gateway(), "GET", "/v1/items:stream?code=2", headers=_SSE)
    assert reply.body == b'data: {"id":"0"}\n\ndata: {"id":"1"}\n\n'
    assert reply.headers["content-type"] == "text/event-stream"
    reply = await ask(gateway(), "GET", "/v1/items:stream?code=2", headers=_LINES)
    assert reply.body == b'{"result":{"id":"0"}}\n{"result":{"id":"1"}}\n'
    assert reply.headers["content-type"] == "application/x-ndjson"


async def test_empty_streams() -> None:
    assert (await ask(gateway(), "GET", "/v1/items:stream")).body == b"[]"
    assert (await ask(gateway(), "GET", "/v1/items:stream", headers=_SSE)).body == b""
    assert (await ask(gateway(), "GET", "/v1/items:stream", headers=_LINES)).body == b""


async def test_an_error_before_the_first_message_is_an_http_error() -> None:
    for headers in (_SSE, _LINES, {}):
        error_of(await ask(gateway(), "GET", "/v1/failstream/0", headers=headers), 404, 5)


async def test_an_error_in_a_stream_is_told_in_it() -> None:
    reply = await ask(gateway(), "GET", "/v1/failstream/1", headers=_SSE)
    message, error, rest = reply.body.split(b"\n\n")
    assert (reply.status, message, rest) == (200, b'data: {"id":"0"}', b"")
    assert error.startswith(b"event: error\ndata: ")
    assert json.loads(error.removeprefix(b"event: error\ndata: "))["message"] == "late"
    reply = await ask(gateway(), "GET", "/v1/failstream/1", headers=_LINES)
    last = json.loads(reply.body.splitlines()[-1])
    assert (last["error"]["code"], last["error"]["message"]) == (5, "late")
    reply = await ask(gateway(), "GET", "/v1/failstream/2")
    assert reply.body == b'[{"id":"0"},{"id":"1"}'  # no end: what came is not all


@pytest.mark.parametrize(
    "body",
    [
        b'[{"id":"a"},{"id":"b"},{"id":"c"}]',
        b'{"id":"a"}\n{"id":"b"}\n{"id":"c"}',
        b'{"id":"a"}\n\n{"id":"b"}\n{"id":"c"}\n',
        b'{"id":"a"}{"id":"b"} {"id":"c"}',
        b'{\n"id":"a"}{"id":\n"b"} {"id":"c"}\n',
        b' [\n{"id":"a"},\n{"id":"b"},{"id":"c"}\n]\n',
    ],
)
@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_streamed_bodies(body: bytes, size: int) -> None:
    chunks = [body[start : start + size] for start in range(0, len(body), size)]
    reply = await ask(gateway(), "POST", "/v1/bulk", chunks)
    assert json.loads(reply.body) == {"code": 3}
    reply = await ask(gateway(), "POST", "/v1/items:chat", chunks, _LINES)
    assert [json.loads(line)["result"]["id"] for line in reply.body.splitlines()] == ["a", "b", "c"]


async def test_wrong_streamed_bodies() -> None:
    error = error_of(await ask(gateway(), "POST", "/v1/bulk", b'[{"id":"a"},{"id":1}]'))
    assert fields_of(error) == ["[1].id"]
    error_of(await ask(gateway(), "POST", "/v1/bulk", b'[{"id":"a"},'))
    error_of(await ask(gateway(), "POST", "/v1/bulk", b'{"id":"a"} {"id"'))
    error_of(await ask(gateway(max_body_bytes=50), "POST", "/v1/bulk", [b"["] + [b'{"id":"a"},'] * 10), 413, 8)
    reply = await ask(gateway(max_body_bytes=50), "POST", "/v1/bulk", [b'{"id":"a"}\n'] * 100)
    assert json.loads(reply.body) == {"code": 100}  # the limit is of one message
    error_of(await ask(gateway(), "POST", "/v1/bulk", b"x", {"content-type": "text/xml"}), 415)


@pytest.mark.parametrize(
    ("header", "wanted_s"),
    [
        ("17H", 61200),
        ("19M", 1140),
        ("23S", 23),
        ("1009m", 1.009),
        ("1000003u", 1.000003),
        ("100000007n", None),
        ("10000007n", 0.010000007),
    ],
)
async def test_timeouts(header: str, wanted_s: float | None) -> None:  # 82
    upstream = ItemsUpstream()
    reply = await ask(gateway(upstream), "GET", "/v1/echo", headers={"grpc-timeout": header})
    if wanted_s is None:
        error_of(reply)  # nine digits are one too many
        return
    assert reply.status == 200
    deadline_s = upstream.calls[0].deadline_s
    assert deadline_s is not None
    assert 0 <= time.monotonic() + wanted_s - deadline_s < 20


async def test_the_shorter_timeout_counts_and_broken_ones_are_refused() -> None:
    upstream = ItemsUpstream()
    headers = {"grpc-timeout": "1000S", "x-server-timeout": "2.5"}
    await ask(gateway(upstream), "GET", "/v1/echo", headers=headers)
    assert (upstream.calls[0].deadline_s or 0) < time.monotonic() + 3
    for name, value in (("grpc-timeout", "INVALID"), ("x-server-timeout", "-1"), ("x-server-timeout", "1e9")):
        assert fields_of(error_of(await ask(gateway(), "GET", "/v1/echo", headers={name: value}))) == [name]


@pytest.mark.parametrize("path", ["/v1/wait", "/v1/wait:stream"])
async def test_a_client_that_goes_cancels_its_call(path: str) -> None:  # 82
    upstream = ItemsUpstream()
    leave = 1 if path.endswith("stream") else 0
    async with asyncio.timeout(60):
        await ask(gateway(upstream), "GET", path, headers=_SSE, leave_after_chunks=leave)
    assert upstream.num_open == 0
    assert len(upstream.calls) == 1


async def test_control() -> None:  # 83
    error_of(await ask(gateway(), "GET", "/v1/nothing"), 404, 5)
    reply = await ask(gateway(), "PUT", "/v1/items/abc")
    error_of(reply, 405, 12)
    assert reply.headers["allow"] == "DELETE, GET"
    reply = await ask(gateway(), "HEAD", "/v1/items/abc")
    assert (reply.status, reply.body) == (200, b"")
    assert int(reply.headers["content-length"]) > 2
    assert (await ask(gateway(), "HEAD", "/v1/items:stream?code=3")).body == b""
    for origin, allowed in (("http://localhost:3000", True), ("https://evil.example", False)):
        headers = {"origin": origin, "access-control-request-method": "POST"}
        reply = await ask(gateway(), "OPTIONS", "/v1/items", headers=headers)
        assert reply.status == 204
        assert ("access-control-allow-methods" in reply.headers) == allowed
        reply = await ask(gateway(), "GET", "/v1/echo", headers={"origin": origin})
        assert ("access-control-allow-origin" in reply.headers) == allowed
    override = {"x-http-method-override": "PATCH"}
    error_of(await ask(gateway(), "POST", "/v1/nested/x", b"{}", override), 405, 12)
    reply = await ask(gateway(method_override=True), "POST", "/v1/nested/x", b"{}", override)
    assert reply.status == 200
    error_of(await ask(gateway(), "GET", "/v1/items/%zz"))


async def test_headers_both_ways() -> None:
    upstream = ItemsUpstream()
    headers = {
        "authorization": "Bearer vk_1",
        "x-request-id": "r",
        "grpc-metadata-color": "red",
        "grpc-metadata-grpc-internal": "no",
        "cookie": "secret",
        "grpc-metadata-x-bin": "AAAA",
    }
    reply = await ask(gateway(upstream), "GET", "/v1/echo", headers=headers)
    assert upstream.calls[0].metadata == {"authorization": "Bearer vk_1", "x-request-id": "r", "color": "red"}
    assert reply.headers["x-request-id"] == "id-1"
    assert reply.headers["grpc-metadata-color"] == "blue"
    await ask(gateway(upstream), "GET", "/v1/echo", headers={"x-api-key": "vk_2"})
    assert upstream.calls[1].metadata == {"authorization": "Bearer vk_2"}


async def test_failures_of_the_gateways_own_are_not_shown() -> None:
    class Buggy(ItemsUpstream):
        async def unary(self, call: Any, request: Any) -> Any:
            raise KeyError("secret")

    error = error_of(await ask(gateway(Buggy()), "GET", "/v1/echo"), 500, 13)
    assert "secret" not in json.dumps(error)


def test_the_service_has_every_rule() -> None:
    made: Gateway = gateway()
    assert len(made.routes) == 21
    assert service().full_name == "vorta.test.Items"


@pytest.mark.parametrize("kind", ["application/json", "application/grpc-web+proto"])
async def test_a_client_that_goes_after_its_streamed_body_cancels_its_call(kind: str) -> None:
    class Lasting(ItemsUpstream):
        async def _answers(self, call: Any, request: Any) -> Any:
            async for item in request:
                yield item
            await asyncio.sleep(60)

    upstream = Lasting()
    is_web = kind.startswith("application/grpc-web")
    path = "/vorta.test.Items/Chat" if is_web else "/v1/items:chat"
    body = b"\0\0\0\0\0" if is_web else b"{}"
    async with asyncio.timeout(60):
        await ask(gateway(upstream), "POST", path, body, {"content-type": kind, **_SSE}, leave_after_chunks=1)
    assert upstream.num_open == 0
