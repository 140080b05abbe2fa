"""KV bookkeeping: an owner's content survives whatever else moves, and the books always balance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vorta_server.engine.kv import BLOCK_TOKENS, KvSlots, SlotState


class Device:
    """Slots that hold token arrays."""

    def __init__(self, num_slots: int, length: int) -> None:
        self.slots = np.full((num_slots, length), -1, np.int64)

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        assert source != target
        self.slots[target, :num_tokens] = self.slots[source, :num_tokens]

    def move(self, source: int, target: int, num_tokens: int) -> None:
        self.copy(source, target, num_tokens)
        self.slots[source] = -1

    def discard(self, slot: int) -> None:
        self.slots[slot] = -1


def make(num_slots: int = 7, length: int = 256, capacity: int = 1024) -> tuple[KvSlots, Device]:
    device = Device(num_slots, length)
    slots = KvSlots(
        num_slots=num_slots,
        max_model_len=length,
        capacity_tokens=capacity,
        copy_slot=device.copy,
        move_slot=device.move,
        discard_slot=device.discard,
    )
    return slots, device


def test_capacity_must_hold_one_sequence() -> None:
    with pytest.raises(ValueError, match="capacity_tokens"):
        make(capacity=128)


def test_released_slot_serves_its_prefix() -> None:
    slots, _ = make()
    slot = slots.acquire(num_tokens=40)
    assert slot is not None
    slots.release(slot, np.arange(40), cache=True)
    match = slots.find_prefix(np.concatenate([np.arange(30), [999, 998]]))
    assert match is not None
    assert (match.slot, match.length, match.is_idle) == (slot, 30, True)


def test_whole_prompt_is_never_matched() -> None:
    slots, _ = make()
    slot = slots.acquire(num_tokens=40)
    assert slot is not None
    slots.release(slot, np.arange(40), cache=True)
    match = slots.find_prefix(np.arange(40))
    assert match is not None
    assert match.length == 39


def test_running_slot_can_be_shared_but_not_taken() -> None:
    slots, _ = make()
    slot = slots.acquire(num_tokens=40)
    assert slot is not None
    slots.share(slot, np.arange(40))
    match = slots.find_prefix(np.arange(60))
    assert match is not None
    assert not match.is_idle
    with pytest.raises(ValueError, match="RUNNING"):
        slots.take_over(slot, num_tokens=60)


def test_memory_runs_out_only_when_running_slots_hold_it() -> None:
    slots, _ = make(num_slots=9, capacity=4 * BLOCK_TOKENS)
    first = slots.acquire(num_tokens=3 * BLOCK_TOKENS)
    assert first is not None
    assert slots.acquire(num_tokens=2 * BLOCK_TOKENS) is None
    slots.release(first, np.arange(3 * BLOCK_TOKENS), cache=True)
    assert slots.num_cached == 1
    assert slots.acquire(num_tokens=2 * BLOCK_TOKENS) is not None  # evicts the cached one
    slots.check_integrity()


def test_kept_slot_survives_an_acquire() -> None:
    slots, _ = make(num_slots=2, length=BLOCK_TOKENS, capacity=BLOCK_TOKENS)
    first = slots.acquire(num_tokens=20)
    assert first is not None
    slots.release(first, np.arange(20), cache=True)
    assert slots.acquire(num_tokens=20, keep=first) is None
    assert slots.state(first) is SlotState.CACHED


def test_clear_cache_gives_all_memory_back() -> None:
    slots, _ = make()
    slot = slots.acquire(num_tokens=200)
    assert slot is not None
    slots.release(slot, np.arange(200), cache=True)
    slots.clear_cache()
    assert slots.resident_tokens == 0
    assert slots.find_prefix(np.arange(200)) is None


class KvMachine(RuleBasedStateMachine):
    """Sequences come, grow, move and go; each one's tokens must stay in its slot."""

    @initialize(num_slots=st.integers(3, 9), blocks=st.integers(4, 12))
    def start(self, num_slots: int, blocks: int) -> None:
        self.slots, self.device = make(num_slots, 4 * BLOCK_TOKENS, blocks * BLOCK_TOKENS)
        self.num_slots = num_slots
        self.owned: dict[int, np.ndarray] = {}
        self.ended: list[np.ndarray] = []
        self.rng = np.random.default_rng(0)

    def prompt(self, length: int, family: int) -> np.ndarray:
        return np.concatenate([np.full(length // 2, family), self.rng.integers(0, 3, length - length // 2)])

    @rule(length=st.integers(1, 4 * BLOCK_TOKENS), family=st.integers(0, 2))
    def acquire(self, length: int, family: int) -> None:
        if len(self.owned) * 2 + 1 >= self.num_slots:
            return
        tokens = self.prompt(length, family)
        match = self.slots.find_prefix(tokens)
        num_past = 0
        if match is not None:
            assert (self.device.slots[match.slot, : match.length] == tokens[: match.length]).all()
        if match is not None and match.is_idle:
            if not self.slots.take_over(match.slot, num_tokens=length):
                return
            slot, num_past = match.slot, match.length
        else:
            acquired = self.slots.acquire(num_tokens=length, keep=match.slot if match else None)
            if acquired is None:
                return
            slot = acquired
            if match is not None:
                self.device.copy(match.slot, slot, match.length)
                num_past = match.length
        self.device.slots[slot, num_past:length] = tokens[num_past:]
        self.owned[slot] = tokens
        self.slots.share(slot, tokens)

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.owned)))
        tokens = self.owned[slot]
        if len(tokens) < 4 * BLOCK_TOKENS and self.slots.reserve(slot, len(tokens) + 1):
            assert self.slots.reserved(slot) >= len(tokens) + 1
            self.device.slots[slot, len(tokens)] = 7
            self.owned[slot] = np.append(tokens, 7)

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.owned)))
        target = data.draw(st.sampled_from([i for i in range(self.num_slots) if i not in self.owned]))
        self.slots.move(slot, target, len(self.owned[slot]))
        self.owned[target] = self.owned.pop(slot)

    @precondition(lambda self: self.owned)
    @rule(data=st.data(), cache=st.booleans())
    def release(self, data: st.DataObject, cache: bool) -> None:
        slot = data.draw(st.sampled_from(sorted(self.owned)))
        self.slots.release(slot, self.owned.pop(slot), cache=cache)

    @precondition(lambda self: hasattr(self, "owned") and len(self.owned) < self.num_slots - 1)
    @rule(data=st.data())
    def spare(self, data: st.DataObject) -> None:
        free = [i for i in range(self.num_slots) if i not in self.owned]
        exclude = data.draw(st.sampled_from(free))
        spare = self.slots.spare_slot(exclude=exclude)
        assert spare != exclude
        assert spare not in self.owned

    @invariant()
    def contents_and_books(self) -> None:
        if not hasattr(self, "owned"):
            return
        self.slots.check_integrity()
        for slot, tokens in self.owned.items():
            assert self.slots.state(slot) is SlotState.RUNNING
            assert (self.device.slots[slot, : len(tokens)] == tokens).all()


TestKvMachine = KvMachine.TestCase
TestKvMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
