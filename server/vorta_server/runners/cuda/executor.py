"""Where steps run: on a CPU at once, on a GPU on a stream of their own, decode steps as CUDA graphs.

A GPU step costs the host one transfer and one graph launch. Host memory is pinned, and torch's allocator gives it out
again only when the transfers from and to it are over, so a step may be written while the last one's is on its way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

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
        max_words: int32 words of the largest step.
        max_outputs: Outputs of the largest step.
        use_graphs: Capture decode steps; a CPU has no graphs, and then this only decides what `graph_keys` says.
    """

    def __init__(
        self, model: DecoderModel, device: torch.device, *, max_words: int, max_outputs: int, use_graphs: bool
    ) -> None:
        self._model = model
        self._device = device
        self._is_gpu = device.type == "cuda"
        self._use_graphs = use_graphs
        self._device_words = torch.zeros(max_words, dtype=torch.int32, device=device)
        self._last_token_ids = torch.zeros(max_outputs, dtype=torch.int32, device=device)
        # None where there are no graphs: on a CPU.
        self._graphs: dict[StepLayout, tuple[Any, StepOutput] | None] = {}
        self._pool: Any = None
        self._stream: Any = torch.cuda.Stream(device) if self._is_gpu else None
        self._copy_stream: Any = torch.cuda.Stream(device) if self._is_gpu else None

    @property
    def graph_keys(self) -> list[StepLayout]:
        """The layouts that have a graph, in the order of their capture."""
        return list(self._graphs)

    def words(self, layout: StepLayout) -> torch.Tensor:
        """Host memory for a step, int32 [layout.num_words], to be filled and launched once."""
        return torch.empty(layout.num_words, dtype=torch.int32, pin_memory=self._is_gpu)

    def run(self, function: Callable[[], None]) -> None:
        """Does something between two steps, in their order."""
        if not self._is_gpu:
            function()
            return
        with torch.cuda.stream(self._stream):
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
        if self._is_gpu:
            return self._launch_on_gpu(layout, words, on_host, place)
        self._device_words[: layout.num_words] = words
        if self._is_captured(layout):
            self._graphs.setdefault(layout, None)
        output = self._compute(layout, place)
        return LaunchedStep(
            wait=lambda: 0.0,
            token_ids=output.token_ids.numpy().copy(),
            host_logits=output.logits[torch.from_numpy(on_host)].numpy(),
            scored_logits=output.logits[layout.num_outputs :].numpy(),
        )

    def close(self) -> None:
        """Waits for what runs, and drops the graphs. Idempotent."""
        if self._is_gpu:
            torch.cuda.synchronize(self._device)
        self._graphs.clear()
        self._pool = None

    def _is_captured(self, layout: StepLayout) -> bool:
        return self._use_graphs and not layout.num_prefills

    def _compute(self, layout: StepLayout, place: int = 0) -> StepOutput:
        step = DeviceStep.of(layout, self._device_words)
        output = self._model.forward(step, self._last_token_ids)
        self._last_token_ids[place : place + layout.num_outputs] = output.token_ids
        return output

    def _launch_on_gpu(
        self, layout: StepLayout, words: torch.Tensor, on_host: NDArray[np.int64], place: int
    ) -> LaunchedStep:
        begin, end, landed = (torch.cuda.Event(enable_timing=timed) for timed in (True, True, False))
        with torch.cuda.stream(self._stream):
            begin.record()
            self._device_words[: layout.num_words].copy_(words, non_blocking=True)
            output = self._replay(layout) if self._is_captured(layout) else self._compute(layout, place)
            # A graph's output is overwritten by the next replay, so what leaves the device is taken now.
            token_ids = output.token_ids.clone()
            wanted = output.logits[torch.from_numpy(on_host).to(self._device)] if len(on_host) else None
            scored = output.logits[layout.num_outputs :] if layout.num_scored else None
            end.record()
        host = torch.empty(layout.num_outputs, dtype=torch.int32, pin_memory=True)
        copies: list[torch.Tensor] = []
        with torch.cuda.stream(self._copy_stream):
            self._copy_stream.wait_event(end)
            host.copy_(token_ids, non_blocking=True)
            for tensor in (wanted, scored):
                copies.append(_empty_like(tensor, self._model.vocab_size))
                if tensor is not None:
                    copies[-1].copy_(tensor, non_blocking=True)
                    tensor.record_stream(self._copy_stream)
            token_ids.record_stream(self._copy_stream)
            landed.record()

        def wait() -> float:
            landed.synchronize()
            elapsed_ms: float = begin.elapsed_time(end)
            return elapsed_ms / 1000

        return LaunchedStep(
            wait=wait, token_ids=host.numpy(), host_logits=copies[0].numpy(), scored_logits=copies[1].numpy()
        )

    def _replay(self, layout: StepLayout) -> StepOutput:
        entry = self._graphs.get(layout)
        if entry is None:
            entry = self._graphs[layout] = self._capture(layout)
        graph, output = entry
        graph.replay()
        return output

    def _capture(self, layout: StepLayout) -> tuple[Any, StepOutput]:
        """Captures a layout's step. The warm-ups write what the step itself writes again; the tokens that they were fed
        from are put back."""
        fed = self._last_token_ids.clone()
        for _ in range(_WARM_UPS):
            self._compute(layout)
            self._last_token_ids.copy_(fed)
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            output = self._compute(layout)
        self._pool = self._pool or graph.pool()
        return graph, output


def _empty_like(tensor: torch.Tensor | None, vocab_size: int) -> torch.Tensor:
    num_rows = 0 if tensor is None else len(tensor)
    return torch.empty((num_rows, vocab_size), dtype=torch.float32, pin_memory=num_rows > 0)
