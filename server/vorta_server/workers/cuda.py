"""A checkpoint on the cuda runner: its weights go to the device as it is loaded, and nothing is compiled beside it."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vorta.errors import FailedPrecondition
from vorta_server.compiler.artifact import is_artifact
from vorta_server.compiler.checkpoint import Checkpoint, CheckpointError
from vorta_server.compiler.config import ConfigReader
from vorta_server.compiler.family import read_spec
from vorta_server.compiler.spec import DecoderSpec, context_length
from vorta_server.compiler.special_tokens import read_special_tokens
from vorta_server.compiler.weight import tensor_shapes
from vorta_server.engine.scheduler import DETERMINISTIC_CHUNK_TOKENS
from vorta_server.workers.config import WorkerConfig

if TYPE_CHECKING:
    import torch

    from vorta_server.runners.cuda.runner import CudaRunner

__all__ = ["CudaModel", "build_cuda"]

logger = logging.getLogger(__name__)

_GPU_SHARE = 0.9
"""Of what the weights leave free, what K and V may take; the rest is for activations and graphs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaModel:
    """A model ready to run.

    Attributes:
        eos_token_ids: Tokens that end a generation.
        kv_capacity_tokens: Tokens that the cache holds.
        device: Of torch, with the GPU's name.
    """

    runner: CudaRunner
    architecture: str
    precision: str
    parameter_count: int
    eos_token_ids: tuple[int, ...]
    kv_capacity_tokens: int
    device: str


def build_cuda(config: WorkerConfig) -> CudaModel:
    """Loads a checkpoint onto `config.device`.

    Raises:
        FailedPrecondition: Naming the setting (SETTINGS_INVALID) or the part of the checkpoint (CHECKPOINT_INVALID) at
            fault.
    """
    device = _device(config)
    from vorta_server.runners.cuda.weights import PRECISIONS

    precision = config.precision
    if precision not in PRECISIONS:
        raise _setting(
            f"precision {precision} is not available on a GPU; available: {', '.join(PRECISIONS)}", "precision"
        )
    source = Path(config.source)
    if is_artifact(source):
        raise _setting(f"{source} is compiled for another runner; the cuda runner serves checkpoints", "runner")
    try:
        return _load(config, source, precision, device)
    except CheckpointError as error:
        path = error.path or source
        raise FailedPrecondition(
            str(error), reason="CHECKPOINT_INVALID", metadata={"path": path}, field=error.field
        ) from error


def _load(config: WorkerConfig, source: Path, precision: str, device: torch.device) -> CudaModel:
    from vorta_server.runners.cuda.runner import MAX_HEAD_DIM, CudaRunner, CudaRunnerConfig
    from vorta_server.runners.cuda.weights import CheckpointTensors, load_decoder

    with Checkpoint(source) as checkpoint:
        reader = ConfigReader(checkpoint.config, source / "config.json")
        spec = read_spec(reader)
        tokens = read_special_tokens(checkpoint, reader, spec)
        if spec.head_dim > MAX_HEAD_DIM:
            raise reader.error("head_dim", f"is {spec.head_dim}; the cuda runner has kernels for up to {MAX_HEAD_DIM}")
        length = context_length(spec, config.max_model_len)
        tensors = CheckpointTensors(checkpoint, spec, device)
        try:
            decoder = load_decoder(spec, tensors, precision=precision, device=device)
        except ValueError as error:  # a shape that the precision cannot have
            raise CheckpointError(str(error), field="precision", path=source) from error
        finally:
            tensors.close()
    length, capacity = _plan_kv(config, spec, length, decoder.dtype, device)
    runner = CudaRunner(
        spec,
        decoder,
        CudaRunnerConfig(
            num_slots=2 * config.max_running_requests + 1,
            max_model_len=length,
            kv_capacity_tokens=capacity,
            max_batched_tokens=max(config.max_batched_tokens, DETERMINISTIC_CHUNK_TOKENS),
            kv_dtype=config.kv_dtype,
            use_graphs=config.cuda_graphs,
        ),
    )
    runner.warm_up(config.max_running_requests)
    logger.info("%s on %s: %s weights, %d tokens of KV", config.model, device, precision, capacity)
    return CudaModel(
        runner=runner,
        architecture=spec.architecture,
        precision=precision,
        parameter_count=sum(math.prod(shape) for shape in tensor_shapes(spec).values()),
        eos_token_ids=tokens.eos,
        kv_capacity_tokens=capacity,
        device=_name(device),
    )


def _device(config: WorkerConfig) -> torch.device:
    try:
        import torch
    except ImportError as error:
        raise _setting("the cuda runner needs torch and triton: pip install 'vorta[cuda]'", "runner") from error
    try:
        device = torch.device(config.device)
    except RuntimeError as error:
        raise _setting(f"device {config.device!r} is none of torch's", "device") from error
    if device.type not in ("cuda", "cpu"):
        raise _setting(f"the cuda runner computes on cuda or, slowly and for tests, on cpu; not on {device}", "device")
    if device.type == "cpu" and config.threads:
        torch.set_num_threads(config.threads)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise _setting("no CUDA GPU can be used here; --runner onnx serves on the processor", "device")
        if (device.index or 0) >= torch.cuda.device_count():
            raise _setting(f"there is no {device}; GPUs here: {torch.cuda.device_count()}", "device")
    return device


def _plan_kv(
    config: WorkerConfig, spec: DecoderSpec, length: int, activations: torch.dtype, device: torch.device
) -> tuple[int, int]:
    """Tokens of a context and of the cache; a context that nobody asked for is cut to what there is memory for."""
    from vorta_kernels.kv_cache import KvCache
    from vorta_server.runners.cuda.runner import BLOCK_SIZE, kv_torch_dtype

    bytes_per_token = KvCache.bytes_per_token(
        num_layers=spec.num_layers,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        dtype=kv_torch_dtype(config.kv_dtype, activations),
    )
    affordable = (config.kv_memory_bytes or _free_bytes(device)) // bytes_per_token // BLOCK_SIZE * BLOCK_SIZE
    # One sequence more than fits is what the engine asks for, so that the longest can always run.
    longest = affordable - BLOCK_SIZE
    if config.max_model_len is None:
        length = min(length, longest)
    if length > longest or length < 2:
        raise _setting(
            f"kv_memory_bytes holds {max(longest, 0)} tokens, less than one sequence of {length}", "kv_memory_bytes"
        )
    slots = 2 * config.max_running_requests + 1
    return length, min(affordable, slots * -(-length // BLOCK_SIZE) * BLOCK_SIZE)


def _free_bytes(device: torch.device) -> int:
    import torch

    if device.type == "cpu":
        return 1 << 28
    torch.cuda.empty_cache()  # what loading used and gave back is free
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * _GPU_SHARE)


def _name(device: torch.device) -> str:
    import torch

    return str(device) if device.type == "cpu" else f"{device} ({torch.cuda.get_device_name(device)})"


def _setting(message: str, field: str) -> FailedPrecondition:
    return FailedPrecondition(message, reason="SETTINGS_INVALID", field=field)
