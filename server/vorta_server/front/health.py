"""grpc.health.v1: what the server can really do now, and a Watch that follows it.

Names that can be asked for: "" (the server: every service answers and it does not drain), each service's full name, and
`vorta.model/<id>` for each model. A model is NOT_SERVING while it loads, drains, failed, or while its worker makes no
progress although requests run; a service is while what it answers with is (its kind's default model, vector worker).
A service that has nothing to answer with, because the server was given no model of its kind, does not count for "".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

from grpc_health.v1 import health_pb2

from vorta.errors import NotFound, ResourceExhausted
from vorta_server.front.call import CallContext
from vorta_server.registry.model import ModelEntry
from vorta_server.registry.registry import ModelRegistry

__all__ = ["MODEL_PREFIX", "SERVICE_NAME", "HealthService"]

SERVICE_NAME = "grpc.health.v1.Health"
MODEL_PREFIX = "vorta.model/"

_MAX_WATCHERS = 1024

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthService:
    """The handlers of `grpc.health.v1.Health`. Loop thread only.

    Args:
        registry: Tells of the models' changes.
        services: Full names of the other services.
        needed_kinds: By service, the kind of model that it is of no use without.
        needed_entries: By service, what else it is of no use without.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        *,
        services: Sequence[str],
        needed_kinds: Mapping[str, str],
        needed_entries: Mapping[str, ModelEntry | None] | None = None,
    ) -> None:
        self._registry = registry
        self._services = tuple(services)
        self._needed_kinds = dict(needed_kinds)
        self._needed_entries = dict(needed_entries or {})
        self._is_draining = False
        self._watchers: set[asyncio.Event] = set()
        registry.listen(self.on_changed)

    @property
    def is_ready(self) -> bool:
        """Whether the server as a whole is SERVING."""
        return bool(self._status("") == _SERVING)

    def drain(self) -> None:
        """Everything is NOT_SERVING from now on."""
        self._is_draining = True
        self._notify()

    async def check(self, request: health_pb2.HealthCheckRequest, call: CallContext) -> health_pb2.HealthCheckResponse:
        """The status of one name. Raises NotFound for an unknown one."""
        status = self._status(request.service)
        if status == _SERVICE_UNKNOWN:
            raise NotFound(
                f"no service {request.service!r} is known",
                reason="INVALID_FIELD",
                metadata={"field": "service"},
            )
        return health_pb2.HealthCheckResponse(status=status)

    async def list(self, request: health_pb2.HealthListRequest, call: CallContext) -> health_pb2.HealthListResponse:
        """The status of every name."""
        models = [MODEL_PREFIX + entry.model for entry in self._registry.entries]
        return health_pb2.HealthListResponse(
            statuses={
                name: health_pb2.HealthCheckResponse(status=self._status(name))
                for name in ("", *self._services, *models)
            }
        )

    async def watch(
        self, request: health_pb2.HealthCheckRequest, call: CallContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status of one name now and after each change; SERVICE_UNKNOWN until the name is known.

        A watcher that does not read sees the latest status when it reads again, never a queue of old ones.
        """
        if len(self._watchers) >= _MAX_WATCHERS:
            raise ResourceExhausted(f"{_MAX_WATCHERS} watchers are connected, the server's limit", retry_delay_s=10.0)
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            last = None
            while True:
                changed.clear()
                status = self._status(request.service)
                if status != last:
                    last = status
                    yield health_pb2.HealthCheckResponse(status=status)
                await changed.wait()
        finally:
            self._watchers.discard(changed)

    def _status(self, name: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        if name.startswith(MODEL_PREFIX):
            entry = self._registry.find(name.removeprefix(MODEL_PREFIX))
            if entry is None:
                return _SERVICE_UNKNOWN
            return _SERVING if entry.is_serving and not self._is_draining else _NOT_SERVING
        if name and name not in self._services:
            return _SERVICE_UNKNOWN
        if self._is_draining:
            return _NOT_SERVING
        if name:
            return _SERVING if self._is_serving(name) else _NOT_SERVING
        used = [service for service in self._services if self._is_used(service)]
        has_model = any(service in self._needed_kinds for service in used)
        return _SERVING if has_model and all(map(self._is_serving, used)) else _NOT_SERVING

    def _is_used(self, service: str) -> bool:
        """Whether the server has, or will have, something to answer this service with."""
        if service in self._needed_entries:
            return self._needed_entries[service] is not None
        kind = self._needed_kinds.get(service)
        return kind is None or bool(self._registry.default_model(kind))

    def _is_serving(self, service: str) -> bool:
        if service in self._needed_entries:
            needed = self._needed_entries[service]
        elif service in self._needed_kinds:
            needed = self._registry.find(self._registry.default_model(self._needed_kinds[service]))
        else:
            return True
        return needed is not None and needed.is_serving

    def on_changed(self, entry: ModelEntry) -> None:
        """Tells the watchers that a model, or what else a service needs, is in another state."""
        self._notify()

    def _notify(self) -> None:
        for changed in self._watchers:
            changed.set()
