"""Which engines there are, their graphs, and the folder that they are kept in, over a fake builder."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from tests.server.compiler.case import CASES, Case
from tests.server.compiler.encoder_case import EMBEDDING_CASES, write_encoder
from vorta.errors import FailedPrecondition, Internal
from vorta_server.compiler import tensorrt_engine
from vorta_server.compiler.artifact import load_manifest
from vorta_server.compiler.compile import compile_checkpoint
from vorta_server.compiler.tensorrt_engine import TensorRtBuilder, build_engines, find_tensorrt
from vorta_server.compiler.tensorrt_plan import EngineLimits, Shapes, plan_engines, specialise

LIMITS = EngineLimits(batch_buckets=(1, 4), max_tokens=64)


class FakeBuilder:
    """An `EngineBuilder` whose engines are their graphs' sizes."""

    def __init__(self, version: str = "fake 1") -> None:
        self.version = version
        self.shapes: list[Shapes] = []

    def build(self, graph: bytes, file: Path, shapes: Shapes) -> bytes:
        assert file.is_file()
        self.shapes.append(shapes)
        return str(len(graph)).encode()


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory, checkpoint_of: Callable[[Case], Path]) -> Path:
    out = tmp_path_factory.mktemp("engines") / "decoder"
    compile_checkpoint(checkpoint_of(CASES[0]), out, target="tensorrt", precision="fp16")
    return out


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    source = write_encoder(folder / "source", EMBEDDING_CASES[0])
    compile_checkpoint(source, folder / "encoder", target="tensorrt", precision="fp16")
    return folder / "encoder"


def test_engines_of_a_decoder(decoder: Path) -> None:
    specs = plan_engines(load_manifest(decoder), LIMITS)
    assert [spec.name for spec in specs] == ["prefill-1", "decode-1", "decode-4"]
    assert specs[0].dims == {"batch": (1, 1, 1), "step": (1, 64, 64), "rows": (1, 1, 64), "capacity": (128, 128, 128)}
    assert specs[2].dims == {"batch": (4, 4, 4), "step": (1, 1, 1), "rows": (4, 4, 4), "capacity": (128, 128, 128)}


def test_engines_of_an_encoder(encoder: Path) -> None:
    specs = plan_engines(load_manifest(encoder), EngineLimits(batch_buckets=(8,), max_tokens=4096))
    assert [spec.name for spec in specs] == ["encode-8"]
    assert specs[0].dims == {"texts": (1, 8, 8), "step": (1, 128, 170)}


def test_what_has_one_size_is_part_of_the_graph(decoder: Path) -> None:
    prefill, _, decode = plan_engines(load_manifest(decoder), LIMITS)
    graph, shapes = specialise(decoder / "model.onnx", decode.dims)
    assert shapes == {}
    inputs = {value.name: value.type.tensor_type.shape for value in onnx.load_from_string(graph).graph.input}
    assert [dim.dim_value for dim in inputs["past_key_0"].dim] == [4, 2, 128, 16]
    _, shapes = specialise(decoder / "model.onnx", prefill.dims)
    assert shapes == {"input_ids": ((1, 1), (1, 64), (1, 64)), "output_rows": ((1,), (1,), (64,))}
    with pytest.raises(ValueError, match="no range is given for the dimension 'step'"):
        specialise(decoder / "model.onnx", {"batch": (1, 1, 1)})


def test_engines_are_built_once(encoder: Path, tmp_path: Path) -> None:
    builder = FakeBuilder()
    reported: list[tuple[str, float]] = []
    files = build_engines(
        encoder, tmp_path, limits=LIMITS, builder=builder, progress=lambda *args: reported.append(args)
    )
    assert [path.name.rsplit("-", 2)[0] for path in files] == ["encode-1", "encode-4"]
    assert reported == [("building encode-1", 0.0), ("building encode-4", 0.5)]
    assert set(builder.shapes[1]) == {"input_ids", "lengths", "token_types"}
    assert builder.shapes[1]["input_ids"] == ((1, 1), (4, 64), (4, 64))
    files[0].unlink()
    assert build_engines(encoder, tmp_path, limits=LIMITS, builder=builder) == files
    assert len(builder.shapes) == 3
    assert sorted(tmp_path.iterdir()) == sorted(files)


def test_what_an_engine_depends_on(encoder: Path, decoder: Path, tmp_path: Path) -> None:
    def names(
        artifact: Path, limits: EngineLimits = LIMITS, version: str = "fake 1", architecture: str = "sm90"
    ) -> set:
        builder = FakeBuilder(version)
        files = build_engines(artifact, tmp_path, limits=limits, builder=builder, architecture=architecture)
        return {path.name for path in files}

    variants = [
        names(encoder),
        names(decoder),
        names(encoder, version="fake 2"),
        names(encoder, architecture="sm100"),
        names(encoder, limits=EngineLimits(batch_buckets=(1, 4), max_tokens=65)),
    ]
    assert len(set.union(*variants)) == sum(map(len, variants))
    assert names(encoder) == variants[0]


def test_an_artifact_for_the_cpu_is_refused(artifact_of: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="compile the checkpoint with --target tensorrt") as caught:
        build_engines(artifact_of(CASES[0], "fp32"), tmp_path, builder=FakeBuilder())
    assert caught.value.field == "target"


@pytest.mark.parametrize("limits", [{"batch_buckets": ()}, {"batch_buckets": (4, 2)}, {"batch_buckets": (0,)}])
def test_wrong_limits(limits: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="batch_buckets"):
        EngineLimits(**limits)


def test_tensorrt_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"no {name}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(FailedPrecondition, match=r"tensorrt_rtx: no tensorrt_rtx.*requirements-tensorrt.txt") as caught:
        find_tensorrt()
    assert caught.value.reason == "DEVICE_MISSING"


def test_no_gpu_here_means_any(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(tensorrt_engine.ctypes, "CDLL", missing)
    assert tensorrt_engine.device_architecture() == "any"


def test_architecture_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def attribute(target: Any, number: int, _device: Any) -> int:
        target._obj.value = {75: 9, 76: 0}[number]
        return 0

    cuda = SimpleNamespace(cuInit=lambda _: 0, cuDeviceGet=lambda *_: 0, cuDeviceGetAttribute=attribute)
    monkeypatch.setattr(tensorrt_engine.ctypes, "CDLL", lambda _: cuda)
    assert tensorrt_engine.device_architecture() == "sm90"
    cuda.cuInit = lambda _: 100
    assert tensorrt_engine.device_architecture() == "any"


class FakeTensorRt:
    """As much of TensorRT's package as is used."""

    __name__, __version__ = "tensorrt", "11.9"
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)

    def __init__(self, *, parses: bool = True, builds: bool = True) -> None:
        self.calls: list[tuple[Any, ...]] = []
        fake = self

        class ILogger:
            Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

        class Profile:
            def set_shape(self, *args: Any) -> None:
                fake.calls.append(("shape", *args))

        class Builder:
            def __init__(self, log: Any) -> None:
                self._log = log

            def create_network(self, flags: int) -> str:
                fake.calls.append(("network", flags))
                return "network"

            def create_builder_config(self) -> Any:
                return SimpleNamespace(add_optimization_profile=lambda profile: fake.calls.append(("profile",)))

            def create_optimization_profile(self) -> Profile:
                return Profile()

            def build_serialized_network(self, network: str, config: Any) -> bytes | None:
                self._log.log(2, "a warning")
                self._log.log(1, "no kernel")
                return b"engine" if builds else None

        class OnnxParser:
            def __init__(self, network: str, log: Any) -> None:
                self._log = log

            def parse(self, graph: bytes, path: str) -> bool:
                fake.calls.append(("parse", graph, path))
                if not parses:
                    self._log.log(1, "unknown operator")
                    self._log.log(1, "unknown operator")
                return parses

        self.ILogger, self.Builder, self.OnnxParser = ILogger, Builder, OnnxParser


def test_calls_of_tensorrt() -> None:
    fake: Any = FakeTensorRt()
    builder = TensorRtBuilder(fake)
    assert builder.version == "tensorrt 11.9"
    assert builder.build(b"graph", Path("/a/model.onnx"), {"x": ((1,), (2,), (3,))}) == b"engine"
    assert fake.calls == [
        ("network", 2),
        ("parse", b"graph", "/a/model.onnx"),
        ("shape", "x", (1,), (2,), (3,)),
        ("profile",),
    ]


def test_tensorrt_says_why() -> None:
    parser: Any = FakeTensorRt(parses=False)
    with pytest.raises(Internal, match=r"cannot read model.onnx: unknown operator$"):
        TensorRtBuilder(parser).build(b"", Path("/a/model.onnx"), {})
    builder: Any = FakeTensorRt(builds=False)
    with pytest.raises(Internal, match=r"cannot build model.onnx: no kernel$"):
        TensorRtBuilder(builder).build(b"", Path("/a/model.onnx"), {})
