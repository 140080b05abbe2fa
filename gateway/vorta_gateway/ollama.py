"""Ollama's API, as its many front ends use it: /api/chat, /api/generate, /api/embed, /api/tags and their like."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import numpy as np

from vorta.v1 import admin_pb2, embedding_pb2, inference_pb2
from vorta_gateway.app import Page
from vorta_gateway.http import HttpReply, HttpRequest, WhileConnected, call_metadata, deadline_of
from vorta_gateway.json.codec import dumps, loads
from vorta_gateway.openai.chat import bad_end
from vorta_gateway.openai.fields import fill, message_json, read_body, refuse, tools_json
from vorta_gateway.openai.formats import schema_format
from vorta_gateway.openai.replies import finish_reason
from vorta_gateway.rest.errors import error_headers
from vorta_gateway.status import StatusError
from vorta_gateway.upstream import RpcMethod, Upstream, UpstreamCall

__all__ = ["Ollama"]

_INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
_STREAM_CHAT = RpcMethod.of(_INFERENCE.methods_by_name["StreamChat"])
_STREAM_GENERATE = RpcMethod.of(_INFERENCE.methods_by_name["StreamGenerate"])
_EMBED = RpcMethod.of(embedding_pb2.DESCRIPTOR.services_by_name["EmbeddingService"].methods_by_name["Embed"])
_ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"]
_LIST = RpcMethod.of(_ADMIN.methods_by_name["ListModels"])
_GET = RpcMethod.of(_ADMIN.methods_by_name["GetModel"])

_VERSION = "0.12.0"  # of the API that is spoken; front ends look for features by it
_OPTIONS = {
    "num_predict": "max_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "seed": "seed",
    "stop": "stop",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
_LINES = "application/x-ndjson"


class Ollama:
    """The endpoints.

    Args:
        upstream: Answers the contract's RPCs.
        max_body_bytes: Larger requests are refused.
    """

    def __init__(self, upstream: Upstream, *, max_body_bytes: int) -> None:
        self._upstream = upstream
        self._max_body_bytes = max_body_bytes

    def pages(self) -> dict[str, Page]:
        """The pages by path."""
        post, get = ("POST",), ("GET",)
        return {
            "/api/chat": Page(answer=self._chat, methods=post, send_error=_send_error),
            "/api/generate": Page(answer=self._generate, methods=post, send_error=_send_error),
            "/api/embed": Page(answer=self._embed, methods=post, send_error=_send_error),
            "/api/tags": Page(answer=self._tags, methods=get, send_error=_send_error),
            "/api/ps": Page(answer=self._tags, methods=get, send_error=_send_error),
            "/api/show": Page(answer=self._show, methods=post, send_error=_send_error),
            "/api/version": Page(answer=_version, methods=get, send_error=_send_error),
        }

    async def _chat(self, request: HttpRequest, reply: HttpReply) -> None:
        body = await read_body(request, self._max_body_bytes)
        messages = body.get("messages")
        if not isinstance(messages, list):
            raise refuse("messages", "an array of messages is required")
        fields = _sampling(body)
        fields["messages"] = [_message(message, position) for position, message in enumerate(messages)]
        if body.get("tools"):
            fields["tools"] = tools_json(body["tools"])
        await self._answer(_STREAM_CHAT, fields, body, request, reply, _chat_part)

    async def _generate(self, request: HttpRequest, reply: HttpReply) -> None:
        body = await read_body(request, self._max_body_bytes)
        prompt = body.get("prompt", "")
        if not isinstance(prompt, str):
            raise refuse("prompt", "not a text")
        for name in ("suffix", "images", "template", "context"):
            if body.get(name):
                raise refuse(name, "not served here")
        fields = _sampling(body)
        if not prompt:
            # How Ollama's clients load a model.
            end = {"model": body.get("model", ""), "created_at": _now(), "response": "", "done": True}
            await reply.send(200, dumps({**end, "done_reason": "load"}))
        elif body.get("raw"):
            await self._answer(_STREAM_GENERATE, {**fields, "prompt": prompt}, body, request, reply, _generate_part)
        else:
            system = [{"role": "system", "content": body["system"]}] if body.get("system") else []
            fields["messages"] = [*system, {"role": "user", "content": prompt}]
            await self._answer(_STREAM_CHAT, fields, body, request, reply, _generate_part)

    async def _answer(
        self,
        method: RpcMethod,
        fields: dict[str, Any],
        body: dict[str, Any],
        request: HttpRequest,
        reply: HttpReply,
        part: Callable[[str, list[Any]], dict[str, Any]],
    ) -> None:
        """Answers with a line an event, or with one object where `stream` is false."""
        is_stream = body.get("stream", True)
        message: Any = method.request_type()
        fill(message, fields | _format(body))
        has_tools = bool(fields.get("tools"))
        call = UpstreamCall(method=method, metadata=call_metadata(request), deadline_s=deadline_of(request))
        head: dict[str, Any] = {}
        texts: list[str] = []
        start_s = time.monotonic()
        async with WhileConnected(request), aclosing(self._upstream.stream(call, message)) as responses:
            try:
                async for response in responses:
                    event = method.reply(response)
                    kind = event.WhichOneof("event")
                    if kind == "started":
                        head = {"model": event.started.model}
                    elif kind == "delta":
                        # A tool's call is known when all of it is there.
                        if not is_stream or has_tools:
                            texts.append(event.delta.text)
                        elif event.delta.text:
                            await _line(reply, {**head, "created_at": _now(), **part(event.delta.text, [])})
                    elif kind == "finished":
                        error = bad_end(event.finished)
                        if error is not None:
                            raise error
                        calls = list(event.finished.message.tool_calls)
                        text = event.finished.message.content if calls else "".join(texts)
                        end = {**head, "created_at": _now(), **part(text, calls), "done": True}
                        end |= _timings(event.finished, time.monotonic() - start_s)
                        if is_stream:
                            await _line(reply, end)
                            await reply.end()
                        else:
                            await reply.send(200, dumps(end))
            except StatusError as error:
                if not reply.is_started:
                    raise
                await reply.end(dumps({"error": error.message}) + b"\n")

    async def _embed(self, request: HttpRequest, reply: HttpReply) -> None:
        body = await read_body(request, self._max_body_bytes)
        value = body.get("input")
        inputs = [value] if isinstance(value, str) else value
        if not isinstance(inputs, list) or not all(isinstance(item, str) for item in inputs):
            raise refuse("input", "a text or an array of texts is required")
        fields: dict[str, Any] = {"inputs": inputs, "truncate": body.get("truncate", True)}
        fields |= {name: body[name] for name in ("model", "dimensions") if name in body}
        message: Any = _EMBED.request_type()
        fill(message, {**fields, "encoding": "VECTOR_ENCODING_PACKED"})
        response = await self._ask(_EMBED, message, request)
        made = {
            "model": response.model,
            "embeddings": [np.frombuffer(embedding.packed, "<f4") for embedding in response.embeddings],
            "prompt_eval_count": response.usage.prompt_tokens,
        }
        await reply.send(200, dumps(made))

    async def _tags(self, request: HttpRequest, reply: HttpReply) -> None:
        response = await self._ask(_LIST, _LIST.request_type(), request)
        serving = [model for model in response.models if model.state == admin_pb2.MODEL_STATE_SERVING]
        await reply.send(200, dumps({"models": [_tag(model) for model in serving]}))

    async def _show(self, request: HttpRequest, reply: HttpReply) -> None:
        body = await read_body(request, self._max_body_bytes)
        message: Any = _GET.request_type()
        fill(message, {"model": body.get("model", body.get("name", ""))})
        model = (await self._ask(_GET, message, request)).model
        is_generation = model.kind == admin_pb2.MODEL_KIND_GENERATION
        made = {
            "details": _details(model),
            "model_info": {
                "general.architecture": model.architecture,
                "general.parameter_count": model.parameter_count,
                f"{model.architecture}.context_length": model.max_model_len,
            },
            "capabilities": ["completion", "tools"] if is_generation else ["embedding"],
            "modified_at": _time(model.load_time.seconds),
        }
        await reply.send(200, dumps(made))

    async def _ask(self, method: RpcMethod, message: Any, request: HttpRequest) -> Any:
        call = UpstreamCall(method=method, metadata=call_metadata(request), deadline_s=deadline_of(request))
        async with WhileConnected(request):
            return method.reply(await self._upstream.unary(call, message))


async def _line(reply: HttpReply, value: dict[str, Any]) -> None:
    if not reply.is_started:
        await reply.start(200, _LINES)
    await reply.write(dumps({"done": False, **value}) + b"\n")


async def _send_error(reply: HttpReply, error: StatusError) -> None:
    await reply.send(error.http, dumps({"error": error.message}), headers=error_headers(error))


async def _version(request: HttpRequest, reply: HttpReply) -> None:
    await reply.send(200, dumps({"version": _VERSION}))


def _sampling(body: dict[str, Any]) -> dict[str, Any]:
    options = body.get("options", {})
    if not isinstance(options, dict):
        raise refuse("options", "not an object")
    fields: dict[str, Any] = {"model": body["model"]} if body.get("model") else {}
    for name, value in options.items():
        if name in _OPTIONS and value is not None:
            fields[_OPTIONS[name]] = value
    if isinstance(fields.get("stop"), str):
        fields["stop"] = [fields["stop"]]
    if isinstance(fields.get("max_tokens"), int) and fields["max_tokens"] < 0:
        del fields["max_tokens"]  # as many as there is room for
    return fields


def _format(body: dict[str, Any]) -> dict[str, Any]:
    """The contract's response_format of `format`, "json" or a JSON Schema."""
    value = body.get("format")
    if not value:
        return {}
    if value == "json":
        return {"response_format": {"json_object": {}}}
    if isinstance(value, str):
        raise refuse("format", 'neither "json" nor a JSON Schema')
    return {"response_format": schema_format(value, "format")}


def _message(message: Any, position: int) -> dict[str, Any]:
    """A message of Ollama's: its tool calls have arguments as an object, and no ids."""
    if isinstance(message, dict):
        if message.get("images"):
            raise refuse(f"messages[{position}].images", "not served here")
        kept = {name: value for name, value in message.items() if name not in ("images", "thinking", "tool_name")}
        if isinstance(kept.get("tool_calls"), list):
            kept["tool_calls"] = [_with_text_arguments(call) for call in kept["tool_calls"]]
        message = kept
    return message_json(message, position)


def _with_text_arguments(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), dict):
        return call
    return {**call, "function": {**function, "arguments": dumps(function["arguments"]).decode()}}


def _chat_part(text: str, calls: list[Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {"function": {"name": call.name, "arguments": loads(call.arguments)}} for call in calls
        ]
    return {"message": message}


def _generate_part(text: str, calls: list[Any]) -> dict[str, Any]:
    return {"response": text}


def _timings(finished: Any, total_s: float) -> dict[str, Any]:
    return {
        "done_reason": finish_reason(finished.finish_reason),
        "total_duration": int(total_s * 1e9),
        "load_duration": 0,
        "prompt_eval_count": finished.usage.prompt_tokens,
        "prompt_eval_duration": int(finished.timings.prefill_s * 1e9),
        "eval_count": finished.usage.completion_tokens,
        "eval_duration": int(finished.timings.decode_s * 1e9),
    }


def _tag(model: Any) -> dict[str, Any]:
    return {
        "name": model.model,
        "model": model.model,
        "modified_at": _time(model.load_time.seconds),
        "size": 0,
        "digest": "",
        "details": _details(model),
    }


def _details(model: Any) -> dict[str, Any]:
    return {
        "format": "onnx",
        "family": model.architecture,
        "families": [model.architecture],
        "parameter_size": f"{model.parameter_count / 1e6:.1f}M",
        "quantization_level": model.precision,
    }


def _now() -> str:
    now_s = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s)) + f".{int(now_s % 1 * 1e6):06}Z"


def _time(unix_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix_s))
