"""The vector worker's service: operations from calls to a backend. The only place that names concrete backends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vorta.errors import FailedPrecondition, VortaError
from vorta_server.engine.request import Failure
from vorta_server.vectors.operation import Result, Ticket, VectorBackend
from vorta_server.workers.call_host import Call
from vorta_server.workers.config import VectorConfig
from vorta_server.workers.memory import rss_bytes
from vorta_server.workers.protocol import ModelCard, Stats, VectorCall, VectorReply

__all__ = ["VectorService", "build_vectors"]


class VectorService:
    """A `CallService` over a backend."""

    def __init__(self, backend: VectorBackend, *, name: str) -> None:
        self._backend = backend
        self._name = name
        self._tickets: dict[Call, Ticket] = {}
        self._num_operations = 0

    @property
    def has_work(self) -> bool:
        """Whether the backend has something to do on this thread."""
        return self._backend.has_work

    @property
    def num_pending(self) -> int:
        """Operations without an answer."""
        return self._backend.num_pending

    def submit(self, call: Call) -> None:
        """Hands an operation to the backend."""
        message = call.message
        if not isinstance(message, VectorCall):
            raise FailedPrecondition(
                f"{self._name} holds vectors, it is no model", metadata={"model": self._name, "kind": "vectors"}
            )
        call_id = message.call_id

        def deliver(result: Result | VortaError) -> None:
            self._tickets.pop(call, None)
            if isinstance(result, VortaError):
                call.reply(VectorReply(call_id=call_id, failure=Failure.of(result)))
            else:
                call.reply(VectorReply(call_id=call_id, result=result))

        ticket = Ticket(message.operation, deliver, deadline_s=message.deadline_s)
        self._tickets[call] = ticket
        self._num_operations += 1
        self._backend.submit(ticket)

    def cancel(self, call: Call) -> None:
        """Marks an operation as one that nobody waits for."""
        ticket = self._tickets.pop(call, None)
        if ticket is not None:
            ticket.is_abandoned = True

    def step(self) -> None:
        """Lets the backend work."""
        self._backend.step()

    def stats(self) -> Stats:
        """Operations under way."""
        num_pending = self._backend.num_pending
        return Stats(running=num_pending, waiting=0, step_count=self._num_operations, rss_bytes=rss_bytes())

    def close(self) -> None:
        """Closes the backend."""
        self._backend.close()


def build_vectors(config: VectorConfig, *, wake: Callable[[], None]) -> tuple[VectorService, ModelCard]:
    """Opens the backend.

    Args:
        wake: Makes the worker's thread look at `has_work`. Thread-safe.

    Raises:
        FailedPrecondition: The data folder is another process's (STORE_LOCKED) or damaged (STORE_CORRUPT), or the URL
            is none (SETTINGS_INVALID).
    """
    if config.backend == "faiss":
        backend: VectorBackend = _open_faiss(config, "vectors", wake)
        name = "FAISS"
    else:
        from vorta_server.vectors.weaviate_backend import WeaviateBackend
        from vorta_server.vectors.weaviate_config import parse_weaviate_url

        backend = WeaviateBackend(parse_weaviate_url(config.backend, api_key=config.api_key))
        name = "Weaviate"
        if config.hot:
            from vorta_server.vectors.tiered_backend import TieredBackend, TieredConfig

            # Copies, not the truth: in a folder of their own, beside what a FAISS backend would have.
            hot = _open_faiss(config, "vectors-hot", wake)
            backend = TieredBackend(backend, hot, TieredConfig(hot=config.hot), wake=wake)
            name = "Weaviate and FAISS"
    card = ModelCard(model=name, kind="vectors", architecture=name, precision="fp32", device="cpu")
    return VectorService(backend, name=name), card


def _open_faiss(config: VectorConfig, folder: str, wake: Callable[[], None]) -> VectorBackend:
    from vorta_server.vectors.faiss_backend import FaissBackend
    from vorta_server.vectors.faiss_config import FaissConfig

    return FaissBackend(
        Path(config.data_dir) / folder,
        FaissConfig(
            device=config.device,
            num_search_threads=config.search_threads,
            num_build_threads=config.build_threads,
            cache_bytes=config.cache_bytes,
            max_payload_bytes=config.max_payload_bytes,
        ),
        wake=wake,
    )
