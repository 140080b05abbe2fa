"""Where steps run: decode steps as CUDA graphs, others as they come. A step costs the host one transfer and, as a
graph, one launch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vorta_server.runners.cuda.device import Device
from vorta_server.runners.cuda.model import DecoderModel, StepOutput
from vorta_server.runners.cuda.step import DeviceStep, StepLayout

__all__ = ["Executor", "LaunchedStep"]

_WARM_UPS = 2
"""Runs before a capture: kernels are compiled and workspaces allocated in them."""


@dataclass(slots=True, kw_only=True)
class LaunchedStep:
    """A step on its way.

    Attributes:
        wait: Blocks until it has run; returns the seconds that it took on the device.
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
        self._graphs: dict[StepLayout, Callable[[], StepOutput]] = {}

    @property
    def graph_keys(self) -> list[StepLayout]:
        """The layouts that have a graph, in the order of their capture."""
        return list(self._graphs)

    def words(self, layout: StepLayout) -> torch.Tensor:
        """Host memory for a step, int32 [layout.num_words], to be filled and launched once."""
        return self._device.host(layout.num_words)

    def run(self, function: Callable[[], None]) -> None:
        """Does something between two steps, in their order."""
        with self._device.stream():
            function()

    def launch(
        self, layout: StepLayout, words: torch.Tensor, on_host: NDArray[np.int64], *, place: int = 0
    ) -> LaunchedStep:
        """Starts a step.

        Args:
            words: From `words`, filled.
            on_host: int64, the outputs whose logits the host wants.
            place: Where the step's tokens are put among those that the next step is fed from. Not 0 only for a step
                with prefill chunks: a graph knows one place.
        """
        with self._device.stream():
            start = self._device.mark()
            self._words[: layout.num_words].copy_(words, non_blocking=True)
            is_graph = self._use_graphs and not layout.num_prefills
            output = self._replay(layout) if is_graph else self._compute(layout, place)
            wanted = torch.from_numpy(on_host).to(output.logits.device)
            # Copies of what a graph's next run overwrites.
            leaving = [output.token_ids.clone(), output.logits[wanted], output.logits[layout.num_outputs :]]
            end = self._device.mark()
        (token_ids, host_logits, scored_logits), wait = self._device.fetch(leaving, start, end)
        return LaunchedStep(
            wait=wait,
            token_ids=token_ids.numpy(),
            host_logits=host_logits.numpy(),
            scored_logits=scored_logits.numpy(),
        )

    def close(self) -> None:
        """Waits for what runs, and drops the graphs. Idempotent."""
        self._device.close()
        self._graphs.clear()

    def _compute(self, layout: StepLayout, place: int = 0) -> StepOutput:
        step = DeviceStep.of(layout, self._words)
        output = self._model.forward(step, self._last_token_ids)
        self._last_token_ids[place : place + layout.num_outputs] = output.token_ids
        return output

    def _replay(self, layout: StepLayout) -> StepOutput:
        graph = self._graphs.get(layout)
        if graph is None:
            graph = self._graphs[layout] = self._capture(layout)
        return graph()

    def _capture(self, layout: StepLayout) -> Callable[[], StepOutput]:
        """Captures a layout's step. What runs meanwhile writes K and V that the step itself writes again; all else that
        it changes is put back."""
        changed = [self._last_token_ids, *self._model.accumulators(layout)]
        kept = [tensor.clone() for tensor in changed]
        for _ in range(_WARM_UPS):
            self._compute(layout)
        graph = self._device.capture(lambda: self._compute(layout))
        for tensor, content in zip(changed, kept, strict=True):
            tensor.copy_(content)
        return graph
