"""Every class of the error family, raised in a handler, is the same in the client."""

from __future__ import annotations

import grpc
import pytest

from tests.server.front.stack import error_of
from vorta import errors
from vorta.v1 import inference_pb2
from vorta_server.engine.request import Failure, Finished, FinishReason
from vorta_server.front.chain import InterceptorChain
from vorta_server.front.errors import error_from_finished
from vorta_server.front.method import Method
from vorta_server.front.server import GrpcConfig, GrpcServer

CLASSES = sorted(errors.VortaError.__subclasses__(), key=lambda cls: cls.code)


def raising(error, *, is_streaming):
    async def unary(request, call):
        raise error

    async def stream(request, call):
        yield inference_pb2.DetokenizeResponse(text="first")
        raise error

    return Method(
        path="/test.Service/Call",
        request_type=inference_pb2.DetokenizeRequest,
        response_type=inference_pb2.DetokenizeResponse,
        is_streaming=is_streaming,
        function=stream if is_streaming else unary,
    )


@pytest.mark.parametrize("is_streaming", [False, True])
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
async def test_the_same_error_on_both_sides(cls, is_streaming):
    error = cls("what happened: é", metadata={"a": 1}, field="some.field", retry_delay_s=1.5)
    methods = {"test.Service": [raising(error, is_streaming=is_streaming)]}
    server = GrpcServer(GrpcConfig(port=0, reflection=False, channelz=False), methods, InterceptorChain([]))
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        kind = channel.unary_stream if is_streaming else channel.unary_unary
        call = kind("/test.Service/Call")(b"", metadata=(("x-request-id", "r1"),))
        got = await error_of(call)
        assert dict(await call.trailing_metadata())["x-request-id"] == "r1"
    await server.stop(0)
    assert type(got) is cls
    assert (got.message, got.reason, got.retry_delay_s) == (error.message, error.reason, 1.5)
    assert got.metadata == {"a": "1", "field": "some.field"}


def test_a_good_end_is_no_error():
    for reason in (FinishReason.STOP, FinishReason.LENGTH):
        assert error_from_finished(Finished(request_id="r", finish_reason=reason, sequences=[])) is None


def test_a_failure_is_its_own_class():
    failure = Failure(8, "QUEUE_FULL", "full", {"limit": "3"}, 2.0)
    end = Finished(request_id="r", finish_reason=FinishReason.ERROR, sequences=[], failure=failure)
    error = error_from_finished(end)
    assert type(error) is errors.ResourceExhausted
    assert (error.reason, error.metadata, error.retry_delay_s) == ("QUEUE_FULL", {"limit": "3"}, 2.0)
