"""Server reflection, v1 and v1alpha.

grpcio-reflection ships v1alpha only. Version 1 has the same messages under another package, so its descriptors are
made from v1alpha's, and one servicer answers both: the bytes are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

__all__ = ["V1", "V1ALPHA", "reflection_handlers"]

V1 = "grpc.reflection.v1.ServerReflection"
V1ALPHA = reflection.SERVICE_NAME


def reflection_handlers(services: Sequence[str]) -> list[grpc.GenericRpcHandler]:
    """Handlers of both versions, which tell of `services` and of themselves."""
    _register_v1()
    servicer = ReflectionServicer((*services, V1, V1ALPHA))
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return [grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method}) for name in (V1, V1ALPHA)]


def _register_v1() -> None:
    """Adds grpc/reflection/v1/reflection.proto to the default descriptor pool, unless it is there."""
    pool = descriptor_pool.Default()
    name = "grpc/reflection/v1/reflection.proto"
    try:
        pool.FindFileByName(name)
    except KeyError:
        file = descriptor_pb2.FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(file)
        file.name = name
        file.package = "grpc.reflection.v1"
        for message in file.message_type:
            for field in message.field:
                if field.type_name:
                    field.type_name = field.type_name.replace(".v1alpha.", ".v1.")
        for service in file.service:
            for rpc in service.method:
                rpc.input_type = rpc.input_type.replace(".v1alpha.", ".v1.")
                rpc.output_type = rpc.output_type.replace(".v1alpha.", ".v1.")
        file.options.Clear()
        pool.AddSerializedFile(file.SerializeToString())
