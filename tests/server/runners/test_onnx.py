"""The ONNX runner against a float64 reference decoder and against itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from tests.reference import decoder
from tests.server.compiler.case import CASES, VOCAB_SIZE, random_tensors, write_checkpoint
from vorta_kernels import cpu
from vorta_server.compiler.artifact import ArtifactError
from vorta_server.compiler.compile import compile_checkpoint
from vorta_server.engine.runner import LogitsWanted, PrefillChunk, StepBatch, StepResult
from vorta_server.runners.onnx import OnnxRunner

CASE = next(case for case in CASES if case.name == "llama-grouped-heads")
NUM_SLOTS = 5
PRECISIONS = ("fp32", "int8", "int4")
NO_INTS = np.zeros(0, np.int64)

Logits = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("runner") / "checkpoint", CASE.config, random_tensors(CASE.config))


@pytest.fixture(scope="module")
def artifact_of(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("artifacts")

    def artifact(kind: str) -> Path:
        path = root / kind
        if not path.exists():
            precision, _, kernels = kind.partition("-")
            compile_checkpoint(checkpoint, path, precision=precision, kernels=kernels or "portable")
        return path

    return artifact


NATIVE = [
    pytest.param(
        f"{precision}-vorta",
        marks=pytest.mark.skipif(cpu.compiler() is None, reason="no C++ compiler is installed to build the kernels"),
    )
    for precision in ("int8", "int4")
]


@pytest.fixture(params=[*PRECISIONS, *NATIVE])
def runner(request: pytest.FixtureRequest, artifact_of: Callable[[str], Path]) -> Iterator[OnnxRunner]:
    runner = OnnxRunner(artifact_of(request.param), num_slots=NUM_SLOTS, threads=1)
    yield runner
    runner.close()


@pytest.fixture
def exact(artifact_of: Callable[[str], Path]) -> Iterator[OnnxRunner]:
    runner = OnnxRunner(artifact_of("fp32"), num_slots=NUM_SLOTS, threads=1)
    yield runner
    runner.close()


def tokens(num_tokens: int, seed: int = 0) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, VOCAB_SIZE, num_tokens)


def chunk(
    slot: int, ids: npt.NDArray[np.int64], num_past: int = 0, logits: LogitsWanted = LogitsWanted.LAST
) -> PrefillChunk:
    return PrefillChunk(slot=slot, token_ids=ids, num_past=num_past, logits=logits)


def prefill(runner: OnnxRunner, *chunks: PrefillChunk, deterministic: bool = False) -> list[Logits | None]:
    batch = StepBatch(
        prefills=chunks,
        decode_token_ids=NO_INTS,
        decode_lengths=NO_INTS,
        deterministic=deterministic,
    )
    return [None if logits is None else logits.copy() for logits in runner.run(batch).prefill_logits]


def decode(runner: OnnxRunner, ids: npt.ArrayLike, lengths: npt.ArrayLike, *, deterministic: bool = False) -> Logits:
    batch = StepBatch(
        prefills=(),
        decode_token_ids=np.asarray(ids, np.int64),
        decode_lengths=np.asarray(lengths, np.int64),
        deterministic=deterministic,
    )
    logits = runner.run(batch).decode_logits
    assert logits is not None
    return logits.copy()


def tolerance(runner: OnnxRunner) -> float:
    """Relative error allowed: in fp32 that of another order of sums, else that between two graphs of an artifact,
    one of which rounds weights to 4 or 8 bits by blocks, the other to 7 by outputs."""
    return {"fp32": 1e-5, "int8": 0.1, "int4": 0.5}[runner.manifest.precision]


def relative_error(actual: Logits | None, expected: Logits | None) -> float:
    assert actual is not None
    assert expected is not None
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def reference(checkpoint: Path, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    config = json.loads((checkpoint / "config.json").read_text())
    return decoder.logits(config, load_file(checkpoint / "model.safetensors"), ids.tolist())


def test_info_is_the_artifacts(exact: OnnxRunner) -> None:
    info = exact.info
    config = CASE.config
    assert info.vocab_size == VOCAB_SIZE
    assert info.num_slots == NUM_SLOTS
    assert info.max_model_len == config["max_position_embeddings"]
    assert info.kv_bytes_per_token == 2 * 4 * config["num_hidden_layers"] * 2 * exact.manifest.head_dim


def test_prefill_and_decode_equal_the_reference(exact: OnnxRunner, checkpoint: Path) -> None:
    ids = tokens(40)
    expected = reference(checkpoint, ids)
    (logits,) = prefill(exact, chunk(2, ids[:30], logits=LogitsWanted.ALL))
    np.testing.assert_allclose(logits, expected[:30], atol=2e-4)
    prefill(exact, chunk(0, ids[:30], logits=LogitsWanted.NONE))
    for length in range(30, 40):
        logits = decode(exact, ids[length : length + 1], [length])
        np.testing.assert_allclose(logits[0], expected[length], atol=2e-4)


def test_a_ragged_batch_equals_each_row_alone(runner: OnnxRunner) -> None:
    lengths = np.array([5, 17, 64, 1])
    prompts = [tokens(length + 4, seed) for seed, length in enumerate(lengths.tolist())]

    def begin() -> None:
        for slot, (prompt, length) in enumerate(zip(prompts, lengths.tolist(), strict=True)):
            prefill(runner, chunk(slot, prompt[:length], logits=LogitsWanted.NONE))

    begin()
    together = [
        decode(runner, [p[n + step] for p, n in zip(prompts, lengths, strict=True)], lengths + step)
        for step in range(4)
    ]
    for slot, (prompt, length) in enumerate(zip(prompts, lengths.tolist(), strict=True)):
        prefill(runner, chunk(0, prompt[:length], logits=LogitsWanted.NONE))
        for step in range(4):
            alone = decode(runner, prompt[length + step : length + step + 1], [length + step])
            assert relative_error(together[step][slot], alone[0]) < tolerance(runner)


def test_a_chunked_prefill_equals_a_whole_one(runner: OnnxRunner) -> None:
    ids = tokens(90)
    (whole,) = prefill(runner, chunk(1, ids, logits=LogitsWanted.ALL))
    assert whole is not None
    start = 0
    for size in (1, 32, 7, 50):
        (part,) = prefill(runner, chunk(3, ids[start : start + size], start, LogitsWanted.ALL))
        assert relative_error(part, whole[start : start + size]) < tolerance(runner)
        start += size
    assert start == len(ids)


def test_chunks_and_a_decode_batch_in_one_step(exact: OnnxRunner) -> None:
    first, second, third = tokens(20, 1), tokens(9, 2), tokens(33, 3)
    prefill(exact, chunk(0, first[:-1], logits=LogitsWanted.NONE))
    (one,) = prefill(exact, chunk(3, second))
    (all_of_it,) = prefill(exact, chunk(4, third, logits=LogitsWanted.ALL))
    alone = decode(exact, first[-1:], [19])
    result: StepResult = exact.run(
        StepBatch(
            prefills=(
                chunk(2, second),
                chunk(1, third, logits=LogitsWanted.NONE),
                chunk(4, third, logits=LogitsWanted.ALL),
            ),
            decode_token_ids=first[-1:],
            decode_lengths=np.array([19]),
        )
    )
    assert result.decode_logits is not None
    np.testing.assert_array_equal(result.decode_logits, alone)
    np.testing.assert_array_equal(result.prefill_logits[0], one)
    assert result.prefill_logits[1] is None
    np.testing.assert_array_equal(result.prefill_logits[2], all_of_it)
    assert result.prefill_s > 0
    assert result.decode_s > 0


def test_a_chunk_of_one_token_then_a_decode_in_the_same_slot(exact: OnnxRunner) -> None:
    """Both have the same shapes; what the one bound must not leak into the other."""
    ids = tokens(12)
    (whole,) = prefill(exact, chunk(1, ids, logits=LogitsWanted.ALL))
    assert whole is not None
    prefill(exact, chunk(0, ids[:8]))
    (single,) = prefill(exact, chunk(0, ids[8:9], 8))
    np.testing.assert_allclose(single, whole[8:9], atol=2e-4)
    prefill(exact, chunk(2, ids[:5]))
    np.testing.assert_allclose(decode(exact, ids[9:10], [9]), whole[9:10], atol=2e-4)
    (single,) = prefill(exact, chunk(0, ids[10:11], 10, LogitsWanted.ALL))
    np.testing.assert_allclose(single, whole[10:11], atol=2e-4)


def test_a_copied_slot_goes_on_like_its_source(runner: OnnxRunner) -> None:
    ids = tokens(50)
    prefill(runner, chunk(0, ids[:40], logits=LogitsWanted.NONE))
    expected = decode(runner, ids[40:41], [40])
    runner.copy_slot(0, 4, 40)
    runner.discard_slot(0)
    runner.copy_slot(4, 0, 40)
    np.testing.assert_array_equal(decode(runner, ids[40:41], [40]), expected)


def test_a_copied_prefix_can_be_continued_with_other_tokens(exact: OnnxRunner) -> None:
    prefix, rest = tokens(30, 1), tokens(10, 2)
    prefill(exact, chunk(2, np.concatenate([prefix, tokens(40, 3)]), logits=LogitsWanted.NONE))
    exact.copy_slot(2, 1, len(prefix))
    (logits,) = prefill(exact, chunk(1, rest, len(prefix)))
    (expected,) = prefill(exact, chunk(3, np.concatenate([prefix, rest])))
    np.testing.assert_allclose(logits, expected, atol=2e-4)


def test_discarding_a_slot_leaves_its_neighbours(exact: OnnxRunner) -> None:
    ids = tokens(128, 5)
    for slot in (0, 1, 2):
        prefill(exact, chunk(slot, ids[:127], logits=LogitsWanted.NONE))
    expected = decode(exact, [3, 3, 3], [127, 127, 127])
    exact.discard_slot(1)
    logits = decode(exact, [3, 3, 3], [127, 127, 127])
    np.testing.assert_array_equal(logits[[0, 2]], expected[[0, 2]])
    assert not np.allclose(logits[1], expected[1], atol=1e-3)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_graph_for_many_rows_is_as_good_as_the_one_for_few(
    artifact_of: Callable[[str], Path], checkpoint: Path, precision: str
) -> None:
    """Against the reference; it rounds the checkpoint's weights, so in int4 it is better."""
    ids = tokens(64)
    expected = reference(checkpoint, ids).astype(np.float32)
    runner = OnnxRunner(artifact_of(precision), num_slots=1, threads=1)
    assert len(runner.manifest.graphs) == 2
    (many,) = prefill(runner, chunk(0, ids, logits=LogitsWanted.ALL))
    rows = [prefill(runner, chunk(0, ids[i : i + 1], i))[0] for i in range(len(ids))]
    few = np.concatenate([row for row in rows if row is not None])
    runner.close()
    assert not np.array_equal(many, few)
    assert relative_error(many, expected) < (0.1 if precision == "int8" else 1.1 * relative_error(few, expected))


def test_rows_of_zeros_have_logits_of_zeros(tmp_path: Path) -> None:
    """A row that is zero throughout has no scale; nothing may come of it but zeros."""
    tensors = random_tensors(CASE.config)
    tensors["model.embed_tokens.weight"][:] = 0
    path = write_checkpoint(tmp_path / "checkpoint", CASE.config, tensors)
    compile_checkpoint(path, tmp_path / "artifact", precision="int4")
    runner = OnnxRunner(tmp_path / "artifact", num_slots=1, threads=1)
    (logits,) = prefill(runner, chunk(0, tokens(9), logits=LogitsWanted.ALL))
    runner.close()
    np.testing.assert_array_equal(logits, np.zeros_like(logits))


def test_deterministic_rows_do_not_depend_on_the_batch(runner: OnnxRunner) -> None:
    ids = tokens(60)
    for slot in range(NUM_SLOTS):
        prefill(runner, chunk(slot, ids[: 10 * slot + 3], logits=LogitsWanted.NONE), deterministic=True)
    lengths = [10 * slot + 3 for slot in range(NUM_SLOTS)]
    together = decode(runner, [7] * NUM_SLOTS, lengths, deterministic=True)
    for slot in reversed(range(1, NUM_SLOTS)):
        runner.copy_slot(slot, 0, lengths[slot])
        alone = decode(runner, [7], lengths[slot : slot + 1], deterministic=True)
        np.testing.assert_array_equal(together[slot], alone[0])


@pytest.mark.parametrize("precision", ["int8", "int4", *NATIVE])
def test_deterministic_prompts_do_not_depend_on_their_chunks(
    artifact_of: Callable[[str], Path], precision: str
) -> None:
    """As long as no chunk has one token only: attention adds up in another order then."""
    ids = tokens(60)
    runner = OnnxRunner(artifact_of(precision), num_slots=2, threads=1)
    (whole,) = prefill(runner, chunk(0, ids, logits=LogitsWanted.ALL), deterministic=True)
    (first,) = prefill(runner, chunk(1, ids[:3], logits=LogitsWanted.ALL), deterministic=True)
    (second,) = prefill(runner, chunk(1, ids[3:], 3, LogitsWanted.ALL), deterministic=True)
    runner.close()
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)


@pytest.mark.parametrize(
    ("ids", "lengths"),
    [([1], [128]), ([1], [-1]), ([1, 2], [3]), ([1] * 6, [0] * 6)],
    ids=["slot full", "negative length", "lengths missing", "more rows than slots"],
)
def test_a_decode_batch_that_does_not_fit_is_refused(exact: OnnxRunner, ids: list[int], lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="decode"):
        decode(exact, ids, lengths)


@pytest.mark.parametrize(
    "bad",
    [chunk(5, tokens(3)), chunk(-1, tokens(3)), chunk(0, tokens(3), 126), chunk(0, NO_INTS), chunk(0, tokens(3), -1)],
    ids=["slot too high", "slot negative", "beyond the slot", "empty", "negative past"],
)
def test_a_chunk_that_does_not_fit_is_refused(exact: OnnxRunner, bad: PrefillChunk) -> None:
    with pytest.raises(ValueError, match="a chunk"):
        prefill(exact, bad)


def test_a_shorter_model_len(artifact_of: Callable[[str], Path]) -> None:
    runner = OnnxRunner(artifact_of("fp32"), num_slots=1, max_model_len=10, threads=1)
    prefill(runner, chunk(0, tokens(10)))
    with pytest.raises(ValueError, match="slots of 10 tokens"):
        decode(runner, [1], [10])
    runner.close()
    runner.close()
    with pytest.raises(RuntimeError, match="closed"):
        decode(runner, [1], [5])


@pytest.mark.parametrize("arguments", [{"max_model_len": 0}, {"max_model_len": 129}, {"num_slots": 0}, {"threads": -1}])
def test_numbers_out_of_range_are_refused(artifact_of: Callable[[str], Path], arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        OnnxRunner(artifact_of("fp32"), **{"num_slots": 1, **arguments})


def test_a_damaged_artifact_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    artifact = tmp_path / "artifact"
    compile_checkpoint(checkpoint, artifact, precision="int4")
    weights = artifact / "weights.bin"
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    weights.write_bytes(data)
    OnnxRunner(artifact, num_slots=1, threads=1).close()
    with pytest.raises(ArtifactError, match=r"weights\.bin"):
        OnnxRunner(artifact, num_slots=1, threads=1, verify=True)
    weights.write_bytes(data[:-1])
    with pytest.raises(ArtifactError, match=r"weights\.bin"):
        OnnxRunner(artifact, num_slots=1, threads=1)


def test_kernels_that_cannot_be_built_are_told(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_checkpoint(checkpoint, tmp_path / "artifact", precision="int4", kernels="vorta")

    def library() -> Path:
        raise cpu.BuildError("no C++ compiler is installed")

    monkeypatch.setattr(cpu, "library", library)
    with pytest.raises(ArtifactError, match=r"no C\+\+ compiler is installed.*--kernels portable") as caught:
        OnnxRunner(tmp_path / "artifact", num_slots=1)
    assert caught.value.field == "kernels"
