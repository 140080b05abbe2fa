"""REST requests as RPCs, and their replies as JSON.

The request's message is made of the body, then the path, then the query, which refuse to contradict each other. Replies
of streams come as server-sent events, lines or an array, by `Accept`; their head is held back until there is a first
message, so that an error before it has its own HTTP status, and one after it is told in the stream.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from google.protobuf.message import Message

from vorta.errors import Internal, InvalidArgument
from vorta_gateway import sse
from vorta_gateway.http import (
    Disconnected,
    HttpReply,
    HttpRequest,
    WhileConnected,
    call_metadata,
    deadline_of,
    reply_headers,
    too_large,
    unsupported,
)
from vorta_gateway.json import native
from vorta_gateway.json.codec import Codec, JsonOptions, dumps, loads
from vorta_gateway.json.descriptors import descriptor_of
from vorta_gateway.json.errors import JsonError
from vorta_gateway.rest.binding import Binder, split_query
from vorta_gateway.rest.errors import status_json
from vorta_gateway.rest.router import Match
from vorta_gateway.rest.routes import HTTP_BODY, Route
from vorta_gateway.status import StatusError
from vorta_gateway.upstream import Upstream, UpstreamCall

__all__ = ["Transcoder"]

_JSON_TYPES = frozenset({"application/json", "text/json"})
_LINES_TYPES = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl", "application/json-seq"})
_FORM = "application/x-www-form-urlencoded"


class Transcoder:
    """Answers requests of routes.

    Args:
        upstream: Answers the RPCs.
        max_body_bytes: Larger bodies, and larger messages of a streamed body, are refused.
    """

    def __init__(self, upstream: Upstream, *, max_body_bytes: int) -> None:
        self._upstream = upstream
        self._max_body_bytes = max_body_bytes
        self._codecs: dict[Any, Codec] = {}
        self._binders: dict[str, Binder] = {}
        native.loaded()  # it may have to be built, which is better begun before the first request

    async def answer(self, match: Match[Route], request: HttpRequest, reply: HttpReply) -> None:
        """Answers one request. Raises StatusError while nothing has been sent, and Disconnected."""
        route = match.value
        call = UpstreamCall(method=route.method, metadata=call_metadata(request), deadline_s=deadline_of(request))
        try:
            if route.method.is_client_streaming:
                await self._answer_stream(route, call, self._requests(match, request), request, reply)
                return
            message = await self._request(match, request)
            if route.method.is_streaming:
                await self._answer_stream(route, call, message, request, reply)
            else:
                await self._answer_unary(route, call, message, request, reply)
        except JsonError as error:
            raise StatusError.of(error.invalid_argument()) from None
        except InvalidArgument as error:
            raise StatusError.of(error) from None

    # Requests

    async def _request(self, match: Match[Route], request: HttpRequest) -> Message:
        route = match.value
        message = route.method.request_type()
        body = await request.body(self._max_body_bytes)
        if body:
            self._fill_body(route, message, body, request)
        self._bind(match, message, request)
        return message

    def _fill_body(self, route: Route, message: Message, body: bytes, request: HttpRequest) -> None:
        if not route.takes_body:
            raise InvalidArgument("requests here have no body", field="body")
        codec = self._codec(route)
        target = message.DESCRIPTOR if route.body is None else route.body.message_type
        content_type = request.content_type
        if target is not None and target.full_name == HTTP_BODY and not (route.body and route.body.is_repeated):
            part: Any = message if route.body is None else getattr(message, route.body.name)
            part.content_type = request.headers.get("content-type", "")
            part.data = body
        elif content_type == _FORM and route.options.form_bodies:
            prefix = "" if route.body is None else route.body.name + "."
            parameters = [(prefix + name, text) for name, text in split_query(body)]
            self._binder(route).bind_query(message, parameters, ignored=route.options.ignored_parameters)
        elif content_type in _JSON_TYPES or not content_type or content_type.endswith("+json"):
            if route.body is None:
                codec.parse(message, body)
            elif body.strip():
                codec.fill_field(message, route.body, loads(body))
        else:
            raise unsupported(f"bodies here are application/json, not {content_type[:60]!r}")

    def _bind(self, match: Match[Route], message: Message, request: HttpRequest) -> None:
        route = match.value
        if match.bindings:
            binder = self._binder(route)
            for path, text in match.bindings:
                binder.bind_path(message, route.variables[path], text)
        if request.query:
            parameters = split_query(request.query)
            ignored = route.options.ignored_parameters
            if route.is_whole_body:
                for name, _ in parameters:
                    if name not in ignored:
                        raise InvalidArgument(f"{name}: fields stand in the body here, not in the query", field=name)
            elif parameters:
                self._binder(route).bind_query(
                    message,
                    parameters,
                    bound=route.variables.keys(),
                    body=route.body.name if route.body is not None else "",
                    ignored=ignored,
                )

    async def _requests(self, match: Match[Route], request: HttpRequest) -> AsyncIterator[Message]:
        """The messages of a streamed body: a JSON array, or values one after the other, as they come."""
        route = match.value
        content_type = request.content_type
        if content_type and content_type not in _JSON_TYPES | _LINES_TYPES:
            raise unsupported(f"bodies here are application/json or application/x-ndjson, not {content_type[:60]!r}")
        codec = self._codec(route)
        index = 0
        try:
            async for value in _values(request, self._max_body_bytes):
                message = route.method.request_type()
                try:
                    if route.body is None:
                        codec.fill(message, value)
                    else:
                        codec.fill_field(message, route.body, value)
                except JsonError as error:
                    error.within(f"[{index}]")
                    raise
                self._bind(match, message, request)
                index += 1
                yield message
        except JsonError as error:
            raise StatusError.of(error.invalid_argument()) from None
        except InvalidArgument as error:
            raise StatusError.of(error) from None

    # Replies

    async def _answer_unary(
        self, route: Route, call: UpstreamCall, message: Message, request: HttpRequest, reply: HttpReply
    ) -> None:
        async with WhileConnected(request):
            response = await self._upstream.unary(call, message)
        data, content_type = self._body(route, response)
        if content_type is None:
            content_type = "application/octet-stream" if route.is_raw else "application/json"
        await reply.send(200, data, content_type, reply_headers(call.header, call.trailers))

    async def _answer_stream(
        self,
        route: Route,
        call: UpstreamCall,
        requests: Message | AsyncIterator[Message],
        request: HttpRequest,
        reply: HttpReply,
    ) -> None:
        async with WhileConnected(request), aclosing(self._upstream.stream(call, requests)) as responses:
            await self._write(route, call, responses, request, reply)

    async def _write(
        self,
        route: Route,
        call: UpstreamCall,
        responses: AsyncIterator[Message | bytes],
        request: HttpRequest,
        reply: HttpReply,
    ) -> None:
        accept = request.headers.get("accept", "")
        if not route.method.is_streaming:
            writer: _Writer = _Single(reply, "application/json")
        elif route.is_raw:
            writer = _Raw(reply, "application/octet-stream")
        elif sse.CONTENT_TYPE in accept:
            writer = _Events(reply, call)
        elif any(kind in accept for kind in _LINES_TYPES):
            writer = _Lines(reply, "application/x-ndjson")
        else:
            writer = _Array(reply, "application/json")
        async with writer:
            await self._write_all(route, call, responses, reply, writer)

    async def _write_all(
        self,
        route: Route,
        call: UpstreamCall,
        responses: AsyncIterator[Message | bytes],
        reply: HttpReply,
        writer: _Writer,
    ) -> None:
        try:
            async for response in responses:
                data, content_type = self._body(route, response)
                if not reply.is_started and writer.starts:
                    await reply.start(200, content_type or writer.content_type, reply_headers(call.header))
                await writer.message(data)
        except StatusError as error:
            if not reply.is_started:
                raise
            await writer.error(error)
            return
        if not reply.is_started and writer.starts:
            await reply.start(200, writer.content_type, reply_headers(call.header))
        await writer.end()

    def _body(self, route: Route, response: Message | bytes) -> tuple[bytes, str | None]:
        """A reply's bytes, and their type where the reply itself says it."""
        method = route.method
        if route.is_raw:
            message = method.reply(response)
            body = message if route.response_body is None else getattr(message, route.response_body.name)
            return body.data, body.content_type or None
        if route.response_body is None and isinstance(response, bytes):
            text = self._codec(route).wire_text(method.response_type, response)
            if text is not None:
                return text, None
        return self._text(route, method.reply(response)), None

    def _text(self, route: Route, response: Message) -> bytes:
        codec = self._codec(route)
        try:
            if route.response_body is not None:
                return dumps(codec.field_value(response, route.response_body))
            return codec.text(response)
        except JsonError as error:
            raise StatusError.of(Internal(f"the reply has no JSON form: {error.why}")) from None

    def _codec(self, route: Route) -> Codec:
        options = route.options
        key = (options.ignore_unknown_fields, options.always_print, options.camel_case, options.enum_numbers)
        codec = self._codecs.get(key)
        if codec is None:
            codec = self._codecs[key] = Codec(
                JsonOptions(
                    ignore_unknown=options.ignore_unknown_fields,
                    always_print=options.always_print,
                    camel_case=options.camel_case,
                    enum_numbers=options.enum_numbers,
                )
            )
        return codec

    def _binder(self, route: Route) -> Binder:
        descriptor = descriptor_of(route.method.request_type)
        binder = self._binders.get(descriptor.full_name)
        if binder is None:
            binder = self._binders[descriptor.full_name] = Binder(descriptor, self._codec(route))
        return binder


class _Writer:
    """Writes a stream's messages in one format.

    Attributes:
        starts: Whether the head is sent for it; one that does not sends it itself.
    """

    starts = True

    async def __aenter__(self) -> None:
        """Nothing to prepare."""

    async def __aexit__(self, *_: object) -> None:
        """Nothing to give back."""

    def __init__(self, reply: HttpReply, content_type: str) -> None:
        self._reply = reply
        self.content_type = content_type

    async def message(self, data: bytes) -> None:
        """One message."""
        await self._reply.write(data)

    async def error(self, error: StatusError) -> None:
        """The stream's end by an error."""
        raise Disconnected  # nothing can be said: the connection is cut

    async def end(self) -> None:
        """The stream's good end."""
        await self._reply.end()


class _Raw(_Writer):
    """Bytes of HttpBody messages, one after the other."""


class _Single(_Writer):
    """The one reply to a stream of requests."""


class _Events(_Writer):
    """Server-sent events."""

    starts = False

    def __init__(self, reply: HttpReply, call: UpstreamCall) -> None:
        super().__init__(reply, sse.CONTENT_TYPE)
        self._events = sse.EventStream(reply, lambda: reply_headers(call.header))

    async def __aenter__(self) -> None:
        await self._events.__aenter__()

    async def __aexit__(self, *_: object) -> None:
        await self._events.__aexit__(None, None, None)

    async def message(self, data: bytes) -> None:
        await self._events.send(data)

    async def error(self, error: StatusError) -> None:
        await self._events.end(dumps(status_json(error)), b"error")

    async def end(self) -> None:
        await self._events.end()


class _Lines(_Writer):
    """A line a message, wrapped, so that a message with a field `error` is not taken for one."""

    async def message(self, data: bytes) -> None:
        await self._reply.write(b'{"result":' + data + b"}\n")

    async def error(self, error: StatusError) -> None:
        await self._reply.end(b'{"error":' + dumps(status_json(error)) + b"}\n")


class _Array(_Writer):
    """A JSON array, whose end says that all is there; a stream that breaks has none."""

    def __init__(self, reply: HttpReply, content_type: str) -> None:
        super().__init__(reply, content_type)
        self._has_any = False

    async def message(self, data: bytes) -> None:
        await self._reply.write((b"," if self._has_any else b"[") + data)
        self._has_any = True

    async def end(self) -> None:
        await self._reply.end(b"]" if self._has_any else b"[]")


async def _values(request: HttpRequest, max_bytes: int) -> AsyncIterator[Any]:
    """The JSON values of a body."""
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
        for value in _all_values(await request.body(max_bytes)):
            yield value
        return
    buffer = bytearray()
    is_whole: bool | None = None
    async for chunk in request.chunks():
        buffer += chunk
        if is_whole is None and buffer.strip():
            is_whole = buffer.lstrip().startswith(b"[")
        if not is_whole and b"\n" in chunk:
            *lines, last = bytes(buffer).split(b"\n")
            while lines:
                try:
                    value = loads(lines[0]) if lines[0].strip() else None
                except JsonError:
                    is_whole = True  # not a value a line: read as a whole
                    break
                if lines.pop(0).strip():
                    yield value
            buffer = bytearray(b"\n".join((*lines, last)))
        if len(buffer) > max_bytes:
            raise too_large(max_bytes)
    for value in _all_values(bytes(buffer)):
        yield value


def _all_values(data: bytes) -> list[Any]:
    """The values in a text: the elements of an array, or values one after the other."""
    if not data.strip():
        return []
    try:
        value = loads(data)
    except JsonError:
        return _concatenated(data)
    return value if isinstance(value, list) else [value]


def _concatenated(data: bytes) -> list[Any]:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise JsonError("the body is not UTF-8") from None
    decoder = json.JSONDecoder()
    values: list[Any] = []
    at = 0
    while True:
        while at < len(text) and text[at].isspace():
            at += 1
        if at == len(text):
            return values
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise JsonError(f"not JSON: {error}") from None
        values.append(value)
