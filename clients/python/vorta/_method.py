"""The contract's methods, read from the descriptors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from vorta.v1 import admin_pb2, embedding_pb2, inference_pb2, vector_pb2

_IDEMPOTENT_LEVELS = (
    descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS,
    descriptor_pb2.MethodOptions.IDEMPOTENT,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One RPC."""

    path: str
    """As on the wire: /package.Service/Method."""
    request_type: type[Message]
    response_type: type[Message]
    is_idempotent: bool
    """Whether sending it twice does no more than sending it once."""

    @property
    def serialize(self) -> Any:
        """The request's serializer, as grpc wants it."""
        return self.request_type.SerializeToString

    @property
    def deserialize(self) -> Any:
        """The response's parser, as grpc wants it."""
        return self.response_type.FromString


def methods_of(service: ServiceDescriptor) -> dict[str, Method]:
    """A service's methods by name."""
    return {
        method.name: Method(
            path=f"/{service.full_name}/{method.name}",
            request_type=message_factory.GetMessageClass(method.input_type),
            response_type=message_factory.GetMessageClass(method.output_type),
            is_idempotent=method.GetOptions().idempotency_level in _IDEMPOTENT_LEVELS,
        )
        for method in service.methods
    }


def _health_methods() -> dict[str, Method]:
    """grpc.health.v1's Check, in a pool of its own.

    The package grpcio-health-checking is not among the light client's dependencies, and where it is installed its
    messages must not meet these in the default pool.
    """
    file = descriptor_pb2.FileDescriptorProto(
        name="grpc/health/v1/health.proto", package="grpc.health.v1", syntax="proto3"
    )
    request = file.message_type.add(name="HealthCheckRequest")
    request.field.add(name="service", number=1, type=9, label=1)  # optional string
    response = file.message_type.add(name="HealthCheckResponse")
    response.field.add(name="status", number=1, type=5, label=1)  # the enum's number as an int32
    service = file.service.add(name="Health")
    service.method.add(
        name="Check",
        input_type=".grpc.health.v1.HealthCheckRequest",
        output_type=".grpc.health.v1.HealthCheckResponse",
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return methods_of(pool.FindServiceByName("grpc.health.v1.Health"))


INFERENCE = methods_of(inference_pb2.DESCRIPTOR.services_by_name["InferenceService"])
ADMIN = methods_of(admin_pb2.DESCRIPTOR.services_by_name["AdminService"])
EMBEDDING = methods_of(embedding_pb2.DESCRIPTOR.services_by_name["EmbeddingService"])
VECTOR = methods_of(vector_pb2.DESCRIPTOR.services_by_name["VectorService"])
HEALTH = _health_methods()
