"""A whole decoder over the Triton kernels, and over those in CUDA C++: what the runner gives them fits, and its steps'
logits and tokens are those of the references."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import interpreter

from tests.server.compiler.case import CASES, VOCAB_SIZE, random_tensors, write_checkpoint
from vorta_kernels import cpu, ops
from vorta_kernels.cuda_ops import int4_linear as cuda_int4
from vorta_kernels.triton_ops.linear import int4_linear
from vorta_server.compiler.checkpoint import Checkpoint
from vorta_server.compiler.config import ConfigReader
from vorta_server.compiler.family import read_spec
from vorta_server.engine.runner import Draws, LogitsWanted, PrefillChunk, StepBatch, StepResult
from vorta_server.runners.cuda.runner import CudaRunner, CudaRunnerConfig
from vorta_server.runners.cuda.weights import CheckpointTensors, load_decoder

KERNELS = {
    "rms_norm": "rms_norm",
    "rms_norm_fp8": "rms_norm",
    "silu_mul": "silu_mul",
    "silu_mul_fp8": "silu_mul",
    "rope_kv": "rope_kv",
    "paged_decode": "paged_attention",
    "paged_prefill": "paged_attention",
    "sample": "sample",
    "fp8_linear": "linear",
    "quantise_rows": "fp8",
}


def runner_of(folder: Path, precision: str, kv_dtype: str) -> CudaRunner:
    device = torch.device("cpu")
    with Checkpoint(folder) as checkpoint:
        spec = read_spec(ConfigReader(checkpoint.config, folder / "config.json"))
        tensors = CheckpointTensors(checkpoint, spec, device)
        weights = load_decoder(spec, tensors, precision=precision, device=device, group=32)
        tensors.close()
    config = CudaRunnerConfig(num_slots=5, max_model_len=128, kv_capacity_tokens=640, kv_dtype=kv_dtype)
    return CudaRunner(spec, weights, config)


def steps(runner: CudaRunner, *, feeds_itself: bool) -> list[StepResult]:
    """A prompt, another one beside its decode row, then both decode, one greedy and one drawn; from the device's own
    tokens, or, where rounding may decide between two of them, from given ones."""
    ids = np.random.default_rng(0).integers(1, VOCAB_SIZE, 80)
    first = StepBatch(
        prefills=[PrefillChunk(slot=0, token_ids=ids[:66], num_past=0, logits=LogitsWanted.LAST, is_last=True)],
        decode_token_ids=np.zeros(0, np.int64),
        decode_lengths=np.zeros(0, np.int64),
        draws=draws(1, 0),
    )
    chunk = PrefillChunk(slot=1, token_ids=ids[66:], num_past=0, logits=LogitsWanted.ALL, is_last=True)
    second = StepBatch(
        prefills=[chunk],
        decode_token_ids=np.zeros(1, np.int64),
        decode_lengths=np.array([66]),
        draws=draws(2, 1, sources=[0] if feeds_itself else None),
    )
    third = StepBatch(
        prefills=[],
        decode_token_ids=np.zeros(2, np.int64),
        decode_lengths=np.array([67, 14]),
        draws=draws(2, 2, sources=[0, 1] if feeds_itself else None),
    )
    return [runner.run(batch) for batch in (first, second, third)]


def draws(num_outputs: int, num_rows: int, *, sources: list[int] | None = None) -> Draws:
    return Draws(
        temperature=np.linspace(0, 1, num_outputs, dtype=np.float32),
        top_k=np.full(num_outputs, 20, np.int32),
        top_p=np.full(num_outputs, 0.9, np.float32),
        min_p=np.zeros(num_outputs, np.float32),
        uniforms=np.full(num_outputs, 0.4, np.float32),
        on_host=np.arange(num_outputs),
        sources=np.array(sources or [-1] * num_rows, np.int32),
    )


CUDA_KERNELS = {
    "batch_pack": "batch_pack",
    "batch_compact": "batch_pack",
    "block_copy": "block_copy",
    "fp8_linear": "fp8_linear",
}


def use_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, stem in KERNELS.items():
        monkeypatch.setattr(ops, name, getattr(importlib.import_module(f"vorta_kernels.triton_ops.{stem}"), name))
    monkeypatch.setattr(ops, "int4_linear", lambda x, weight, _shuffled: int4_linear(x, weight))


def use_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels in CUDA C++, emulated thread by thread."""
    if cpu.compiler() is None:
        pytest.skip("no C++ compiler is installed to build the emulation")
    for name, stem in CUDA_KERNELS.items():
        monkeypatch.setattr(ops, name, getattr(importlib.import_module(f"vorta_kernels.cuda_ops.{stem}"), name))
    monkeypatch.setattr(ops, "shuffle_int4", cuda_int4.shuffle_int4)
    monkeypatch.setattr(ops, "int4_linear", lambda x, _weight, shuffled: cuda_int4.int4_linear(x, shuffled))


@pytest.mark.parametrize(
    ("case_name", "precision", "kv_dtype", "use"),
    [
        ("llama-grouped-heads", "fp32", "auto", use_triton),
        ("mistral-window-of-7", "bf16", "auto", use_triton),
        ("qwen3-explicit-head", "fp8", "fp8", use_triton),
        ("mistral-no-window-explicit-head", "int4", "fp8", use_triton),
        ("llama-grouped-heads", "fp32", "auto", use_cuda),
        ("qwen3-explicit-head", "fp8", "fp8", use_cuda),
        ("mistral-no-window-explicit-head", "int4", "fp8", use_cuda),
    ],
)
def test_a_decoder_is_the_references(
    case_name: str,
    precision: str,
    kv_dtype: str,
    use: Callable[[pytest.MonkeyPatch], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config: dict[str, Any] = next(case.config for case in CASES if case.name == case_name)
    config = {**config, "num_hidden_layers": 1, "intermediate_size": 128}
    folder = write_checkpoint(tmp_path / "checkpoint", config, random_tensors(config))
    expected = steps(runner_of(folder, precision, kv_dtype), feeds_itself=precision == "fp32")
    use(monkeypatch)
    got = steps(runner_of(folder, precision, kv_dtype), feeds_itself=precision == "fp32")
    for one, other in zip(got, expected, strict=True):
        assert one.host_logits is not None
        assert other.host_logits is not None
        cosine = (one.host_logits * other.host_logits).sum(1) / (
            np.linalg.norm(one.host_logits, axis=1) * np.linalg.norm(other.host_logits, axis=1)
        )
        # Sums of 16 bits are rounded in another order; with weights of 8 and 4 bits a rounded activation may fall on
        # the next level.
        assert cosine.min() > {"fp32": 0.999999, "bf16": 0.9995, "fp8": 0.995, "int4": 0.995}[precision]
    if precision == "fp32":
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_array_equal(one.token_ids, other.token_ids)


class NoWaiting(TorchDispatchMode):
    """Fails where the host would wait for a number, which a CUDA graph cannot capture."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in {"_local_scalar_dense", "nonzero", "masked_select", "equal"}, func
        return func(*args, **(kwargs or {}))


def test_nothing_in_a_decode_step_waits_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {**CASES[0].config, "num_hidden_layers": 1}
    runner = runner_of(write_checkpoint(tmp_path / "checkpoint", config, random_tensors(config)), "fp32", "auto")
    use_triton(monkeypatch)
    monkeypatch.setattr(ops, "batch_pack", ops.batch_pack_by_search)
    # The interpreter does look at numbers, on the host; what a launcher does beside it must not.
    for launched in [name for name in dir(interpreter) if name == "GridExecutor"]:
        original = getattr(interpreter, launched).__call__

        def call(self: Any, *args: Any, original: Any = original, **kwargs: Any) -> Any:
            with torch.utils._python_dispatch._disable_current_modes():
                return original(self, *args, **kwargs)

        monkeypatch.setattr(getattr(interpreter, launched), "__call__", call)
    forward = runner._executor._model.forward

    def watched(*args: Any) -> Any:
        with NoWaiting():
            return forward(*args)

    monkeypatch.setattr(runner._executor._model, "forward", watched)
    result = steps(runner, feeds_itself=True)[-1]
    assert result.token_ids is not None
