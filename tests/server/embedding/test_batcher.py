"""The token batcher: bounds, fairness, and that every text comes out once."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vorta_server.embedding.batcher import BatchLimits, TokenBatcher

LIMITS = BatchLimits(max_tokens=64, max_rows=8, max_waiting_tokens=4_000, max_waiting_texts=300)
Calls = st.lists(st.lists(st.integers(1, 80), min_size=1, max_size=20), min_size=1, max_size=12)


def drain(batcher: TokenBatcher[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    batches = []
    while batcher.num_waiting:
        batches.append(batcher.next())
        assert batches[-1], "texts wait and none came"
    assert batcher.next() == []
    return batches


@given(calls=Calls, is_packed=st.booleans())
def test_every_text_comes_once_in_batches_within_bounds(calls: list[list[int]], is_packed: bool) -> None:
    batcher: TokenBatcher[tuple[int, int]] = TokenBatcher(LIMITS, is_packed=is_packed)
    for call, lengths in enumerate(calls):
        batcher.add(call, [(call, index) for index in range(len(lengths))], lengths)
    assert batcher.waiting_tokens == sum(map(sum, calls))
    batches = drain(batcher)
    assert batcher.waiting_tokens == 0
    every = list(itertools.chain.from_iterable(batches))
    assert sorted(every) == [(call, index) for call, lengths in enumerate(calls) for index in range(len(lengths))]
    for batch in batches:
        lengths = [calls[call][index] for call, index in batch]
        cost = sum(lengths) if is_packed else max(lengths) * len(lengths)
        assert len(batch) == 1 or (cost <= LIMITS.max_tokens and len(batch) <= LIMITS.max_rows)


@given(calls=Calls, gone=st.sets(st.integers(0, 11)), is_packed=st.booleans())
def test_what_a_caller_who_has_gone_left_does_not_come(calls: list[list[int]], gone: set[int], is_packed: bool) -> None:
    batcher: TokenBatcher[tuple[int, int]] = TokenBatcher(LIMITS, is_packed=is_packed)
    for call, lengths in enumerate(calls):
        batcher.add(call, [(call, index) for index in range(len(lengths))], lengths)
    first = set(batcher.next())
    for call in gone:
        batcher.remove(call)
        batcher.remove(call)
    rest = list(itertools.chain.from_iterable(drain(batcher)))
    assert {call for call, _ in rest}.isdisjoint(gone)
    wanted = {(call, i) for call, lengths in enumerate(calls) for i in range(len(lengths)) if call not in gone}
    assert wanted - first == set(rest)


@pytest.mark.parametrize("is_packed", [True, False])
def test_one_short_text_passes_thousands_of_another_caller(is_packed: bool) -> None:
    batcher: TokenBatcher[str] = TokenBatcher(BatchLimits(max_tokens=64, max_rows=8), is_packed=is_packed)
    batcher.add("bulk", [f"bulk {index}" for index in range(1000)], [8] * 1000)
    batcher.next()
    batcher.add("short", ["short"], [8])
    assert "short" in batcher.next()


def test_callers_share_by_tokens_not_by_texts() -> None:
    batcher: TokenBatcher[str] = TokenBatcher(BatchLimits(max_tokens=80, max_rows=100), is_packed=True)
    batcher.add("long", ["long"] * 200, [40] * 200)
    batcher.add("short", ["short"] * 800, [10] * 800)
    tokens = {"long": 0, "short": 0}
    for _ in range(40):
        for text in batcher.next():
            tokens[text] += 40 if text == "long" else 10
    assert 0.8 < tokens["long"] / tokens["short"] < 1.25


def test_the_queue_is_bounded_and_an_empty_one_takes_any_call() -> None:
    batcher: TokenBatcher[int] = TokenBatcher(BatchLimits(max_waiting_tokens=100, max_waiting_texts=5), is_packed=True)
    assert batcher.has_room([50] * 10)
    batcher.add("a", [0, 1], [40, 40])
    assert batcher.has_room([20])
    assert not batcher.has_room([21])
    assert not batcher.has_room([1] * 4)
    batcher.remove("a")
    assert batcher.has_room([1000])
