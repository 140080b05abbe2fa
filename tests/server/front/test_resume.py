"""Resume logs: any cut, any bound, and the bytes they hold."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.front.scripted import delta, finished
from vorta.errors import Cancelled, OutOfRange, ResourceExhausted
from vorta_server.engine.request import Delta, Finished, Started, TokenAlternative, TokenLogprob
from vorta_server.front.resume import LOG_BYTES, ResumeBudget, ResumeLog
from vorta_server.workers.pacing import WritePacer

HELD_S = 1e9  # Ticks lie at its multiples, so that none falls into a test.


def new_log(budget=None, max_interval_s=0.0, on_evict=None):
    budget = budget or ResumeBudget(max_bytes=1 << 20, max_bytes_per_request=1 << 20)
    pacer = WritePacer(interval_per_stream_s=math.inf, max_interval_s=max_interval_s)
    pacer.num_streams = 1
    return ResumeLog(request_id="r", budget=budget, pacer=pacer, on_evict=on_evict)


def fill(log, num_tokens, n=1):
    log.put(Started("r", 3))
    for position in range(num_tokens):
        log.put(delta("r", f"{position},", position, position % n))
    log.put(finished("r", num_tokens))


async def read_all(log, next_index=0):
    reader = log.read(next_index, on_overflow=lambda error: None)
    events = []
    while not events or type(events[-1][1]) is not Finished:
        events.append(await reader.next())
    return events


@settings(deadline=None)
@given(num_tokens=st.integers(0, 30), n=st.integers(1, 3), cuts=st.lists(st.integers(0, 40), max_size=5))
def test_cut_anywhere_and_continued_the_stream_is_the_same(num_tokens, n, cuts):
    async def run():
        log = new_log()
        fill(log, num_tokens, n)
        got = []
        next_index = 0
        for cut in cuts:
            reader = log.read(next_index, on_overflow=lambda error: None)
            for _ in range(cut):
                index, event = await reader.next()
                got.append(event)
                next_index = index + 1
                if type(event) is Finished:
                    return got
        return got + [event for _, event in await read_all(log, next_index)]

    got = asyncio.run(run())
    assert sum(type(event) is Finished for event in got) == 1
    assert sum(type(event) is Started for event in got) == 1
    deltas = [event for event in got if type(event) is Delta]
    for index in range(n):
        tokens = [t for event in deltas if event.sequence_index == index for t in event.token_ids]
        assert tokens == list(range(index, num_tokens, n))


async def test_only_neighbours_of_one_sequence_are_merged():
    log = new_log()
    log.put(delta("r", "a", 1, 0))
    log.put(delta("r", "b", 2, 0))
    log.put(delta("r", "c", 3, 1))
    log.put(delta("r", "d", 4, 0))
    log.put(finished("r", 4))
    events = await read_all(log)
    assert [index for index, _ in events] == [1, 2, 3, 4]
    assert [event.text for _, event in events[:-1]] == ["ab", "c", "d"]


async def test_oldest_events_are_dropped_and_their_absence_told():
    budget = ResumeBudget(max_bytes=1 << 20, max_bytes_per_request=500)
    log = new_log(budget)
    fill(log, 50)
    assert log.first_index > 0
    assert budget.used_bytes <= 500 + LOG_BYTES
    with pytest.raises(OutOfRange) as caught:
        log.read(0, on_overflow=lambda error: None)
    assert caught.value.reason == "RESUME_GONE"
    assert caught.value.metadata["first_index"] == str(log.first_index)
    events = await read_all(log, log.first_index)
    assert events[-1][0] == 51
    with pytest.raises(OutOfRange):
        log.read(52, on_overflow=lambda error: None)


async def test_the_ended_logs_that_nobody_reads_give_way_first_and_whole():
    evicted = []
    budget = ResumeBudget(max_bytes=5 * LOG_BYTES, max_bytes_per_request=1 << 20)
    ended = [new_log(budget, on_evict=lambda place=place: evicted.append(place)) for place in range(3)]
    for log in (ended[1], ended[0], ended[2]):
        fill(log, 2)
    read = new_log(budget, on_evict=lambda: evicted.append("read"))
    read.put(Started("r", 3))
    reader = read.read(0, on_overflow=lambda error: pytest.fail("overtaken"))
    while 1 not in evicted:
        read.put(delta("r", "x"))
    assert evicted == [1]
    assert ended[0].first_index == ended[2].first_index == read.first_index == 0
    assert budget.used_bytes <= budget.max_bytes
    while len(evicted) < 3:
        read.put(delta("r", "x"))
    assert evicted == [1, 0, 2]
    assert (await reader.next())[0] == 0
    read.release(reader)
    for log in (*ended, read):
        log.close()
        log.close()
    assert budget.used_bytes == 0


async def test_a_full_budget_takes_from_the_unread_and_never_from_a_reader():
    budget = ResumeBudget(max_bytes=3 * LOG_BYTES, max_bytes_per_request=1 << 20)
    unread = new_log(budget)
    for _ in range(10):
        unread.put(delta("r", "y"))
    log = new_log(budget)
    reader = log.read(0, on_overflow=lambda error: pytest.fail("overtaken"))
    for position in range(200):
        log.put(delta("r", "x", position))
    # Over the total, but all of it is still to be read.
    assert budget.used_bytes > budget.max_bytes
    assert (unread.first_index, unread.next_index) == (9, 10)
    assert log.first_index == 0
    assert (await reader.next())[1].token_ids == list(range(200))
    log.put(delta("r", "x", 200))
    assert budget.used_bytes <= budget.max_bytes
    assert 0 < log.first_index <= 200
    assert (await reader.next())[1].token_ids == [200]
    # Its own request's end is not kept for others either, once nobody reads it.
    log.put(finished("r", 201))
    assert type((await reader.next())[1]) is Finished
    assert log.release(reader)
    for _ in range(100):
        unread.put(delta("r", "y"))
    with pytest.raises(OutOfRange):
        log.read(201, on_overflow=lambda error: None)


async def test_the_number_of_logs_kept_is_bounded():
    budget = ResumeBudget(max_bytes=10 * LOG_BYTES, max_bytes_per_request=1 << 20)
    evicted = []
    for place in range(50):
        fill(new_log(budget, on_evict=lambda place=place: evicted.append(place)), 0)
    assert len(evicted) >= 40
    assert budget.used_bytes <= budget.max_bytes


async def test_an_end_larger_than_the_limit_overtakes_no_reader():
    budget = ResumeBudget(max_bytes=1 << 20, max_bytes_per_request=500)
    log = new_log(budget)
    reader = log.read(0, on_overflow=lambda error: pytest.fail("overtaken"))
    log.put(delta("r", "a"))
    end = finished("r", 1)
    end.prompt_logprobs = [TokenLogprob(1, "p", -1.0, (TokenAlternative(2, "q", -2.0),))] * 100
    log.put(end)
    assert budget.used_bytes > LOG_BYTES + 9600
    assert (await reader.next())[1].text == "a"
    assert (await reader.next())[1] is end


async def test_a_reader_that_falls_behind_the_log_is_ended_and_may_come_back():
    errors = []
    log = new_log(ResumeBudget(max_bytes=1 << 20, max_bytes_per_request=500))
    log.put(Started("r", 3))
    reader = log.read(0, on_overflow=errors.append)
    await reader.next()
    for position in range(50):
        log.put(delta("r", "x", position))
    assert [type(error) for error in errors] == [ResourceExhausted]
    with pytest.raises(ResourceExhausted):
        await reader.next()
    assert log.release(reader)
    log.put(finished("r", 50))
    assert (await read_all(log, log.first_index))[-1][0] == 51


async def test_a_second_reader_takes_over():
    log = new_log()
    log.put(Started("r", 3))
    first = log.read(0, on_overflow=lambda error: None)
    await first.next()
    waiting = asyncio.ensure_future(first.next())
    await asyncio.sleep(0)
    second = log.read(1, on_overflow=lambda error: None)
    with pytest.raises(Cancelled):
        await waiting
    assert not log.release(first)
    log.put(delta("r", "a"))
    assert (await second.next())[0] == 1
    assert log.release(second)


async def test_a_reader_may_wait_for_the_next_event_to_come():
    log = new_log()
    log.put(Started("r", 3))
    reader = log.read(1, on_overflow=lambda error: None)
    waiting = asyncio.ensure_future(reader.next())
    await asyncio.sleep(0)
    log.put(finished("r", 0))
    assert type((await waiting)[1]) is Finished


async def test_pacing_holds_tokens_but_not_the_end():
    log = new_log(max_interval_s=HELD_S)
    log.put(delta("r", "first"))
    reader = log.read(0, on_overflow=lambda error: None)
    assert (await reader.next())[1].text == "first"
    log.put(delta("r", "a"))
    waiting = asyncio.ensure_future(reader.next())
    await asyncio.sleep(0.01)
    log.put(delta("r", "b"))
    assert not waiting.done()
    log.put(finished("r", 3))
    assert (await waiting)[1].text == "ab"


async def test_a_token_that_comes_while_the_reader_waits_goes_out_when_the_interval_is_over():
    log = new_log(max_interval_s=0.02)
    log.put(delta("r", "first"))
    reader = log.read(0, on_overflow=lambda error: None)
    await reader.next()
    waiting = asyncio.ensure_future(reader.next())
    await asyncio.sleep(0)
    log.put(delta("r", "a"))  # nothing comes after it
    async with asyncio.timeout(60):
        assert (await waiting)[1].text == "a"
