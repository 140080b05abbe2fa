"""Joules that the card took: its own counter through NVML, or the power that nvidia-smi reads, summed up."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

__all__ = ["Energy", "energy_counter", "measure_energy"]

_SAMPLE_MS = 50
_SMI = ["nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits", "-i", "0", "-lms", str(_SAMPLE_MS)]


@dataclass(slots=True)
class Energy:
    """Of one window.

    Attributes:
        joules: None where nothing could measure it.
        source: "nvml counter", "nvidia-smi power" or "none".
        seconds: Of the window.
    """

    joules: float | None = None
    source: str = "none"
    seconds: float = 0.0

    def per_joule(self, count: float) -> float | None:
        """What each joule gave; None where joules are not known."""
        return count / self.joules if self.joules else None


def energy_counter() -> Callable[[], float] | None:
    """Reads the first card's counter, in joules since the driver was loaded; None where NVML has none.

    NVML counts all cards of the host, whatever CUDA_VISIBLE_DEVICES says: the first is the right one only alone.
    """
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    handle = ctypes.c_void_p()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)):
        return None
    millijoules = ctypes.c_ulonglong()

    def read() -> float:
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
        return millijoules.value / 1e3

    return None if nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)) else read


@contextmanager
def measure_energy(device: str) -> Iterator[Energy]:
    """Measures what its body takes; the result is complete when the body has ended. The body synchronises."""
    energy = Energy()
    finish = _begin(device)
    begin_s = time.perf_counter()
    try:
        yield energy
    finally:
        energy.seconds = time.perf_counter() - begin_s
        energy.joules, energy.source = finish(energy.seconds)


_Finish = Callable[[float], tuple[float | None, str]]


def _begin(device: str) -> _Finish:
    counter = energy_counter() if device == "cuda" else None
    if counter is not None:
        before = counter()
        return lambda seconds: (counter() - before, "nvml counter")
    if device != "cuda" or shutil.which("nvidia-smi") is None:
        return lambda seconds: (None, "none")
    sampler = subprocess.Popen(_SMI, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def finish(seconds: float) -> tuple[float | None, str]:
        sampler.terminate()
        output, _ = sampler.communicate()
        watts = []
        for line in output.splitlines():
            with suppress(ValueError):
                watts.append(float(line))
        return (sum(watts) / len(watts) * seconds, "nvidia-smi power") if watts else (None, "none")

    return finish
