"""The encoder engine over a fake encoder: one answer for each call, whatever is done to it."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vorta.errors import DeadlineExceeded, Internal, ResourceExhausted, Unavailable, VortaError
from vorta_server.embedding.batcher import BatchLimits
from vorta_server.embedding.engine import EncodeJob, EncoderEngine
from vorta_server.embedding.pooling import normalized
from vorta_server.runners.fake_encoder import FakeEncoder


def tokens(seed: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, length]).integers(0, 512, length).astype(np.int32)


def run(engine: EncoderEngine) -> None:
    engine.drain()
    assert not engine.has_work


def embedded(sequences: list[np.ndarray], pooling: str = "mean", **options: Any) -> np.ndarray:
    """What the engine should say, one text at a time."""
    encoder, rows = FakeEncoder(kind="embedding"), []
    dimensions = options.get("dimensions") or 64
    for sequence in sequences:
        states = encoder.run([sequence])[:, :dimensions]
        picked = {"mean": states.mean(axis=0)[None], "cls": states[:1], "last": states[-1:], "token": states}[pooling]
        rows.append(normalized(picked) if options.get("normalize", True) else picked)
    return np.concatenate(rows)


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(
        st.tuples(
            st.lists(st.integers(1, 60), min_size=1, max_size=6),
            st.sampled_from(["mean", "cls", "last", "token"]),
            st.booleans(),
            st.sampled_from([0, 16]),
        ),
        min_size=1,
        max_size=8,
    ),
    num_lanes=st.integers(1, 3),
)
def test_batches_of_calls_with_different_options_give_each_its_own(calls: list[Any], num_lanes: int) -> None:
    encoder = FakeEncoder(kind="embedding", num_lanes=num_lanes)
    engine = EncoderEngine(encoder, BatchLimits(max_tokens=100, max_rows=7))
    answers: list[list[Any]] = []
    wanted = []
    for number, (lengths, pooling, normalize, dimensions) in enumerate(calls):
        sequences = [tokens(number * 100 + index, length) for index, length in enumerate(lengths)]
        answers.append([])
        engine.submit(
            EncodeJob(
                sequences=sequences,
                pooling=pooling,
                normalize=normalize,
                dimensions=dimensions,
                deliver=answers[-1].append,
            )
        )
        wanted.append(embedded(sequences, pooling, normalize=normalize, dimensions=dimensions))
    run(engine)
    engine.close()
    assert engine.num_jobs == 0
    for given_, expected in zip(answers, wanted, strict=True):
        (vectors,) = given_
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert engine.counters.texts == sum(len(lengths) for lengths, *_ in calls)
    assert engine.counters.tokens == sum(sum(lengths) for lengths, *_ in calls)


def test_scores_are_logits_in_order() -> None:
    encoder = FakeEncoder(kind="rerank")
    engine = EncoderEngine(encoder, BatchLimits(max_tokens=40))
    pairs = [tokens(index, 20) for index in range(7)]
    types = [np.array([0] * 5 + [1] * 15, np.int32) for _ in pairs]
    answers: list[Any] = []
    engine.submit(EncodeJob(sequences=pairs, token_types=types, deliver=answers.append))
    run(engine)
    np.testing.assert_allclose(answers[0], encoder.run(pairs, types))


def test_a_full_queue_and_hopeless_deadlines_are_refused_at_once() -> None:
    limits = BatchLimits(max_waiting_texts=3, max_tokens=50)
    engine = EncoderEngine(FakeEncoder(kind="embedding", token_s=0.001), limits)
    answers: list[list[Any]] = [[] for _ in range(5)]

    def job(number: int, count: int, deadline_s: float | None = None) -> EncodeJob:
        return EncodeJob(sequences=[tokens(number, 20)] * count, deadline_s=deadline_s, deliver=answers[number].append)

    engine.submit(job(0, 3))
    engine.submit(job(1, 1))
    assert isinstance(answers[1][0], ResourceExhausted)
    assert answers[1][0].is_retryable
    run(engine)
    now_s = time.monotonic()
    engine.submit(job(2, 1, now_s - 1))
    engine.submit(job(3, 3, now_s + 0.001))  # some 60 ms of work by the speed that was measured
    assert isinstance(answers[2][0], DeadlineExceeded)
    assert isinstance(answers[3][0], DeadlineExceeded)
    assert not engine.has_work
    assert [len(given_) for given_ in answers] == [1, 1, 1, 1, 0]


def test_a_deadline_that_passes_in_the_queue_ends_the_call() -> None:
    engine = EncoderEngine(FakeEncoder(kind="embedding", token_s=0.0005), BatchLimits(max_tokens=20))
    answers: list[Any] = []
    engine.submit(EncodeJob(sequences=[tokens(1, 20)] * 50, deadline_s=time.monotonic() + 0.05, deliver=answers.append))
    run(engine)
    assert isinstance(answers[0], DeadlineExceeded)
    assert len(answers) == 1
    assert engine.num_waiting == 0


def test_cancelled_calls_are_not_answered_and_not_computed() -> None:
    engine = EncoderEngine(FakeEncoder(kind="embedding"), BatchLimits(max_tokens=20))
    answers: list[Any] = []
    gone = EncodeJob(sequences=[tokens(1, 20)] * 10, deliver=answers.append)
    kept = EncodeJob(sequences=[tokens(2, 20)] * 2, deliver=answers.append)
    engine.submit(gone)
    engine.submit(kept)
    engine.step()
    engine.cancel(gone)
    engine.cancel(gone)
    run(engine)
    assert len(answers) == 1
    assert engine.counters.texts <= 4
    assert engine.num_jobs == 0


class Broken(FakeEncoder):
    """Fails on its second batch."""

    def __init__(self, error: Exception, num_lanes: int = 1) -> None:
        super().__init__(kind="embedding", num_lanes=num_lanes)
        self.error = error
        self.num_runs = 0

    def run(self, sequences: Any, token_types: Any = None, *, beside_others: bool = False) -> Any:
        self.num_runs += 1
        if self.num_runs == 2:
            raise self.error
        return super().run(sequences, token_types)


def test_a_model_that_fails_fails_the_calls_of_that_batch_alone() -> None:
    engine = EncoderEngine(Broken(Internal("the device is gone")), BatchLimits(max_tokens=20))
    answers: dict[int, Any] = {}
    for number in range(3):
        engine.submit(EncodeJob(sequences=[tokens(number, 20)], deliver=lambda a, n=number: answers.update({n: a})))
    run(engine)
    assert isinstance(answers[1], Internal)
    assert all(not isinstance(answers[number], VortaError) for number in (0, 2))
    engine = EncoderEngine(Broken(MemoryError()), BatchLimits(max_tokens=20))
    engine.submit(EncodeJob(sequences=[tokens(1, 20)] * 2, deliver=lambda a: answers.update({9: a})))
    engine.step()
    with pytest.raises(MemoryError):  # an unknown error is the worker's end, after the calls know
        engine.step()
    assert isinstance(answers[9], Internal)


def test_all_can_be_failed() -> None:
    engine = EncoderEngine(FakeEncoder(kind="embedding"), BatchLimits())
    answers: list[Any] = []
    for number in range(3):
        engine.submit(EncodeJob(sequences=[tokens(number, 5)], deliver=answers.append))
    engine.fail_all(Unavailable("gone"))
    assert [type(answer) for answer in answers] == [Unavailable] * 3
    assert not engine.has_work


class Gated(FakeEncoder):
    """Two lanes, each of which waits for its batch to be let go."""

    def __init__(self) -> None:
        super().__init__(kind="embedding", num_lanes=2)
        self.gate = threading.Semaphore(0)
        self.sizes: list[int] = []
        self.is_lane: list[bool] = []

    def run(self, sequences: Any, token_types: Any = None, *, beside_others: bool = False) -> Any:
        self.sizes.append(sum(map(len, sequences)))
        self.is_lane.append(beside_others)
        if beside_others:
            assert self.gate.acquire(timeout=60)
        return super().run(sequences, token_types)


def test_lanes_share_what_waits_and_take_what_comes_meanwhile() -> None:
    encoder, woken = Gated(), threading.Event()
    engine = EncoderEngine(encoder, BatchLimits(max_tokens=4_000), wake=woken.set)
    answers: list[Any] = []
    gone = EncodeJob(sequences=[tokens(2, 20)], deliver=answers.append)
    engine.submit(EncodeJob(sequences=[tokens(1, 20)] * 50, deliver=answers.append))
    engine.step()  # gives both lanes a half and does not wait
    engine.submit(gone)
    engine.submit(EncodeJob(sequences=[tokens(3, 20)], deliver=answers.append))
    engine.cancel(gone)
    engine.step()
    assert not engine.has_work
    assert not answers
    while len(encoder.sizes) < 2:
        time.sleep(0.001)
    assert sorted(encoder.sizes) == [500, 500]
    encoder.gate.release()
    assert woken.wait(60)
    while not engine.has_work:  # the thread that woke is about to say that it is done
        time.sleep(0.001)
    engine.step()
    encoder.gate.release(2)
    run(engine)
    engine.close()
    assert [len(answer) for answer in answers] in ([50, 1], [1, 50])
    assert engine.counters.texts == 51


def test_a_short_text_alone_is_computed_by_all_cores_at_once() -> None:
    encoder = Gated()
    engine = EncoderEngine(encoder, BatchLimits())
    answers: list[Any] = []
    engine.submit(EncodeJob(sequences=[tokens(1, 20)] * 2, deliver=answers.append))
    engine.step()
    engine.close()
    assert len(answers) == 1
    assert encoder.is_lane == [False]


def test_a_lane_that_fails_fails_its_calls_alone() -> None:
    engine = EncoderEngine(Broken(Internal("the device is gone"), num_lanes=2), BatchLimits(max_tokens=300))
    answers: dict[int, Any] = {}
    for number in range(4):
        engine.submit(EncodeJob(sequences=[tokens(number, 250)], deliver=lambda a, n=number: answers.update({n: a})))
    run(engine)
    engine.close()
    assert sorted(isinstance(answer, Internal) for answer in answers.values()) == [False, False, False, True]
