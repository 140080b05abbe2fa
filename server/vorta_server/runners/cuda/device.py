"""What a device does for the executor: streams, transfers, graphs. A CPU stands in for a GPU where there is none, and
treats a graph's memory as a GPU does, so that what depends on it can be tested."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch

__all__ = ["CpuDevice", "CudaDevice", "Device", "device_for"]

Output = TypeVar("Output", bound=Any)


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

    def capture(self, function: Callable[[], Output]) -> Callable[[], Output]:
        """Records what a function does to the device. The recording does it again, with the same memory: its results, a
        dataclass of tensors, are overwritten by the next call."""
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

    def capture(self, function: Callable[[], Output]) -> Callable[[], Output]:
        """Keeps the results' tensors and writes into them."""
        output = function()

        def replay() -> Output:
            again = function()
            for field in dataclasses.fields(output):
                getattr(output, field.name).copy_(getattr(again, field.name))
            return output

        return replay

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

    def capture(self, function: Callable[[], Output]) -> Callable[[], Output]:
        """A CUDA graph."""
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            output = function()
        self._pool = self._pool or graph.pool()

        def replay() -> Output:
            graph.replay()
            return output

        return replay

    def close(self) -> None:
        """Waits for the GPU."""
        torch.cuda.synchronize(self._device)
