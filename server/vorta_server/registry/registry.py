"""Known models by id, and who is told when one changes. Loop thread only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vorta.errors import InvalidArgument, NotFound, Unavailable
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
        default_model: Id for requests that name none; empty for no such model.
    """

    def __init__(self, *, default_model: str = "") -> None:
        self._entries: dict[str, ModelEntry] = {}
        self._listeners: list[ModelListener] = []
        self.default_model = default_model

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
            raise _not_found(model)
        return entry

    def update(self, entry: ModelEntry, **changes: Any) -> None:
        """Changes a model and tells the listeners."""
        for name, value in changes.items():
            setattr(entry, name, value)
        self._notify(entry)

    def resolve(self, model: str) -> ServingModel:
        """The model that a request means, ready to take it; empty means the default.

        Raises:
            NotFound: It is unknown (MODEL_NOT_FOUND).
            Unavailable: It is not serving (MODEL_NOT_READY).
        """
        model = model or self.default_model
        entry = self._entries.get(model)
        if entry is None:
            raise _not_found(model)
        channel, card = entry.channel, entry.card
        if entry.state is not ModelState.SERVING or channel is None or card is None or not channel.is_open:
            state = entry.state.name if entry.state is not ModelState.SERVING else ModelState.LOADING.name
            detail = f": {entry.error}" if entry.state is ModelState.FAILED and entry.error else ""
            raise Unavailable(
                f"model {model} is {state}{detail}",
                metadata={"model": model, "state": state},
                retry_delay_s=_NOT_READY_RETRY_DELAY_S,
            )
        return ServingModel(card, channel)

    def _notify(self, entry: ModelEntry) -> None:
        for listener in self._listeners:
            listener(entry)


def _not_found(model: str) -> NotFound:
    message = f"no model {model!r} is known" if model else "the request names no model and there is no default"
    return NotFound(message, metadata={"model": model})
