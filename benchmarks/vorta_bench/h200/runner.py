"""Where Vorta's own parts come from: the runner that the engine stage drives, and the arguments of the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vorta_bench.h200.checkpoint import write_checkpoint
from vorta_bench.h200.model_shape import SHAPES

if TYPE_CHECKING:
    from vorta_server.engine.runner import ModelRunner

__all__ = ["MAX_BATCHED_TOKENS", "make_runner", "serve_arguments"]

MAX_BATCHED_TOKENS = 8192
"""Of a step's prefill, in the bare runner."""
_SERVED_BATCHED_TOKENS = 2048
"""Of a step's prefill, in the server."""
_KV_DTYPES = {"bf16": "auto", "fp8": "fp8", "int4": "fp8"}
"""K and V of each precision; the floors in `floor.PRECISIONS` assume the same."""
_MINI = Path(__file__).resolve().parents[3] / "server" / "vorta_server" / "models" / "vorta-mini"


def make_runner(
    model: str,
    precision: str,
    device: str,
    *,
    num_slots: int,
    max_model_len: int,
    use_graphs: bool = True,
    is_fake: bool = False,
    weights: Mapping[str, Any] | None = None,
) -> ModelRunner:
    """The runner of a model of random weights, which are made on the device.

    On a CPU it computes with the kernels' references, which is slow; that, or the fake runner, is for dry runs.

    Args:
        model: A name in `SHAPES`.
        precision: A name in `floor.PRECISIONS`.
        num_slots: Sequences that the KV cache holds, each of `max_model_len` tokens.
        use_graphs: Whether decode steps are replayed as CUDA graphs.
        is_fake: The fake runner: it computes nothing, and needs no torch.
        weights: Tensors by their names in a checkpoint, in the place of random ones.
    """
    shape = SHAPES[model]
    if is_fake:
        from vorta_server.runners.fake import FakeRunner, FakeRunnerConfig

        config = FakeRunnerConfig(vocab_size=shape.vocab_size, max_model_len=max_model_len, num_slots=num_slots)
        return FakeRunner(config=config)
    import torch

    from vorta_server.compiler.config import ConfigReader
    from vorta_server.compiler.family import read_spec
    from vorta_server.runners.cuda.runner import BLOCK_SIZE, CudaRunner, CudaRunnerConfig
    from vorta_server.runners.cuda.weights import RandomTensors, load_decoder

    spec = read_spec(ConfigReader(shape.config(), Path("config.json")))
    source = RandomTensors(torch.device(device)) if weights is None else _Given(weights)
    decoder = load_decoder(spec, source, precision=precision, device=torch.device(device))
    return CudaRunner(
        spec,
        decoder,
        CudaRunnerConfig(
            num_slots=num_slots,
            max_model_len=max_model_len,
            kv_capacity_tokens=num_slots * -(-max_model_len // BLOCK_SIZE) * BLOCK_SIZE,
            max_batched_tokens=MAX_BATCHED_TOKENS,
            kv_dtype=_KV_DTYPES[precision],
            use_graphs=use_graphs,
        ),
    )


class _Given:
    """Tensors by name."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self._tensors = tensors

    def tensor(self, name: str, shape: tuple[int, ...]) -> Any:
        tensor = self._tensors[name]
        assert tuple(tensor.shape) == shape, name
        return tensor


def serve_arguments(
    model: str, precision: str, device: str, work: Path, max_running: int, *, is_fake: bool = False
) -> Sequence[str]:
    """Arguments of `vorta serve` for a random checkpoint, which is written into `work` where it is not there."""
    arguments = ["--vector-backend", "none", "--set", f"worker.max_running_requests={max_running}"]
    arguments += ["--set", f"worker.max_waiting_requests={4 * max_running}", "--log-level", "WARNING"]
    if is_fake:
        # The fake runner needs a tokenizer alone.
        return ["--model", f"{model}={_MINI}", "--runner", "fake", "--max-model-len", "512", *arguments]
    folder = write_checkpoint(work / model, SHAPES[model], device)
    arguments += ["--model", str(folder), "--max-model-len", str(min(1024, SHAPES[model].max_model_len))]
    arguments += ["--runner", "cuda", "--device", device]
    arguments += ["--precision", precision, "--kv-dtype", _KV_DTYPES[precision]]
    return [*arguments, "--set", f"worker.max_batched_tokens={_SERVED_BATCHED_TOKENS}"]
