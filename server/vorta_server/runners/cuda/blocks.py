"""Which blocks of the paged cache hold which slot's tokens.

A slot is a row of the block table. Copying a slot shares its blocks, so a prefix that many sequences begin with is in
memory once; a block that others share is replaced by one of its own before a slot writes to it. Bookkeeping only: what
must be copied on the device is returned.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["PADDING_BLOCK", "BlockTables"]

PADDING_BLOCK = 0
"""A block that no slot owns; table entries that hold no block name it, so that reading them is harmless."""


@dataclass(slots=True, kw_only=True)
class BlockTables:
    """The block tables of all slots. Engine thread only.

    Args:
        num_blocks: Blocks of the cache, the padding block included.
        block_size: Tokens of a block.
        num_slots: Rows of the table.
        max_model_len: Tokens of a slot.

    Attributes:
        table: int32 [num_slots, max_blocks]; entries past a slot's blocks are `PADDING_BLOCK`.
        writable: int64 [num_slots]; a slot that goes on where `extend` left it may write up to here without another.
    """

    num_blocks: int
    block_size: int
    num_slots: int
    max_model_len: int
    table: NDArray[np.int32] = field(init=False)
    writable: NDArray[np.int64] = field(init=False)
    _num_owned: list[int] = field(init=False)
    _references: list[int] = field(init=False)
    _free: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.table = np.full((self.num_slots, -(-self.max_model_len // self.block_size)), PADDING_BLOCK, np.int32)
        self.writable = np.zeros(self.num_slots, np.int64)
        self._num_owned = [0] * self.num_slots
        self._references = [0] * self.num_blocks
        # The lowest is given first: a cache that is hardly used stays small in the TLB.
        self._free = list(range(self.num_blocks - 1, PADDING_BLOCK, -1))

    @property
    def num_free(self) -> int:
        """Blocks that no slot holds."""
        return len(self._free)

    def blocks(self, slot: int) -> list[int]:
        """The slot's blocks, in order."""
        owned: list[int] = self.table[slot, : self._num_owned[slot]].tolist()
        return owned

    def extend(self, slot: int, start: int, stop: int) -> list[tuple[int, int]]:
        """Makes tokens start to stop - 1 of a slot writable: its own, and there.

        Returns:
            Pairs (source, target) of blocks whose content must be copied before the write.

        Raises:
            MemoryError: The blocks are used up; nothing has changed.
        """
        row, size = self.table[slot], self.block_size
        first, last = start // size, (stop - 1) // size
        owned = range(first, min(self._num_owned[slot], last + 1))
        written = [index for index in owned if self._references[row[index]] > 1]
        num_new = max(0, last + 1 - self._num_owned[slot]) + len(written)
        if num_new > len(self._free):
            raise MemoryError(f"slot {slot} needs {num_new} blocks of the cache, {len(self._free)} are free")
        copies = []
        for index in written:
            block = self._take()
            if index == first and start % size:
                copies.append((int(row[index]), block))
            self._drop(int(row[index]))
            row[index] = block
        for index in range(self._num_owned[slot], last + 1):
            row[index] = self._take()
        self._num_owned[slot] = max(self._num_owned[slot], last + 1)
        self.writable[slot] = (last + 1) * size
        return copies

    def share(self, source: int, target: int, num_tokens: int) -> None:
        """Gives the target the blocks of the source's first tokens; what it had is dropped."""
        if source == target:
            raise ValueError(f"slot {source} cannot be shared with itself")
        count = -(-num_tokens // self.block_size)
        if count > self._num_owned[source]:
            raise ValueError(f"slot {source} holds {self._num_owned[source]} blocks, not {num_tokens} tokens")
        taken = self.table[source, :count].tolist()
        for block in taken:
            self._references[block] += 1
        self.discard(target)
        self.writable[source] = 0  # its last block may be the target's too
        self.table[target, :count] = taken
        self._num_owned[target] = count

    def move(self, source: int, target: int, num_tokens: int) -> None:
        """Gives the target the blocks of the source's first tokens; what it had is dropped, and the source has none."""
        if source == target:
            raise ValueError(f"slot {source} cannot be moved to itself")
        self.discard(target)
        count = min(-(-num_tokens // self.block_size), self._num_owned[source])
        for block in self.table[source, count : self._num_owned[source]].tolist():
            self._drop(block)
        self.table[target, :count] = self.table[source, :count]
        self.writable[target] = min(self.writable[source], count * self.block_size)
        self._num_owned[target] = count
        self._clear(source)

    def discard(self, slot: int) -> None:
        """Gives the slot's blocks back, but for those that others share."""
        for block in self.blocks(slot):
            self._drop(block)
        self._clear(slot)

    def check_integrity(self) -> None:
        """Raises AssertionError when the books do not balance; for tests."""
        counts = np.zeros(self.num_blocks, np.int64)
        for slot in range(self.num_slots):
            owned = self.blocks(slot)
            assert PADDING_BLOCK not in owned
            assert len(set(owned)) == len(owned)
            assert (self.table[slot, len(owned) :] == PADDING_BLOCK).all()
            counts[owned] += 1
        assert counts.tolist() == self._references
        assert sorted(self._free) == [block for block in range(1, self.num_blocks) if not counts[block]]

    def _clear(self, slot: int) -> None:
        self.table[slot] = PADDING_BLOCK
        self.writable[slot] = 0
        self._num_owned[slot] = 0

    def _take(self) -> int:
        block = self._free.pop()
        self._references[block] = 1
        return block

    def _drop(self, block: int) -> None:
        self._references[block] -= 1
        if not self._references[block]:
            self._free.append(block)
