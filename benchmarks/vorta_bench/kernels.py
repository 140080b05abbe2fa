"""What a step is made of, and how fast the product kernel is by itself.

python -m vorta_bench.kernels step ARTIFACT --rows 1 8 32 --profile    a decode step, and its time by operator
python -m vorta_bench.kernels products                                 MatMulBlocks alone, on one thread
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from vorta_kernels import cpu
from vorta_server.compiler.graph import IR_VERSION, OPSET, VORTA
from vorta_server.engine.runner import LogitsWanted, PrefillChunk, StepBatch
from vorta_server.runners.onnx import OnnxRunner

__all__ = ["main", "measure_products", "measure_step"]

_CONTEXT = 100
_NO_TOKENS = np.zeros(0, np.int64)


def measure_step(artifact: Path, num_rows: int, num_steps: int) -> float:
    """Median seconds of a decode step of `num_rows` rows with about 100 tokens of context."""
    runner = OnnxRunner(artifact, num_slots=num_rows)
    for slot in range(num_rows):
        chunk = PrefillChunk(slot=slot, token_ids=np.arange(10, 10 + _CONTEXT), num_past=0, logits=LogitsWanted.NONE)
        runner.run(StepBatch(prefills=[chunk], decode_token_ids=_NO_TOKENS, decode_lengths=_NO_TOKENS))
    token_ids, lengths = np.full(num_rows, 5, np.int64), np.full(num_rows, _CONTEXT, np.int64)
    times_s = []
    for _ in range(num_steps):
        begin_s = time.perf_counter()
        runner.run(StepBatch(prefills=(), decode_token_ids=token_ids, decode_lengths=lengths))
        times_s.append(time.perf_counter() - begin_s)
        lengths += 1
    runner.close()
    return statistics.median(times_s)


def profile_step(artifact: Path, num_rows: int, num_steps: int) -> Counter[str]:
    """Microseconds of a step by operator; profiling itself slows the step down."""
    options = ort.SessionOptions
    with tempfile.TemporaryDirectory() as folder:

        class Profiled(options):  # type: ignore[misc, valid-type]
            def __init__(self) -> None:
                super().__init__()
                self.enable_profiling = True
                self.profile_file_prefix = f"{folder}/step"

        ort.SessionOptions = Profiled
        try:
            measure_step(artifact, num_rows, num_steps)
        finally:
            ort.SessionOptions = options
        spent: Counter[str] = Counter()
        for file in Path(folder).glob("step*.json"):
            events = json.loads(file.read_text())
            runs = sorted(event["ts"] for event in events if event["name"] == "model_run")[-num_steps:]
            for event in events:
                if event.get("cat") == "Node" and event["name"].endswith("kernel_time") and event["ts"] >= runs[0]:
                    spent[event["args"]["op_name"]] += event["dur"]
    return Counter({name: total // num_steps for name, total in spent.items()})


def measure_products(num_rows: int, bits: int, block: int, num_inputs: int = 896, num_outputs: int = 9728) -> float:
    """Fastest of 12 calls of MatMulBlocks on one thread, in operations (two for each weight and row) a second."""
    rng = np.random.default_rng(0)
    tiles = num_outputs // 16
    feed: dict[str, np.ndarray] = {
        "x": rng.integers(-127, 128, (num_rows, num_inputs)).astype(np.int8),
        "factors": np.ones((num_rows, 1), np.float32),
        "codes": rng.integers(0, 256, (tiles, 16 * num_inputs * bits // 8)).astype(np.uint8),
        "scales": np.ones((tiles, 16 * num_inputs // block), np.float32),
    }
    sizes: dict[str, Any] = {"bits": bits, "block": block, "N": num_outputs}
    node = helper.make_node("MatMulBlocks", list(feed), ["y"], domain=VORTA, **sizes)
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in feed.items()
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [num_rows, num_outputs])]
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(VORTA, 1)]
    graph = helper.make_graph([node], "products", inputs, outputs)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.register_custom_ops_library(str(cpu.library()))
    session: Any = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    times_s = []
    for _ in range(12):
        begin_s = time.perf_counter()
        session.run(None, feed)
        times_s.append(time.perf_counter() - begin_s)
    return 2.0 * num_rows * num_inputs * num_outputs / min(times_s)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    step = commands.add_parser("step", help="a decode step of an artifact")
    step.add_argument("artifact", type=Path)
    step.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    step.add_argument("--steps", type=int, default=30)
    step.add_argument("--profile", action="store_true", help="time by operator; slows the step down")
    products = commands.add_parser("products", help="MatMulBlocks alone, one thread")
    products.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 128, 512])
    arguments = parser.parse_args()
    for num_rows in arguments.rows:
        if arguments.command == "products":
            rates = [f"{bits} bit {measure_products(num_rows, bits, 128) / 1e9:4.0f}" for bits in (4, 8)]
            print(f"{num_rows:4d} rows: {', '.join(rates)} GOP/s", flush=True)
            continue
        print(
            f"{num_rows:4d} rows: {measure_step(arguments.artifact, num_rows, arguments.steps) * 1e3:.2f} ms",
            flush=True,
        )
        if arguments.profile:
            for name, micros in profile_step(arguments.artifact, num_rows, arguments.steps).most_common(10):
                print(f"      {micros:8d} us  {name}")


if __name__ == "__main__":
    main()
