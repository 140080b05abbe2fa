"""Measures one engine on one model and prints a line of JSON: what `vorta_bench.engine` runs in turn.

python -m vorta_bench.peers llama MODEL.gguf --vocab-size 32000 --steps 1=24,8=12,32=6
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np

from vorta_bench.peers.peer import Peer

_PREFILL_REPEATS = 2


def open_peer(engine: str, model: Path, threads: int) -> Peer:
    """The engine with the model loaded; only its own packages are imported.

    Raises ValueError for an unknown engine.
    """
    if engine == "vorta":
        from vorta_bench.peers.vorta_runner import VortaPeer

        return VortaPeer(model, threads=threads)
    if engine == "llama":
        from vorta_bench.peers.llama import LlamaPeer

        return LlamaPeer(model, threads=threads)
    if engine == "openvino":
        from vorta_bench.peers.openvino import OpenVinoPeer

        return OpenVinoPeer(model, threads=threads)
    if engine == "genai":
        from vorta_bench.peers.onnxruntime_genai import GenAiPeer

        return GenAiPeer(model)
    raise ValueError(f"unknown engine {engine!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure one engine on one model.")
    parser.add_argument("engine", choices=["vorta", "llama", "openvino", "genai"])
    parser.add_argument("model", type=Path)
    parser.add_argument("--vocab-size", type=int, required=True)
    parser.add_argument("--steps", default="1=24,8=12,32=6", help="sequences=steps of a window, comma separated")
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of context before decoding")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    begin_s = time.perf_counter()
    peer = open_peer(arguments.engine, arguments.model, arguments.threads)
    load_s = time.perf_counter() - begin_s
    prompt = rng.integers(10, arguments.vocab_size - 10, arguments.prompt)
    rates: dict[str, list[float]] = {}
    for cell in arguments.steps.split(","):
        num_rows, num_steps = map(int, cell.split("="))
        times_s = peer.decode_s(prompt, num_rows, num_steps, arguments.windows)
        rates[f"decode {num_rows}"] = [num_rows * num_steps / seconds for seconds in times_s]
    long_prompt = rng.integers(10, arguments.vocab_size - 10, arguments.prefill)
    peer.prefill_s(long_prompt)
    rates[f"prefill {arguments.prefill}"] = [
        arguments.prefill / peer.prefill_s(long_prompt) for _ in range(_PREFILL_REPEATS)
    ]
    result = {
        "engine": arguments.engine,
        "version": peer.version,
        "setting": peer.setting,
        "load_s": round(load_s, 2),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "tokens_per_s": {cell: [round(rate, 2) for rate in values] for cell, values in rates.items()},
    }
    print(json.dumps(result))
    peer.close()


if __name__ == "__main__":
    main()
