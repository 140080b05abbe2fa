"""POST /v1/chat/completions."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from vorta.v1 import common_pb2, inference_pb2
from vorta.wire import error_from_reason
from vorta_gateway.http import HttpReply, HttpRequest, WhileConnected, call_metadata, deadline_of, reply_headers
from vorta_gateway.json.codec import dumps
from vorta_gateway.openai.errors import error_json
from vorta_gateway.openai.fields import fill, message_json, read_body, refuse, refuse_unknown, sampling, tools_json
from vorta_gateway.openai.formats import FORMAT_FIELDS, response_format, tool_choice
from vorta_gateway.openai.replies import chat_logprobs, created_now, finish_reason, tool_calls_json, usage_json
from vorta_gateway.sse import EventStream
from vorta_gateway.status import StatusError
from vorta_gateway.upstream import RpcMethod, Upstream, UpstreamCall

__all__ = ["ChatCompletions", "bad_end", "stream_options"]

_SERVICE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
_CHAT = RpcMethod.of(_SERVICE.methods_by_name["Chat"])
_STREAM_CHAT = RpcMethod.of(_SERVICE.methods_by_name["StreamChat"])

_KNOWN = frozenset(
    {
        "messages",
        "stream",
        "stream_options",
        "stop",
        "logprobs",
        "top_logprobs",
        "tools",
        "tool_choice",
        "add_generation_prompt",
        "continue_final_message",
        *FORMAT_FIELDS,
    }
)
_TOOL_SIGNS = ("<tool_call>", "<|python_tag|>")


class ChatCompletions:
    """The endpoint.

    Args:
        upstream: Answers the contract's RPCs.
        max_body_bytes: Larger requests are refused.
    """

    def __init__(self, upstream: Upstream, *, max_body_bytes: int) -> None:
        self._upstream = upstream
        self._max_body_bytes = max_body_bytes

    async def answer(self, request: HttpRequest, reply: HttpReply) -> None:
        """Answers one request. Raises StatusError while nothing has been sent."""
        body = await read_body(request, self._max_body_bytes)
        fields = _chat_fields(body)
        is_stream = body.get("stream", False)
        method = _STREAM_CHAT if is_stream else _CHAT
        message: Any = method.request_type()
        fill(message, fields)
        call = UpstreamCall(method=method, metadata=call_metadata(request), deadline_s=deadline_of(request))
        async with WhileConnected(request):
            if is_stream:
                await self._stream(call, message, reply, with_usage=stream_options(body))
            else:
                response = method.reply(await self._upstream.unary(call, message))
                await reply.send(200, dumps(_completion(response)), headers=reply_headers(call.header))

    async def _stream(self, call: UpstreamCall, message: Any, reply: HttpReply, *, with_usage: bool) -> None:
        # A text of a format is no call.
        has_tools = bool(message.tools) and not message.HasField("response_format")
        stream = _ChunkMaker(num_choices=message.n or 1, has_tools=has_tools, with_usage=with_usage)
        async with (
            EventStream(reply, lambda: reply_headers(call.header)) as events,
            aclosing(self._upstream.stream(call, message)) as responses,
        ):
            try:
                async for response in responses:
                    for chunk in stream.chunks(call.method.reply(response)):
                        await events.send(dumps(chunk))
            except StatusError as error:
                if not events.is_started:
                    raise
                await events.end(dumps(error_json(error)))
                return
            await events.end(b"[DONE]")


def _chat_fields(body: dict[str, Any]) -> dict[str, Any]:
    refuse_unknown(body, _KNOWN)
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise refuse("messages", "an array of messages is required")
    fields = sampling(body)
    fields["messages"] = [message_json(message, position) for position, message in enumerate(messages)]
    for name in ("add_generation_prompt", "continue_final_message"):
        if name in body:
            fields[name] = body[name]
    if body.get("logprobs", False) is True:
        fields["logprobs"] = body.get("top_logprobs", 0)
    elif "top_logprobs" in body:
        raise refuse("top_logprobs", "logprobs must be true with it")
    fields |= tool_choice(body)
    if body.get("tools") and body.get("tool_choice") != "none":
        fields["tools"] = tools_json(body["tools"])
    return fields | response_format(body)


def stream_options(body: dict[str, Any]) -> bool:
    """Whether a stream ends with its usage. Raises StatusError."""
    options = body.get("stream_options", {})
    if not isinstance(options, dict):
        raise refuse("stream_options", "not an object")
    return bool(options.get("include_usage", False))


def _completion(response: inference_pb2.ChatResponse) -> dict[str, Any]:
    calls = tool_calls_json(response.message.tool_calls)
    content = response.message.content
    choices: list[dict[str, Any]] = [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": content if content or not calls else None,
                "refusal": None,
                **({"tool_calls": calls} if calls else {}),
            },
            "logprobs": chat_logprobs(response.logprobs),
            "finish_reason": finish_reason(response.finish_reason, has_tool_calls=bool(calls)),
        }
    ]
    choices += [
        {
            "index": sequence.sequence_index,
            "message": {"role": "assistant", "content": sequence.text, "refusal": None},
            "logprobs": chat_logprobs(sequence.logprobs),
            "finish_reason": finish_reason(sequence.finish_reason),
        }
        for sequence in response.sequences
        if sequence.sequence_index
    ]
    return {
        "id": f"chatcmpl-{response.request_id}",
        "object": "chat.completion",
        "created": created_now(),
        "model": response.model,
        "choices": choices,
        "usage": usage_json(response.usage),
        "system_fingerprint": None,
    }


class _ChunkMaker:
    """The chunks of one stream. Where tools are offered, text that may be a call is held back until it is clear."""

    def __init__(self, *, num_choices: int, has_tools: bool, with_usage: bool) -> None:
        self._num_choices = num_choices
        self._has_tools = has_tools
        self._with_usage = with_usage
        self._head: dict[str, Any] = {}
        self._texts = [""] * num_choices
        self._num_sent = [0] * num_choices
        self._reasons: dict[int, int] = {}

    def chunks(self, response: inference_pb2.StreamChatResponse) -> list[dict[str, Any]]:
        """What one event of the contract becomes. Raises StatusError where it ends the stream badly."""
        match response.WhichOneof("event"):
            case "started":
                return self._start(response.started)
            case "delta":
                return self._delta(response.delta)
            case "finished":
                return self._finish(response.finished)
        return []

    def _start(self, started: Any) -> list[dict[str, Any]]:
        self._head = {
            "id": f"chatcmpl-{started.request_id}",
            "object": "chat.completion.chunk",
            "created": created_now(),
            "model": started.model,
            "system_fingerprint": None,
        }
        return [
            self._chunk(index, {"role": "assistant", "content": "", "refusal": None})
            for index in range(self._num_choices)
        ]

    def _delta(self, delta: Any) -> list[dict[str, Any]]:
        index = delta.sequence_index
        chunks: list[dict[str, Any]] = []
        text = self._take(index, delta.text)
        if text or delta.logprobs:
            chunks.append(self._chunk(index, {"content": text}, logprobs=chat_logprobs(delta.logprobs)))
        if delta.finish_reason:
            self._reasons[index] = delta.finish_reason
            if not self._has_tools:
                chunks.append(self._chunk(index, {}, reason=finish_reason(delta.finish_reason)))
        return chunks

    def _take(self, index: int, text: str) -> str:
        """What of the text may go out now."""
        if not self._has_tools:
            return text
        self._texts[index] += text
        whole = self._texts[index]
        safe = len(whole)
        start = whole.lstrip()
        if not start or start.startswith("{") or any(sign.startswith(start) for sign in _TOOL_SIGNS):
            safe = 0
        for sign in _TOOL_SIGNS:
            at = whole.find(sign)
            if at < 0:
                at = next((len(whole) - k for k in range(len(sign) - 1, 0, -1) if whole.endswith(sign[:k])), safe)
            safe = min(safe, at)
        sent = self._num_sent[index]
        self._num_sent[index] = max(sent, safe)
        return whole[sent:safe]

    def _finish(self, finished: Any) -> list[dict[str, Any]]:
        error = bad_end(finished)
        if error is not None:
            raise error
        chunks: list[dict[str, Any]] = []
        if self._has_tools:
            for index in range(self._num_choices):
                chunks += self._end_with_tools(index, finished)
        else:
            chunks += [
                self._chunk(index, {}, reason=finish_reason(finished.finish_reason))
                for index in range(self._num_choices)
                if index not in self._reasons
            ]
        if self._with_usage:
            chunks.append({**self._head, "choices": [], "usage": usage_json(finished.usage)})
        return chunks

    def _end_with_tools(self, index: int, finished: Any) -> list[dict[str, Any]]:
        calls = tool_calls_json(finished.message.tool_calls) if index == 0 else []
        content = finished.message.content if calls else self._texts[index]
        chunks: list[dict[str, Any]] = []
        sent = self._num_sent[index]
        if not calls and content[sent:]:
            chunks.append(self._chunk(index, {"content": content[sent:]}))
        if calls:
            listed = [{"index": position, **call} for position, call in enumerate(calls)]
            chunks.append(self._chunk(index, {"tool_calls": listed}))
        reason = finish_reason(self._reasons.get(index, finished.finish_reason), has_tool_calls=bool(calls))
        chunks.append(self._chunk(index, {}, reason=reason))
        return chunks

    def _chunk(
        self, index: int, delta: dict[str, Any], *, logprobs: Any = None, reason: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        chunk = {**self._head, "choices": [choice]}
        if self._with_usage:
            chunk["usage"] = None
        return chunk


def bad_end(finished: common_pb2.StreamFinished) -> StatusError | None:
    """The error that a stream's end is, where it is one."""
    if finished.HasField("error"):
        error = finished.error
        return StatusError.of(error_from_reason(error.reason, error.message, retryable=error.retryable))
    if finish_reason(finished.finish_reason) is not None:
        return None
    name = common_pb2.FinishReason.Name(finished.finish_reason).removeprefix("FINISH_REASON_")
    reason = {"DEADLINE": "DEADLINE_EXCEEDED"}.get(name, name)
    return StatusError.of(error_from_reason(reason, f"the request ended early: {name}", retryable=name == "DRAINING"))
