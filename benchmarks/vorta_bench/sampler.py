"""Microbenchmark of the whole-batch sampler: `python -m vorta_bench.sampler [--json FILE]`.

Measures the way that serves: the kernel, or numpy where it cannot be built. Prints microseconds per call, the median of
several rounds, for each way of sampling, batch size, vocabulary and shape of logits: `peaked` looks like a trained
model's (a few likely tokens over a long tail), `flat` is the worst case for top-p.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

from vorta_kernels import cpu
from vorta_kernels.sampling import SamplingKernel
from vorta_server.engine.request import SamplingParams
from vorta_server.engine.row_state import RowState
from vorta_server.engine.sampler import Sampler

CASES: dict[str, SamplingParams] = {
    "greedy": SamplingParams(temperature=0.0),
    "temperature": SamplingParams(temperature=0.8),
    "top_p 0.9": SamplingParams(temperature=0.8, top_p=0.9),
    "top_k 50": SamplingParams(temperature=0.8, top_k=50),
    "top_k 50 top_p 0.9": SamplingParams(temperature=0.8, top_k=50, top_p=0.9),
    "min_p 0.05": SamplingParams(temperature=0.8, min_p=0.05),
    "greedy penalties": SamplingParams(
        temperature=0.0, presence_penalty=0.5, frequency_penalty=0.5, repetition_penalty=1.1
    ),
    "logprobs 5": SamplingParams(temperature=0.0, logprobs=5),
}
SHAPES = ((1, 4096), (32, 4096), (32, 32_000), (32, 151_936))


def make_logits(kind: str, num_rows: int, vocab_size: int) -> np.ndarray:
    """Random logits float32 [num_rows, vocab_size]."""
    generator = np.random.default_rng(0)
    logits = generator.standard_normal((num_rows, vocab_size), dtype=np.float32)
    if kind == "peaked":
        logits *= 2
        for row in logits:
            row[generator.choice(vocab_size, 30, replace=False)] += np.linspace(14, 6, 30, dtype=np.float32)
    return logits


def measure_us(sampling: SamplingParams, logits: np.ndarray, num_rounds: int, kernel: SamplingKernel | None) -> float:
    """The median microseconds of `num_rounds` calls, without the copy that gives each call fresh logits."""
    num_rows, vocab_size = logits.shape
    sampler = Sampler(vocab_size, kernel)
    prompt = np.random.default_rng(1).integers(0, vocab_size, 500).tolist()
    rows = [
        RowState(sampling, seed=i, prompt_token_ids=prompt, vocab_size=vocab_size, eos_token_ids=[0])
        for i in range(num_rows)
    ]
    times: list[float] = []
    for _ in range(num_rounds):
        fresh = logits.copy()
        start = time.perf_counter()
        sampler.sample(fresh, rows)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def main() -> None:
    """Runs every case and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--numpy", action="store_true", help="without the kernel, as where there is no C++ compiler")
    arguments = parser.parse_args()
    figures: list[dict[str, object]] = []
    kernel = SamplingKernel() if cpu.is_available() and not arguments.numpy else None
    for num_rows, vocab_size in SHAPES:
        for kind in ("peaked", "flat"):
            logits = make_logits(kind, num_rows, vocab_size)
            for name, sampling in CASES.items():
                micros = measure_us(sampling, logits, arguments.rounds, kernel)
                figures.append(
                    {
                        "rows": num_rows,
                        "vocab": vocab_size,
                        "logits": kind,
                        "case": name,
                        "us": round(micros, 1),
                    }
                )
                print(f"{num_rows:3d} x {vocab_size:6d}  {kind:6s}  {name:20s} {micros:10.1f} us", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
