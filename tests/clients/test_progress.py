"""The resuming state machine, without a network: whatever breaks, nothing is lost or doubled."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vorta._channel import Deadline
from vorta._progress import Move, StreamProgress
from vorta.errors import AlreadyExists, Internal, NotFound, OutOfRange, Unavailable, VortaError
from vorta.result import Event
from vorta.retry import Retrier, RetryPolicy
from vorta.v1 import common_pb2, inference_pb2

BROKEN = Unavailable("cut", reason="CONNECTION_FAILED", retry_delay_s=0.1)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def new_progress(**values: Any) -> StreamProgress:
    defaults: dict[str, Any] = {
        "request_id": "r",
        "retrier": Retrier(RetryPolicy()),
        "deadline": Deadline(None),
        "resume_window_s": 10.0,
        "clock": Clock(),
    }
    return StreamProgress(**{**defaults, **values})


def log_of(sizes: list[int]) -> list[Any]:
    """A stream's messages; sizes are how many events each merged delta stands for."""
    messages = [inference_pb2.StreamGenerateResponse(index=0, started=common_pb2.StreamStarted(request_id="r"))]
    index = 0
    for size in sizes:
        index += size
        delta = common_pb2.StreamDelta(text=f"<{index}>", token_ids=[index])
        messages.append(inference_pb2.StreamGenerateResponse(index=index, delta=delta))
    finished = common_pb2.StreamFinished(finish_reason=common_pb2.FINISH_REASON_STOP)
    messages.append(inference_pb2.StreamGenerateResponse(index=index + 1, finished=finished))
    return messages


@given(
    sizes=st.lists(st.integers(1, 4), max_size=12),
    plan=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3)), max_size=12),
)
def test_every_event_arrives_once(sizes: list[int], plan: list[tuple[int, int]]) -> None:
    """Each part of the plan: so many messages arrive before the connection breaks; so many old ones come again."""
    log = log_of(sizes)
    progress = new_progress(retrier=Retrier(RetryPolicy(max_resume_attempts=1000)), resume_window_s=300.0)
    seen: list[Event] = []
    plan = [*plan, (len(log), 0)]
    for num_messages, num_repeated in plan:
        place = next((i for i, message in enumerate(log) if message.index >= progress.next_index), len(log))
        for message in log[max(0, place - num_repeated) : place + num_messages]:
            event = progress.accept(message)
            if event is not None:
                seen.append(event)
        if progress.finished is not None:
            assert progress.fail(BROKEN) is None
            break
        step = progress.fail(BROKEN)
        assert step is not None
        assert step.move is Move.RESUME
    assert [event.index for event in seen] == [message.index for message in log]
    assert progress.generation().text == "".join(message.delta.text for message in log)


def test_attempts_without_progress_are_limited() -> None:
    progress = new_progress(retrier=Retrier(RetryPolicy(max_resume_attempts=3, initial_backoff_s=0)))
    for _ in range(3):
        progress.fail(BROKEN)
    with pytest.raises(Unavailable):
        progress.fail(BROKEN)


def test_progress_resets_the_count() -> None:
    progress = new_progress(retrier=Retrier(RetryPolicy(max_resume_attempts=1)))
    for message in log_of([1, 1, 1]):
        progress.accept(message)
        progress.fail(BROKEN)


def test_the_window_limits_the_time() -> None:
    clock = Clock()
    progress = new_progress(clock=clock)
    progress.fail(BROKEN)
    clock.now_s = 10.0
    with pytest.raises(Unavailable):
        progress.fail(BROKEN)


def test_the_deadline_limits_the_time() -> None:
    progress = new_progress(deadline=Deadline(1e-9))
    with pytest.raises(Unavailable):
        progress.fail(BROKEN)


def test_a_request_that_never_arrived_is_sent_again() -> None:
    progress = new_progress()
    assert progress.first_step.move is Move.START
    moves = [progress.fail(BROKEN), progress.fail(NotFound("?")), progress.fail(AlreadyExists("!"))]
    assert [step.move for step in moves if step] == [Move.RESUME, Move.START, Move.RESUME]


def test_a_request_that_began_is_never_sent_again() -> None:
    progress = new_progress()
    progress.accept(log_of([])[0])
    assert progress.fail(BROKEN).move is Move.RESUME  # type: ignore[union-attr]
    with pytest.raises(Unavailable, match="cannot be resumed"):
        progress.fail(NotFound("?"))


@pytest.mark.parametrize("error", [NotFound("?"), OutOfRange("gone"), Internal("broken"), Unavailable("loading")])
def test_the_servers_own_errors_are_raised(error: VortaError) -> None:
    with pytest.raises(type(error)) as caught:
        new_progress().fail(error)
    assert caught.value is error


def test_an_unavailable_server_is_asked_again_for_the_rest() -> None:
    progress = new_progress()
    progress.accept(log_of([])[0])
    progress.fail(BROKEN)
    assert progress.fail(Unavailable("draining", reason="DRAINING")) is not None
    with pytest.raises(Unavailable, match="cannot be resumed"):
        progress.fail(OutOfRange("gone"))


def test_a_stream_without_an_end_is_an_error() -> None:
    progress = new_progress()
    with pytest.raises(Internal):
        progress.end()
    with pytest.raises(Internal):
        progress.generation()


def test_events_of_an_unknown_kind_and_after_the_end_are_skipped() -> None:
    progress = new_progress()
    assert progress.accept(inference_pb2.StreamGenerateResponse(index=0)) is None
    assert progress.next_index == 1
    for message in log_of([1])[1:]:
        assert progress.accept(message) is not None
    assert progress.accept(inference_pb2.StreamGenerateResponse(index=9, delta={})) is None


def test_several_sequences() -> None:
    progress = new_progress()
    progress.accept(log_of([])[0])
    for index, (place, text) in enumerate([(0, "a"), (1, "x"), (1, "y"), (0, "b")], start=1):
        delta = common_pb2.StreamDelta(sequence_index=place, text=text, token_ids=[index])
        progress.accept(inference_pb2.StreamGenerateResponse(index=index, delta=delta))
    ends = [
        common_pb2.SequenceOutput(sequence_index=place, finish_reason=common_pb2.FINISH_REASON_LENGTH)
        for place in (0, 1)
    ]
    finished = common_pb2.StreamFinished(finish_reason=common_pb2.FINISH_REASON_LENGTH, sequences=ends)
    progress.accept(inference_pb2.StreamGenerateResponse(index=5, finished=finished))
    got = progress.generation()
    assert (got.text, got.finish_reason) == ("ab", "length")
    assert [(part.text, part.token_ids) for part in got.sequences] == [("ab", (1, 4)), ("xy", (2, 3))]
