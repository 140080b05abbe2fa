"""How much KV memory slots hold, in blocks: the account that `KvSlots` keeps of a runner's memory.

A block is counted once, however many slots hold it. Slots come to hold the same blocks only where the runner shares
them (`RunnerInfo.shares_blocks`); elsewhere every slot has memory of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["KvMemory"]


@dataclass(slots=True, kw_only=True)
class KvMemory:
    """The blocks of all slots. Engine thread only.

    Args:
        num_slots: How many slots there are.
        slot_blocks: Most blocks of a slot.
        capacity: Blocks that slots should hold together; it may be exceeded by one slot's, while one is moved.

    Attributes:
        num_held: Blocks that any slot holds.
        num_running: Of these, blocks that running slots hold.
    """

    num_slots: int
    slot_blocks: int
    capacity: int
    num_held: int = field(init=False, default=0)
    num_running: int = field(init=False, default=0)
    _table: NDArray[np.int32] = field(init=False)
    _counts: list[int] = field(init=False)
    _is_running: list[bool] = field(init=False)
    _free: list[int] = field(init=False)
    # By block: slots that hold it, and running slots that do.
    _holders: NDArray[np.int32] = field(init=False)
    _runners: NDArray[np.int32] = field(init=False)

    def __post_init__(self) -> None:
        num_blocks = self.capacity + self.slot_blocks
        self._table = np.zeros((self.num_slots, self.slot_blocks), np.int32)
        self._counts = [0] * self.num_slots
        self._is_running = [False] * self.num_slots
        self._free = list(range(num_blocks - 1, -1, -1))
        self._holders = np.zeros(num_blocks, np.int32)
        self._runners = np.zeros(num_blocks, np.int32)

    def count(self, slot: int) -> int:
        """Blocks of a slot."""
        return self._counts[slot]

    def shares(self, slot: int, *, first: int = 0) -> int:
        """Of a slot's blocks from `first` on, those that other slots hold too."""
        return int((self._holders[self._blocks(slot)[first:]] > 1).sum())

    def reclaimable(self, *keep: int) -> int:
        """Blocks that are nobody's when all slots that do not run, but for `keep`, give theirs back."""
        is_idle = self._runners == 0
        is_idle &= self._holders > 0
        for slot in keep:
            is_idle[self._blocks(slot)] = False
        return int(is_idle.sum())

    def set_running(self, slot: int, is_running: bool) -> None:
        """Notes whether a sequence owns the slot."""
        if self._is_running[slot] == is_running:
            return
        self._is_running[slot] = is_running
        blocks = self._blocks(slot)
        if is_running:
            self._runners[blocks] += 1
            self.num_running += int((self._runners[blocks] == 1).sum())
        else:
            self._runners[blocks] -= 1
            self.num_running -= int((self._runners[blocks] == 0).sum())

    def grow(self, slot: int, count: int) -> None:
        """Gives the slot blocks of its own until it has `count`."""
        for index in range(self._counts[slot], count):
            self._table[slot, index] = self._take(slot)
        self._counts[slot] = max(self._counts[slot], count)

    def share(self, source: int, target: int, count: int) -> None:
        """Makes the source's first blocks the target's, which must have none."""
        if self._counts[target]:
            raise ValueError(f"slot {target} has {self._counts[target]} blocks of its own")
        blocks = self._blocks(source)[:count]
        self._table[target, : len(blocks)] = blocks
        self._counts[target] = len(blocks)
        self._holders[blocks] += 1
        if self._is_running[target]:
            self._runners[blocks] += 1
            self.num_running += int((self._runners[blocks] == 1).sum())

    def own(self, slot: int, *, first: int) -> None:
        """Puts blocks of its own in the place of those that others hold too, from `first` on."""
        for index in range(first, self._counts[slot]):
            block = int(self._table[slot, index])
            if self._holders[block] > 1:
                self._table[slot, index] = self._take(slot)
                self._drop(slot, block)

    def move(self, source: int, target: int) -> None:
        """Makes all of the source's blocks the target's, which must have none. Neither changes whether it runs."""
        self.share(source, target, self._counts[source])
        self.discard(source)

    def discard(self, slot: int) -> None:
        """Gives the slot's blocks back."""
        for block in self._blocks(slot).tolist():
            self._drop(slot, block)
        self._counts[slot] = 0

    def check_integrity(self) -> None:
        """Raises AssertionError when the books do not balance."""
        holders, runners = np.zeros_like(self._holders), np.zeros_like(self._runners)
        for slot in range(self.num_slots):
            blocks = self._blocks(slot)
            assert len(set(blocks.tolist())) == len(blocks)
            holders[blocks] += 1
            runners[blocks] += self._is_running[slot]
        assert (holders == self._holders).all()
        assert (runners == self._runners).all()
        assert self.num_held == int((holders > 0).sum()) == len(holders) - len(self._free)
        assert self.num_running == int((runners > 0).sum())

    def _blocks(self, slot: int) -> NDArray[np.int32]:
        return self._table[slot, : self._counts[slot]]

    def _take(self, slot: int) -> int:
        block = self._free.pop()
        self.num_held += 1
        self._holders[block] = 1
        self._runners[block] = self._is_running[slot]
        self.num_running += self._is_running[slot]
        return block

    def _drop(self, slot: int, block: int) -> None:
        self._holders[block] -= 1
        if not self._holders[block]:
            self._free.append(block)
            self.num_held -= 1
        if self._is_running[slot]:
            self._runners[block] -= 1
            self.num_running -= int(self._runners[block] == 0)
