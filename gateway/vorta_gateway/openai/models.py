"""GET /v1/models and /v1/models/{model}."""

from __future__ import annotations

from typing import Any

from vorta.v1 import admin_pb2
from vorta_gateway.http import HttpReply, HttpRequest, call_metadata, deadline_of, reply_headers
from vorta_gateway.json.codec import dumps
from vorta_gateway.rest.template import decode_all
from vorta_gateway.status import StatusError
from vorta_gateway.upstream import RpcMethod, Upstream, UpstreamCall

__all__ = ["Models"]

_SERVICE = admin_pb2.DESCRIPTOR.services_by_name["AdminService"]
_LIST = RpcMethod.of(_SERVICE.methods_by_name["ListModels"])
_GET = RpcMethod.of(_SERVICE.methods_by_name["GetModel"])
_PREFIX = "/v1/models/"


class Models:
    """The endpoints.

    Args:
        upstream: Answers the contract's RPCs.
    """

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def answer(self, request: HttpRequest, reply: HttpReply) -> None:
        """Answers one request. Raises StatusError."""
        name = request.path.removeprefix(_PREFIX) if request.path.startswith(_PREFIX) else ""
        method = _GET if name else _LIST
        call = UpstreamCall(method=method, metadata=call_metadata(request), deadline_s=deadline_of(request))
        message: Any = method.request_type()
        if name:
            try:
                message.model = decode_all(name)
            except ValueError as error:
                raise StatusError(3, str(error)) from None
        response = method.reply(await self._upstream.unary(call, message))
        if name:
            made = _model(response.model)
        else:
            serving = [model for model in response.models if model.state == admin_pb2.MODEL_STATE_SERVING]
            made = {"object": "list", "data": [_model(model) for model in serving]}
        await reply.send(200, dumps(made), headers=reply_headers(call.header))


def _model(model: Any) -> dict[str, Any]:
    made = {
        "id": model.model,
        "object": "model",
        "created": model.load_time.seconds,
        "owned_by": "vorta",
        "kind": admin_pb2.ModelKind.Name(model.kind).removeprefix("MODEL_KIND_").lower(),
    }
    if model.max_model_len:
        made["max_model_len"] = model.max_model_len
    return made
