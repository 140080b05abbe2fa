"""Where steps run: decode steps as CUDA graphs, others as they come.

A decode step costs the host one transfer, one launch up to its logits, and those of sampling, which is not captured:
its shapes are as many as there are sets of parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vorta_server.runners.cuda.device import Device
from vorta_server.runners.cuda.model import DecoderModel
from vorta_server.runners.cuda.step import DeviceStep, StepLayout

__all__ = ["Executor", "LaunchedStep"]

_WARM_UPS = 2
"""Runs before a capture: kernels are compiled and workspaces allocated in them."""


@dataclass(slots=True, kw_only=True)
class LaunchedStep:
    """A step on its way.

    Attributes:
        wait: Blocks until it has run; returns the seconds that it took on the device, 0 where they say nothing.
        token_ids: int32 [num_outputs], valid after `wait`.
        host_logits, scored_logits: float32, valid after `wait`: of the outputs asked for, and of the scored positions.
    """

    wait: Callable[[], float]
    token_ids: NDArray[np.int32]
    host_logits: NDArray[np.float32]
    scored_logits: NDArray[np.float32]


class Executor:
    """Runs a model's steps in the order of the calls.

    Args:
        where: Torch's name for the device.
        max_words: int32 words of the largest step.
        max_outputs: Outputs of the largest step.
        use_graphs: Capture decode steps.
    """

    def __init__(
        self,
        model: DecoderModel,
        device: Device,
        where: torch.device,
        *,
        max_words: int,
        max_outputs: int,
        use_graphs: bool,
    ) -> None:
        self._model = model
        self._device = device
        self._use_graphs = use_graphs
        # Graphs find their input here.
        self._words = torch.zeros(max_words, dtype=torch.int32, device=where)
        self._last_token_ids = torch.zeros(max_outputs, dtype=torch.int32, device=where)
        self._graphs: dict[StepLayout, Callable[[], torch.Tensor]] = {}

    @property
    def graph_keys(self) -> list[StepLayout]:
        """The layouts that have a graph, in the order of their capture."""
        return list(self._graphs)

    def words(self, layout: StepLayout) -> torch.Tensor:
        """Host memory for a step, int32 [layout.num_words], to be filled and launched once."""
        return self._device.host(layout.num_words)

    def run(self, function: Callable[[Device], None]) -> None:
        """Does something between two steps, in their order."""
        with self._device.stream():
            function(self._device)

    def launch(
        self, layout: StepLayout, words: torch.Tensor, on_host: NDArray[np.int64], *, place: int = 0
    ) -> LaunchedStep:
        """Starts a step.

        Args:
            words: From `words`, filled.
            on_host: int64, the outputs whose logits the host wants.
            place: Where the step's tokens are put among those that the next step is fed from.
        """
        with self._device.stream():
            start = self._device.mark()
            self._words[: layout.num_words].copy_(words, non_blocking=True)
            is_first = False
            if self._use_graphs and not layout.num_prefills:
                is_first = layout.of_logits not in self._graphs
                logits = self._replay(layout.of_logits)
            else:
                logits = self._logits(layout)
            token_ids = self._model.choose(DeviceStep.of(layout, self._words), logits)
            self._last_token_ids[place : place + layout.num_outputs] = token_ids
            # Copies of what a graph's next run overwrites.
            wanted = (logits[self._device.send(on_host)] if len(on_host) else logits[:0]).float()
            leaving = [token_ids, wanted, logits[layout.num_outputs :].float()]
            end = self._device.mark()
        (chosen, host_logits, scored_logits), wait = self._device.fetch(leaving, start, end)
        return LaunchedStep(
            # A capture takes a thousand steps' time, which says nothing of the next one.
            wait=(lambda: 0 * wait()) if is_first else wait,
            token_ids=chosen.numpy(),
            host_logits=host_logits.numpy(),
            scored_logits=scored_logits.numpy(),
        )

    def close(self) -> None:
        """Waits for what runs, and drops the graphs. Idempotent."""
        self._device.close()
        self._graphs.clear()

    def _logits(self, layout: StepLayout) -> torch.Tensor:
        return self._model.forward(DeviceStep.of(layout, self._words), self._last_token_ids)

    def _replay(self, layout: StepLayout) -> torch.Tensor:
        graph = self._graphs.get(layout)
        if graph is None:
            for _ in range(_WARM_UPS):  # they write K and V that the step itself writes again
                self._logits(layout)
            graph = self._graphs[layout] = self._device.capture(lambda: self._logits(layout))
        return graph()
