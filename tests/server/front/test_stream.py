"""Merging, pacing and the bound of a stream's buffer."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.front.scripted import delta, finished
from vorta.errors import ResourceExhausted
from vorta_server.engine.request import Delta, Finished, FinishReason, Started, TokenLogprob
from vorta_server.front.stream import StreamBuffer, event_bytes, merge_deltas
from vorta_server.workers.pacing import WritePacer

HELD_S = 1e9  # Ticks lie at its multiples, so that none falls into a test.


def buffer(max_bytes=1 << 20, max_interval_s=0.0, overflows=None):
    pacer = WritePacer(interval_per_stream_s=math.inf, max_interval_s=max_interval_s)
    pacer.num_streams = 1
    return StreamBuffer(
        max_bytes=max_bytes, pacer=pacer, on_overflow=(overflows if overflows is not None else []).append
    )


async def drain(stream):
    events = []
    while not events or type(events[-1][1]) is not Finished:
        events.append(await stream.next())
    return events


async def test_what_waits_goes_out_merged_with_the_last_index():
    stream = buffer()
    stream.put(Started("r", 3))
    assert (await stream.next())[0] == 0
    for position in range(5):
        stream.put(delta("r", f"{position}", position))
    stream.put(finished("r", 5))
    index, event = await stream.next()
    assert (index, event.text, event.token_ids) == (5, "01234", [0, 1, 2, 3, 4])
    index, event = await stream.next()
    assert (index, type(event)) == (6, Finished)


async def test_a_waiting_reader_gets_each_event_at_once():
    stream = buffer()
    for expected in range(3):
        reading = asyncio.ensure_future(stream.next())
        await asyncio.sleep(0)
        stream.put(delta("r", "x"))
        assert (await reading)[0] == expected


async def test_pacing_holds_tokens_but_neither_the_first_nor_the_end():
    stream = buffer(max_interval_s=HELD_S)
    stream.put(Started("r", 3))
    await stream.next()
    stream.put(delta("r", "first"))
    assert (await stream.next())[1].text == "first"
    stream.put(delta("r", "a"))
    reading = asyncio.ensure_future(stream.next())
    await asyncio.sleep(0.01)
    stream.put(delta("r", "b"))
    await asyncio.sleep(0.01)
    assert not reading.done()
    stream.put(finished("r", 3))
    assert (await reading)[1].text == "ab"
    assert type((await stream.next())[1]) is Finished


async def test_pacing_lets_go_when_the_interval_is_over():
    stream = buffer(max_interval_s=0.01)
    stream.put(delta("r", "first"))
    await stream.next()
    stream.put(delta("r", "a"))
    assert (await stream.next())[1].text == "a"


def test_the_interval_grows_with_the_streams_up_to_its_bound():
    pacer = WritePacer(interval_per_stream_s=0.01, max_interval_s=0.025)
    intervals = []
    for pacer.num_streams in (0, 1, 2, 100):
        intervals.append(pacer.interval_s)
    assert intervals == pytest.approx([0.0, 0.01, 0.02, 0.025])


def test_pacers_of_equal_intervals_share_their_ticks():
    front = WritePacer(interval_per_stream_s=0.02, max_interval_s=0.05)
    worker = WritePacer(interval_per_stream_s=0.02, max_interval_s=0.05, min_interval_s=0.01)
    front.num_streams = worker.num_streams = 3
    tick = worker.next_write_s(1000.003)
    assert tick == pytest.approx(1000.05)
    # What the worker sends at its tick may be written at once.
    assert front.next_write_s(tick - 0.04) <= tick < front.next_write_s(tick)
    front.num_streams = worker.num_streams = 0
    assert (front.interval_s, worker.interval_s) == (0.0, 0.01)


async def test_overflow_ends_the_stream_once_and_forgets_its_events():
    overflows = []
    stream = buffer(max_bytes=1000, overflows=overflows)
    for _ in range(100):
        stream.put(delta("r", "x" * 50))
    assert len(overflows) == 1
    for _ in range(2):
        with pytest.raises(ResourceExhausted) as caught:
            await stream.next()
        assert caught.value.reason == "SLOW_READER"
    stream.put(finished("r", 1))
    with pytest.raises(ResourceExhausted):
        await stream.next()


async def test_overflow_wakes_a_reader_that_is_paced():
    stream = buffer(max_bytes=1000, max_interval_s=HELD_S)
    stream.put(delta("r", "first"))
    await stream.next()
    reading = asyncio.ensure_future(stream.next())
    await asyncio.sleep(0)
    stream.put(delta("r", "x" * 2000))
    with pytest.raises(ResourceExhausted):
        await reading


def test_merging_keeps_logprobs_and_the_end_of_a_sequence():
    first = Delta("r", 1, "a", [1], [TokenLogprob(1, "a", -1.0)])
    second = Delta("r", 1, "b", [2], [TokenLogprob(2, "b", -2.0)], FinishReason.STOP)
    merged = merge_deltas([first, second])
    assert (merged.text, merged.token_ids, merged.sequence_index) == ("ab", [1, 2], 1)
    assert [entry.token_id for entry in merged.logprobs] == [1, 2]
    assert merged.finish_reason is FinishReason.STOP
    assert merge_deltas([first]) is first
    assert event_bytes(first) > event_bytes(delta("r", "a"))


@settings(deadline=None)
@given(
    steps=st.lists(st.integers(0, 3), max_size=40),
    reads=st.lists(st.integers(0, 3), max_size=40),
)
def test_any_interleaving_keeps_every_sequence_whole_and_indexes_increasing(steps, reads):
    """Reads happen between puts at arbitrary places; per sequence nothing is lost, doubled or reordered."""

    async def run():
        stream = buffer()
        stream.put(Started("r", 1))
        got = [await stream.next()]
        sent = {index: [] for index in range(4)}
        pending_reads = list(reads)
        for number, index in enumerate(steps):
            stream.put(Delta("r", index, f"{number},", [number]))
            sent[index].append(number)
            if pending_reads and pending_reads.pop() == 0:
                got.append(await stream.next())
        stream.put(finished("r", 1))
        got += await drain(stream)
        return sent, got

    sent, got = asyncio.run(run())
    indexes = [index for index, _ in got]
    assert indexes == sorted(set(indexes))
    assert indexes[-1] == len(steps) + 1
    assert sum(type(event) is Finished for _, event in got) == 1
    for index, numbers in sent.items():
        deltas = [event for _, event in got if type(event) is Delta and event.sequence_index == index]
        assert [token for event in deltas for token in event.token_ids] == numbers
        assert "".join(event.text for event in deltas) == "".join(f"{number}," for number in numbers)
