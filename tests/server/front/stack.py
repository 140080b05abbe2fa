"""The front put together for tests: the parts that `app` joins, with a scripted worker behind them."""

from __future__ import annotations

from pathlib import Path

import grpc
from vorta.v1 import inference_pb2, inference_pb2_grpc
from vorta_server.front.chain import InterceptorChain
from vorta_server.front.generation import GenerationTable
from vorta_server.front.inference_service import InferenceConfig, InferenceService
from vorta_server.front.interceptors.access_log import AccessLogInterceptor
from vorta_server.front.interceptors.admission import AdmissionInterceptor
from vorta_server.front.interceptors.deadline import DeadlineInterceptor
from vorta_server.front.interceptors.rpc_metrics import RpcMetricsInterceptor
from vorta_server.front.method import bind_service
from vorta_server.front.resume import ResumeBudget
from vorta_server.front.server import GrpcConfig, GrpcServer
from vorta_server.front.stream import WritePacer
from vorta_server.observability.metrics import Metrics
from vorta_server.registry.model import ModelEntry, ModelState
from vorta_server.registry.registry import ModelRegistry
from worker import ScriptedWorker

INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]


class Stack:
    """Everything between a client and a scripted worker. Attributes may be changed before entering."""

    def __init__(self, folder: Path) -> None:
        self.worker = ScriptedWorker(folder / "worker.sock")
        self.metrics = Metrics()
        self.registry = ModelRegistry(default_model="scripted")
        self.pacer = WritePacer(write_cost_s=0.0, write_share=1.0, max_interval_s=0.0)
        self.budget = ResumeBudget(max_bytes=1 << 20, max_bytes_per_request=1 << 16)
        self.config = InferenceConfig(max_buffered_bytes_per_stream=1 << 20)
        self.admission = AdmissionInterceptor(max_concurrent_requests=64)
        self.generations = GenerationTable(self.metrics)

    async def __aenter__(self) -> Stack:
        await self.worker.start()
        self.link = await self.worker.connect()
        self.registry.add(
            ModelEntry(
                model="scripted",
                source="/models/scripted",
                precision="fp32",
                state=ModelState.SERVING,
                card=self.worker.card,
                channel=self.link,
            )
        )
        self.service = InferenceService(
            registry=self.registry,
            generations=self.generations,
            pacer=self.pacer,
            resume_budget=self.budget,
            config=self.config,
        )
        chain = InterceptorChain(
            [AccessLogInterceptor(), RpcMetricsInterceptor(self.metrics), DeadlineInterceptor(), self.admission]
        )
        services = {"vorta.v1.InferenceService": bind_service(INFERENCE, self.service)}
        self.server = GrpcServer(GrpcConfig(port=0), services, chain)
        await self.server.start()
        self.address = f"127.0.0.1:{self.server.port}"
        self.client = grpc.aio.insecure_channel(self.address)
        self.inference = inference_pb2_grpc.InferenceServiceStub(self.client)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.client.close()
        await self.server.stop(0)
        self.link.close()
        await self.worker.stop()
