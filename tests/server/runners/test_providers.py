"""Providers: names, what is refused and with which words, options of sessions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest

from tests.server.compiler.case import CASES, random_tensors, write_checkpoint
from tests.server.compiler.encoder_case import EMBEDDING_CASES, write_encoder
from vorta.errors import FailedPrecondition
from vorta_kernels import cpu
from vorta_server.compiler.artifact import load_manifest
from vorta_server.compiler.compile import compile_checkpoint
from vorta_server.runners.encoder import OnnxEncoder
from vorta_server.runners.providers import ProviderChoice, check_started, choose_providers, parse_providers
from vorta_server.runners.session import check_target

GPU = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cpu", ("cpu",)),
        ("cuda", ("cuda", "cpu")),
        ("tensorrt", ("tensorrt", "cuda", "cpu")),
        ("tensorrt,cuda,cpu", ("tensorrt", "cuda", "cpu")),
        (" cuda , tensorrt ,cuda", ("cuda", "tensorrt", "cpu")),
        ("TensorrtExecutionProvider,CUDAExecutionProvider", ("tensorrt", "cuda", "cpu")),
        ("cpu,cuda", ("cuda", "cpu")),
    ],
)
def test_names(text: str, names: tuple[str, ...]) -> None:
    assert parse_providers(text) == names


@pytest.mark.parametrize(("text", "message"), [("cuda,rocm", "'rocm' is no provider"), (" , ", "no provider is named")])
def test_wrong_names(text: str, message: str) -> None:
    with pytest.raises(FailedPrecondition, match=rf"{message}; providers are tensorrt, cuda, cpu") as caught:
        parse_providers(text)
    assert (caught.value.field, caught.value.reason) == ("providers", "SETTINGS_INVALID")


def test_what_onnx_runtime_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert choose_providers(("cpu",)) == ("cpu",)
    with pytest.raises(FailedPrecondition, match=r"no provider cuda \(CUDA.*comes with onnxruntime-gpu") as caught:
        choose_providers(("cuda", "cpu"))
    assert (caught.value.field, caught.value.reason) == ("providers", "DEVICE_MISSING")
    monkeypatch.setattr(ort, "get_available_providers", lambda: GPU)
    assert choose_providers(("tensorrt", "cuda", "cpu")) == ("tensorrt", "cuda", "cpu")


def test_a_provider_that_did_not_start() -> None:
    session: Any = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    check_started(session, ("cpu",))
    with pytest.raises(FailedPrecondition, match="cuda did not start") as caught:
        check_started(session, ("cuda", "cpu"))
    assert caught.value.field == "providers"


def test_options() -> None:
    choice = ProviderChoice(
        names=("tensorrt", "cuda", "cpu"),
        cache_dir=Path("/cache"),
        precision="bf16",
        profile={"x": ([1, 1], [2, 8], [4, 64]), "y": ([1], [2], [4])},
    )
    assert choice.device == "cuda"
    options = dict(choice.for_session())
    assert list(options) == GPU
    assert options["TensorrtExecutionProvider"] == {
        "device_id": "0",
        "trt_bf16_enable": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": "/cache",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": "/cache",
        "trt_profile_min_shapes": "x:1x1,y:1",
        "trt_profile_opt_shapes": "x:2x8,y:2",
        "trt_profile_max_shapes": "x:4x64,y:4",
    }
    assert ProviderChoice().for_session() == [("CPUExecutionProvider", {})]
    assert ProviderChoice().device == "cpu"


@pytest.fixture(scope="module")
def encoder_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("providers") / "encoder", EMBEDDING_CASES[0])


@pytest.mark.skipif(cpu.compiler() is None, reason="no C++ compiler is installed to build the kernels")
def test_artifacts_with_our_kernels_are_refused(encoder_source: Path, tmp_path: Path) -> None:
    compile_checkpoint(encoder_source, tmp_path / "a", precision="int8", kernels="vorta")
    with pytest.raises(FailedPrecondition, match=r"vorta's kernels.*--target tensorrt") as caught:
        OnnxEncoder(tmp_path / "a", providers=("cuda", "cpu"))
    assert (caught.value.field, caught.value.reason) == ("providers", "TARGET_MISMATCH")


def test_artifacts_for_the_cpu_are_refused(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", CASES[0].config, random_tensors(CASES[0].config))
    compile_checkpoint(source, tmp_path / "cpu", precision="fp32")
    manifest = load_manifest(tmp_path / "cpu")
    check_target(manifest, tmp_path / "cpu", ("cpu",))
    with pytest.raises(FailedPrecondition, match=r"operators of the CPU's provider.*--target tensorrt"):
        check_target(manifest, tmp_path / "cpu", ("tensorrt", "cuda", "cpu"))


def test_an_encoder_on_a_provider_that_is_not_there(encoder_source: Path, tmp_path: Path) -> None:
    compile_checkpoint(encoder_source, tmp_path / "a", target="tensorrt", precision="fp32")
    with pytest.raises(FailedPrecondition, match="has no provider tensorrt"):
        OnnxEncoder(tmp_path / "a", providers=("tensorrt", "cuda", "cpu"))
