"""Texts to vectors by a serving model, for every service that needs them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from vorta_server.front.call import CallContext
from vorta_server.registry.registry import ModelRegistry, ServingModel
from vorta_server.workers.protocol import DOCUMENT_PROMPTS, QUERY_PROMPTS, Embed

__all__ = ["Embedder", "floats", "packed"]


def packed(values: Sequence[float]) -> bytes:
    """The numbers as float32, little-endian."""
    return array("f", values).tobytes()


def floats(data: bytes) -> array[float]:
    """The numbers of float32, little-endian, bytes."""
    values = array("f")
    values.frombytes(data)
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedder:
    """Embeds what a search or a point gives as text.

    Attributes:
        registry: Finds models.
    """

    registry: ModelRegistry

    def target(self, model: str) -> ServingModel:
        """The embedding model of this id, or the default one. Raises as `ModelRegistry.resolve`."""
        return self.registry.resolve(model, "embedding")

    async def queries(self, texts: list[str], *, model: str, call: CallContext) -> bytes:
        """The vectors of search texts, float32 [texts, dimension]; long ones are cut."""
        return await self._embed(texts, model, QUERY_PROMPTS, call)

    async def documents(self, texts: list[str], *, model: str, call: CallContext) -> bytes:
        """The vectors of texts to be found, float32 [texts, dimension]; long ones are cut."""
        return await self._embed(texts, model, DOCUMENT_PROMPTS, call)

    async def _embed(self, texts: list[str], model: str, prompt_names: Sequence[str], call: CallContext) -> bytes:
        target = self.target(model)
        prompt = next((name for name in prompt_names if name in target.card.prompt_names), "")
        message = Embed(call_id=0, texts=texts, prompt_name=prompt, truncate="right", deadline_s=call.deadline_s)
        reply = await target.channel.embed(message)
        return reply.vectors
