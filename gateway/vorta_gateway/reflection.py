"""The services of a gRPC server, by its reflection: v1, and v1alpha where it has no other."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection_pb2

from vorta.errors import FailedPrecondition, Unavailable

__all__ = ["reflected_services"]

_METHODS = (
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)
_OWN = ("grpc.reflection.", "grpc.channelz.")
_MAX_FILES = 1000


async def reflected_services(channel: grpc.aio.Channel, *, timeout_s: float = 10.0) -> list[ServiceDescriptor]:
    """The services that a server tells of, but for reflection itself and channelz, in a descriptor pool of their own.

    Raises:
        Unavailable: The server does not answer.
        FailedPrecondition: It has no reflection, or what it tells is no descriptor.
    """
    for method in _METHODS:
        try:
            return await _Reflection(channel, method, timeout_s).services()
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                continue
            raise Unavailable(f"the upstream does not answer: {error.details() or error.code().name}") from None
        except (DecodeError, TypeError, KeyError) as error:
            raise FailedPrecondition(f"the upstream's descriptors are broken: {error}", reason="UNSPECIFIED") from None
    raise FailedPrecondition("the upstream has no reflection: start it with it", reason="UNSPECIFIED")


class _Reflection:
    def __init__(self, channel: grpc.aio.Channel, method: str, timeout_s: float) -> None:
        self._call = channel.stream_stream(
            method,
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        self._timeout_s = timeout_s
        self._files: dict[str, descriptor_pb2.FileDescriptorProto] = {}

    async def services(self) -> list[ServiceDescriptor]:
        answer = await self._ask(reflection_pb2.ServerReflectionRequest(list_services=""))
        names = [service.name for service in answer.list_services_response.service]
        wanted = [name for name in names if not name.startswith(_OWN)]
        for name in wanted:
            self._take(await self._ask(reflection_pb2.ServerReflectionRequest(file_containing_symbol=name)))
        pool = descriptor_pool.DescriptorPool()
        added: set[str] = set()
        for name in list(self._files):
            await self._add(pool, name, added)
        return [pool.FindServiceByName(name) for name in wanted]

    async def _add(self, pool: descriptor_pool.DescriptorPool, name: str, added: set[str]) -> None:
        """Adds a file to the pool, what it imports first."""
        stack = [name]
        expanded: set[str] = set()
        while stack:
            current = stack[-1]
            if current in added:
                stack.pop()
                continue
            if current not in self._files:
                if len(self._files) >= _MAX_FILES:
                    raise FailedPrecondition(f"the upstream has more than {_MAX_FILES} proto files")
                self._take(await self._ask(reflection_pb2.ServerReflectionRequest(file_by_filename=current)))
            missing = [one for one in self._files[current].dependency if one not in added]
            if missing:
                if current in expanded:
                    raise FailedPrecondition(f"the upstream's files import each other: {current}")
                expanded.add(current)
                stack += missing
                continue
            pool.AddSerializedFile(self._files[current].SerializeToString())
            added.add(current)
            stack.pop()

    def _take(self, answer: reflection_pb2.ServerReflectionResponse) -> None:
        for data in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(data)
            self._files.setdefault(file.name, file)

    async def _ask(self, request: reflection_pb2.ServerReflectionRequest) -> reflection_pb2.ServerReflectionResponse:
        async def requests() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
            yield request

        async for answer in self._call(requests(), timeout=self._timeout_s):
            if answer.HasField("error_response"):
                raise FailedPrecondition(f"the upstream's reflection says: {answer.error_response.error_message}")
            return answer
        raise FailedPrecondition("the upstream's reflection answers nothing")
