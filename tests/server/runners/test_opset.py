"""The runner of standard-operator artifacts, on the CPU's provider, against the float64 reference and itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

from tests.reference import decoder as reference
from tests.server.compiler.case import CASES, Case, random_tensors, write_checkpoint
from vorta.errors import FailedPrecondition, Internal
from vorta_server.compiler.artifact import ArtifactError
from vorta_server.compiler.compile import compile_checkpoint
from vorta_server.engine.runner import LogitsWanted, PrefillChunk, StepBatch, StepResult
from vorta_server.runners import opset, session
from vorta_server.runners.opset import OpsetRunner

NAMES = ("llama-grouped-heads", "mistral-window-of-7", "qwen3-head-of-24-biases-windows", "qwen2-tied")
EACH = [case for case in CASES if case.name in NAMES]
NO_INTS = np.zeros(0, np.int64)

ArtifactOf = Callable[[Case, str], Path]


@pytest.fixture(scope="module")
def artifact_of(tmp_path_factory: pytest.TempPathFactory) -> ArtifactOf:
    root = tmp_path_factory.mktemp("opset-runner")

    def folder(case: Case, precision: str) -> Path:
        source, artifact = root / case.name, root / f"{case.name}-{precision}"
        if not source.exists():
            write_checkpoint(source, case.config, random_tensors(case.config))
        if not artifact.exists():
            compile_checkpoint(source, artifact, target="tensorrt", precision=precision)
        return artifact

    return folder


@pytest.fixture
def runner(artifact_of: ArtifactOf) -> Iterator[OpsetRunner]:
    runner = OpsetRunner(artifact_of(EACH[0], "fp32"), num_slots=5, threads=1)
    yield runner
    runner.close()


def tokens(length: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, 101, length)


def chunk(slot: int, ids: Any, past: int = 0, logits: LogitsWanted = LogitsWanted.LAST) -> PrefillChunk:
    return PrefillChunk(slot=slot, token_ids=np.asarray(ids, np.int64), num_past=past, logits=logits)


def step(
    runner: OpsetRunner, *chunks: PrefillChunk, ids: Any = (), lengths: Any = (), deterministic: bool = False
) -> StepResult:
    return runner.run(
        StepBatch(
            prefills=chunks,
            decode_token_ids=np.asarray(ids, np.int64),
            decode_lengths=np.asarray(lengths, np.int64),
            deterministic=deterministic,
        )
    )


def error(ours: Any, theirs: Any) -> float:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-4), ("fp16", 1e-2)])
@pytest.mark.parametrize("case", EACH, ids=lambda case: case.name)
def test_chunks_and_ragged_decode(case: Case, precision: str, bound: float, artifact_of: ArtifactOf) -> None:
    """Three sequences in slots 0 to 2, prefilled in chunks of different sizes, then decoded together."""
    lengths = [5, 40, 1]
    sequences = [tokens(length + 3, seed) for seed, length in enumerate(lengths)]
    expected = [reference.logits(case.config, random_tensors(case.config), ids.tolist()) for ids in sequences]
    runner = OpsetRunner(artifact_of(case, precision), num_slots=4, threads=1)
    first = step(runner, chunk(0, sequences[0][:5]), chunk(1, sequences[1][:17], logits=LogitsWanted.NONE))
    assert error(first.prefill_logits[0], expected[0][4:5]) < bound
    assert first.prefill_logits[1] is None
    assert first.decode_logits is None
    second = step(runner, chunk(1, sequences[1][17:40], 17, LogitsWanted.ALL), chunk(2, sequences[2][:1]))
    assert error(second.prefill_logits[0], expected[1][17:40]) < bound
    assert error(second.prefill_logits[1], expected[2][:1]) < bound
    for offset in range(3):
        past = [length + offset for length in lengths]
        ids = [sequence[at] for sequence, at in zip(sequences, past, strict=True)]
        theirs = [e[at] for e, at in zip(expected, past, strict=True)]
        assert error(step(runner, ids=ids, lengths=past).decode_logits, theirs) < bound


def test_a_slot_is_copied_and_moved(runner: OpsetRunner) -> None:
    ids = tokens(20, 0)
    step(runner, chunk(3, ids))
    runner.copy_slot(3, 1, 20)
    runner.move_slot(1, 0, 20)
    step(runner, chunk(3, tokens(20, 1)))  # the copies are not what they were copied from
    (expected,) = step(runner, chunk(2, np.append(ids, 7))).prefill_logits
    ours = step(runner, ids=[7, 7], lengths=[20, 20]).decode_logits
    assert error(ours, np.concatenate([expected, expected])) < 1e-4


def test_a_slot_is_used_again(runner: OpsetRunner) -> None:
    """What an earlier sequence left behind a shorter one's end is not seen."""
    step(runner, chunk(0, tokens(60, 0)))
    runner.discard_slot(0)
    (ours,) = step(runner, chunk(0, tokens(9, 1))).prefill_logits
    (fresh,) = step(runner, chunk(4, tokens(9, 1))).prefill_logits
    assert error(ours, fresh) < 1e-5


def test_deterministic_rows(runner: OpsetRunner) -> None:
    for slot in range(3):
        step(runner, chunk(slot, tokens(10 + slot, slot)))
    together = step(runner, ids=[1, 2, 3], lengths=[10, 11, 12], deterministic=True).decode_logits
    alone = step(runner, ids=[1], lengths=[10], deterministic=True).decode_logits
    assert together is not None
    assert np.array_equal(together[:1], alone)


def test_info(runner: OpsetRunner, artifact_of: ArtifactOf) -> None:
    assert runner.info.num_slots == 5
    assert runner.info.max_model_len == 128
    assert runner.info.kv_bytes_per_token == 2 * 3 * 2 * 16 * 4
    half = OpsetRunner(artifact_of(EACH[0], "fp16"), num_slots=1, max_model_len=100, threads=1)
    assert half.info.kv_bytes_per_token == 2 * 3 * 2 * 16 * 2
    assert half.info.max_model_len == 100


def test_steps_outside_the_slots(runner: OpsetRunner) -> None:
    for arguments in (
        {"ids": [1], "lengths": [128]},
        {"ids": [1] * 6, "lengths": [1] * 6},
        {"ids": [1], "lengths": []},
    ):
        with pytest.raises(ValueError, match="slots"):
            step(runner, **arguments)
    for bad in (chunk(5, [1]), chunk(0, [1], 128), chunk(0, []), chunk(0, [1], -1)):
        with pytest.raises(ValueError, match="slot"):
            step(runner, bad)


def test_closed(runner: OpsetRunner) -> None:
    runner.close()
    runner.close()
    with pytest.raises(RuntimeError, match="closed"):
        step(runner, chunk(0, [1]))


def test_wrong_arguments(artifact_of: ArtifactOf, tmp_path: Path) -> None:
    artifact = artifact_of(EACH[0], "fp32")
    for arguments in ({"max_model_len": 129}, {"num_slots": 0}, {"threads": -1}, {"max_chunk": 0}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            OpsetRunner(artifact, **{"num_slots": 2, **arguments})
    compile_checkpoint(artifact.parent / EACH[0].name, tmp_path / "cpu", precision="fp32")
    with pytest.raises(ArtifactError, match="no decoder for TensorRT"):
        OpsetRunner(tmp_path / "cpu", num_slots=2)


def test_a_provider_that_is_not_there(artifact_of: ArtifactOf) -> None:
    with pytest.raises(FailedPrecondition, match=r"has no provider cuda") as caught:
        OpsetRunner(artifact_of(EACH[0], "fp32"), num_slots=2, providers=("cuda", "cpu"))
    assert caught.value.field == "providers"


def test_errors_of_onnx_runtime(runner: OpsetRunner) -> None:
    with pytest.raises(Internal, match="ONNX Runtime failed"):
        step(runner, chunk(0, [1_000_000]))


def test_sessions_of_tensorrt(artifact_of: ArtifactOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session for prompts and one for decode steps, whose engines are planned for their shapes."""
    asked: list[tuple[str, Any]] = []
    available = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: available)
    monkeypatch.setattr(session, "check_started", lambda *_: None)

    def on_the_cpu(file: str, options: Any, providers: Any) -> ort.InferenceSession:
        asked.append((Path(file).name, providers))
        return ort_session(file, options, providers=["CPUExecutionProvider"])

    ort_session = ort.InferenceSession
    monkeypatch.setattr(session.ort, "InferenceSession", on_the_cpu)
    monkeypatch.setattr(opset, "DevicePool", lambda **_: None)
    artifact = artifact_of(EACH[0], "fp16")
    OpsetRunner(artifact, num_slots=8, providers=("tensorrt", "cuda", "cpu"), max_chunk=64, cache_dir=Path("/cache"))
    assert [name for name, _ in asked] == ["model.onnx", "model.onnx", "copy_slot.onnx"]
    prefill, decode = (dict(providers)["TensorrtExecutionProvider"] for _, providers in asked[:2])
    assert prefill["trt_profile_max_shapes"].startswith("input_ids:1x64,past_lengths:1,output_rows:64,past_key_0:1x2x")
    assert decode["trt_profile_opt_shapes"].startswith("input_ids:4x1,past_lengths:4,output_rows:4,past_key_0:4x2x")
    assert decode["trt_fp16_enable"] == "1"
    assert decode["trt_engine_cache_path"] == "/cache"
    assert "TensorrtExecutionProvider" not in dict(asked[2][1])
