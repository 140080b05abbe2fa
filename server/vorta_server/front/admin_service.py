"""AdminService: models and the server itself. Knows no gRPC."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.timestamp_pb2 import Timestamp

from vorta.errors import DeadlineExceeded, InvalidArgument
from vorta.v1 import admin_pb2
from vorta_server.front.call import CallContext
from vorta_server.registry.model import ModelEntry, ModelState
from vorta_server.registry.registry import ModelRegistry

__all__ = ["AdminService", "ModelLoader", "ServerFacts"]

_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,255}")
_PRECISIONS = ("fp32", "fp16", "bf16", "fp8", "int8", "int4")
_MAX_GRACE_S = 3600.0

_KINDS = {
    "generation": admin_pb2.MODEL_KIND_GENERATION,
    "embedding": admin_pb2.MODEL_KIND_EMBEDDING,
    "rerank": admin_pb2.MODEL_KIND_RERANK,
}


class ModelLoader(Protocol):
    """What starts and stops models."""

    async def load(self, model: str, *, source: str, precision: str, max_model_len: int | None) -> ModelEntry:
        """Loads a model and returns when it serves; a loaded one changes nothing. Empty values: as before.

        Raises:
            AlreadyExists: It is loaded with other options (ALREADY_LOADED).
            InvalidArgument: The source does not exist.
            FailedPrecondition, Unavailable: Its worker cannot be started.
        """
        ...

    async def unload(self, model: str, *, grace_s: float | None) -> ModelEntry:
        """Drains a model and stops its worker; an unloaded one changes nothing. Raises NotFound."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What the server tells of itself."""

    version: str
    start_time_s: float
    max_message_bytes: int
    services: Sequence[str]
    is_draining: Callable[[], bool]


class AdminService:
    """The handlers of `vorta.v1.AdminService`."""

    def __init__(self, *, registry: ModelRegistry, loader: ModelLoader, facts: ServerFacts) -> None:
        self._registry = registry
        self._loader = loader
        self._facts = facts

    async def list_models(
        self, request: admin_pb2.ListModelsRequest, call: CallContext
    ) -> admin_pb2.ListModelsResponse:
        """All models, by id."""
        return admin_pb2.ListModelsResponse(models=[self._message(entry) for entry in self._registry.entries])

    async def get_model(self, request: admin_pb2.GetModelRequest, call: CallContext) -> admin_pb2.GetModelResponse:
        """One model. Raises NotFound."""
        return admin_pb2.GetModelResponse(model=self._message(self._registry.get(request.model)))

    async def load_model(self, request: admin_pb2.LoadModelRequest, call: CallContext) -> admin_pb2.LoadModelResponse:
        """Loads a model and replies when it serves. It goes on loading when the caller does not wait."""
        if not request.model:
            raise InvalidArgument("model is required", reason="MISSING_FIELD", field="model")
        if not _MODEL_ID.fullmatch(request.model):
            raise InvalidArgument(
                "model must be 1 to 256 letters, digits and '._:/-', a letter or digit first", field="model"
            )
        if request.precision and request.precision not in _PRECISIONS:
            raise InvalidArgument(
                f"precision must be one of {', '.join(_PRECISIONS)}, got {request.precision[:64]!r}",
                field="precision",
            )
        if request.HasField("max_model_len") and request.max_model_len < 1:
            raise InvalidArgument(
                f"max_model_len must be at least 1, got {request.max_model_len}", field="max_model_len"
            )
        async with _deadline(call):
            entry = await self._loader.load(
                request.model,
                source=request.source,
                precision=request.precision,
                max_model_len=request.max_model_len if request.HasField("max_model_len") else None,
            )
        return admin_pb2.LoadModelResponse(model=self._message(entry))

    async def unload_model(
        self, request: admin_pb2.UnloadModelRequest, call: CallContext
    ) -> admin_pb2.UnloadModelResponse:
        """Stops a model and replies when its memory is free. It goes on stopping when the caller does not wait."""
        grace_s: float | None = None
        if request.HasField("grace_s"):
            grace_s = request.grace_s
            if not 0 <= grace_s <= _MAX_GRACE_S:
                raise InvalidArgument(f"grace_s must be 0 to {_MAX_GRACE_S:g}, got {grace_s}", field="grace_s")
        self._registry.get(request.model)
        async with _deadline(call):
            entry = await self._loader.unload(request.model, grace_s=grace_s)
        return admin_pb2.UnloadModelResponse(model=self._message(entry))

    async def get_server_info(
        self, request: admin_pb2.GetServerInfoRequest, call: CallContext
    ) -> admin_pb2.GetServerInfoResponse:
        """The server's version, limits and state."""
        facts = self._facts
        return admin_pb2.GetServerInfoResponse(
            version=facts.version,
            start_time=_timestamp(facts.start_time_s),
            default_model=self._registry.default_model("generation"),
            default_embedding_model=self._registry.default_model("embedding"),
            default_rerank_model=self._registry.default_model("rerank"),
            max_message_bytes=facts.max_message_bytes,
            is_draining=facts.is_draining(),
            services=facts.services,
        )

    def _message(self, entry: ModelEntry) -> admin_pb2.Model:
        message = admin_pb2.Model(
            model=entry.model,
            kind=_KINDS.get(entry.kind, admin_pb2.MODEL_KIND_UNSPECIFIED),
            state=int(entry.state),  # type: ignore[arg-type]
            source=entry.source,
            precision=entry.precision,
            is_default=bool(entry.kind) and entry.model == self._registry.default_model(entry.kind),
            error=entry.error if entry.state is ModelState.FAILED else "",
        )
        card = entry.card
        if card is not None:
            message.kind = _KINDS.get(card.kind, admin_pb2.MODEL_KIND_UNSPECIFIED)
            message.architecture = card.architecture
            message.precision = card.precision
            message.device = card.device
            message.max_model_len = card.max_model_len
            message.vocab_size = card.vocab_size
            message.parameter_count = card.parameter_count
            message.dimension = card.dimension
            message.prompt_names.extend(card.prompt_names)
        if entry.load_time_s is not None:
            message.load_time.CopyFrom(_timestamp(entry.load_time_s))
        if entry.state in (ModelState.SERVING, ModelState.DRAINING):
            load = message.load
            load.restart_count = entry.restart_count
            load.worker_pid = entry.worker_pid
            if entry.stats is not None:
                load.running_requests = entry.stats.running
                load.waiting_requests = entry.stats.waiting
                load.kv_use = entry.stats.kv_used_tokens / max(1, entry.stats.kv_capacity_tokens)
        return message


@asynccontextmanager
async def _deadline(call: CallContext) -> AsyncIterator[None]:
    due_s = None if call.deadline_s is None else max(0.0, call.deadline_s - time.monotonic())
    try:
        async with asyncio.timeout(due_s):
            yield
    except TimeoutError:
        raise DeadlineExceeded("the call's deadline passed; the server goes on with it") from None


def _timestamp(time_s: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(int(time_s * 1e9))
    return stamp
