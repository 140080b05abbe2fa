"""One WebSocket for many streams of generation: each begins, is cancelled and is resumed by messages on it.

From the client, each message one of

    {"id": "a", "generate": {…}}    a StreamGenerateRequest
    {"id": "a", "chat": {…}}        a StreamChatRequest
    {"id": "a", "answer": {…}}      a StreamAnswerRequest
    {"id": "a", "resume": {…}}      a ResumeGenerateRequest
    {"id": "a", "cancel": {}}       ends the stream `a`

To the client {"id": "a", "event": {…}} for each event of its stream, then {"id": "a", "done": true} or
{"id": "a", "error": {…}} with a Status: exactly one of the two ends each stream. A message that cannot be read is
answered with {"id": …, "error": …}, and the socket stays open. When it closes, its streams are cancelled; those that
are resumable go on for their window.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import Any

from vorta.errors import AlreadyExists, Cancelled, Internal, InvalidArgument, NotFound, ResourceExhausted
from vorta.v1 import inference_pb2
from vorta_gateway.http import HttpRequest, Receive, Scope, Send, call_metadata
from vorta_gateway.json.codec import Codec, dumps, loads
from vorta_gateway.json.errors import JsonError
from vorta_gateway.rest.errors import status_json
from vorta_gateway.status import StatusError
from vorta_gateway.upstream import RpcMethod, Upstream, UpstreamCall

__all__ = ["PATH", "StreamSocket"]

logger = logging.getLogger(__name__)

PATH = "/v1/stream"

_SERVICE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
_KINDS = {
    "generate": RpcMethod.of(_SERVICE.methods_by_name["StreamGenerate"]),
    "chat": RpcMethod.of(_SERVICE.methods_by_name["StreamChat"]),
    "answer": RpcMethod.of(_SERVICE.methods_by_name["StreamAnswer"]),
    "resume": RpcMethod.of(_SERVICE.methods_by_name["ResumeGenerate"]),
}
_MAX_STREAMS = 64
_MAX_ID_CHARS = 128
_CODEC = Codec()


class StreamSocket:
    """Answers WebSockets.

    Args:
        upstream: Answers the contract's RPCs.
    """

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One socket's life."""
        await _Socket(self._upstream, scope, receive, send).run()


class _Socket:
    def __init__(self, upstream: Upstream, scope: Scope, receive: Receive, send: Send) -> None:
        self._upstream = upstream
        self._receive = receive
        self._send = send
        self._sending = asyncio.Lock()
        self._streams: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._metadata = call_metadata(HttpRequest({**scope, "method": "GET"}, receive))

    async def run(self) -> None:
        await self._receive()
        await self._send({"type": "websocket.accept"})
        try:
            while True:
                message = await self._receive()
                if message["type"] != "websocket.receive":
                    return
                await self._handle(message.get("text") or message.get("bytes") or b"")
        finally:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _handle(self, data: str | bytes) -> None:
        stream_id: Any = None
        try:
            value = loads(data)
            if not isinstance(value, dict):
                raise InvalidArgument("a message is a JSON object")
            stream_id = value.pop("id", None)
            if not isinstance(stream_id, str) or not 0 < len(stream_id) <= _MAX_ID_CHARS:
                raise InvalidArgument(f"id: a text of 1 to {_MAX_ID_CHARS} characters is required", field="id")
            if len(value) != 1:
                raise InvalidArgument(f"beside id, a message has one of {', '.join(_KINDS)}, cancel")
            ((kind, body),) = value.items()
            if kind == "cancel":
                self._cancel(stream_id)
            else:
                await self._begin(stream_id, kind, body)
        except JsonError as error:
            await self._tell({"id": stream_id, "error": status_json(StatusError.of(error.invalid_argument()))})
        except (InvalidArgument, NotFound, AlreadyExists, ResourceExhausted) as error:
            await self._tell({"id": stream_id, "error": status_json(StatusError.of(error))})

    def _cancel(self, stream_id: str) -> None:
        task = self._streams.get(stream_id)
        if task is None or task.cancelling():
            raise NotFound(f"no stream {stream_id!r} is open here", reason="REQUEST_NOT_FOUND")
        task.cancel()

    async def _begin(self, stream_id: str, kind: str, body: Any) -> None:
        method = _KINDS.get(kind)
        if method is None:
            raise InvalidArgument(f"{kind[:40]}: none of {', '.join(_KINDS)}, cancel", field=kind[:40])
        if stream_id in self._streams:
            raise AlreadyExists(f"the stream {stream_id!r} is open already")
        if len(self._streams) >= _MAX_STREAMS:
            raise ResourceExhausted(f"{_MAX_STREAMS} streams are open here, the most of one socket")
        message: Any = method.request_type()
        _CODEC.fill(message, body)
        call = UpstreamCall(method=method, metadata=self._metadata)
        task = asyncio.create_task(self._stream(stream_id, call, message))
        self._streams[stream_id] = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.sleep(0)  # it begins: a task that is cancelled before would end without a word

    async def _stream(self, stream_id: str, call: UpstreamCall, message: Any) -> None:
        end: dict[str, Any] = {"done": True}
        try:
            async with aclosing(self._upstream.stream(call, message)) as responses:
                async for response in responses:
                    await self._tell({"id": stream_id, "event": _CODEC.value(call.method.reply(response))})
        except StatusError as error:
            end = {"error": status_json(error)}
        except asyncio.CancelledError:
            end = {"error": status_json(StatusError.of(Cancelled("the stream was cancelled")))}
        except Exception:
            logger.exception("a stream of %s failed", call.method.path)
            end = {"error": status_json(StatusError.of(Internal("internal error; the gateway's log tells more")))}
        del self._streams[stream_id]  # from here on there is nothing to cancel, so that this is its one end
        await self._tell({"id": stream_id, **end})

    async def _tell(self, value: dict[str, Any]) -> None:
        async with self._sending:
            await self._send({"type": "websocket.send", "text": dumps(value).decode()})
