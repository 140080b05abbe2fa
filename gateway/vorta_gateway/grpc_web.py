"""gRPC-Web: the frames of gRPC in an HTTP body, binary or base64 text, trailers as the last frame.

After grpc/grpc:doc/PROTOCOL-WEB.md, as Envoy's filter speaks it. Messages are relayed as the bytes that they are. One
request frame for a method that takes one; methods whose clients stream may get many, read as they come.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from contextlib import aclosing

from google.protobuf.message import Message

from vorta.errors import Internal, InvalidArgument, ResourceExhausted, Unimplemented
from vorta_gateway.http import HttpReply, HttpRequest, WhileConnected, deadline_of, unsupported
from vorta_gateway.status import StatusError
from vorta_gateway.upstream import RpcMethod, Upstream, UpstreamCall

__all__ = ["GrpcWeb", "is_grpc_web"]

_BINARY = "application/grpc-web"
_TEXT = "application/grpc-web-text"
_DATA, _COMPRESSED, _TRAILERS = 0x00, 0x01, 0x80
_HEAD_BYTES = 5

# Headers that are HTTP's, a proxy's or the protocol's own rather than the call's metadata.
_NOT_METADATA = frozenset(
    {
        "accept",
        "accept-encoding",
        "accept-language",
        "cache-control",
        "connection",
        "content-length",
        "content-type",
        "cookie",
        "dnt",
        "expect",
        "forwarded",
        "host",
        "keep-alive",
        "origin",
        "pragma",
        "priority",
        "proxy-authorization",
        "proxy-connection",
        "referer",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
        "x-grpc-web",
        "x-user-agent",
    }
)
_NOT_METADATA_PREFIXES = ("grpc-", "sec-", "access-control-", "x-forwarded-", ":")


def is_grpc_web(content_type: str) -> bool:
    """Whether a request's media type is one of gRPC-Web's."""
    return content_type.startswith(_BINARY)


class GrpcWeb:
    """Answers gRPC-Web requests.

    Args:
        methods: By their path.
        upstream: Answers the RPCs.
        max_message_bytes: Larger requests are refused.
    """

    def __init__(self, methods: Mapping[str, RpcMethod], upstream: Upstream, *, max_message_bytes: int) -> None:
        self._methods = methods
        self._upstream = upstream
        self._max_message_bytes = max_message_bytes

    async def answer(self, request: HttpRequest, reply: HttpReply) -> None:
        """Answers one request, errors included. Raises StatusError (415) for a subtype, and Disconnected."""
        mode, _, subtype = request.content_type.partition("+")
        if mode not in (_BINARY, _TEXT) or subtype not in ("", "proto"):
            raise unsupported(f"{request.content_type[:60]!r} is not spoken here; application/grpc-web+proto is")
        accept = request.headers.get("accept", "")
        is_text_reply = _TEXT in accept or (mode == _TEXT and _BINARY not in accept)
        writer = _FrameWriter(reply, is_text=is_text_reply)
        call: UpstreamCall | None = None
        try:
            method = self._methods.get(request.path)
            if request.method != "POST":
                raise StatusError.of(Unimplemented("gRPC-Web calls are POST"))
            if method is None:
                raise StatusError.of(Unimplemented(f"there is no method {request.path[:200]}"))
            call = UpstreamCall(method=method, metadata=_metadata(request), deadline_s=deadline_of(request))
            await self._call(call, request, writer, is_text=mode == _TEXT)
        except StatusError as error:
            await writer.end(error, call.header if call is not None else ())

    async def _call(self, call: UpstreamCall, request: HttpRequest, writer: _FrameWriter, *, is_text: bool) -> None:
        frames = self._frames(request, is_text=is_text)
        method = call.method
        if method.is_client_streaming:
            async with WhileConnected(request):
                await self._stream(call, frames, writer)
            return
        message: bytes | None = None
        async for frame in frames:
            if message is not None:
                raise StatusError.of(Unimplemented("the method takes one message, more were sent"))
            message = frame
        if message is None:
            raise StatusError.of(Unimplemented("the method takes one message, none was sent"))
        async with WhileConnected(request):
            if method.is_streaming:
                await self._stream(call, message, writer)
            else:
                response = await self._upstream.unary(call, message)
                await writer.whole(_serialized(response), call)

    async def _stream(
        self, call: UpstreamCall, requests: bytes | AsyncIterable[Message | bytes], writer: _FrameWriter
    ) -> None:
        async with aclosing(self._upstream.stream(call, requests)) as responses:
            async for response in responses:
                await writer.message(_serialized(response), call.header)
        await writer.end(None, call.header, call.trailers)

    async def _frames(self, request: HttpRequest, *, is_text: bool) -> AsyncIterator[bytes]:
        """The messages of the request's body."""
        encoding = request.headers.get("grpc-encoding", "identity").lower()
        if encoding not in ("identity", "gzip"):
            raise StatusError.of(
                Unimplemented(f"the encoding {encoding[:40]!r} is not known here; identity and gzip are")
            )
        buffer = bytearray()
        text = bytearray()
        async for chunk in request.chunks():
            if is_text:
                text += chunk
                whole = len(text) - len(text) % 4
                chunk = _decoded(bytes(text[:whole]))
                del text[:whole]
            buffer += chunk
            while len(buffer) >= _HEAD_BYTES:
                flag = buffer[0]
                size = int.from_bytes(buffer[1:_HEAD_BYTES], "big")
                if size > self._max_message_bytes:
                    raise _too_large(size, self._max_message_bytes)
                if len(buffer) < _HEAD_BYTES + size:
                    break
                data = bytes(buffer[_HEAD_BYTES : _HEAD_BYTES + size])
                del buffer[: _HEAD_BYTES + size]
                if flag == _COMPRESSED:
                    data = self._decompressed(data, encoding)
                elif flag != _DATA:
                    raise StatusError.of(InvalidArgument(f"a request frame has the flag {flag:#04x}"))
                yield data
        if buffer or text:
            raise StatusError.of(InvalidArgument("the last frame is cut short", reason="MALFORMED_MESSAGE"))

    def _decompressed(self, data: bytes, encoding: str) -> bytes:
        if encoding != "gzip":
            raise StatusError.of(Internal("a frame is compressed, but grpc-encoding names no way to do it"))
        stream = zlib.decompressobj(31)
        try:
            decompressed = stream.decompress(data, self._max_message_bytes + 1)
        except zlib.error:
            raise StatusError.of(Internal("a compressed frame is not gzip")) from None
        if len(decompressed) > self._max_message_bytes:
            raise _too_large(len(decompressed), self._max_message_bytes)
        return decompressed


class _FrameWriter:
    """Writes the frames of a reply."""

    def __init__(self, reply: HttpReply, *, is_text: bool) -> None:
        self._reply = reply
        self._is_text = is_text
        self._content_type = f"{_TEXT if is_text else _BINARY}+proto"

    async def message(self, data: bytes, header: Iterable[tuple[str, str | bytes]]) -> None:
        if not self._reply.is_started:
            await self._reply.start(200, self._content_type, _headers(header))
        await self._reply.write(self._flushed(_frame(_DATA, data)))

    async def whole(self, data: bytes, call: UpstreamCall) -> None:
        """One message and a good end."""
        body = _frame(_DATA, data) + _frame(_TRAILERS, _trailers(None, call.trailers))
        await self._reply.send(200, self._flushed(body), self._content_type, _headers(call.header))

    async def end(
        self,
        error: StatusError | None,
        header: Iterable[tuple[str, str | bytes]],
        trailers: tuple[tuple[str, str | bytes], ...] = (),
    ) -> None:
        """The status: as the last frame, or as headers where nothing was sent before it."""
        if error is not None and not self._reply.is_started:
            fields = [*_headers(header), *_status_fields(error), *_headers(error.trailers)]
            await self._reply.send(200, b"", self._content_type, fields)
            return
        if not self._reply.is_started:
            await self._reply.start(200, self._content_type, _headers(header))
        last = _trailers(error, trailers if error is None else error.trailers)
        await self._reply.end(self._flushed(_frame(_TRAILERS, last)))

    def _flushed(self, data: bytes) -> bytes:
        return base64.b64encode(data) if self._is_text else data


def _serialized(response: Message | bytes) -> bytes:
    return response if isinstance(response, bytes) else response.SerializeToString()


def _frame(flag: int, data: bytes) -> bytes:
    return bytes((flag,)) + len(data).to_bytes(4, "big") + data


def _trailers(error: StatusError | None, trailers: Iterable[tuple[str, str | bytes]]) -> bytes:
    fields = [*_status_fields(error), *_headers(trailers)]
    return "".join(f"{key}:{value}\r\n" for key, value in fields).encode("latin-1", "replace")


def _status_fields(error: StatusError | None) -> list[tuple[str, str]]:
    if error is None:
        return [("grpc-status", "0"), ("grpc-message", "")]
    fields = [("grpc-status", str(error.code)), ("grpc-message", _percent_encoded(error.message))]
    if error.details:
        fields.append(("grpc-status-details-bin", base64.b64encode(error.details).decode().rstrip("=")))
    return fields


def _headers(metadata: Iterable[tuple[str, str | bytes]]) -> list[tuple[str, str]]:
    return [
        (key, value if isinstance(value, str) else base64.b64encode(value).decode().rstrip("="))
        for key, value in metadata
    ]


def _percent_encoded(message: str) -> str:
    """A status message as gRPC writes it: what is not visible ASCII, and the percent sign, as %XX of its UTF-8."""
    return "".join(
        chr(byte) if 0x20 <= byte <= 0x7E and byte != 0x25 else f"%{byte:02X}"
        for byte in message.encode("utf-8", "replace")
    )


def _metadata(request: HttpRequest) -> dict[str, str | bytes]:
    metadata: dict[str, str | bytes] = {}
    for name, value in request.headers.items():
        if name in _NOT_METADATA or name.startswith(_NOT_METADATA_PREFIXES):
            continue
        if name.endswith("-bin"):
            try:
                metadata[name] = base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
            except (binascii.Error, ValueError):
                raise StatusError.of(InvalidArgument(f"{name} is not base64", field=name)) from None
        else:
            metadata[name] = value
    return metadata


def _decoded(text: bytes) -> bytes:
    """Base64 of whole quanta; padding may stand at the end of each part that was encoded alone."""
    try:
        if b"=" not in text[:-4]:
            return binascii.a2b_base64(text, strict_mode=True) if text else b""
        return b"".join(
            binascii.a2b_base64(text[start : start + 4], strict_mode=True) for start in range(0, len(text), 4)
        )
    except (binascii.Error, ValueError):
        raise StatusError.of(InvalidArgument("the body is not base64", reason="MALFORMED_MESSAGE")) from None


def _too_large(size: int, max_bytes: int) -> StatusError:
    return StatusError.of(
        ResourceExhausted(
            f"the request has {size} bytes, more than the {max_bytes} that are taken",
            reason="MESSAGE_TOO_LARGE",
            metadata={"size_bytes": size, "max_bytes": max_bytes},
        )
    )
