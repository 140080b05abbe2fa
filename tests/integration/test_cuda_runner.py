"""`vorta serve --runner cuda` as a real process, its runner on a CPU: the answers of the runner on ONNX, whatever is
mixed in a batch; and what a machine without a GPU is told."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

import vorta_server
from tests.integration.served import Served, serving
from vorta.errors import FailedPrecondition
from vorta.v1 import inference_pb2
from vorta_server.workers.config import WorkerConfig
from vorta_server.workers.generation import build_generation

torch = pytest.importorskip("torch", reason="torch is not installed, without which there is no GPU runner to test")

MINI = Path(vorta_server.__file__).parent / "models" / "vorta-mini"
PROMPTS = ("What is 12 + 30?", "Once upon a time")


def answers(server: Served) -> list[tuple[str, int]]:
    """Greedy, sampled with a seed, and with a penalty, all at once."""
    options = [{"temperature": 0.0}, {"temperature": 0.8, "seed": 4}, {"temperature": 0.0, "repetition_penalty": 1.3}]
    requests = [
        inference_pb2.GenerateRequest(prompt=prompt, max_tokens=16, **option)
        for prompt in PROMPTS
        for option in options
    ]
    with ThreadPoolExecutor(len(requests)) as pool:
        replies = list(pool.map(lambda request: server.inference.Generate(request, timeout=90), requests))
    return [(reply.text, reply.usage.completion_tokens) for reply in replies]


def test_the_cuda_runner_serves_what_the_onnx_runner_serves(tmp_path: Path) -> None:
    common = ("--vector-backend", "none", "--precision", "fp32", "--max-model-len", "256", "--threads", "1")
    with serving(tmp_path, "--model", f"mini={MINI}", *common) as server:
        expected = answers(server)
    with serving(tmp_path, "--model", f"mini={MINI}", *common, "--runner", "cuda", "--device", "cpu") as server:
        card = server.model("mini")
        assert (card.device, card.precision, card.max_model_len) == ("cpu", "fp32", 256)
        assert answers(server) == expected


CONFIG = WorkerConfig(
    model="m", source=str(MINI), socket_path="", runner="cuda", device="cpu", precision="bf16", max_running_requests=2
)


def test_a_model_is_built_from_a_checkpoint() -> None:
    model = build_generation(msgspec.structs.replace(CONFIG, precision="int4", max_model_len=512, kv_dtype="fp8"))
    assert (model.card.precision, model.card.max_model_len, model.card.device) == ("int4", 512, "cpu")
    assert model.card.kv_capacity_tokens == 5 * 512
    assert model.card.parameter_count == 3_443_136


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"precision": "int8"}, "precision", "precision int8 is not available on a GPU"),
        ({"device": "mps"}, "device", "not on mps"),
        ({"device": "gpu"}, "device", "device 'gpu' is none of torch's"),
        ({"max_model_len": 1 << 20}, "max_model_len", "max_model_len must be between"),
        ({"kv_memory_bytes": 1 << 16, "max_model_len": 4096}, "kv_memory_bytes", "less than one sequence of 4096"),
        ({"source": "/nowhere"}, None, "does not exist"),
        pytest.param(
            {"device": "cuda"},
            "device",
            "no CUDA GPU can be used here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here"),
        ),
    ],
)
def test_what_cannot_be_is_told_by_its_setting(changes: dict[str, object], field: str | None, message: str) -> None:
    with pytest.raises(FailedPrecondition, match=message) as caught:
        build_generation(msgspec.structs.replace(CONFIG, **changes))
    assert caught.value.field == field
