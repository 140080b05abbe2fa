"""The front's way to the vector worker."""

from __future__ import annotations

from typing import TypeVar

from vorta.errors import FailedPrecondition, Internal, Unavailable
from vorta_server.front.call import CallContext
from vorta_server.front.deadline import unary_deadline
from vorta_server.registry.model import ModelEntry, ModelState
from vorta_server.vectors.operation import CollectionInfo, GetCollection, Operation, Result

__all__ = ["VectorStore"]

R = TypeVar("R")


class VectorStore:
    """Asks the vector worker.

    Args:
        entry: The worker as its supervisor knows it; None for a server without one.
    """

    def __init__(self, entry: ModelEntry | None) -> None:
        self._entry = entry

    async def ask(self, operation: Operation, result_type: type[R], call: CallContext) -> R:
        """The result of an operation.

        Raises:
            FailedPrecondition: The server has no vector store (VECTORS_DISABLED), or its data is damaged.
            Unavailable: The worker is starting, or died.
            VortaError: What the backend refuses.
        """
        entry = self._entry
        if entry is None:
            raise FailedPrecondition(
                'the server runs without a vector store: its setting vector.backend is "none"',
                reason="VECTORS_DISABLED",
            )
        channel = entry.channel
        if entry.state is not ModelState.SERVING or channel is None or not channel.is_open:
            state = entry.state.name if entry.state is not ModelState.SERVING else ModelState.LOADING.name
            detail = f": {entry.error}" if entry.error else ""
            raise Unavailable(f"the vector store is {state}{detail}", metadata={"state": state}, retry_delay_s=1.0)
        result: Result
        if call.deadline_s is None:
            result = await channel.vector(operation)
        else:
            async with unary_deadline(call):
                result = await channel.vector(operation, deadline_s=call.deadline_s)
        if not isinstance(result, result_type):
            raise Internal(f"the vector worker answered with {type(result).__name__}")
        return result

    async def collection(self, name: str, call: CallContext) -> CollectionInfo:
        """A collection, by its name or an alias."""
        return await self.ask(GetCollection(collection=name), CollectionInfo, call)
