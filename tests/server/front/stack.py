"""The front put together for tests: the parts that `app` joins, with a scripted worker behind them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from tests.server.front.scripted import ScriptedWorker
from vorta.errors import VortaError
from vorta.v1 import admin_pb2, inference_pb2, inference_pb2_grpc
from vorta.wire import error_from_rpc
from vorta_server.front.admin_service import AdminService, ServerFacts
from vorta_server.front.answer import Grounder
from vorta_server.front.chain import InterceptorChain
from vorta_server.front.embedder import Embedder
from vorta_server.front.generation import GenerationTable
from vorta_server.front.health import SERVICE_NAME, HealthService
from vorta_server.front.inference_service import InferenceConfig, InferenceService
from vorta_server.front.interceptors.access_log import AccessLogInterceptor
from vorta_server.front.interceptors.admission import AdmissionInterceptor
from vorta_server.front.interceptors.deadline import DeadlineInterceptor
from vorta_server.front.interceptors.rpc_metrics import RpcMetricsInterceptor
from vorta_server.front.method import bind_service
from vorta_server.front.resume import ResumeBudget
from vorta_server.front.server import GrpcConfig, GrpcServer
from vorta_server.front.vector_store import VectorStore
from vorta_server.observability.metrics import Metrics
from vorta_server.registry.model import ModelEntry, ModelState
from vorta_server.registry.registry import ModelRegistry
from vorta_server.workers.pacing import WritePacer

INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"]
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]


class RecordingLoader:
    """A `ModelLoader` that changes the registry and starts nothing."""

    def __init__(self, registry: ModelRegistry) -> None:
        self.registry = registry
        self.loads: list[tuple[str, str, str, int | None]] = []
        self.unloads: list[tuple[str, float | None]] = []

    async def load(self, model: str, *, source: str, precision: str, max_model_len: int | None) -> ModelEntry:
        """Records."""
        self.loads.append((model, source, precision, max_model_len))
        entry = self.registry.find(model)
        if entry is None:
            entry = ModelEntry(model=model, source=source, precision=precision)
            self.registry.add(entry)
        return entry

    async def unload(self, model: str, *, grace_s: float | None) -> ModelEntry:
        """Records."""
        self.unloads.append((model, grace_s))
        entry = self.registry.get(model)
        self.registry.update(entry, state=ModelState.UNLOADED)
        return entry


class Stack:
    """Everything between a client and a scripted worker. Attributes may be changed before it is entered."""

    def __init__(self, folder: Path) -> None:
        self.worker = ScriptedWorker(folder / "worker.sock")
        self.metrics = Metrics()
        self.registry = ModelRegistry(default_models={"generation": "scripted"})
        self.pacer = WritePacer(interval_per_stream_s=0.0, max_interval_s=0.0)
        self.budget = ResumeBudget(max_bytes=1 << 20, max_bytes_per_request=1 << 16)
        self.config = InferenceConfig(max_buffered_bytes_per_stream=1 << 20)
        self.grpc_config = GrpcConfig(port=0)
        self.admission = AdmissionInterceptor(max_concurrent_requests=64)
        self.generations = GenerationTable(self.metrics)
        self.loader = RecordingLoader(self.registry)
        self._exit = AsyncExitStack()

    async def __aenter__(self) -> Stack:
        async with AsyncExitStack() as stack:
            await self.worker.start()
            stack.push_async_callback(self.worker.stop)
            self.link = await self.worker.connect()
            stack.callback(self.link.close)
            self.entry = ModelEntry(
                model="scripted",
                source="/models/scripted",
                precision="fp32",
                state=ModelState.SERVING,
                kind="generation",
                card=self.worker.card,
                channel=self.link,
            )
            self.registry.add(self.entry)
            service = InferenceService(
                registry=self.registry,
                generations=self.generations,
                pacer=self.pacer,
                resume_budget=self.budget,
                config=self.config,
                grounder=Grounder(store=VectorStore(None), embedder=Embedder(registry=self.registry)),
            )
            names = (INFERENCE.full_name, ADMIN.full_name)
            self.health = HealthService(self.registry, services=names, needed_kinds={names[0]: "generation"})
            admin = AdminService(
                registry=self.registry,
                loader=self.loader,
                facts=ServerFacts(
                    version="1.2.3",
                    start_time_s=1000.0,
                    max_message_bytes=self.grpc_config.max_request_bytes,
                    services=names,
                    is_draining=lambda: self.admission.is_draining,
                ),
            )
            self.chain = InterceptorChain(
                [
                    AccessLogInterceptor(),
                    RpcMetricsInterceptor(self.metrics),
                    DeadlineInterceptor(),
                    self.admission,
                ],
                max_request_bytes=self.grpc_config.max_request_bytes,
            )
            services = {
                INFERENCE.full_name: bind_service(INFERENCE, service, unlimited={"CancelGenerate"}),
                ADMIN.full_name: bind_service(ADMIN, admin),
                SERVICE_NAME: bind_service(HEALTH, self.health, is_probe=True),
            }
            self.methods = {method.path: method for methods in services.values() for method in methods}
            self.server = GrpcServer(self.grpc_config, services, self.chain)
            await self.server.start()
            stack.push_async_callback(self.server.stop, 0)
            self.address = f"127.0.0.1:{self.server.port}"
            self.client = grpc.aio.insecure_channel(self.address)
            stack.push_async_callback(self.client.close)
            self.inference = inference_pb2_grpc.InferenceServiceStub(self.client)
            self._exit = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._exit.aclose()


async def error_of(call: Any) -> VortaError:
    """The error that a unary or streaming call ends with; fails when it ends well."""
    try:
        if hasattr(call, "read"):
            while await call.read() is not grpc.aio.EOF:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as exc:
        return error_from_rpc(exc)
    raise AssertionError("the call ended without an error")


def request(**fields: Any) -> inference_pb2.GenerateRequest:
    """A generation of three tokens."""
    return inference_pb2.GenerateRequest(**{"prompt": "hello", "max_tokens": 3, **fields})


def stream_request(**fields: Any) -> inference_pb2.StreamGenerateRequest:
    """The same as a stream."""
    return inference_pb2.StreamGenerateRequest(**{"prompt": "hello", "max_tokens": 3, **fields})


async def collect(call: Any) -> list[Any]:
    """The events of a stream, to its end."""
    events = []
    while (event := await call.read()) is not grpc.aio.EOF:
        events.append(event)
    return events


async def until(condition: Callable[[], object]) -> None:
    """Waits for what other tasks bring about; bounded."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)


async def resumed(stack: Stack, request_id: str, next_index: int, tenant: str = "") -> list[Any]:
    """The events that a request is resumed with, to its end."""
    return await collect(
        stack.inference.ResumeGenerate(
            inference_pb2.ResumeGenerateRequest(request_id=request_id, next_index=next_index),
            metadata=(("authorization", tenant),),
        )
    )
