"""POST /v1/completions. Several prompts in one request are several requests of the contract, under way together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from vorta.v1 import common_pb2, inference_pb2
from vorta_gateway.http import HttpReply, HttpRequest, WhileConnected, call_metadata, deadline_of, reply_headers
from vorta_gateway.json.codec import dumps
from vorta_gateway.openai.chat import bad_end, stream_options
from vorta_gateway.openai.errors import error_json
from vorta_gateway.openai.fields import fill, read_body, refuse, refuse_unknown, sampling
from vorta_gateway.openai.formats import FORMAT_FIELDS, response_format
from vorta_gateway.openai.replies import completion_logprobs, created_now, finish_reason, usage_json
from vorta_gateway.sse import EventStream
from vorta_gateway.status import StatusError
from vorta_gateway.upstream import RpcMethod, Upstream, UpstreamCall

__all__ = ["Completions"]

_SERVICE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
_GENERATE = RpcMethod.of(_SERVICE.methods_by_name["Generate"])
_STREAM_GENERATE = RpcMethod.of(_SERVICE.methods_by_name["StreamGenerate"])

_KNOWN = frozenset(
    {"prompt", "stream", "stream_options", "stop", "logprobs", "echo", "best_of", "suffix", *FORMAT_FIELDS}
)
_DEFAULT_MAX_TOKENS = 16  # OpenAI's
_MAX_PROMPTS = 128
_QUEUE_CHUNKS = 64


class Completions:
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
        prompts = _prompts(body)
        fields = _fields(body)
        is_stream = body.get("stream", False)
        method = _STREAM_GENERATE if is_stream else _GENERATE
        messages: list[Any] = []
        for prompt in prompts:
            message = method.request_type()
            fill(message, {**fields, **prompt})
            messages.append(message)
        deadline_s = deadline_of(request)
        calls = [
            UpstreamCall(method=method, metadata=_metadata(request, index, len(prompts)), deadline_s=deadline_s)
            for index in range(len(prompts))
        ]
        async with WhileConnected(request):
            if is_stream:
                await self._stream(calls, messages, reply, with_usage=stream_options(body))
            else:
                await self._answer_once(calls, messages, reply)

    async def _answer_once(self, calls: list[UpstreamCall], messages: list[Any], reply: HttpReply) -> None:
        async def ask(call: UpstreamCall, message: Any) -> Any:
            return _GENERATE.reply(await self._upstream.unary(call, message))

        if len(calls) == 1:
            responses = [await ask(calls[0], messages[0])]
        else:
            responses = await _together([ask(*pair) for pair in zip(calls, messages, strict=True)])
        num_choices = messages[0].n or 1
        choices: list[dict[str, Any]] = []
        for position, response in enumerate(responses):
            choices.append(_choice(position * num_choices, response))
            choices += [
                _choice(position * num_choices + sequence.sequence_index, sequence)
                for sequence in response.sequences
                if sequence.sequence_index
            ]
        completion = {
            **_head(responses[0].request_id, responses[0].model),
            "choices": choices,
            "usage": usage_json(_sum([response.usage for response in responses])),
        }
        await reply.send(200, dumps(completion), headers=reply_headers(calls[0].header))

    async def _stream(
        self, calls: list[UpstreamCall], messages: list[Any], reply: HttpReply, *, with_usage: bool
    ) -> None:
        num_choices = messages[0].n or 1
        head: dict[str, Any] = {}
        usages: list[common_pb2.Usage] = []
        async with (
            EventStream(reply, lambda: reply_headers(calls[0].header)) as events,
            aclosing(self._events(calls, messages)) as responses,
        ):
            try:
                async for position, response in responses:
                    kind = response.WhichOneof("event")
                    if kind == "started":
                        head = head or _head(response.started.request_id, response.started.model)
                    elif kind == "finished":
                        error = bad_end(response.finished)
                        if error is not None:
                            raise error
                        usages.append(response.finished.usage)
                    for choice in _stream_choices(response, num_choices):
                        choice["index"] += position * num_choices
                        chunk = {**head, "choices": [choice]}
                        if with_usage:
                            chunk["usage"] = None
                        await events.send(dumps(chunk))
            except StatusError as error:
                if not events.is_started:
                    raise
                await events.end(dumps(error_json(error)))
                return
            if with_usage:
                await events.send(dumps({**head, "choices": [], "usage": usage_json(_sum(usages))}))
            await events.end(b"[DONE]")

    async def _events(self, calls: list[UpstreamCall], messages: list[Any]) -> AsyncGenerator[tuple[int, Any], None]:
        """The events of all the calls as they come, each with its call's position."""
        if len(calls) == 1:
            async with aclosing(self._upstream.stream(calls[0], messages[0])) as responses:
                async for response in responses:
                    yield 0, _STREAM_GENERATE.reply(response)
            return
        queue: asyncio.Queue[tuple[int, Any]] = asyncio.Queue(_QUEUE_CHUNKS)

        async def read(position: int) -> None:
            try:
                async with aclosing(self._upstream.stream(calls[position], messages[position])) as responses:
                    async for response in responses:
                        await queue.put((position, _STREAM_GENERATE.reply(response)))
                await queue.put((position, None))
            except Exception as error:
                await queue.put((position, error))  # whatever it is, the reader must not wait on

        tasks = [asyncio.create_task(read(position)) for position in range(len(calls))]
        try:
            num_open = len(tasks)
            while num_open:
                position, event = await queue.get()
                if isinstance(event, Exception):
                    raise event
                if event is None:
                    num_open -= 1
                else:
                    yield position, event
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _together(coroutines: list[Any]) -> list[Any]:
    """The results of coroutines; the first error ends them all."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _metadata(request: HttpRequest, index: int, count: int) -> dict[str, str | bytes]:
    metadata = call_metadata(request)
    given = metadata.get("x-request-id")
    if count > 1 and isinstance(given, str):
        metadata["x-request-id"] = f"{given}-{index}"
    return metadata


def _prompts(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Each prompt as fields of the contract."""
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return [{"prompt": prompt}]
    if not isinstance(prompt, list) or not prompt:
        raise refuse("prompt", "a text, an array of token ids, or an array of those is required")
    if all(type(item) is int for item in prompt):
        return [{"prompt_token_ids": prompt}]
    if len(prompt) > _MAX_PROMPTS:
        raise refuse("prompt", f"{len(prompt)} prompts are more than the {_MAX_PROMPTS} of one request")
    made: list[dict[str, Any]] = []
    for position, item in enumerate(prompt):
        if isinstance(item, str):
            made.append({"prompt": item})
        elif isinstance(item, list):
            made.append({"prompt_token_ids": item})
        else:
            raise refuse(f"prompt[{position}]", "neither a text nor an array of token ids")
    return made


def _fields(body: dict[str, Any]) -> dict[str, Any]:
    refuse_unknown(body, _KNOWN)
    fields = {"max_tokens": _DEFAULT_MAX_TOKENS, **sampling(body)}
    for name in ("logprobs", "echo"):
        if name in body:
            fields[name] = body[name]
    if body.get("suffix"):
        raise refuse("suffix", "no model here fills in the middle")
    if body.get("best_of", body.get("n", 1)) != body.get("n", 1):
        raise refuse("best_of", "only as many as n are made")
    return fields | response_format(body)


def _head(request_id: str, model: str) -> dict[str, Any]:
    return {
        "id": f"cmpl-{request_id}",
        "object": "text_completion",
        "created": created_now(),
        "model": model,
        "system_fingerprint": None,
    }


def _choice(index: int, part: Any) -> dict[str, Any]:
    return {
        "index": index,
        "text": part.text,
        "logprobs": completion_logprobs(part.logprobs, 0),
        "finish_reason": finish_reason(part.finish_reason),
    }


def _stream_choices(response: Any, num_choices: int) -> list[dict[str, Any]]:
    kind = response.WhichOneof("event")
    if kind == "delta":
        delta = response.delta
        return [
            {
                "index": delta.sequence_index,
                "text": delta.text,
                "logprobs": completion_logprobs(delta.logprobs, 0),
                "finish_reason": finish_reason(delta.finish_reason) if delta.finish_reason else None,
            }
        ]
    if kind == "finished" and num_choices == 1:
        reason = finish_reason(response.finished.finish_reason)
        return [{"index": 0, "text": "", "logprobs": None, "finish_reason": reason}]
    return []


def _sum(usages: list[common_pb2.Usage]) -> common_pb2.Usage:
    return common_pb2.Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        total_tokens=sum(usage.total_tokens for usage in usages),
        cached_prompt_tokens=sum(usage.cached_prompt_tokens for usage in usages),
    )
