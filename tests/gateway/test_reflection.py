"""Services by reflection: from a real server, from descriptors in any order, and from broken ones."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2 as pb

from tests.gateway.items import service
from vorta.errors import FailedPrecondition, Unavailable
from vorta_gateway.reflection import reflected_services
from vorta_gateway.rest.routes import make_routes
from vorta_server.front.reflection import reflection_handlers

V1 = "grpc.reflection.v1.ServerReflection"
V1ALPHA = "grpc.reflection.v1alpha.ServerReflection"


class Reflecting:
    """A server that tells of files that the test made."""

    def __init__(self, files: dict[str, descriptor_pb2.FileDescriptorProto], services: dict[str, str]) -> None:
        self.files = files
        self.services = services

    async def answer(self, requests: AsyncIterator[pb.ServerReflectionRequest], _: Any) -> AsyncIterator[Any]:
        async for request in requests:
            match request.WhichOneof("message_request"):
                case "list_services":
                    names = [pb.ServiceResponse(name=name) for name in self.services]
                    yield pb.ServerReflectionResponse(list_services_response=pb.ListServiceResponse(service=names))
                case "file_by_filename":
                    yield self._file(request.file_by_filename)
                case "file_containing_symbol":
                    yield self._file(self.services[request.file_containing_symbol])

    def _file(self, name: str) -> pb.ServerReflectionResponse:
        file = self.files.get(name)
        if file is None:
            return pb.ServerReflectionResponse(error_response=pb.ErrorResponse(error_code=5, error_message="no file"))
        answer = pb.FileDescriptorResponse(file_descriptor_proto=[file.SerializeToString()])
        return pb.ServerReflectionResponse(file_descriptor_response=answer)


async def ask(handlers: list[Any]) -> Any:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            return await reflected_services(channel)
    finally:
        await server.stop(0)


def handlers(reflecting: Reflecting, name: str = V1) -> list[Any]:
    method = grpc.stream_stream_rpc_method_handler(
        reflecting.answer, pb.ServerReflectionRequest.FromString, pb.ServerReflectionResponse.SerializeToString
    )
    return [grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method})]


def file(name: str, *dependencies: str, with_service: bool = False) -> descriptor_pb2.FileDescriptorProto:
    made = descriptor_pb2.FileDescriptorProto(name=name, dependency=dependencies, syntax="proto3")
    stem = name.removesuffix(".proto")
    made.message_type.add(name=f"M{stem}")
    if with_service:
        made.service.add(name="S").method.add(
            name="Call", input_type=f".M{stem}", output_type=f".M{dependencies[0][0]}"
        )
    return made


async def test_a_real_server() -> None:
    (found,) = await ask(reflection_handlers([service().full_name]))
    assert found.full_name == "vorta.test.Items"
    _, routes = make_routes([found])
    assert len(routes) == len(make_routes([service()])[1])


@pytest.mark.parametrize("name", [V1, V1ALPHA])
async def test_files_that_share_what_they_import(name: str) -> None:
    files = {
        "a.proto": file("a.proto", "b.proto", "c.proto", "d.proto", with_service=True),
        "b.proto": file("b.proto", "d.proto", "c.proto"),
        "c.proto": file("c.proto", "d.proto"),
        "d.proto": file("d.proto"),
    }
    (found,) = await ask(handlers(Reflecting(files, {"S": "a.proto"}), name))
    assert found.methods_by_name["Call"].output_type.name == "Mb"


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"a.proto": file("a.proto", "b.proto", with_service=True)}, "no file"),
        (
            {"a.proto": file("a.proto", "b.proto", with_service=True), "b.proto": file("b.proto", "a.proto")},
            "import each other",
        ),
        ({"a.proto": descriptor_pb2.FileDescriptorProto(name="a.proto", dependency=["a.proto"])}, "import each other"),
        ({"a.proto": descriptor_pb2.FileDescriptorProto(name="a.proto")}, "broken"),
    ],
)
async def test_broken_descriptors(files: dict[str, descriptor_pb2.FileDescriptorProto], why: str) -> None:
    with pytest.raises(FailedPrecondition, match=why):
        await ask(handlers(Reflecting(files, {"S": "a.proto"})))


async def test_a_server_without_reflection() -> None:
    empty: Callable[..., Any] = grpc.method_handlers_generic_handler
    with pytest.raises(FailedPrecondition, match="no reflection"):
        await ask([empty("x.Y", {})])


async def test_no_server() -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        with pytest.raises(Unavailable):
            await reflected_services(channel)
