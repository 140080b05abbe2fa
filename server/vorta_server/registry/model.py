"""A model that the server knows, and where it is in its life."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from vorta_server.workers.channel import WorkerChannel
from vorta_server.workers.protocol import ModelCard, Stats

__all__ = ["ModelEntry", "ModelState"]


class ModelState(IntEnum):
    """Where a model is in its life. Values equal `vorta.v1.ModelState`."""

    UNLOADED = 1
    LOADING = 2
    SERVING = 3
    DRAINING = 4
    FAILED = 5


@dataclass(slots=True, kw_only=True)
class ModelEntry:
    """One known model. Only its supervisor changes it, through `ModelRegistry.update`.

    Attributes:
        model: Its id.
        source: Artifact folder, checkpoint folder or hub id.
        precision: Asked for; the card has the real one.
        kind: "generation", "embedding" or "rerank"; empty while nobody knows.
        max_model_len: Asked for; None for the model's own.
        state: Where it is in its life.
        error: Why it is FAILED, or why it last had to restart.
        card: What the worker said of itself; None until it first served.
        channel: To the worker; None unless SERVING or DRAINING.
        stats: The worker's last report.
        is_stalled: Whether the worker has made no step for too long although requests run.
        load_time_s: `time.time()` when it last began to serve; None before.
        restart_count: Starts of its worker after the first.
        worker_pid: Process id of its worker; 0 without one.
    """

    model: str
    source: str
    precision: str
    kind: str = ""
    max_model_len: int | None = None
    state: ModelState = ModelState.UNLOADED
    error: str = ""
    card: ModelCard | None = None
    channel: WorkerChannel | None = field(default=None, repr=False)
    stats: Stats | None = None
    is_stalled: bool = False
    load_time_s: float | None = None
    restart_count: int = 0
    worker_pid: int = 0

    @property
    def is_serving(self) -> bool:
        """Whether it answers requests now."""
        return self.state is ModelState.SERVING and not self.is_stalled
