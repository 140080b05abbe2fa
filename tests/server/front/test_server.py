"""What the gRPC server itself does: reflection, channelz, sizes, ports, malformed bytes."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from tests.server.front.stack import Stack, error_of
from vorta.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unimplemented
from vorta.v1 import inference_pb2
from vorta_server.front.chain import InterceptorChain
from vorta_server.front.server import GrpcConfig, GrpcServer


async def reflect(stack, version, **question):
    call = stack.client.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )(iter([reflection_pb2.ServerReflectionRequest(**question)]))
    return await call.read()


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_lists_and_describes(stack, version):
    reply = await reflect(stack, version, list_services="")
    names = {service.name for service in reply.list_services_response.service}
    assert names == {
        "vorta.v1.InferenceService",
        "vorta.v1.AdminService",
        "grpc.health.v1.Health",
        "grpc.channelz.v1.Channelz",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    for name in names:
        reply = await reflect(stack, version, file_containing_symbol=name)
        file = descriptor_pb2.FileDescriptorProto.FromString(reply.file_descriptor_response.file_descriptor_proto[0])
        assert name.rsplit(".", 1)[1] in {service.name for service in file.service}
    reply = await reflect(stack, version, file_containing_symbol="no.such.Service")
    assert reply.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


async def test_channelz_answers(stack):
    channelz = channelz_pb2_grpc.ChannelzStub(stack.client)
    reply = await channelz.GetServers(channelz_pb2.GetServersRequest(start_server_id=0))
    assert reply.server


async def test_malformed_bytes_over_the_wire(stack):
    call = stack.client.unary_unary("/vorta.v1.InferenceService/Generate")
    error = await error_of(call(b"\xff\xff\xff"))
    assert (type(error), error.reason) == (InvalidArgument, "MALFORMED_MESSAGE")
    call = stack.client.unary_stream("/vorta.v1.InferenceService/StreamGenerate")
    error = await error_of(call(b"\x12\x02\xc3\x28"))
    assert (type(error), error.reason) == (InvalidArgument, "MALFORMED_MESSAGE")
    call = stack.client.unary_unary("/vorta.v1.InferenceService/NoSuch")
    assert type(await error_of(call(b""))) is Unimplemented


async def test_a_request_that_is_too_large(tmp_path):
    stack = Stack(tmp_path)
    stack.grpc_config = GrpcConfig(port=0, max_request_bytes=64 * 1024)
    async with stack:
        error = await error_of(stack.inference.Generate(inference_pb2.GenerateRequest(prompt="x" * 100_000)))
        assert (type(error), error.reason) == (ResourceExhausted, "MESSAGE_TOO_LARGE")
        assert int(error.metadata["size_bytes"]) > int(error.metadata["max_bytes"]) == 64 * 1024
        error = await error_of(stack.inference.Generate(inference_pb2.GenerateRequest(prompt="x" * 200_000)))
        assert type(error) is ResourceExhausted
        assert not stack.worker.submitted
        await stack.inference.Generate(inference_pb2.GenerateRequest(prompt="x", max_tokens=1))


async def test_a_10_mb_prompt_reaches_the_worker(stack):
    await stack.inference.Generate(inference_pb2.GenerateRequest(prompt="x" * 10_000_000, max_tokens=1))
    assert len(stack.worker.submitted[0].prompt.text) == 10_000_000


async def test_a_taken_port_is_named(stack):
    second = GrpcServer(GrpcConfig(port=stack.server.port), {}, InterceptorChain([]))
    with pytest.raises(FailedPrecondition) as caught:
        await second.start()
    assert (caught.value.reason, caught.value.field) == ("SETTINGS_INVALID", "grpc.port")
    assert str(stack.server.port) in caught.value.message
    await second.stop(0)


async def test_bad_fields_name_themselves_on_the_wire(stack):
    error = await error_of(stack.inference.Generate(inference_pb2.GenerateRequest(prompt="x", temperature=-1)))
    assert (error.reason, error.field) == ("INVALID_FIELD", "temperature")


async def test_metrics_count_calls_and_requests(stack):
    await stack.inference.Generate(inference_pb2.GenerateRequest(prompt="x", max_tokens=4))
    await error_of(stack.inference.Generate(inference_pb2.GenerateRequest(prompt="x", top_p=0)))
    text = stack.metrics.render().decode()
    path = "/vorta.v1.InferenceService/Generate"
    assert f'vorta_rpc_calls_total{{code="OK",method="{path}"}} 1.0' in text
    assert f'vorta_rpc_calls_total{{code="INVALID_ARGUMENT",method="{path}"}} 1.0' in text
    assert 'vorta_finished_requests_total{model="scripted",reason="LENGTH"} 1.0' in text
    assert 'vorta_ttft_seconds_count{model="scripted"} 1.0' in text
