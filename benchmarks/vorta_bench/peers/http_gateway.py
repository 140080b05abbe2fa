"""HTTP before a gRPC server as one would write it with FastAPI or connectrpc: ENGINE UPSTREAM PORT."""

from __future__ import annotations

import sys
from typing import Any

import grpc
import uvicorn
from google.protobuf import json_format

from vorta.v1 import inference_pb2, inference_pb2_grpc


def fastapi_app(upstream: str) -> Any:
    """A handler that asks over grpc.aio and converts with json_format."""
    from fastapi import FastAPI, Request, Response

    app = FastAPI()
    stubs: list[Any] = []

    async def generate(request: Request) -> Response:
        if not stubs:
            stubs.append(inference_pb2_grpc.InferenceServiceStub(grpc.aio.insecure_channel(upstream)))
        message = json_format.Parse(await request.body(), inference_pb2.GenerateRequest())
        reply = await stubs[0].Generate(message)
        text = json_format.MessageToJson(reply, preserving_proto_field_name=True, indent=None)
        return Response(text, media_type="application/json")

    # FastAPI reads annotations as names of its own module.
    generate.__annotations__.update({"request": Request, "return": Response})
    app.add_api_route("/v1/inference", generate, methods=["POST"])
    return app


def connectrpc_app(upstream: str) -> Any:
    """A Connect service that asks over grpc.aio."""
    from connectrpc.compat import google_protobuf_codecs
    from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
    from connectrpc.server import ConnectASGIApplication, Endpoint

    stubs: list[Any] = []

    async def generate(request: Any, context: Any) -> Any:
        if not stubs:
            stubs.append(inference_pb2_grpc.InferenceServiceStub(grpc.aio.insecure_channel(upstream)))
        return await stubs[0].Generate(request)

    path = "/vorta.v1.InferenceService"
    method = MethodInfo(
        name="Generate",
        service_name="vorta.v1.InferenceService",
        input=inference_pb2.GenerateRequest,
        output=inference_pb2.GenerateResponse,
        idempotency_level=IdempotencyLevel.UNKNOWN,
        stream_type=StreamType.UNARY,
    )

    class Application(ConnectASGIApplication):  # type: ignore[misc]
        @property
        def path(self) -> str:
            return path

    return Application(
        service=None,
        endpoints=lambda _: {f"{path}/Generate": Endpoint.unary(method=method, function=generate)},
        codecs=google_protobuf_codecs(),
    )


if __name__ == "__main__":
    engine, target, listen = sys.argv[1:]
    made = fastapi_app(target) if engine == "fastapi" else connectrpc_app(target)
    uvicorn.run(made, host="127.0.0.1", port=int(listen), loop="uvloop", http="httptools", log_level="warning")
