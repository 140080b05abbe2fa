"""Kernels against their references: every case of `vorta_kernels.grid`, the large ones too, with the operations that
the runner calls (`vorta_kernels.ops`); and `vorta_kernels.cuda_check`, the CUDA C++ kernels by themselves.

A case is a cell of its own: a kernel that is wrong may take its process along. Where they disagree the cell fails. On a
CPU the operations are the references, so a dry run tests this stage and no kernel.

Then the whole runner: the logits of a prompt, and of steps behind it, against transformers in float32 with the weights
as the runner keeps them, rounded to 8 or 4 bits: what is compared is the computing, not the rounding. By
cosine and Kullback-Leibler divergence, never by the largest: weights are random, and ties near.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Iterable, Sequence
from typing import Any

from vorta_bench.h200.checkpoint import random_tensors
from vorta_bench.h200.command import run_module
from vorta_bench.h200.drive import given_logits, random_prompts
from vorta_bench.h200.model_shape import SHAPES
from vorta_bench.h200.recording import Figure
from vorta_bench.h200.runner import make_runner
from vorta_bench.h200.stage import Cell, Settings, Skip

__all__ = ["cells", "parts"]

_CUDA_CHECK = "vorta_kernels.cuda_check"
_STEMS = (
    *("fp8", "rms_norm", "silu_mul", "rope_kv", "paged_attention", "linear", "sample", "verify"),
    *("batch_pack", "block_copy"),
)
_NUM_DRY_CASES = 3
_LEAST_COSINES = {"bf16": 0.999, "fp8": 0.98, "int4": 0.99}
"""Of the logits of any position. In fp8 activations are rounded too, in int4 only what goes into the cache and head."""
_INT4_GROUP = 128


def parts(settings: Settings) -> Sequence[str]:
    """A process for each module of operations."""
    return [*_STEMS, "cuda_check", *(f"logits/{precision}" for precision in settings.precisions)]


def cells(settings: Settings, part: str) -> Iterable[Cell]:
    """The cases of an operation's module."""
    if part == "cuda_check":
        return [Cell(part, lambda: _cuda_check(settings), 60)]
    if part.startswith("logits/"):
        return [Cell(part, lambda: _logits(settings, part.removeprefix("logits/")), 60)]
    try:
        grid: Any = importlib.import_module("vorta_kernels.grid")
    except ModuleNotFoundError as error:
        return [_missing(part, f"{error.name} is not there")]
    cases = grid.CASES.get(part, ())
    if not cases:
        return [_missing(part, "the grid has no cases of it")]
    if settings.is_dry:
        cases = [case for case in cases if not case.is_large][:_NUM_DRY_CASES]
    return [
        Cell(f"{case.op}({case.id})", lambda case=case: _compare(settings, grid, part, case), 10)  # type: ignore[misc]
        for case in cases
    ]


def _missing(part: str, reason: str) -> Cell:
    def skip() -> Figure:
        raise Skip(reason)

    return Cell(part, skip, 0)


def _compare(settings: Settings, grid: Any, stem: str, case: Any) -> Figure:
    import torch

    device = torch.device(settings.device)
    reference = getattr(importlib.import_module(f"vorta_kernels.reference.{stem}"), case.op)
    operation = getattr(importlib.import_module("vorta_kernels.ops"), case.op)
    expected = grid.run(case, reference, device)
    begin_s = time.perf_counter()
    got = grid.run(case, operation, device)
    seconds = time.perf_counter() - begin_s
    found = grid.mismatches(case, got, expected)
    if found:
        raise AssertionError("; ".join(found))
    return {"ok": True, "is_large": case.is_large, "seconds": round(seconds, 3)}


def _cuda_check(settings: Settings) -> Figure:
    if importlib.util.find_spec(_CUDA_CHECK) is None:
        raise Skip(f"{_CUDA_CHECK} is not there")
    # On a CPU: the emulation, few cases.
    arguments = ["--device", "cpu", "--small"] if settings.is_dry else []
    figure = run_module(_CUDA_CHECK, *arguments, timeout_s=settings.until_s - time.time() - 10)
    if not figure["ok"]:
        raise AssertionError(f"status {figure['status']}: {str(figure['output']).strip()[-500:]}")
    return figure


def _as_kept(name: str, weight: Any, precision: str) -> Any:
    """A tensor after the rounding of its precision, in 32 bits; the head of int4 is float8."""
    import torch

    from vorta_kernels.reference.fp8 import dequantise_rows
    from vorta_kernels.reference.linear import quantise_fp8, quantise_int4, unpack_int4

    is_matrix = name.endswith(("_proj.weight", "lm_head.weight"))
    if precision == "bf16" or not is_matrix:
        return weight.float()
    if precision == "fp8" or name == "lm_head.weight":
        rounded = quantise_fp8(weight)
        return dequantise_rows(rounded.values, rounded.scale).float()
    packed = quantise_int4(weight, _INT4_GROUP, torch.bfloat16)
    return unpack_int4(packed).float() * packed.scale.float().repeat_interleave(_INT4_GROUP, 1)


def _logits(settings: Settings, precision: str) -> Figure:
    """A prompt and steps whose tokens are given, so that both see the same whatever they would choose."""
    try:
        import torch
        from transformers import AutoModelForCausalLM, LlamaConfig
    except ImportError as error:
        raise Skip(f"{error.name} is not installed") from error
    model = settings.choose("llama-2-7b-part", "tiny")
    num_prompt, num_steps = settings.choose((192, 16), (24, 4))
    shape = SHAPES[model]
    weights = dict(random_tensors(shape, settings.device))
    values = shape.config()
    del values["architectures"], values["torch_dtype"]
    with torch.device(settings.device):
        network = AutoModelForCausalLM.from_config(LlamaConfig(**values), dtype=torch.float32).eval()
    network.load_state_dict({name: _as_kept(name, weight, precision) for name, weight in weights.items()})
    ids = random_prompts(1, num_prompt + num_steps, shape.vocab_size)
    with torch.inference_mode():
        expected = network(input_ids=torch.as_tensor(ids, device=settings.device)).logits[0].double().cpu()
    del network
    runner = make_runner(
        model, precision, settings.device, num_slots=2, max_model_len=num_prompt + num_steps + 16, weights=weights
    )
    got = torch.as_tensor(given_logits(runner, ids[0], num_prompt)).double()
    cosines = torch.nn.functional.cosine_similarity(got, expected, dim=-1)
    divergences = torch.nn.functional.kl_div(
        got.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    least = float(cosines.min())
    if not least >= _LEAST_COSINES[precision]:
        raise AssertionError(f"least cosine {least:.5f}, wanted {_LEAST_COSINES[precision]}")
    return {
        "ok": True,
        "model": shape.title,
        "positions": len(got),
        "least_cosine": least,
        "mean_cosine": float(cosines.mean()),
        "mean_divergence": float(divergences.mean()),
        "largest_divergence": float(divergences.max()),
    }
