"""ONNX Runtime's providers on the card: vorta-mini and a random encoder compiled for TensorRT, run by the CUDA and the
TensorRT provider, where the onnxruntime that is installed has them; what they compute against what the CPU's provider
does, and their speed.

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
from vorta_bench.random_model import write_random_checkpoint

if TYPE_CHECKING:
    from vorta_server.runners.encoder import OnnxEncoder
    from vorta_server.runners.opset import OpsetRunner

__all__ = ["LEAST_COSINE", "artifact_of", "cells", "least_cosine", "parts"]

_MODEL = Path(__file__).resolve().parents[3] / "server" / "vorta_server" / "models" / "vorta-mini"
_PRECISIONS = ("fp32", "fp16", "int8", "int4")
LEAST_COSINE = 0.995
"""Of the results at any position on two devices: activations are in 16 bits, and sums come in another order."""
_NUM_PROMPT, _NUM_STEPS = 96, 32
_NUM_TOKENS = 128


def parts(settings: Settings) -> Sequence[str]:
    """A process for each provider and precision."""
    providers = settings.choose(("cuda", "tensorrt"), ("cpu",))
    return [f"{provider}/{precision}" for provider in providers for precision in _PRECISIONS]


def cells(settings: Settings, part: str) -> Iterable[Cell]:
    """What is computed, and speed."""
    provider, precision = part.split("/")
    return [
        Cell(f"{part}/hidden_states", lambda: _hidden_states(settings, provider, precision), 60),
        Cell(f"{part}/encode", lambda: _encode(settings, provider, precision), 60),
        Cell(f"{part}/logits", lambda: _logits(settings, provider, precision), 60),
        Cell(f"{part}/decode", lambda: _decode(settings, provider, precision), 60),
    ]


def artifact_of(settings: Settings, model: str, precision: str) -> Path:
    """The artifact for TensorRT of `model`: "decoder" is vorta-mini, "encoder" a random one of MiniLM's shape.

    Raises Skip where the server's packages are not installed.
    """
    try:
        from vorta_server.compiler.compile import compile_checkpoint
    except ImportError as error:
        raise Skip(f"{error.name} is not installed") from error
    artifact = settings.work / f"{model}-{precision}"
    if not artifact.exists():
        source = _MODEL
        if model == "encoder":
            source = settings.work / "random-encoder"
            if not source.exists():
                write_random_checkpoint(source, "encoder")
        length = 256 if model == "decoder" else None
        compile_checkpoint(source, artifact, target="tensorrt", precision=precision, max_model_len=length)
    return artifact


def least_cosine(one: Any, other: Any) -> float:
    """The least cosine of the rows of two arrays [N, size]; 1 where rows are equal and 0."""
    import numpy as np

    one, other = one.astype(np.float64), other.astype(np.float64)
    sizes = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    same = (one == other).all(-1)
    return float(np.where(same, 1.0, (one * other).sum(-1) / np.where(same, 1.0, sizes)).min())


def _encoder(settings: Settings, provider: str, precision: str) -> OnnxEncoder:
    artifact = artifact_of(settings, "encoder", precision)
    from vorta.errors import FailedPrecondition
    from vorta_server.runners.encoder import OnnxEncoder

    try:
        return OnnxEncoder(artifact, providers=(provider,), cache_dir=settings.work)
    except FailedPrecondition as error:
        raise Skip(str(error)) from error


def _runner(settings: Settings, provider: str, precision: str, num_slots: int) -> OpsetRunner:
    artifact = artifact_of(settings, "decoder", precision)
    from vorta.errors import FailedPrecondition
    from vorta_server.runners.opset import OpsetRunner

    try:
        return OpsetRunner(
            artifact, num_slots=num_slots, providers=(provider,), max_chunk=_NUM_PROMPT, cache_dir=settings.work
        )
    except FailedPrecondition as error:
        raise Skip(str(error)) from error


def _hidden_states(settings: Settings, provider: str, precision: str) -> Figure:
    encoder = _encoder(settings, provider, precision)
    ids = random_prompts(4, _NUM_TOKENS, encoder.info.vocab_size).astype("int32")
    texts = [row[: 1 + index * 42] for index, row in enumerate(ids)]
    begin_s = time.perf_counter()
    got = encoder.run(texts)
    seconds = time.perf_counter() - begin_s
    encoder.close()
    return _agreement(got, _encoder(settings, "cpu", precision).run(texts), seconds)


def _encode(settings: Settings, provider: str, precision: str) -> Figure:
    encoder = _encoder(settings, provider, precision)
    figure: dict[str, Any] = {}
    for rows in settings.choose((1, 32), (1, 4)):
        texts = list(random_prompts(rows, _NUM_TOKENS, encoder.info.vocab_size).astype("int32"))
        encoder.run(texts)
        begin_s = time.perf_counter()
        for _ in range(settings.choose(20, 2)):
            encoder.run(texts)
        figure[f"tokens_per_s_{rows}"] = round(
            settings.choose(20, 2) * rows * _NUM_TOKENS / (time.perf_counter() - begin_s), 1
        )
    encoder.close()
    return figure


def _logits(settings: Settings, provider: str, precision: str) -> Figure:
    runner = _runner(settings, provider, precision, 1)
    ids = random_prompts(1, _NUM_PROMPT + _NUM_STEPS, runner.info.vocab_size)[0]
    begin_s = time.perf_counter()
    got = given_logits(runner, ids, _NUM_PROMPT)
    seconds = time.perf_counter() - begin_s
    runner.close()
    return _agreement(got, given_logits(_runner(settings, "cpu", precision, 1), ids, _NUM_PROMPT), seconds)


def _decode(settings: Settings, provider: str, precision: str) -> Figure:
    figure: dict[str, Any] = {}
    for rows in settings.choose((1, 32), (1, 4)):
        runner = _runner(settings, provider, precision, rows)
        _, first = prefill_s(runner, random_prompts(rows, 64, runner.info.vocab_size), max_step_tokens=64)
        decode_s(runner, first, 64, 8)
        figure[f"tokens_per_s_{rows}"] = round(rows * _NUM_STEPS / decode_s(runner, first, 64, _NUM_STEPS), 1)
        runner.close()
    return figure


def _agreement(got: Any, expected: Any, seconds: float) -> Figure:
    least = least_cosine(got, expected)
    if not least >= LEAST_COSINE:
        raise AssertionError(f"least cosine {least:.5f}, wanted {LEAST_COSINE}")
    return {"ok": True, "positions": len(got), "least_cosine": least, "first_run_s": round(seconds, 3)}
