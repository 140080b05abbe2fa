"""The RPCs of a service as plain functions, bound by the contract's descriptors.

A service is a class with one method per RPC, named after it in snake case and taking (request message, CallContext): a
coroutine function, or for a stream one that returns an async generator. Where the client streams it takes an async
iterator of messages instead of the request, and answers with a stream. Wires (grpc, and the gateway in the same
process) call the bound methods through an `InterceptorChain`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from vorta.errors import InvalidArgument

__all__ = ["Method", "bind_service"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One RPC.

    Attributes:
        path: "/package.Service/Rpc".
        request_type, response_type: Message classes.
        is_streaming: Whether it answers with a stream; then `function` returns an async generator.
        is_client_streaming: Whether it is asked with a stream too.
        function: Takes (request, CallContext).
        is_probe: Health checks and the like: not logged unless debugging.
        is_unlimited: Passes when the server is full or drains: probes, and what frees it.
    """

    path: str
    request_type: type[Message]
    response_type: type[Message]
    is_streaming: bool
    function: Callable[..., Any]
    is_client_streaming: bool = False
    is_probe: bool = False
    is_unlimited: bool = False

    def parse(self, data: bytes) -> Message:
        """The request in `data`. Raises InvalidArgument (MALFORMED_MESSAGE) when it is none."""
        try:
            return self.request_type.FromString(data)
        except (DecodeError, UnicodeDecodeError):
            raise InvalidArgument(
                f"the request's bytes are not a {self.request_type.DESCRIPTOR.full_name}",
                reason="MALFORMED_MESSAGE",
            ) from None


def bind_service(
    descriptor: ServiceDescriptor,
    implementation: object,
    *,
    is_probe: bool = False,
    unlimited: Collection[str] = (),
) -> list[Method]:
    """The methods of a service; `unlimited` names RPCs. Raises AttributeError when the implementation lacks one."""
    return [
        Method(
            path=f"/{descriptor.full_name}/{rpc.name}",
            request_type=GetMessageClass(rpc.input_type),
            response_type=GetMessageClass(rpc.output_type),
            is_streaming=rpc.server_streaming,
            is_client_streaming=rpc.client_streaming,
            function=getattr(implementation, re.sub(r"(?<!^)(?=[A-Z])", "_", rpc.name).lower()),
            is_probe=is_probe,
            is_unlimited=is_probe or rpc.name in unlimited,
        )
        for rpc in descriptor.methods
    ]
