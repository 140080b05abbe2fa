"""What the gateway asks: RPCs, wherever they are answered.

Requests and replies go as messages or as serialized bytes, whichever the caller has and the upstream makes: within one
process a message is passed as it is, over a channel only bytes go.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from vorta.errors import Internal
from vorta_gateway.status import StatusError

__all__ = ["Idempotency", "RpcMethod", "Upstream", "UpstreamCall"]


class Idempotency(Enum):
    """`MethodOptions.IdempotencyLevel`: whether a call may be sent again when nobody knows whether it ran."""

    UNKNOWN = 0
    NO_SIDE_EFFECTS = 1
    IDEMPOTENT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcMethod:
    """One RPC.

    Attributes:
        path: "/package.Service/Rpc".
        request_type, response_type: Message classes.
        is_client_streaming, is_streaming: Whether requests, and replies, are many.
        idempotency: As its options say.
        descriptor: Its own.
    """

    path: str
    request_type: type[Message]
    response_type: type[Message]
    is_client_streaming: bool
    is_streaming: bool
    idempotency: Idempotency
    descriptor: MethodDescriptor

    @classmethod
    def of(cls, rpc: MethodDescriptor) -> RpcMethod:
        """The RPC that a descriptor is of."""
        options = MethodOptions.FromString(rpc.GetOptions().SerializeToString())
        return cls(
            path=f"/{rpc.containing_service.full_name}/{rpc.name}",
            request_type=GetMessageClass(rpc.input_type),
            response_type=GetMessageClass(rpc.output_type),
            is_client_streaming=rpc.client_streaming,
            is_streaming=rpc.server_streaming,
            idempotency=Idempotency(options.idempotency_level),
            descriptor=rpc,
        )

    def reply(self, response: Message | bytes) -> Any:
        """A reply as a message. Raises StatusError (INTERNAL) when its bytes are none."""
        if not isinstance(response, bytes):
            return response
        try:
            return self.response_type.FromString(response)
        except DecodeError:
            raise StatusError.of(Internal("the upstream's reply is malformed")) from None


@dataclass(slots=True, kw_only=True)
class UpstreamCall:
    """One call of an RPC.

    Attributes:
        method: What is called.
        metadata: The call's, keys in lower case; those ending in "-bin" hold bytes.
        deadline_s: `time.monotonic()` by which it must have ended; None for none.
        header: The reply's initial metadata, set by the upstream before the first message or the end.
        trailers: The reply's trailing metadata, set by the upstream when it ended well.
    """

    method: RpcMethod
    metadata: Mapping[str, str | bytes]
    deadline_s: float | None = None
    header: tuple[tuple[str, str | bytes], ...] = ()
    trailers: tuple[tuple[str, str | bytes], ...] = field(default=())


class Upstream(Protocol):
    """Answers calls. Cancelling the caller's task, or closing the generator, cancels the RPC."""

    async def unary(self, call: UpstreamCall, request: Message | bytes) -> Message | bytes:
        """The reply of an RPC with one request and one reply. Raises StatusError."""
        ...

    def stream(
        self, call: UpstreamCall, requests: Message | bytes | AsyncIterable[Message | bytes]
    ) -> AsyncGenerator[Message | bytes, None]:
        """The replies of any other RPC: of one request, or of many where the method's client streams. An RPC with many
        requests and one reply gives one. Raises StatusError, also after some replies, and whatever the iteration of the
        requests raised. Close it when leaving early.
        """
        ...

    async def close(self) -> None:
        """Gives back what it holds. Idempotent."""
        ...
