"""Which TensorRT engines an artifact needs, and the graph of each: one for every phase and batch bucket.

An engine is built for ranges of shapes, its optimisation profile. What has one size alone becomes part of the graph:
TensorRT demands that of a KV cache's capacity, and plans best where nothing varies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import onnx

from vorta.errors import FailedPrecondition
from vorta_server.compiler.artifact import Manifest

__all__ = ["EngineLimits", "EngineSpec", "Range", "Shapes", "plan_engines", "specialise"]

Range = tuple[int, int, int]
"""The smallest, the usual and the largest size of a dimension."""

Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""The smallest, usual and largest shape of an input, by its name."""

_USUAL_TOKENS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """What engines are built for.

    Attributes:
        batch_buckets: Largest batches of engines, ascending: texts of an encoder, rows of a decode step.
        max_tokens: Of a text, or of a prompt's chunk, which is prefilled alone; the model's length if that is less.
        capacity: Places of a sequence in the KV cache; 0 for the model's length.
    """

    batch_buckets: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    max_tokens: int = 512
    capacity: int = 0

    def __post_init__(self) -> None:
        buckets = self.batch_buckets
        if not buckets or buckets[0] < 1 or list(buckets) != sorted(set(buckets)):
            raise ValueError(f"batch_buckets must ascend from at least 1, not {buckets}")
        if self.max_tokens < 1 or self.capacity < 0:
            raise ValueError(
                f"max_tokens ({self.max_tokens}) must be positive, capacity ({self.capacity}) not negative"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One engine.

    Attributes:
        dims: The range of every free dimension of the graph, by its name there.
    """

    phase: Literal["encode", "prefill", "decode"]
    batch: int
    dims: Mapping[str, Range] = field(hash=False)

    @property
    def name(self) -> str:
        """The phase and the largest batch: "decode-8"."""
        return f"{self.phase}-{self.batch}"


def plan_engines(manifest: Manifest, limits: EngineLimits) -> list[EngineSpec]:
    """The engines of an artifact, by ascending batch, a decoder's prefill first.

    Raises FailedPrecondition naming `target` for an artifact that was not compiled for TensorRT.
    """
    if manifest.target != "tensorrt":
        raise FailedPrecondition(
            f"the artifact was compiled for {manifest.target}; compile the checkpoint with --target tensorrt",
            reason="TARGET_MISMATCH",
            field="target",
        )
    longest = min(limits.max_tokens, manifest.max_model_len)
    step = (1, min(longest, _USUAL_TOKENS), longest)
    if manifest.kind != "generation":
        return [
            EngineSpec(phase="encode", batch=batch, dims={"texts": (1, batch, batch), "step": step})
            for batch in limits.batch_buckets
        ]
    capacity = _fixed(limits.capacity or manifest.max_model_len)
    prefill = {"batch": _fixed(1), "step": step, "rows": (1, 1, longest), "capacity": capacity}
    specs = [EngineSpec(phase="prefill", batch=1, dims=prefill)]
    for batch in limits.batch_buckets:
        decode = {"batch": _fixed(batch), "step": _fixed(1), "rows": _fixed(batch), "capacity": capacity}
        specs.append(EngineSpec(phase="decode", batch=batch, dims=decode))
    return specs


def specialise(file: Path, dims: Mapping[str, Range]) -> tuple[bytes, Shapes]:
    """The graph of a file with dimensions of one size written into it, and the shapes of inputs that still vary.

    Weights stay where they are. Raises ValueError for a free dimension without a range.
    """
    model = onnx.load(file, load_external_data=False)
    shapes: Shapes = {}
    for value in [*model.graph.input, *model.graph.output]:
        ranges = [_range(dimension, dims) for dimension in value.type.tensor_type.shape.dim]
        for dimension, (smallest, _, largest) in zip(value.type.tensor_type.shape.dim, ranges, strict=True):
            if smallest == largest:
                dimension.dim_value = smallest
        if _varies(ranges):
            shapes[value.name] = (
                tuple(low for low, _, _ in ranges),
                tuple(usual for _, usual, _ in ranges),
                tuple(high for _, _, high in ranges),
            )
    inputs = {value.name for value in model.graph.input}
    return model.SerializeToString(), {name: shape for name, shape in shapes.items() if name in inputs}


def _fixed(size: int) -> Range:
    return (size, size, size)


def _varies(ranges: Sequence[Range]) -> bool:
    return any(low != high for low, _, high in ranges)


def _range(dimension: onnx.TensorShapeProto.Dimension, dims: Mapping[str, Range]) -> Range:
    if dimension.HasField("dim_value"):
        return _fixed(dimension.dim_value)
    if dimension.dim_param not in dims:
        raise ValueError(f"no range is given for the dimension {dimension.dim_param!r}")
    return dims[dimension.dim_param]
