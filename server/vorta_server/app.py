"""The composition root: a server's parts made from settings, started, and stopped in order."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from grpc_health.v1 import health_pb2

import vorta
from vorta.errors import FailedPrecondition, InvalidArgument
from vorta.v1 import admin_pb2, embedding_pb2, inference_pb2, vector_pb2
from vorta_gateway.app import Gateway, GatewayConfig
from vorta_gateway.pages import describing_pages, vorta_pages, vorta_sockets
from vorta_gateway.server import HttpServer
from vorta_server.front.admin_service import AdminService, ServerFacts
from vorta_server.front.answer import Grounder
from vorta_server.front.chain import InterceptorChain
from vorta_server.front.embedder import Embedder
from vorta_server.front.embedding_service import EmbeddingService
from vorta_server.front.gateway_upstream import FrontUpstream
from vorta_server.front.generation import GenerationTable
from vorta_server.front.health import SERVICE_NAME as HEALTH
from vorta_server.front.health import HealthService
from vorta_server.front.inference_service import InferenceConfig, InferenceService
from vorta_server.front.interceptors.access_log import AccessLogInterceptor
from vorta_server.front.interceptors.admission import AdmissionInterceptor
from vorta_server.front.interceptors.deadline import DeadlineInterceptor
from vorta_server.front.interceptors.rpc_metrics import RpcMetricsInterceptor
from vorta_server.front.method import bind_service
from vorta_server.front.probes import probe_pages
from vorta_server.front.resume import ResumeBudget
from vorta_server.front.server import GrpcConfig, GrpcServer
from vorta_server.front.vector_service import VectorService
from vorta_server.front.vector_store import VectorStore
from vorta_server.observability.metrics import Metrics
from vorta_server.registry.model import ModelEntry, ModelState
from vorta_server.registry.registry import ModelRegistry
from vorta_server.registry.source import (
    DEFAULT_EMBEDDING_MODEL,
    DEFAULT_MODEL,
    FAKE_KINDS,
    model_kind,
    resolve_source,
)
from vorta_server.settings import Settings
from vorta_server.workers.config import VectorConfig, WorkerConfig
from vorta_server.workers.pacing import WritePacer
from vorta_server.workers.supervisor import HOST_COMMAND, RestartConfig, Supervisor

__all__ = ["App"]

logger = logging.getLogger(__name__)

_INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
_EMBEDDING = embedding_pb2.DESCRIPTOR.services_by_name["EmbeddingService"]
_VECTOR = vector_pb2.DESCRIPTOR.services_by_name["VectorService"]
_ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"]
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]

# The vector worker's name in metrics and in the log.
VECTORS = "vectors"

# After the workers have ended, calls have only their last events to write.
_LAST_WRITES_S = 5.0


class App:
    """One server.

    Args:
        settings: Checked settings.
        worker_command: The worker program.

    Raises:
        FailedPrecondition: A model's source does not exist (SETTINGS_INVALID).
    """

    def __init__(self, settings: Settings, *, worker_command: Sequence[str] = HOST_COMMAND) -> None:
        self._settings = settings
        self._data_dir = settings.data_dir.expanduser().absolute()
        models = settings.models or self._default_models()
        self._start_s = time.monotonic()
        self._stop_requests = 0
        self._stop_event = asyncio.Event()
        self._stop_now_event = asyncio.Event()

        self.metrics = Metrics()
        named = {
            "generation": settings.default_model,
            "embedding": settings.default_embedding_model,
            "rerank": settings.default_rerank_model,
        }
        for kind, model in named.items():
            if model and model not in models:
                field = "default_model" if kind == "generation" else f"default_{kind}_model"
                raise FailedPrecondition(
                    f"{field} {model!r} is not one of the models", reason="SETTINGS_INVALID", field=field
                )
        self.registry = ModelRegistry(default_models=named)
        self.generations = GenerationTable(self.metrics)
        self._entries = [
            ModelEntry(
                model=model,
                source=source,
                precision=settings.default_precision,
                max_model_len=settings.worker.max_model_len,
            )
            for model, source in models.items()
        ]
        for entry in self._entries:
            try:
                source = self._worker_config(entry, "").source
            except InvalidArgument as error:
                raise FailedPrecondition(
                    error.message, reason="SETTINGS_INVALID", field=f"models.{entry.model}"
                ) from None
            if settings.worker.runner == "fake":
                entry.kind = FAKE_KINDS.get(source, "generation")
            else:
                entry.kind = model_kind(Path(source))
            self.registry.add(entry)

        worker = settings.worker
        restart = RestartConfig(
            start_timeout_s=worker.start_timeout_s,
            first_delay_s=worker.restart_delay_s,
            max_delay_s=worker.max_restart_delay_s,
            stable_s=worker.stable_s,
            max_quick_deaths=worker.max_quick_deaths,
            stall_timeout_s=worker.stall_timeout_s,
            stall_kill_s=worker.stall_kill_s,
        )
        self.supervisor = Supervisor(
            registry=self.registry,
            metrics=self.metrics,
            restart=restart,
            make_config=self._worker_config,
            default_grace_s=settings.drain.grace_s,
            default_precision=settings.default_precision,
            command=worker_command,
        )
        self.vectors: ModelEntry | None = None
        if settings.vector.backend != "none":
            self.vectors = ModelEntry(model=VECTORS, source=settings.vector.backend, precision="fp32", kind="vectors")
        # The vector worker is no model: it is in no list of them, and nobody loads or unloads it.
        self._vector_registry = ModelRegistry()
        self._vector_supervisor = Supervisor(
            registry=self._vector_registry,
            metrics=self.metrics,
            restart=restart,
            make_config=self._vector_config,
            socket_prefix="vector",
            default_grace_s=settings.drain.grace_s,
            command=worker_command,
        )
        self.store = VectorStore(self.vectors)
        self.admission = AdmissionInterceptor(max_concurrent_requests=settings.front.max_concurrent_requests)
        self.chain = InterceptorChain(
            [
                AccessLogInterceptor(),
                RpcMetricsInterceptor(self.metrics),
                DeadlineInterceptor(),
                self.admission,
            ],
            max_request_bytes=settings.grpc.max_request_bytes,
        )
        names = (_INFERENCE.full_name, _EMBEDDING.full_name, _VECTOR.full_name, _ADMIN.full_name)
        self.health = HealthService(
            self.registry,
            services=(*names, HEALTH),
            needed_kinds={_INFERENCE.full_name: "generation", _EMBEDDING.full_name: "embedding"},
            needed_entries={_VECTOR.full_name: self.vectors},
        )
        embedder = Embedder(registry=self.registry)
        inference = InferenceService(
            registry=self.registry,
            generations=self.generations,
            pacer=WritePacer(
                interval_per_stream_s=settings.front.write_interval_per_stream_s,
                max_interval_s=settings.front.max_write_interval_s,
            ),
            resume_budget=ResumeBudget(
                max_bytes=settings.resume.max_bytes,
                max_bytes_per_request=settings.resume.max_bytes_per_request,
            ),
            config=InferenceConfig(
                max_tokens_cap=settings.generation.max_tokens_cap,
                max_buffered_bytes_per_stream=settings.front.max_buffered_bytes_per_stream,
            ),
            grounder=Grounder(store=self.store, embedder=embedder),
        )
        admin = AdminService(
            registry=self.registry,
            loader=self.supervisor,
            facts=ServerFacts(
                version=vorta.__version__,
                start_time_s=time.time(),
                max_message_bytes=settings.grpc.max_request_bytes,
                services=(*names, HEALTH),
                is_draining=lambda: self.admission.is_draining,
            ),
        )
        self.services = {
            _INFERENCE.full_name: bind_service(_INFERENCE, inference, unlimited={"CancelGenerate"}),
            _EMBEDDING.full_name: bind_service(_EMBEDDING, EmbeddingService(self.registry)),
            _VECTOR.full_name: bind_service(_VECTOR, VectorService(self.store, embedder)),
            _ADMIN.full_name: bind_service(_ADMIN, admin),
            HEALTH: bind_service(_HEALTH, self.health, is_probe=True),
        }
        grpc = settings.grpc
        self.grpc = GrpcServer(
            GrpcConfig(
                host=settings.host,
                port=grpc.port,
                max_request_bytes=grpc.max_request_bytes,
                max_reply_bytes=grpc.max_reply_bytes,
                min_ping_interval_s=grpc.min_ping_interval_s,
                keepalive_s=grpc.keepalive_s,
                keepalive_timeout_s=grpc.keepalive_timeout_s,
                max_connection_age_s=grpc.max_connection_age_s,
                max_connection_age_grace_s=grpc.max_connection_age_grace_s,
                reflection=grpc.reflection,
                channelz=grpc.channelz,
            ),
            self.services,
            self.chain,
        )
        http = settings.http
        upstream = FrontUpstream(self.services, self.chain)
        described = [_INFERENCE, _EMBEDDING, _VECTOR, _ADMIN]
        gateway = Gateway(
            [*described, _HEALTH],
            upstream,
            GatewayConfig(max_body_bytes=http.max_body_bytes, cors_origins=tuple(http.cors_origins)),
            pages={
                **describing_pages(described, title="Vorta", version=vorta.__version__),
                **vorta_pages(upstream, max_body_bytes=http.max_body_bytes),
                **probe_pages(self.metrics, self.health),
            },
            web_sockets=vorta_sockets(upstream),
        )
        self.http = HttpServer(gateway, host=settings.host, port=http.port, max_connections=http.max_connections)
        self.registry.listen(self._on_changed)
        self._vector_registry.listen(self.health.on_changed)
        self._vector_registry.listen(self._on_changed)
        self._has_served = False

    async def run(self) -> None:
        """Serves until `request_stop`, or a SIGTERM or SIGINT; the second one does not wait for running requests.

        Raises:
            FailedPrecondition: A port is taken (SETTINGS_INVALID). Nothing is left behind.
        """
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            socket_dir = Path(tempfile.mkdtemp(prefix="vorta-"))
            stack.callback(shutil.rmtree, socket_dir, ignore_errors=True)
            for supervisor in (self.supervisor, self._vector_supervisor):
                supervisor.socket_dir = socket_dir
                stack.push_async_callback(supervisor.stop, 0.0)
            stack.push_async_callback(self.grpc.stop, 0.0)
            await self.grpc.start()
            stack.push_async_callback(self.http.stop)
            await self.http.start()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.request_stop)
                stack.callback(loop.remove_signal_handler, number)
            logger.info(
                "listening: grpc %s:%d, http %s:%d",
                self._settings.host,
                self.grpc.port,
                self._settings.host,
                self.http.port,
            )
            for entry in self._entries:
                self.supervisor.start(entry)
            if self.vectors is not None:
                self._vector_registry.add(self.vectors)
                self._vector_supervisor.start(self.vectors)
            await self._stop_event.wait()
            await self._drain()

    def request_stop(self) -> None:
        """Begins to shut down; called again, does it at once. Loop thread only."""
        self._stop_requests += 1
        self._stop_event.set()
        if self._stop_requests > 1:
            self._stop_now_event.set()

    async def _drain(self) -> None:
        """Finishes what runs: NOT_SERVING, no new calls, workers drained, last events written."""
        grace_s = self._settings.drain.grace_s
        num_running = self.admission.num_in_flight
        logger.info("shutting down; %d calls get up to %g s", num_running, grace_s)
        self.health.drain()
        self.admission.drain()
        self.generations.drain()
        stop = asyncio.create_task(self._stop_workers(grace_s))
        stop_now = asyncio.create_task(self._stop_now_event.wait())
        await asyncio.wait({stop, stop_now}, return_when=asyncio.FIRST_COMPLETED)
        if not stop.done():
            logger.warning("told again: not waiting for running requests")
            stop.cancel()
        stop_now.cancel()
        await asyncio.gather(stop, stop_now, return_exceptions=True)
        try:
            async with asyncio.timeout(_LAST_WRITES_S):
                await self.admission.wait_idle()
        except TimeoutError:
            logger.warning("%d calls did not end, cutting them", self.admission.num_in_flight)
        await asyncio.gather(self.grpc.stop(0.5), self.http.stop(0.5))
        logger.info("stopped")

    async def _stop_workers(self, grace_s: float) -> None:
        """Drains the models, then the vector worker: an answer under way may still search."""
        await self.supervisor.stop(grace_s)
        await self._vector_supervisor.stop(grace_s)

    def _on_changed(self, entry: ModelEntry) -> None:
        if entry.state is ModelState.SERVING and not self._has_served and self.health.is_ready:
            self._has_served = True
            logger.info(
                "serving %s on grpc %s:%d, http://%s:%d, %.1f s after the start",
                ", ".join(entry.model for entry in self._entries),
                self._settings.host,
                self.grpc.port,
                self._settings.host,
                self.http.port,
                time.monotonic() - self._start_s,
            )

    def _default_models(self) -> dict[str, str]:
        """What is served when nothing is asked for: a model that generates, and one that embeds if it is installed."""
        models = {DEFAULT_MODEL: DEFAULT_MODEL}
        if self._settings.worker.runner == "fake":
            return models
        try:
            resolve_source(DEFAULT_EMBEDDING_MODEL, data_dir=self._data_dir)
        except FailedPrecondition as error:
            logger.warning("no embedding model is served: %s", error.message)
            return models
        return {**models, DEFAULT_EMBEDDING_MODEL: DEFAULT_EMBEDDING_MODEL}

    def _vector_config(self, entry: ModelEntry, socket_path: str) -> WorkerConfig:
        """What the vector worker is told."""
        vector = self._settings.vector
        return WorkerConfig(
            model=entry.model,
            source=entry.source,
            socket_path=socket_path,
            vector=VectorConfig(
                backend=vector.backend,
                data_dir=str(self._data_dir),
                api_key=vector.api_key,
                hot=tuple(name.strip() for name in vector.hot.split(",") if name.strip()),
                device=vector.device,
                search_threads=vector.search_threads,
                build_threads=vector.build_threads,
                cache_bytes=vector.cache_bytes,
                max_payload_bytes=vector.max_payload_bytes,
            ),
            parent_pid=os.getpid(),
            log_level=self._settings.log.level,
        )

    def _worker_config(self, entry: ModelEntry, socket_path: str) -> WorkerConfig:
        """What the worker of a model is told. Raises InvalidArgument when the model's source does not exist."""
        settings, worker = self._settings, self._settings.worker
        source = entry.source
        if worker.runner != "fake":
            source = str(resolve_source(entry.source, data_dir=self._data_dir))
        return WorkerConfig(
            model=entry.model,
            source=source,
            socket_path=socket_path,
            runner=worker.runner,
            device=worker.device,
            kv_dtype=worker.kv_dtype,
            cuda_graphs=worker.cuda_graphs,
            providers=worker.providers,
            precision=entry.precision,
            cache_dir=str(self._data_dir / "artifacts"),
            max_model_len=entry.max_model_len,
            threads=worker.threads,
            max_running_requests=worker.max_running_requests,
            max_waiting_requests=worker.max_waiting_requests,
            max_batched_tokens=worker.max_batched_tokens,
            max_stall=worker.max_stall,
            max_tokens_cap=settings.generation.max_tokens_cap,
            kv_memory_bytes=worker.kv_memory_bytes,
            prefix_cache=worker.prefix_cache,
            flush_interval_s=worker.flush_interval_s,
            write_interval_per_stream_s=settings.front.write_interval_per_stream_s,
            max_write_interval_s=settings.front.max_write_interval_s,
            max_batch_tokens=settings.embedding.max_batch_tokens,
            max_waiting_texts=settings.embedding.max_waiting_texts,
            max_waiting_tokens=settings.embedding.max_waiting_tokens,
            parent_pid=os.getpid(),
            log_level=settings.log.level,
            fake_step_s=worker.fake_step_s,
            fake_row_s=worker.fake_row_s,
            fake_prefill_token_s=worker.fake_prefill_token_s,
            fake_eos_every=worker.fake_eos_every,
        )
