"""POST /v1/embeddings."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from vorta.v1 import embedding_pb2
from vorta_gateway.http import HttpReply, HttpRequest, WhileConnected, call_metadata, deadline_of, reply_headers
from vorta_gateway.json.codec import dumps
from vorta_gateway.openai.fields import fill, read_body, refuse
from vorta_gateway.upstream import RpcMethod, Upstream, UpstreamCall

__all__ = ["Embeddings"]

_EMBED = RpcMethod.of(embedding_pb2.DESCRIPTOR.services_by_name["EmbeddingService"].methods_by_name["Embed"])
_KNOWN = frozenset({"model", "input", "encoding_format", "dimensions", "user"})
# vLLM's and TEI's, which the contract has too.
_EXTRA = frozenset({"normalize", "truncate", "prompt_name", "instruction"})


class Embeddings:
    """The endpoint.

    Args:
        upstream: Answers the contract's RPCs.
        max_body_bytes: Larger requests are refused.
    """

    def __init__(self, upstream: Upstream, *, max_body_bytes: int) -> None:
        self._upstream = upstream
        self._max_body_bytes = max_body_bytes

    async def answer(self, request: HttpRequest, reply: HttpReply) -> None:
        """Answers one request. Raises StatusError."""
        body = await read_body(request, self._max_body_bytes)
        for name in body:
            if name not in _KNOWN and name not in _EXTRA:
                raise refuse(name[:80], "there is no such parameter")
        form = body.get("encoding_format", "float")
        if form not in ("float", "base64"):
            raise refuse("encoding_format", "float or base64")
        message: Any = _EMBED.request_type()
        fields = {name: body[name] for name in ("model", "dimensions", *_EXTRA) if name in body}
        fill(message, {**fields, "inputs": _inputs(body), "encoding": "VECTOR_ENCODING_PACKED"})
        call = UpstreamCall(method=_EMBED, metadata=call_metadata(request), deadline_s=deadline_of(request))
        async with WhileConnected(request):
            response = _EMBED.reply(await self._upstream.unary(call, message))
        data = [
            {
                "object": "embedding",
                "index": embedding.index,
                "embedding": base64.b64encode(embedding.packed).decode()
                if form == "base64"
                else np.frombuffer(embedding.packed, "<f4"),
            }
            for embedding in response.embeddings
        ]
        usage = {"prompt_tokens": response.usage.prompt_tokens, "total_tokens": response.usage.total_tokens}
        made = {"object": "list", "data": data, "model": response.model, "usage": usage}
        await reply.send(200, dumps(made), headers=reply_headers(call.header))


def _inputs(body: dict[str, Any]) -> list[str]:
    value = body.get("input")
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise refuse("input", "a text or an array of texts is required")
    for position, item in enumerate(value):
        if not isinstance(item, str):
            raise refuse(f"input[{position}]", "not a text; token ids are not taken here")
    return value
