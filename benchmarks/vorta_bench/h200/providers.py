"""ONNX Runtime's providers on the card: vorta-mini compiled for TensorRT, run by the CUDA and the TensorRT provider,
where the onnxruntime that is installed has them; its logits against those of the CPU's provider, and its speed.

TensorRT's provider builds engines on its first runs; what that takes is a figure too. On a CPU its own provider takes
their place, which tests this stage.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vorta_bench.h200.drive import decode_s, given_logits, prefill_s, random_prompts
from vorta_bench.h200.recording import Figure
from vorta_bench.h200.stage import Cell, Settings, Skip

if TYPE_CHECKING:
    from vorta_server.runners.opset import OpsetRunner

__all__ = ["cells", "parts"]

_MODEL = Path(__file__).resolve().parents[3] / "server" / "vorta_server" / "models" / "vorta-mini"
_PRECISIONS = ("fp32", "fp16", "int8", "int4")
_LEAST_COSINE = 0.995
"""Between two providers, of the logits of any position: activations are in 16 bits, and sums come in another order."""
_NUM_PROMPT, _NUM_STEPS = 96, 32


def parts(settings: Settings) -> Sequence[str]:
    """A process for each provider and precision."""
    providers = settings.choose(("cuda", "tensorrt"), ("cpu",))
    return [f"{provider}/{precision}" for provider in providers for precision in _PRECISIONS]


def cells(settings: Settings, part: str) -> Iterable[Cell]:
    """Logits and speed."""
    provider, precision = part.split("/")
    return [
        Cell(f"{part}/logits", lambda: _logits(settings, provider, precision), 60),
        Cell(f"{part}/decode", lambda: _decode(settings, provider, precision), 60),
    ]


def _runner(settings: Settings, provider: str, precision: str, num_slots: int) -> OpsetRunner:
    try:
        from vorta.errors import FailedPrecondition
        from vorta_server.compiler.compile import compile_checkpoint
        from vorta_server.runners.opset import OpsetRunner
    except ImportError as error:
        raise Skip(f"{error.name} is not installed") from error
    artifact = settings.work / f"vorta-mini-{precision}"
    if not artifact.exists():
        compile_checkpoint(_MODEL, artifact, target="tensorrt", precision=precision, max_model_len=256)
    try:
        return OpsetRunner(
            artifact, num_slots=num_slots, providers=(provider,), max_chunk=_NUM_PROMPT, cache_dir=settings.work
        )
    except FailedPrecondition as error:
        raise Skip(str(error)) from error


def _logits(settings: Settings, provider: str, precision: str) -> Figure:
    runner = _runner(settings, provider, precision, 1)
    ids = random_prompts(1, _NUM_PROMPT + _NUM_STEPS, runner.info.vocab_size)[0]
    begin_s = time.perf_counter()
    got = given_logits(runner, ids, _NUM_PROMPT)
    seconds = time.perf_counter() - begin_s
    runner.close()
    expected = given_logits(_runner(settings, "cpu", precision, 1), ids, _NUM_PROMPT)
    least = float(_cosines(got, expected).min())
    if not least >= _LEAST_COSINE:
        raise AssertionError(f"least cosine {least:.5f}, wanted {_LEAST_COSINE}")
    return {"ok": True, "positions": len(got), "least_cosine": least, "first_run_s": round(seconds, 3)}


def _decode(settings: Settings, provider: str, precision: str) -> Figure:
    figure: dict[str, Any] = {}
    for rows in settings.choose((1, 32), (1, 4)):
        runner = _runner(settings, provider, precision, rows)
        _, first = prefill_s(runner, random_prompts(rows, 64, runner.info.vocab_size), max_step_tokens=64)
        decode_s(runner, first, 64, 8)
        figure[f"tokens_per_s_{rows}"] = round(rows * _NUM_STEPS / decode_s(runner, first, 64, _NUM_STEPS), 1)
        runner.close()
    return figure


def _cosines(one: Any, other: Any) -> Any:
    import numpy as np

    return (one * other).sum(1) / (np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1))
