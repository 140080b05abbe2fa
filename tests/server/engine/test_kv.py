"""KV bookkeeping: an owner's content survives whatever else moves, and the books always balance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vorta_server.engine.kv import BLOCK_TOKENS, KvSlots, PrefixMatch, SlotState
from vorta_server.runners.cuda.blocks import BlockTables


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

    def read(self, slot: int, length: int) -> np.ndarray:
        return self.slots[slot, :length]

    def write(self, slot: int, start: int, tokens: np.ndarray) -> None:
        self.slots[slot, start : start + len(tokens)] = tokens


class PagedDevice:
    """Blocks that slots share until they write to them, as many as the engine may use; MemoryError when they are out.

    The tables are the cuda runner's own.
    """

    def __init__(self, num_slots: int, length: int, capacity: int) -> None:
        num_blocks = 1 + capacity // BLOCK_TOKENS
        self.tables = BlockTables(
            num_blocks=num_blocks, block_size=BLOCK_TOKENS, num_slots=num_slots, max_model_len=length
        )
        self.blocks = np.full((num_blocks, BLOCK_TOKENS), -1, np.int64)
        self.copy, self.move, self.discard = self.tables.share, self.tables.move, self.tables.discard

    def read(self, slot: int, length: int) -> np.ndarray:
        return self.blocks[self.tables.blocks(slot)].reshape(-1)[:length]

    def write(self, slot: int, start: int, tokens: np.ndarray) -> None:
        if not len(tokens):
            return
        for source, target in self.tables.extend(slot, start, start + len(tokens)):
            self.blocks[target] = self.blocks[source]
        places = np.arange(start, start + len(tokens))
        blocks = np.array(self.tables.blocks(slot))[places // BLOCK_TOKENS]
        self.blocks[blocks, places % BLOCK_TOKENS] = tokens


def make(
    num_slots: int = 7, length: int = 256, capacity: int = 1024, *, shares_blocks: bool = False
) -> tuple[KvSlots, Device | PagedDevice]:
    device = PagedDevice(num_slots, length, capacity) if shares_blocks else Device(num_slots, length)
    slots = KvSlots(
        num_slots=num_slots,
        max_model_len=length,
        capacity_tokens=capacity,
        shares_blocks=shares_blocks,
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
        slots.take_over(match, num_tokens=60)


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
    match = slots.find_prefix(np.arange(25))
    assert match is not None
    assert slots.acquire(num_tokens=25, prefix=match) is None
    assert slots.state(first) is SlotState.CACHED


@pytest.mark.parametrize(("shares_blocks", "num_admitted"), [(False, 2), (True, 7)])
def test_a_prefix_that_many_sequences_have_is_counted_once(shares_blocks: bool, num_admitted: int) -> None:
    """Ten blocks; prompts of four, of which three are a prefix."""
    slots, device = make(20, 4 * BLOCK_TOKENS, 10 * BLOCK_TOKENS, shares_blocks=shares_blocks)
    prefix = np.arange(3 * BLOCK_TOKENS)
    admitted = 0
    for number in range(10):
        prompt = np.concatenate([prefix, np.full(BLOCK_TOKENS, number)])
        match = slots.find_prefix(prompt)
        slot = slots.acquire(num_tokens=len(prompt), prefix=match)
        if slot is None:
            break
        num_past = match.length if match is not None else 0
        assert num_past == (len(prefix) if number else 0)
        device.write(slot, num_past, prompt[num_past:])
        slots.share(slot, prompt)
        admitted += 1
        slots.check_integrity()
    assert admitted == num_admitted
    assert slots.used_tokens == (10 if shares_blocks else 8) * BLOCK_TOKENS


def test_a_shorter_match_is_taken_over_with_blocks_of_its_own() -> None:
    """What another sequence shares behind the match is counted anew, since it will be written to."""
    slots, device = make(9, 4 * BLOCK_TOKENS, 8 * BLOCK_TOKENS, shares_blocks=True)
    first = slots.acquire(num_tokens=4 * BLOCK_TOKENS)
    assert first is not None
    tokens = np.arange(4 * BLOCK_TOKENS)
    device.write(first, 0, tokens)
    slots.release(first, tokens, cache=True)
    longer = np.append(tokens[: 3 * BLOCK_TOKENS], [-1])
    second = slots.acquire(num_tokens=len(longer), prefix=slots.find_prefix(longer))
    assert slots.resident_tokens == 5 * BLOCK_TOKENS
    match = PrefixMatch(slot=first, length=BLOCK_TOKENS + 3, is_idle=True, is_continuation=False)
    assert slots.take_over(match, num_tokens=4 * BLOCK_TOKENS)
    assert slots.resident_tokens == 7 * BLOCK_TOKENS
    device.write(first, match.length, np.full(4 * BLOCK_TOKENS - match.length, 5))
    assert second is not None
    assert (device.read(second, 3 * BLOCK_TOKENS) == tokens[: 3 * BLOCK_TOKENS]).all()
    slots.check_integrity()


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

    @initialize(num_slots=st.integers(3, 9), blocks=st.integers(4, 12), shares_blocks=st.booleans())
    def start(self, num_slots: int, blocks: int, shares_blocks: bool) -> None:
        self.slots, self.device = make(num_slots, 4 * BLOCK_TOKENS, blocks * BLOCK_TOKENS, shares_blocks=shares_blocks)
        self.num_slots = num_slots
        self.owned: dict[int, np.ndarray] = {}
        self.ended: list[np.ndarray] = []
        self.rng = np.random.default_rng(0)

    def prompt(self, length: int, family: int) -> np.ndarray:
        return np.concatenate([np.full(length // 2, family), self.rng.integers(0, 3, length - length // 2)])

    @rule(length=st.integers(1, 4 * BLOCK_TOKENS), family=st.integers(0, 2), takes_over=st.booleans())
    def acquire(self, length: int, family: int, takes_over: bool) -> None:
        if len(self.owned) * 2 + 1 >= self.num_slots:
            return
        tokens = self.prompt(length, family)
        match = self.slots.find_prefix(tokens)
        num_past = 0
        if match is not None:
            assert (self.device.read(match.slot, match.length) == tokens[: match.length]).all()
            num_past = match.length
        if match is not None and match.is_idle and takes_over:
            if not self.slots.take_over(match, num_tokens=length):
                return
            slot = match.slot
        else:
            acquired = self.slots.acquire(num_tokens=length, prefix=match)
            if acquired is None:
                return
            slot = acquired
        self.device.write(slot, num_past, tokens[num_past:])
        self.owned[slot] = tokens
        self.slots.share(slot, tokens)

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.owned)))
        tokens = self.owned[slot]
        if len(tokens) < 4 * BLOCK_TOKENS and self.slots.reserve(slot, len(tokens) + 1):
            assert self.slots.reserved(slot) >= len(tokens) + 1
            self.device.write(slot, len(tokens), np.array([7]))
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
            assert (self.device.read(slot, len(tokens)) == tokens).all()


TestKvMachine = KvMachine.TestCase
TestKvMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
