"""A decoder's weights on a device: straight from safetensors, or random; in 16 or 32 bits, float8 or 4 bits.

q, k and v lie below each other in one matrix, and so do gate and up, so that each is one product.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from safetensors import safe_open

from vorta_kernels import ops
from vorta_kernels.cuda_ops.int4_linear import ShuffledInt4Weight
from vorta_kernels.reference.linear import Fp8Weight, Int4Weight, quantise_fp8, quantise_int4
from vorta_server.compiler.checkpoint import Checkpoint, CheckpointError
from vorta_server.compiler.spec import DecoderSpec
from vorta_server.compiler.weight import DecoderWeights, tensor_shapes

__all__ = [
    "PRECISIONS",
    "CheckpointTensors",
    "Decoder",
    "DecoderLayer",
    "Linear",
    "RandomTensors",
    "Rows",
    "TensorSource",
    "load_decoder",
]

PRECISIONS = ("fp32", "fp16", "bf16", "fp8", "int4")
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}

Rows: TypeAlias = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
"""Activations [num_rows, n], or their float8 values with their scales [num_rows]."""


class TensorSource(Protocol):
    """Where tensors come from."""

    def tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor of that name, of any float type, on any device."""
        ...


class CheckpointTensors:
    """A checkpoint's tensors, read from its safetensors files to the device.

    Raises:
        CheckpointError: A tensor is missing, misshapen, of a type that is not supported, or left over.
    """

    def __init__(self, checkpoint: Checkpoint, spec: DecoderSpec, device: torch.device) -> None:
        DecoderWeights(checkpoint, spec)
        self._checkpoint = checkpoint
        self._files = contextlib.ExitStack()
        self._open = {
            file: self._files.enter_context(safe_open(file, framework="pt", device=str(device)))
            for file in checkpoint.files
        }

    def tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor as the checkpoint has it.

        Raises CheckpointError when it holds a value that is not a finite number.
        """
        entry = self._checkpoint.entry(name, shape)
        tensor = self._open[entry.file].get_tensor(name)
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"tensor {name} holds values that are infinite or not a number", field=name, path=entry.file
            )
        return tensor

    def close(self) -> None:
        """Closes the files. Idempotent."""
        self._files.close()


class RandomTensors:
    """Normal numbers of a usual model's spread, for measuring: speed does not depend on what a model says."""

    def __init__(self, device: torch.device, seed: int = 0) -> None:
        self._generator = torch.Generator(device).manual_seed(seed)
        self._device = device

    def tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Around one for norms, around zero for the rest."""
        if name.endswith("norm.weight"):
            return torch.ones(shape, device=self._device)
        tensor = torch.empty(shape, dtype=torch.bfloat16 if len(shape) > 1 else torch.float32, device=self._device)
        return tensor.normal_(0.0, 0.02, generator=self._generator)


class Linear(Protocol):
    """A linear layer."""

    @property
    def takes_fp8(self) -> bool:
        """Whether its input is float8 rows with scales."""
        ...

    def __call__(self, rows: Rows) -> torch.Tensor:
        """[num_rows, num_inputs] to [num_rows, num_outputs] in the activations' type."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _PlainLinear:
    weight: torch.Tensor
    bias: torch.Tensor | None
    takes_fp8: bool = False

    def __call__(self, rows: Rows) -> torch.Tensor:
        assert isinstance(rows, torch.Tensor)
        return ops.plain_linear(rows, self.weight, self.bias)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fp8Linear:
    weight: Fp8Weight
    bias: torch.Tensor | None
    dtype: torch.dtype
    takes_fp8: bool = True

    def __call__(self, rows: Rows) -> torch.Tensor:
        assert isinstance(rows, tuple)
        return _biased(ops.fp8_linear(rows[0], rows[1], self.weight, self.dtype), self.bias)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Int4Linear:
    weight: Int4Weight
    shuffled: ShuffledInt4Weight | None
    bias: torch.Tensor | None
    takes_fp8: bool = False

    def __call__(self, rows: Rows) -> torch.Tensor:
        assert isinstance(rows, torch.Tensor)
        return _biased(ops.int4_linear(rows, self.weight, self.shuffled), self.bias)


def _biased(rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return rows if bias is None else rows + bias


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderLayer:
    """One layer's weights; `q_norm` and `k_norm` where the family has them."""

    input_norm: torch.Tensor
    qkv: Linear
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    output: Linear
    post_norm: torch.Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """All weights of a decoder.

    Attributes:
        embedding: [vocab_size, hidden_size] in the activations' type.
        dtype: The activations' type.
    """

    embedding: torch.Tensor
    layers: list[DecoderLayer]
    norm: torch.Tensor
    head: Linear
    dtype: torch.dtype


def load_decoder(
    spec: DecoderSpec,
    source: TensorSource,
    *,
    precision: str,
    device: torch.device,
    group: int = 128,
    progress: Callable[[float], None] = lambda _fraction: None,
) -> Decoder:
    """Brings a decoder's weights to a device, one matrix at a time.

    Args:
        precision: One of PRECISIONS. With "fp8" and "int4" activations are bfloat16, and the head is float8.
        group: Inputs that share a scale in "int4"; halved, to 32 at least, where it does not divide them.
        progress: Called with the fraction done.

    Raises ValueError for a precision that there is not, or a shape that it cannot have.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is not available on a GPU; available: {', '.join(PRECISIONS)}")
    decoder = _Loader(spec, source, precision, device, group).load(progress)
    if device.type == "cuda":
        # Products begin to read their weights while the kernel in front of them ends.
        torch.cuda.synchronize(device)
    return decoder


class _Loader:
    def __init__(
        self, spec: DecoderSpec, source: TensorSource, precision: str, device: torch.device, group: int
    ) -> None:
        self._spec, self._source, self._precision, self._device, self._group = spec, source, precision, device, group
        self._shapes = tensor_shapes(spec)
        self._dtype = _DTYPES.get(precision, torch.bfloat16)

    def load(self, progress: Callable[[float], None]) -> Decoder:
        spec = self._spec
        embedding = self._tensor("model.embed_tokens.weight")
        layers = []
        for index in range(spec.num_layers):
            progress(index / spec.num_layers)
            layers.append(self._layer(f"model.layers.{index}."))
        head = embedding if spec.tie_word_embeddings else self._tensor("lm_head.weight")
        # Four bits for the layer whose errors nothing evens out would cost more than they save.
        precision = "fp8" if self._precision == "int4" else self._precision
        return Decoder(
            embedding=embedding,
            layers=layers,
            norm=self._tensor("model.norm.weight"),
            head=self._quantised(head, None, precision),
            dtype=self._dtype,
        )

    def _layer(self, prefix: str) -> DecoderLayer:
        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        has_norm = self._spec.qk_norm
        return DecoderLayer(
            input_norm=self._tensor(f"{prefix}input_layernorm.weight"),
            qkv=self._linear(f"{attention}q_proj", f"{attention}k_proj", f"{attention}v_proj"),
            q_norm=self._tensor(f"{attention}q_norm.weight") if has_norm else None,
            k_norm=self._tensor(f"{attention}k_norm.weight") if has_norm else None,
            output=self._linear(f"{attention}o_proj"),
            post_norm=self._tensor(f"{prefix}post_attention_layernorm.weight"),
            gate_up=self._linear(f"{mlp}gate_proj", f"{mlp}up_proj"),
            down=self._linear(f"{mlp}down_proj"),
        )

    def _tensor(self, name: str) -> torch.Tensor:
        return self._source.tensor(name, self._shapes[name]).to(self._device, self._dtype)

    def _linear(self, *names: str) -> Linear:
        parts = [self._tensor(f"{name}.weight") for name in names]
        weight = torch.cat(parts) if len(parts) > 1 else parts[0]
        biases = [self._tensor(f"{name}.bias") for name in names if f"{name}.bias" in self._shapes]
        return self._quantised(weight, torch.cat(biases) if biases else None, self._precision)

    def _quantised(self, weight: torch.Tensor, bias: torch.Tensor | None, precision: str) -> Linear:
        if precision == "fp8":
            return _Fp8Linear(weight=quantise_fp8(weight), bias=bias, dtype=self._dtype)
        if precision == "int4":
            packed = self._int4(weight)
            return _Int4Linear(weight=packed, shuffled=ops.shuffle_int4(packed), bias=bias)
        return _PlainLinear(weight=weight, bias=bias)

    def _int4(self, weight: torch.Tensor) -> Int4Weight:
        group = self._group
        while group > 32 and weight.shape[1] % group:
            group //= 2
        return quantise_int4(weight, group, self._dtype)
