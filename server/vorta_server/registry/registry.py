"""Known models by id, and who is told when one changes. Loop thread only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vorta.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from vorta_server.registry.model import ModelEntry, ModelState
from vorta_server.workers.channel import WorkerChannel
from vorta_server.workers.protocol import ModelCard

__all__ = ["ModelListener", "ModelRegistry", "ServingModel"]

ModelListener = Callable[[ModelEntry], None]

_NOT_READY_RETRY_DELAY_S = 1.0


class ServingModel:
    """A model that can take a request now."""

    __slots__ = ("card", "channel")

    def __init__(self, card: ModelCard, channel: WorkerChannel) -> None:
        self.card = card
        self.channel = channel


class ModelRegistry:
    """The known models.

    Args:
        default_models: Ids by kind ("generation", "embedding", "rerank") for requests that name none. A kind that is
            not among them has the model that became known first.
    """

    def __init__(self, *, default_models: Mapping[str, str] | None = None) -> None:
        self._entries: dict[str, ModelEntry] = {}
        self._listeners: list[ModelListener] = []
        self._default_models = dict(default_models or {})

    @property
    def entries(self) -> list[ModelEntry]:
        """All models, by id."""
        return [self._entries[model] for model in sorted(self._entries)]

    def listen(self, listener: ModelListener) -> None:
        """Has `listener` called after every change of a model's state."""
        self._listeners.append(listener)

    def add(self, entry: ModelEntry) -> None:
        """Makes a model known. Raises ValueError when its id is taken."""
        if entry.model in self._entries:
            raise ValueError(f"model {entry.model} is known already")
        self._entries[entry.model] = entry
        self._notify(entry)

    def find(self, model: str) -> ModelEntry | None:
        """The model of this id, or None."""
        return self._entries.get(model)

    def get(self, model: str) -> ModelEntry:
        """The model of this id. Raises InvalidArgument for an empty one, NotFound for an unknown one."""
        if not model:
            raise InvalidArgument("model is required", reason="MISSING_FIELD", field="model")
        entry = self._entries.get(model)
        if entry is None:
            raise NotFound(f"no model {model!r} is known", metadata={"model": model})
        return entry

    def update(self, entry: ModelEntry, **changes: Any) -> None:
        """Changes a model and tells the listeners."""
        for name, value in changes.items():
            setattr(entry, name, value)
        self._notify(entry)

    def default_model(self, kind: str) -> str:
        """The model for requests of this kind that name none; empty for no such model.

        Documents are ranked by an embedding model where there is no reranker.
        """
        named = self._default_models.get(kind)
        if named:
            return named
        found = next((model for model, entry in self._entries.items() if entry.kind == kind), "")
        if not found and kind == "rerank":
            return self.default_model("embedding")
        return found

    def resolve(self, model: str, kind: str) -> ServingModel:
        """The model that a request means, ready to take it; empty means the default of its kind.

        Raises:
            NotFound: It is unknown (MODEL_NOT_FOUND).
            Unavailable: It is not serving (MODEL_NOT_READY).
            FailedPrecondition: It is of another kind (MODEL_KIND_MISMATCH).
        """
        model = model or self.default_model(kind)
        entry = self._entries.get(model)
        if entry is None:
            raise _not_found(model, kind)
        channel, card = entry.channel, entry.card
        if entry.state is not ModelState.SERVING or channel is None or card is None or not channel.is_open:
            state = entry.state.name if entry.state is not ModelState.SERVING else ModelState.LOADING.name
            detail = f": {entry.error}" if entry.state is ModelState.FAILED and entry.error else ""
            raise Unavailable(
                f"model {model} is {state}{detail}",
                metadata={"model": model, "state": state},
                retry_delay_s=_NOT_READY_RETRY_DELAY_S,
            )
        if card.kind != kind and not (kind == "rerank" and card.kind == "embedding"):
            raise FailedPrecondition(
                f"model {card.model} is for {card.kind}, not for {kind}",
                metadata={"model": card.model, "kind": card.kind},
            )
        return ServingModel(card, channel)

    def _notify(self, entry: ModelEntry) -> None:
        for listener in self._listeners:
            listener(entry)


def _not_found(model: str, kind: str) -> NotFound:
    if model:
        message = f"no model {model!r} is known"
    else:
        message = f"the request names no model and there is no default for {kind}"
    return NotFound(message, metadata={"model": model})
