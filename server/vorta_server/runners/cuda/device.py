"""What a device does for the executor: streams, transfers, graphs. A CPU stands in for a GPU where there is none, and
treats a graph's memory as a GPU does, so that what depends on it can be tested."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from numpy.typing import NDArray

__all__ = ["CpuDevice", "CudaDevice", "Device", "device_for"]


class Device(Protocol):
    """Work is done in the order of the calls, on one stream."""

    def host(self, size: int) -> torch.Tensor:
        """Host memory for `size` int32, from which transfers need not be waited for."""
        ...

    def stream(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, torch's work goes to the device's stream."""
        ...

    def mark(self) -> Any:
        """A point in the stream, with its time."""
        ...

    def fetch(
        self, tensors: Sequence[torch.Tensor], start: Any, end: Any
    ) -> tuple[list[torch.Tensor], Callable[[], float]]:
        """Copies tensors to the host beside the stream, once it has passed `end`.

        Returns the host's tensors, and what waits for them and returns the seconds between the marks `start` and `end`.
        """
        ...

    def send(self, array: NDArray[Any]) -> torch.Tensor:
        """An array on the device, without a wait for it."""
        ...

    def capture(self, function: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Records what a function does to the device. The recording does it again, with the same memory: its result is
        overwritten by the next call."""
        ...

    def close(self) -> None:
        """Waits for the stream."""
        ...


def device_for(device: torch.device) -> Device:
    """The device behind torch's name for it."""
    return CudaDevice(device) if device.type == "cuda" else CpuDevice()


class CpuDevice:
    """A processor: everything is done at once."""

    def host(self, size: int) -> torch.Tensor:
        """Plain memory."""
        return torch.empty(size, dtype=torch.int32)

    def stream(self) -> contextlib.AbstractContextManager[Any]:
        """Nothing."""
        return contextlib.nullcontext()

    def mark(self) -> None:
        """Nothing: times on a processor say nothing of a GPU."""

    def fetch(
        self, tensors: Sequence[torch.Tensor], start: None, end: None
    ) -> tuple[list[torch.Tensor], Callable[[], float]]:
        """Copies at once; 0 seconds."""
        del start, end
        return [tensor.clone() for tensor in tensors], lambda: 0.0

    def send(self, array: NDArray[Any]) -> torch.Tensor:
        """A copy."""
        return torch.from_numpy(array).clone()

    def capture(self, function: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Keeps the result's tensor and writes into it."""
        output = function()
        return lambda: output.copy_(function())

    def close(self) -> None:
        """Nothing."""


class CudaDevice:
    """A GPU, with a stream for the work and one for copies to the host. Graphs share one pool of memory: they never run
    at the same time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._copies = torch.cuda.Stream(device)
        self._pool: Any = None

    def host(self, size: int) -> torch.Tensor:
        """Pinned memory, which torch's allocator gives out again only when the transfers from it are over."""
        return torch.empty(size, dtype=torch.int32, pin_memory=True)

    def stream(self) -> contextlib.AbstractContextManager[Any]:
        """The stream for the work."""
        context: contextlib.AbstractContextManager[Any] = torch.cuda.stream(self._stream)
        return context

    def mark(self) -> Any:
        """A timed event."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event

    def fetch(
        self, tensors: Sequence[torch.Tensor], start: Any, end: Any
    ) -> tuple[list[torch.Tensor], Callable[[], float]]:
        """Copies on the second stream, so that the next step's work does not wait for it."""
        landed = torch.cuda.Event()
        copies = []
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(end)
            for tensor in tensors:
                copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                copy.copy_(tensor, non_blocking=True)
                tensor.record_stream(self._copies)
                copies.append(copy)
            landed.record(self._copies)

        def wait() -> float:
            landed.synchronize()
            elapsed_ms: float = start.elapsed_time(end)
            return elapsed_ms / 1000

        return copies, wait

    def send(self, array: NDArray[Any]) -> torch.Tensor:
        """Through pinned memory."""
        return torch.from_numpy(array).pin_memory().to(self._device, non_blocking=True)

    def capture(self, function: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """A CUDA graph."""
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # What the collector would free meanwhile records events on the stream that is captured.
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                output = function()
        finally:
            if was_enabled:
                gc.enable()
        self._pool = self._pool or graph.pool()

        def replay() -> torch.Tensor:
            graph.replay()
            return output

        return replay

    def close(self) -> None:
        """Waits for the GPU."""
        torch.cuda.synchronize(self._device)
