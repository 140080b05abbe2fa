"""Block tables: what a slot wrote is what it reads, whatever is shared, moved and given up beside it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vorta_server.runners.cuda.blocks import PADDING_BLOCK, BlockTables

SIZE = 4
LENGTH = 24


def make(num_blocks: int = 20, num_slots: int = 4) -> BlockTables:
    return BlockTables(num_blocks=num_blocks, block_size=SIZE, num_slots=num_slots, max_model_len=LENGTH)


def test_blocks_are_taken_as_tokens_come() -> None:
    tables = make()
    assert tables.extend(0, 0, 5) == []
    assert len(tables.blocks(0)) == 2
    assert tables.extend(0, 5, 8) == []
    assert len(tables.blocks(0)) == 2
    assert tables.writable[0] == 8
    assert tables.num_free == 17
    tables.check_integrity()


def test_a_shared_block_is_copied_before_it_is_written_and_only_then() -> None:
    tables = make()
    tables.extend(0, 0, 10)
    before = tables.blocks(0)
    tables.share(0, 1, 10)
    assert tables.blocks(1) == before
    assert tables.num_free == 16
    (copy,) = tables.extend(1, 10, 11)
    assert copy == (before[2], tables.blocks(1)[2])
    assert tables.blocks(1)[:2] == before[:2]
    assert tables.extend(0, 10, 11) == []  # nobody shares it any more
    tables.check_integrity()


def test_nothing_is_copied_where_a_block_is_written_from_its_beginning() -> None:
    tables = make()
    tables.extend(0, 0, 8)
    tables.share(0, 1, 8)
    assert tables.extend(1, 4, 6) == []
    assert tables.blocks(1)[1] != tables.blocks(0)[1]
    tables.check_integrity()


def test_a_full_cache_says_so_and_changes_nothing() -> None:
    tables = make(num_blocks=4)
    tables.extend(0, 0, 8)
    with pytest.raises(MemoryError, match="slot 1 needs 2 blocks of the cache, 1 are free"):
        tables.extend(1, 0, 8)
    assert tables.blocks(1) == []
    tables.check_integrity()


class Machine(RuleBasedStateMachine):
    """Slots over blocks that hold tokens, beside slots that hold them plainly."""

    @initialize(num_slots=st.integers(2, 5))
    def start(self, num_slots: int) -> None:
        # Enough for all slots unshared: the engine's accounts see to that.
        self.tables = make(num_blocks=1 + num_slots * LENGTH // SIZE, num_slots=num_slots)
        self.cache = np.full((self.tables.num_blocks, SIZE), -1)
        self.slots: list[list[int]] = [[] for _ in range(num_slots)]
        self.next_token = 0

    @rule(slot=st.integers(0, 4), keep=st.integers(0, LENGTH), count=st.integers(1, 9))
    def write(self, slot: int, keep: int, count: int) -> None:
        slot %= len(self.slots)
        start = min(keep, len(self.slots[slot]))
        stop = min(start + count, LENGTH)
        if start == stop:
            return
        for source, target in self.tables.extend(slot, start, stop):
            self.cache[target] = self.cache[source]
        self._store(slot, start, stop)

    @rule(slot=st.integers(0, 4))
    def decode(self, slot: int) -> None:
        slot %= len(self.slots)
        length = len(self.slots[slot])
        if length < min(self.tables.writable[slot], LENGTH):
            self._store(slot, length, length + 1)

    @rule(source=st.integers(0, 4), goal=st.integers(0, 4), length=st.integers(0, LENGTH))
    def share(self, source: int, goal: int, length: int) -> None:
        source, goal = source % len(self.slots), goal % len(self.slots)
        if source == goal:
            return
        length = min(length, len(self.slots[source]))
        self.tables.share(source, goal, length)
        self.slots[goal] = self.slots[source][:length]

    @rule(source=st.integers(0, 4), goal=st.integers(0, 4), length=st.integers(0, LENGTH))
    def move(self, source: int, goal: int, length: int) -> None:
        source, goal = source % len(self.slots), goal % len(self.slots)
        if source == goal:
            return
        keep = min(length, len(self.slots[source]))
        self.tables.move(source, goal, keep)
        self.slots[goal], self.slots[source] = self.slots[source][:keep], []
        assert len(self.tables.blocks(goal)) * SIZE < keep + SIZE

    @rule(slot=st.integers(0, 4))
    def discard(self, slot: int) -> None:
        slot %= len(self.slots)
        self.tables.discard(slot)
        self.slots[slot] = []

    def _store(self, slot: int, start: int, stop: int) -> None:
        del self.slots[slot][start:]
        for position in range(start, stop):
            block = self.tables.table[slot, position // SIZE]
            assert block != PADDING_BLOCK
            self.cache[block, position % SIZE] = self.next_token
            self.slots[slot].append(self.next_token)
            self.next_token += 1

    @invariant()
    def content_is_right(self) -> None:
        if not hasattr(self, "tables"):
            return
        self.tables.check_integrity()
        for slot, tokens in enumerate(self.slots):
            read = self.cache[self.tables.table[slot]].reshape(-1)[: len(tokens)]
            assert read.tolist() == tokens


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
