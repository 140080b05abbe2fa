"""Where Vorta's own parts come from: the runner that the engine stage drives, and the arguments of the server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vorta_bench.h200.checkpoint import random_tensors, write_checkpoint
from vorta_bench.h200.model_shape import SHAPES

if TYPE_CHECKING:
    from vorta_server.engine.runner import ModelRunner

__all__ = ["make_runner", "serve_arguments"]

_MINI = Path(__file__).resolve().parents[3] / "server" / "vorta_server" / "models" / "vorta-mini"


def make_runner(
    model: str, precision: str, device: str, *, num_slots: int, max_model_len: int, use_graphs: bool = True
) -> ModelRunner:
    """The runner of a model of random weights, which are made on the device.

    On a CPU, which is a dry run, the runner is the fake one: it computes nothing, and the protocol is the same.

    Args:
        model: A name in `SHAPES`.
        precision: A name in `floor.PRECISIONS`; "fp8" has K and V in float8 too.
        num_slots: Sequences that the KV cache holds.
        max_model_len: Tokens of each.
        use_graphs: Whether decode steps are replayed as CUDA graphs.
    """
    shape = SHAPES[model]
    if device == "cpu":
        from vorta_server.runners.fake import FakeRunner, FakeRunnerConfig

        config = FakeRunnerConfig(vocab_size=shape.vocab_size, max_model_len=max_model_len, num_slots=num_slots)
        return FakeRunner(config=config)
    raise NotImplementedError("the CUDA runner", random_tensors, use_graphs, precision)


def serve_arguments(model: str, precision: str, device: str, work: Path, max_running: int) -> Sequence[str]:
    """Arguments of `vorta serve` for a random checkpoint, which is written into `work` where it is not there."""
    arguments = ["--vector-backend", "none", "--set", f"worker.max_running_requests={max_running}"]
    arguments += ["--set", f"worker.max_waiting_requests={4 * max_running}", "--log-level", "WARNING"]
    if device == "cpu":
        # The fake runner needs a tokenizer alone.
        return ["--model", f"{model}={_MINI}", "--runner", "fake", "--max-model-len", "512", *arguments]
    folder = write_checkpoint(work / model, SHAPES[model], device)
    arguments += ["--model", str(folder), "--precision", precision, "--max-model-len", "1024"]
    return ["--set", f"worker.device={device}", *arguments]
