"""ONNX Runtime's execution providers: which are asked for, which there are, and with what options they start.

The names are cpu, cuda and tensorrt, or ONNX Runtime's own (CUDAExecutionProvider, …). They are an order of
preference: a node goes to the first provider that has a kernel for it. The cpu stands behind all others, for the few
nodes that work on shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vorta.errors import FailedPrecondition

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["CPU", "Profile", "ProviderChoice", "check_started", "choose_providers", "parse_providers"]

CPU = ("cpu",)

_NAMES = {"tensorrt": "TensorrtExecutionProvider", "cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
_SHORT = {name.lower(): short for short, name in _NAMES.items()} | {short: short for short in _NAMES}
_PACKAGES = {"cuda": "onnxruntime-gpu", "tensorrt": "onnxruntime-gpu and TensorRT", "cpu": "onnxruntime"}

Profile = Mapping[str, tuple[Sequence[int], Sequence[int], Sequence[int]]]
"""The smallest, usual and largest shape of every input, by its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderChoice:
    """Providers that a session starts with.

    Attributes:
        names: Short names by preference; the cpu's is the last.
        cache_dir: Where TensorRT's provider keeps engines, which are slow to build; None for nowhere.
        precision: The artifact's.
        overrides: Sizes of free dimensions of the graph that are the same in every run, by the dimension's name.
        profile: Shapes that TensorRT builds an engine for; without one it builds anew for each that is new.
    """

    names: tuple[str, ...] = CPU
    cache_dir: Path | None = None
    precision: str = "fp32"
    overrides: Mapping[str, int] = field(default_factory=dict)
    profile: Profile = field(default_factory=dict)

    @property
    def device(self) -> str:
        """Where the first provider computes, as ONNX Runtime calls it: "cpu" or "cuda"."""
        return "cpu" if self.names[0] == "cpu" else "cuda"

    def for_session(self) -> list[tuple[str, dict[str, str]]]:
        """What a session takes: names of ONNX Runtime's, and options."""
        return [(_NAMES[name], self._options(name)) for name in self.names]

    def _options(self, name: str) -> dict[str, str]:
        if name == "cuda":
            # Memory grows by what is asked for: doubling would take what the KV cache needs.
            return {"device_id": "0", "arena_extend_strategy": "kSameAsRequested"}
        if name == "tensorrt":
            return self._tensorrt_options()
        return {}

    def _tensorrt_options(self) -> dict[str, str]:
        options = {"device_id": "0"}
        if self.precision in ("fp16", "int8", "int4"):
            options["trt_fp16_enable"] = "1"
        elif self.precision == "bf16":
            options["trt_bf16_enable"] = "1"
        if self.cache_dir is not None:
            for kind in ("engine", "timing"):
                options[f"trt_{kind}_cache_enable"] = "1"
                options[f"trt_{kind}_cache_path"] = str(self.cache_dir)
        for index, part in enumerate(("min", "opt", "max")):
            if self.profile:
                shapes = (f"{name}:{_shape(sizes[index])}" for name, sizes in self.profile.items())
                options[f"trt_profile_{part}_shapes"] = ",".join(shapes)
        return options


def parse_providers(text: str) -> tuple[str, ...]:
    """Short names from a list separated by commas, with the cpu's at the end, and behind TensorRT's cuda's, which has
    the nodes that TensorRT leaves and copies KV slots.

    Raises FailedPrecondition naming `providers` for a name that is none, or an empty list.
    """
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in wanted if part.lower() not in _SHORT]
    if unknown or not wanted:
        raise _error(f"{unknown[0]!r} is no provider" if unknown else "no provider is named", "SETTINGS_INVALID")
    names = [_SHORT[part.lower()] for part in wanted]
    if "tensorrt" in names and "cuda" not in names:
        names.insert(names.index("tensorrt") + 1, "cuda")
    return (*(name for name in dict.fromkeys(names) if name != "cpu"), "cpu")


def choose_providers(names: Sequence[str]) -> tuple[str, ...]:
    """The names, when ONNX Runtime has all of them.

    Raises FailedPrecondition naming `providers` (DEVICE_MISSING) for one that the installed ONNX Runtime lacks.
    """
    import onnxruntime as ort  # here, so that names can be read without it

    available = ort.get_available_providers()
    for name in names:
        if _NAMES[name] not in available:
            raise _error(
                f"ONNX Runtime {ort.__version__} has no provider {name} ({_NAMES[name]}); it has "
                f"{', '.join(available)}. {name} comes with {_PACKAGES[name]}",
                "DEVICE_MISSING",
            )
    return tuple(names)


def check_started(session: ort.InferenceSession, names: Sequence[str]) -> None:
    """Refuses a session whose provider did not start: ONNX Runtime goes on without it and says so in its log alone.

    Raises FailedPrecondition naming `providers` (DEVICE_MISSING).
    """
    started = session.get_providers()
    for name in names:
        if _NAMES[name] not in started:
            raise _error(
                f"ONNX Runtime's provider {name} did not start; a library or a device that it needs is missing",
                "DEVICE_MISSING",
            )


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _error(message: str, reason: str) -> FailedPrecondition:
    return FailedPrecondition(f"{message}; providers are {', '.join(_NAMES)}", reason=reason, field="providers")
