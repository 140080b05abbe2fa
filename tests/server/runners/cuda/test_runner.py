"""The GPU runner over the kernels' references on a CPU: against the ONNX runner and a decoder in float64 numpy, for
every family, in steps of every kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.reference import decoder
from tests.server.compiler.case import CASES, VOCAB_SIZE, Case, random_tensors, write_checkpoint
from tests.server.engine.fakes import Letters, request, run, tokens_of
from vorta_server.compiler.checkpoint import Checkpoint, CheckpointError
from vorta_server.compiler.compile import compile_checkpoint
from vorta_server.compiler.config import ConfigReader
from vorta_server.compiler.family import read_spec
from vorta_server.engine.engine import Engine, EngineConfig
from vorta_server.engine.runner import LogitsWanted, ModelRunner, PrefillChunk, StepBatch
from vorta_server.engine.scheduler import SchedulerConfig
from vorta_server.runners.onnx import OnnxRunner

torch = pytest.importorskip("torch", reason="torch is not installed, without which there is no GPU runner to test")

from vorta_server.runners.cuda.runner import CudaRunner, CudaRunnerConfig  # noqa: E402
from vorta_server.runners.cuda.step import bucket_for, buckets_up_to  # noqa: E402
from vorta_server.runners.cuda.weights import CheckpointTensors, load_decoder  # noqa: E402

MAX_RUNNING = 4
NUM_SLOTS = 2 * MAX_RUNNING + 1
MAX_MODEL_LEN = 128
NO_INTS = np.zeros(0, np.int64)
CPU = torch.device("cpu")
GROUPED = next(case for case in CASES if case.name == "llama-grouped-heads")
MISTRAL = next(case for case in CASES if case.name == "mistral-window-of-7")

Ints = npt.NDArray[np.int64]


@pytest.fixture(scope="module")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Path]:
    root = tmp_path_factory.mktemp("checkpoints")

    def checkpoint(case: Case) -> Path:
        folder = root / case.name
        if not folder.exists():
            write_checkpoint(folder, case.config, random_tensors(case.config))
        return folder

    return checkpoint


def cuda_runner(folder: Path, *, precision: str = "fp32", capacity: int = 9 * 128, **config: Any) -> CudaRunner:
    with Checkpoint(folder) as checkpoint:
        spec = read_spec(ConfigReader(checkpoint.config, folder / "config.json"))
        tensors = CheckpointTensors(checkpoint, spec, CPU)
        weights = load_decoder(spec, tensors, precision=precision, device=CPU, group=32)
        tensors.close()
    settings = CudaRunnerConfig(
        num_slots=NUM_SLOTS, max_model_len=MAX_MODEL_LEN, kv_capacity_tokens=capacity, max_batched_tokens=256, **config
    )
    return CudaRunner(spec, weights, settings)


@pytest.fixture
def grouped(checkpoint_of: Callable[[Case], Path]) -> Iterator[CudaRunner]:
    runner = cuda_runner(checkpoint_of(GROUPED))
    yield runner
    runner.close()


def engine_over(runner: ModelRunner, *, capacity: int = 9 * 128, max_batched_tokens: int = 48) -> Engine:
    config = EngineConfig(
        scheduler=SchedulerConfig(max_running_requests=MAX_RUNNING, max_batched_tokens=max_batched_tokens),
        kv_capacity_tokens=capacity,
    )
    return Engine(runner, Letters(), config)


def tokens(count: int, seed: int = 0) -> Ints:
    return np.random.default_rng(seed).integers(1, VOCAB_SIZE, count)


def chunk(slot: int, ids: Ints, num_past: int = 0, logits: LogitsWanted = LogitsWanted.LAST) -> PrefillChunk:
    return PrefillChunk(slot=slot, token_ids=ids, num_past=num_past, logits=logits)


def prefill(*chunks: PrefillChunk) -> StepBatch:
    return StepBatch(prefills=chunks, decode_token_ids=NO_INTS, decode_lengths=NO_INTS)


def logits_of(runner: ModelRunner, batch: StepBatch) -> list[npt.NDArray[np.float32]]:
    """Every chunk's logits and those of the decode rows, copied."""
    result = runner.run(batch)
    found = [logits.copy() for logits in result.prefill_logits if logits is not None]
    return found if result.decode_logits is None else [*found, result.decode_logits.copy()]


def conversation(engine: Engine, **sampling: Any) -> list[list[int]]:
    """Prompts of different lengths that share beginnings, siblings, and a second turn."""
    system = tokens(30).tolist()
    requests = {
        "alone": tokens(7, 1).tolist(),
        "first": system + tokens(9, 2).tolist(),
        "second": system + tokens(40, 3).tolist(),
        "siblings": system[:25] + tokens(3, 4).tolist(),
        "late": tokens(60, 5).tolist(),
    }
    options = {"max_tokens": 12, "ignore_eos": True, **sampling}
    events = []
    for key, prompt in requests.items():
        engine.submit(request(key, prompt, n=2 if key == "siblings" else 1, **options))
        events += engine.step()
    events += run(engine)
    turn = requests["first"] + tokens_of(events, "first") + [5, 6, 7]
    engine.submit(request("turn", turn, **options))
    events += run(engine)
    engine.check_integrity()
    keys = [*((key, 0) for key in requests), ("siblings", 1), ("turn", 0)]
    return [tokens_of(events, key, index) for key, index in keys]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_same_tokens_as_the_onnx_runner(case: Case, checkpoint_of: Callable[[Case], Path], tmp_path: Path) -> None:
    compile_checkpoint(checkpoint_of(case), tmp_path / "artifact", precision="fp32")
    onnx = OnnxRunner(tmp_path / "artifact", num_slots=NUM_SLOTS, max_model_len=MAX_MODEL_LEN, threads=1)
    expected = conversation(engine_over(onnx))
    onnx.close()
    runner = cuda_runner(checkpoint_of(case))
    assert conversation(engine_over(runner)) == expected
    assert all(len(found) == 12 for found in expected)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_are_those_of_the_reference(case: Case, checkpoint_of: Callable[[Case], Path]) -> None:
    runner = cuda_runner(checkpoint_of(case))
    ids = tokens(50)
    expected = decoder.logits(case.config, random_tensors(case.config), ids)
    got = [
        *logits_of(runner, prefill(chunk(3, ids[:20], logits=LogitsWanted.ALL))),
        *logits_of(runner, prefill(chunk(3, ids[20:45], 20, LogitsWanted.ALL))),
    ]
    assert np.abs(np.concatenate(got) - expected[:45]).max() < 2e-4
    runner.move_slot(3, 0, 45)
    for position in range(45, 50):
        (row,) = logits_of(
            runner,
            StepBatch(prefills=[], decode_token_ids=ids[position : position + 1], decode_lengths=np.array([position])),
        )
        assert np.abs(row[0] - expected[position]).max() < 2e-4


def test_seeds_give_the_tokens_that_the_onnx_runner_gives(
    checkpoint_of: Callable[[Case], Path], tmp_path: Path
) -> None:
    compile_checkpoint(checkpoint_of(GROUPED), tmp_path / "artifact", precision="fp32")
    onnx = OnnxRunner(tmp_path / "artifact", num_slots=NUM_SLOTS, max_model_len=MAX_MODEL_LEN, threads=1)
    for sampling in (
        {"temperature": 1.3},
        {"temperature": 0.9, "top_k": 7},
        {"temperature": 1.1, "top_p": 0.8, "min_p": 0.02},
    ):
        expected = conversation(engine_over(onnx), seed=7, **sampling)
        assert conversation(engine_over(cuda_runner(checkpoint_of(GROUPED))), seed=7, **sampling) == expected
    onnx.close()


@pytest.mark.parametrize(
    "sampling",
    [
        {"repetition_penalty": 1.4, "presence_penalty": 0.3},
        {"logit_bias": {3: 5.0, 9: -100.0}},
        {"logprobs": 2, "prompt_logprobs": 1},
        {"min_tokens": 6, "ignore_eos": False},
    ],
    ids=lambda sampling: next(iter(sampling)),
)
def test_penalties_biases_and_scores_are_the_same_too(
    sampling: dict[str, Any], checkpoint_of: Callable[[Case], Path], tmp_path: Path
) -> None:
    compile_checkpoint(checkpoint_of(GROUPED), tmp_path / "artifact", precision="fp32")
    onnx = OnnxRunner(tmp_path / "artifact", num_slots=NUM_SLOTS, max_model_len=MAX_MODEL_LEN, threads=1)
    expected = conversation(engine_over(onnx), **sampling)
    onnx.close()
    assert conversation(engine_over(cuda_runner(checkpoint_of(GROUPED))), **sampling) == expected


def test_requests_of_one_batch_have_their_own_parameters(checkpoint_of: Callable[[Case], Path], tmp_path: Path) -> None:
    options: list[dict[str, Any]] = [
        {"repetition_penalty": 1.5},
        {},
        {"presence_penalty": 1.5, "temperature": 0.7, "seed": 3},
        {"logit_bias": {7: 2.5}, "frequency_penalty": 0.8},
        {"min_tokens": 5, "ignore_eos": False},
        {"logprobs": 1, "frequency_penalty": 1.2},
        {"repetition_penalty": 1.2, "temperature": 1.1, "top_p": 0.9, "seed": 8},
    ]

    def outputs(runner: ModelRunner, capacity: int) -> list[list[int]]:
        engine = engine_over(runner, capacity=capacity)
        events = []
        for number, option in enumerate(options):
            prompt = tokens(9 + 7 * number, number).tolist()
            sampling = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 14 + number, **option}
            engine.submit(request(str(number), prompt, **sampling))
            events += engine.step()
        events += run(engine)
        return [tokens_of(events, str(number)) for number in range(len(options))]

    compile_checkpoint(checkpoint_of(GROUPED), tmp_path / "artifact", precision="fp32")
    onnx = OnnxRunner(tmp_path / "artifact", num_slots=NUM_SLOTS, max_model_len=MAX_MODEL_LEN, threads=1)
    expected = outputs(onnx, 9 * 128)
    onnx.close()
    assert outputs(cuda_runner(checkpoint_of(GROUPED)), 9 * 128) == expected
    # With preemptions: what a sequence pays begins anew from its tokens.
    assert outputs(cuda_runner(checkpoint_of(GROUPED), capacity=192), 192) == expected


def test_many_biases_fit_a_step(checkpoint_of: Callable[[Case], Path], tmp_path: Path) -> None:
    compile_checkpoint(checkpoint_of(GROUPED), tmp_path / "artifact", precision="fp32")
    onnx = OnnxRunner(tmp_path / "artifact", num_slots=NUM_SLOTS, max_model_len=MAX_MODEL_LEN, threads=1)
    biases = {token: (token % 7) * 0.4 for token in range(VOCAB_SIZE)}
    expected = conversation(engine_over(onnx), logit_bias=biases)
    onnx.close()
    assert conversation(engine_over(cuda_runner(checkpoint_of(GROUPED))), logit_bias=biases) == expected


def test_little_memory_changes_no_token(checkpoint_of: Callable[[Case], Path]) -> None:
    plenty = conversation(engine_over(cuda_runner(checkpoint_of(GROUPED))), max_tokens=40)
    engine = engine_over(cuda_runner(checkpoint_of(GROUPED), capacity=192), capacity=192)
    assert conversation(engine, max_tokens=40) == plenty
    assert engine.num_preemptions > 0


def test_a_shared_prefix_is_in_memory_once(grouped: CudaRunner) -> None:
    logits_of(grouped, prefill(chunk(0, tokens(64 + 10))))
    free = grouped._tables.num_free
    for slot in range(1, 5):
        grouped.copy_slot(0, slot, 70)
    assert grouped._tables.num_free == free
    first = logits_of(grouped, prefill(*(chunk(slot, tokens(5, slot), 70) for slot in range(1, 5))))
    assert grouped._tables.num_free == free - 4
    alone = logits_of(grouped, prefill(chunk(5, np.concatenate([tokens(74)[:70], tokens(5, 2)]))))
    np.testing.assert_allclose(first[1], alone[0], atol=1e-5)


def test_rows_and_chunks_in_one_step_are_what_they_are_alone(checkpoint_of: Callable[[Case], Path]) -> None:
    together, alone = cuda_runner(checkpoint_of(MISTRAL)), cuda_runner(checkpoint_of(MISTRAL))
    for runner in (together, alone):
        logits_of(runner, prefill(*(chunk(slot, tokens(11 * slot + 3, slot)) for slot in range(3))))
    rows = StepBatch(
        prefills=[chunk(5, tokens(20, 9)), chunk(6, tokens(9, 8), logits=LogitsWanted.ALL)],
        decode_token_ids=np.array([4, 5, 6]),
        decode_lengths=np.array([3, 14, 25]),
    )
    first, second, decoded = logits_of(together, rows)
    np.testing.assert_allclose(first, logits_of(alone, prefill(rows.prefills[0]))[0], atol=1e-5)
    np.testing.assert_allclose(second, logits_of(alone, prefill(rows.prefills[1]))[0], atol=1e-5)
    np.testing.assert_allclose(decoded, logits_of(alone, replace(rows, prefills=[]))[0], atol=1e-5)


def test_a_deterministic_step_is_computed_in_parts_of_fixed_shape(
    grouped: CudaRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, int]] = []
    forward = grouped._executor._model.forward

    def record(step: Any, last: Any) -> Any:
        shape = (step.layout.num_decodes, step.layout.num_chunk_tokens)
        if shape not in shapes[-1:]:  # a graph's capture runs it more than once
            shapes.append(shape)
        return forward(step, last)

    monkeypatch.setattr(grouped._executor._model, "forward", record)
    logits_of(grouped, prefill(chunk(0, tokens(9)), chunk(1, tokens(8))))
    batch = StepBatch(
        prefills=[chunk(4, tokens(5, 4)), chunk(5, tokens(6, 5), logits=LogitsWanted.ALL), chunk(6, tokens(7, 6))],
        decode_token_ids=np.array([4, 5]),
        decode_lengths=np.array([9, 8]),
    )
    plain = logits_of(grouped, batch)
    fixed = logits_of(grouped, replace(batch, deterministic=True))
    assert shapes == [(0, 17), (2, 18), (bucket_for(MAX_RUNNING + 1), 0), (0, 5), (0, 6), (0, 7)]
    for one, other in zip(plain, fixed, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_graphs_are_keyed_by_bucket_and_width(grouped: CudaRunner) -> None:
    assert [bucket_for(rows) for rows in (0, 1, 3, 9, 17, 129, 257)] == [0, 1, 4, 16, 24, 192, 512]
    assert buckets_up_to(9) == [1, 2, 4, 8, 16]
    grouped.warm_up(MAX_RUNNING)
    assert [key.num_decodes for key in grouped.graph_keys] == [1, 2, 4]
    conversation(engine_over(grouped))
    assert {key.num_decodes for key in grouped.graph_keys} <= {1, 2, 4}
    assert all(not key.num_prefills for key in grouped.graph_keys)
    assert {key.max_blocks for key in grouped.graph_keys} == {2}


@pytest.mark.parametrize(
    ("precision", "kv_dtype"), [("bf16", "auto"), ("fp8", "fp8"), ("int4", "auto"), ("fp32", "fp8")]
)
def test_coarser_numbers_stay_close(precision: str, kv_dtype: str, checkpoint_of: Callable[[Case], Path]) -> None:
    exact = cuda_runner(checkpoint_of(MISTRAL))
    coarse = cuda_runner(checkpoint_of(MISTRAL), precision=precision, kv_dtype=kv_dtype)
    ids = tokens(40)
    (expected,) = logits_of(exact, prefill(chunk(0, ids, logits=LogitsWanted.ALL)))
    (got,) = logits_of(coarse, prefill(chunk(0, ids, logits=LogitsWanted.ALL)))
    cosine = (expected * got).sum(1) / np.linalg.norm(expected, axis=1) / np.linalg.norm(got, axis=1)
    # Random weights have no redundancy to even out the errors of 3 bits of mantissa, or of 16 levels.
    assert cosine.mean() > {"bf16": 0.999, "fp8": 0.98, "int4": 0.9, "fp32": 0.99}[precision]
    assert coarse.info.kv_bytes_per_token == {"auto": 2 * 3 * 2 * 16 * 2, "fp8": 2 * 3 * 2 * (16 + 4)}[kv_dtype]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (prefill(chunk(NUM_SLOTS, tokens(3))), "slot 9"),
        (prefill(chunk(0, tokens(100), 60)), "a chunk of 100 tokens behind 60"),
        (prefill(*(chunk(slot, tokens(100)) for slot in range(3))), "max_batched_tokens"),
        (StepBatch(prefills=[], decode_token_ids=np.array([1]), decode_lengths=np.array([128])), "decode lengths"),
        (StepBatch(prefills=[], decode_token_ids=np.array([1, 2]), decode_lengths=np.array([3])), "1 lengths"),
    ],
)
def test_what_does_not_fit_is_refused(batch: StepBatch, message: str, grouped: CudaRunner) -> None:
    with pytest.raises(ValueError, match=message):
        grouped.run(batch)


def test_a_weight_that_is_no_number_is_named(checkpoint_of: Callable[[Case], Path], tmp_path: Path) -> None:
    weights = random_tensors(GROUPED.config)
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = np.inf
    write_checkpoint(tmp_path / "broken", GROUPED.config, weights)
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj"):
        cuda_runner(tmp_path / "broken")


def test_an_unknown_precision_or_kv_type_is_refused(checkpoint_of: Callable[[Case], Path]) -> None:
    with pytest.raises(ValueError, match="precision 'int3' is not available on a GPU"):
        cuda_runner(checkpoint_of(GROUPED), precision="int3")
    with pytest.raises(ValueError, match="kv_dtype 'int8' is unknown"):
        cuda_runner(checkpoint_of(GROUPED), kv_dtype="int8")
