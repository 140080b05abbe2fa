"""Standard-operator artifacts behind a server, on the CPU's provider; what is said of providers that are not there."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

import vorta_server
from tests.integration.served import serving
from tests.server.compiler.encoder_case import EMBEDDING_CASES, write_encoder
from vorta.errors import FailedPrecondition
from vorta.v1 import inference_pb2
from vorta_server.compiler.compile import compile_checkpoint
from vorta_server.workers.config import WorkerConfig
from vorta_server.workers.encoder import build_encoder
from vorta_server.workers.generation import build_generation

MINI = Path(vorta_server.__file__).parent / "models" / "vorta-mini"
PROMPTS = ["What is machine learning?", "What is 12 + 30?", "Count to five."]
CONFIG = WorkerConfig(model="m", source=str(MINI), socket_path="", precision="fp32", max_running_requests=2)


@pytest.fixture(scope="module")
def opset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("opset") / "mini"
    compile_checkpoint(MINI, out, target="tensorrt", precision="fp32", max_model_len=256)
    return out


def test_the_server_says_the_same(opset: Path, tmp_path: Path) -> None:
    common = ("--vector-backend", "none", "--precision", "fp32", "--max-model-len", "256")
    said = []
    for name, source in (("cpu", MINI), ("opset", opset)):
        (tmp_path / name).mkdir()
        with serving(tmp_path / name, "--model", f"mini={source}", *common, "--providers", "cpu") as server:
            requests = [inference_pb2.GenerateRequest(prompt=p, max_tokens=24, temperature=0.0) for p in PROMPTS]
            said.append([server.inference.Generate(request, timeout=60).text for request in requests])
    assert said[0] == said[1]


def test_slots_share_the_memory_that_is_given(opset: Path) -> None:
    """All slots are taken at the start, so what is given holds a fifth as much for each of five."""
    config = msgspec.structs.replace(CONFIG, source=str(opset))
    assert build_generation(config).card.max_model_len == 256
    with pytest.raises(FailedPrecondition, match="less than one sequence of 256") as caught:
        build_generation(msgspec.structs.replace(config, kv_memory_bytes=1 << 20, max_model_len=256))
    assert caught.value.field == "kv_memory_bytes"


@pytest.mark.parametrize("providers", ["cuda", "tensorrt,cuda", "CUDAExecutionProvider"])
def test_providers_that_are_not_there(providers: str, tmp_path: Path) -> None:
    config = msgspec.structs.replace(CONFIG, providers=providers, cache_dir=str(tmp_path))
    with pytest.raises(FailedPrecondition, match="has no provider") as caught:
        build_generation(config)
    assert (caught.value.field, caught.value.reason) == ("providers", "DEVICE_MISSING")
    assert list(tmp_path.iterdir()) == []  # nothing was compiled for it


def test_an_encoder_for_providers_that_are_not_there(tmp_path: Path) -> None:
    source = write_encoder(tmp_path / "source", EMBEDDING_CASES[0])
    config = msgspec.structs.replace(CONFIG, source=str(source), providers="cuda", cache_dir=str(tmp_path / "cache"))
    with pytest.raises(FailedPrecondition, match="has no provider cuda"):
        build_encoder(config, wake=lambda: None)


def test_an_encoder_in_standard_operators(tmp_path: Path) -> None:
    source = write_encoder(tmp_path / "source", EMBEDDING_CASES[0])
    compile_checkpoint(source, tmp_path / "out", target="tensorrt", precision="fp16")
    _, card = build_encoder(
        msgspec.structs.replace(CONFIG, source=str(tmp_path / "out"), precision="fp16"), wake=lambda: None
    )
    assert (card.kind, card.precision, card.device) == ("embedding", "fp16", "cpu")
