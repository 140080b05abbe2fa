"""KV slots: who owns which slot, what tokens it holds, and how much memory is resident.

Bookkeeping only: the device's memory belongs to the runner, which moves and discards slots as `KvSlots` decides. This
module knows nothing of requests, scheduling or devices.

A slot is FREE, RUNNING (owned by a sequence) or CACHED (its sequence ended; the content serves as a prefix cache until
the memory is wanted). Memory is counted by blocks: a slot keeps the blocks that it ever touched until it is discarded.
When the resident tokens would exceed the capacity, free slots are discarded first, then cached ones, the least recently
used first; when that is not enough `reserve` says no and the scheduler must preempt. Where the runner shares blocks
(vLLM's copy-on-write blocks, https://arxiv.org/abs/2309.06180), a prefix that several slots have is counted once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from vorta_server.engine.kv_memory import KvMemory

__all__ = ["BLOCK_TOKENS", "KvSlots", "PrefixMatch", "SlotState"]

BLOCK_TOKENS = 64
"""Granularity of memory accounting, and of what runners share."""

_EXCESS_BLOCKS = 8
"""A slot that holds this much more than a new sequence wants is given back to the system first."""

MIN_PREFIX_TOKENS = 16
"""Shorter common prefixes are recomputed: that costs less than looking for them."""


class SlotState(Enum):
    """What a slot is used for."""

    FREE = 0
    RUNNING = 1
    CACHED = 2


@dataclass(slots=True)
class _Slot:
    state: SlotState = SlotState.FREE
    length: int = 0  # valid tokens, recorded when the slot is cached or shared
    last_used: int = 0
    prefix_key: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixMatch:
    """A slot whose first `length` tokens equal a prompt's.

    Attributes:
        is_idle: It is CACHED and may be taken over as it is.
        is_continuation: It is idle and hardly longer than the match, so that taking it over loses nothing: the next
            turn of a conversation, not another conversation with the same beginning.
    """

    slot: int
    length: int
    is_idle: bool
    is_continuation: bool


@dataclass(slots=True, kw_only=True)
class KvSlots:
    """The slots of one runner. Engine thread only.

    Args:
        num_slots: How many there are; more than twice the most running sequences, so that a slot can always be moved.
        max_model_len: Tokens of one slot.
        capacity_tokens: Most resident tokens over all slots, at least one full slot.
        shares_blocks: What `copy_slot` copies is in memory once, as long as nobody writes to it.
        copy_slot: Copies the first tokens of a slot on the device: (source, target, num_tokens).
        move_slot: The same where the source's content is not wanted any more.
        discard_slot: Gives a slot's memory back.
    """

    num_slots: int
    max_model_len: int
    capacity_tokens: int
    copy_slot: Callable[[int, int, int], None]
    move_slot: Callable[[int, int, int], None]
    discard_slot: Callable[[int], None]
    shares_blocks: bool = False
    _memory: KvMemory = field(init=False)
    _slots: list[_Slot] = field(init=False)
    _tokens: NDArray[np.int64] = field(init=False)
    _by_prefix: dict[tuple[int, ...], set[int]] = field(init=False, default_factory=dict)
    _clock: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        slot_blocks = _num_blocks(self.max_model_len)
        if self.capacity_tokens < slot_blocks * BLOCK_TOKENS:
            raise ValueError(
                f"capacity_tokens must hold one full sequence of {slot_blocks * BLOCK_TOKENS} tokens, "
                f"got {self.capacity_tokens}"
            )
        self._memory = KvMemory(
            num_slots=self.num_slots, slot_blocks=slot_blocks, capacity=self.capacity_tokens // BLOCK_TOKENS
        )
        self._slots = [_Slot() for _ in range(self.num_slots)]
        self._tokens = np.zeros((self.num_slots, self.max_model_len), np.int64)

    @property
    def used_tokens(self) -> int:
        """Resident tokens of running slots."""
        return self._memory.num_running * BLOCK_TOKENS

    @property
    def resident_tokens(self) -> int:
        """Resident tokens of all slots."""
        return self._memory.num_held * BLOCK_TOKENS

    @property
    def num_cached(self) -> int:
        """Slots that hold a reusable prefix."""
        return sum(slot.state is SlotState.CACHED for slot in self._slots)

    def state(self, slot: int) -> SlotState:
        """What the slot is used for."""
        return self._slots[slot].state

    def find_prefix(self, prompt: NDArray[np.int64]) -> PrefixMatch | None:
        """The slot with the longest common prefix, short of the prompt's last token, which must be computed."""
        limit = len(prompt) - 1
        if limit < MIN_PREFIX_TOKENS:
            return None
        candidates = self._by_prefix.get(tuple(prompt[:MIN_PREFIX_TOKENS].tolist()))
        if not candidates:
            return None
        best: PrefixMatch | None = None
        for index in sorted(candidates):
            slot = self._slots[index]
            length = min(limit, slot.length)
            differs = self._tokens[index, :length] != prompt[:length]
            common = int(differs.argmax()) if differs.any() else length
            is_idle = slot.state is SlotState.CACHED
            if best is None or (common, is_idle) > (best.length, best.is_idle):
                is_continuation = is_idle and common >= slot.length - BLOCK_TOKENS
                best = PrefixMatch(slot=index, length=common, is_idle=is_idle, is_continuation=is_continuation)
        if best is None or best.length < MIN_PREFIX_TOKENS:
            return None
        return best

    def acquire(self, *, num_tokens: int, prefix: PrefixMatch | None = None) -> int | None:
        """Takes a slot for a new sequence, reserves memory for its first tokens and copies a prefix into it.

        Prefers a free slot, then the least recently used cached one; never the prefix's own. None when the memory
        cannot be had without preempting.
        """
        wanted = self._wanted(num_tokens)
        keep = () if prefix is None else (prefix.slot,)
        shared = prefix.length // BLOCK_TOKENS if prefix is not None and self.shares_blocks else 0
        index = self._pick(keep, wanted)
        if index is None:
            return None
        # What a long sequence left would count against a short one; what others hold too cannot be written to.
        is_stale = self.shares_blocks or self._memory.count(index) > wanted + _EXCESS_BLOCKS
        if is_stale:
            has_room = self._can_hold(wanted - shared, *keep)
        else:
            has_room = self._can_hold(wanted - self._memory.count(index), index, *keep)
        if not has_room:
            return None
        self._forget(index)
        if is_stale:
            self._discard(index)
        self._set_state(index, SlotState.RUNNING)
        if prefix is not None and shared:
            self._memory.share(prefix.slot, index, shared)
        if not self._make_room(wanted - self._memory.count(index), keep):
            raise RuntimeError("the books do not balance: memory that was found is gone")
        self._memory.grow(index, wanted)
        if prefix is not None:
            self.copy_slot(prefix.slot, index, prefix.length)
        return index

    def take_over(self, match: PrefixMatch, *, num_tokens: int) -> bool:
        """Turns a cached slot into a running one with the content that matches, behind which its sequence writes.

        False when the memory to grow cannot be had.
        """
        slot, entry = match.slot, self._slots[match.slot]
        if entry.state is not SlotState.CACHED:
            raise ValueError(f"slot {slot} is {entry.state.name}, not CACHED")
        first = match.length // BLOCK_TOKENS
        wanted = self._wanted(num_tokens)
        missing = max(0, wanted - self._memory.count(slot)) + self._memory.shares(slot, first=first)
        if not self._can_hold(missing, slot):
            return False
        self._set_state(slot, SlotState.RUNNING)
        self._forget(slot)
        if not self._make_room(missing):
            raise RuntimeError("the books do not balance: memory that was found is gone")
        self._memory.own(slot, first=first)
        self._memory.grow(slot, wanted)
        return True

    def reserve(self, slot: int, num_tokens: int) -> bool:
        """Makes sure that the slot may hold so many tokens. False when others would have to be preempted."""
        wanted = self._wanted(num_tokens)
        missing = wanted - self._memory.count(slot)
        if missing <= 0:
            return True
        if not self._can_hold(missing, slot):
            return False  # before anything cached is given up for nothing
        self._make_room(missing)
        self._memory.grow(slot, wanted)
        return True

    def _wanted(self, num_tokens: int) -> int:
        """Blocks."""
        return min(_num_blocks(num_tokens), _num_blocks(self.max_model_len))

    def _can_hold(self, missing: int, *keep: int) -> bool:
        """Whether giving up all that no sequence owns, but for `keep`, makes room for so many more blocks."""
        memory = self._memory
        if missing <= 0 or memory.num_held + missing <= memory.capacity:
            return True
        return memory.num_held + missing - memory.reclaimable(*keep) <= memory.capacity

    def _make_room(self, missing: int, keep: tuple[int, ...] = ()) -> bool:
        """Discards what no sequence owns until there is room for so many more blocks. False when it is not enough."""
        while self._memory.num_held + max(missing, 0) > self._memory.capacity:
            if not self._reclaim_one(keep):
                return False
        return True

    def reserved(self, slot: int) -> int:
        """Tokens that the slot may hold without another `reserve`."""
        return min(self._memory.count(slot) * BLOCK_TOKENS, self.max_model_len)

    def share(self, slot: int, token_ids: Sequence[int] | NDArray[np.int64]) -> None:
        """Makes the first tokens of a running slot known as a prefix that others may copy."""
        self._remember(slot, token_ids)

    def release(self, slot: int, token_ids: Sequence[int] | NDArray[np.int64], *, cache: bool) -> None:
        """Ends a sequence's ownership. With `cache` the content stays as a prefix until its memory is wanted."""
        self._forget(slot)
        if cache and len(token_ids) >= MIN_PREFIX_TOKENS:
            self._remember(slot, token_ids)
            self._set_state(slot, SlotState.CACHED)
        else:
            self._set_state(slot, SlotState.FREE)

    def move(self, source: int, target: int, num_tokens: int) -> None:
        """Moves a running sequence to a slot that no sequence owns; a cached content there is kept if it can be.

        The source becomes free. Memory: the target takes the source's blocks over or, where runners do not share, what
        it lacks, so a move never fails.
        """
        origin, goal = self._slots[source], self._slots[target]
        if origin.state is not SlotState.RUNNING or goal.state is SlotState.RUNNING or source == target:
            raise ValueError(f"cannot move slot {source} ({origin.state.name}) to {target} ({goal.state.name})")
        if goal.state is SlotState.CACHED:
            self._evacuate(target)
        self.move_slot(source, target, num_tokens)
        shared = self._tokens[source, : origin.length].copy() if origin.prefix_key is not None else None
        self._forget(source)
        self._set_state(target, SlotState.RUNNING)
        self._move_memory(source, target)
        self._set_state(source, SlotState.FREE)
        if shared is not None:
            self._remember(target, shared)
        self._make_room(0)

    def spare_slot(self, *, exclude: int) -> int:
        """A slot that no sequence owns, other than `exclude`: free if there is one, else the least recently used."""
        index = self._pick((exclude,), 0)
        if index is None:
            raise RuntimeError("no spare slot: num_slots must exceed twice the running sequences")
        if self._slots[index].state is SlotState.CACHED:
            self._drop(index)
        return index

    def clear_cache(self) -> None:
        """Forgets every cached prefix and gives the memory of unowned slots back."""
        for index, slot in enumerate(self._slots):
            if slot.state is not SlotState.RUNNING:
                self._drop(index)
                self._discard(index)

    def check_integrity(self) -> None:
        """Raises AssertionError when the books do not balance; for tests and idle time."""
        self._memory.check_integrity()
        assert self._memory.num_held <= self._memory.capacity
        if not self.shares_blocks:
            assert self._memory.num_held == sum(map(self._memory.count, range(self.num_slots)))
        for index, slot in enumerate(self._slots):
            if slot.prefix_key is not None:
                assert index in self._by_prefix[slot.prefix_key]
                assert slot.length >= MIN_PREFIX_TOKENS
            if slot.state is SlotState.CACHED:
                assert slot.prefix_key is not None
                assert self._memory.count(index) * BLOCK_TOKENS >= slot.length
            if slot.state is SlotState.FREE:
                assert slot.prefix_key is None
        for key, members in self._by_prefix.items():
            assert members, key

    def _pick(self, exclude: tuple[int, ...], wanted: int) -> int | None:
        """The free slot whose resident memory fits best, else the least recently used cached slot."""
        free = [i for i, s in enumerate(self._slots) if s.state is SlotState.FREE and i not in exclude]
        if free:
            counts = self._memory.count
            return min(free, key=lambda i: (counts(i) < wanted, abs(counts(i) - wanted), i))
        cached = [i for i, s in enumerate(self._slots) if s.state is SlotState.CACHED and i not in exclude]
        return min(cached, key=lambda i: self._slots[i].last_used, default=None)

    def _reclaim_one(self, keep: tuple[int, ...]) -> bool:
        """Discards one unowned slot's memory: a free one before a cached one. False when there is none."""
        for index, slot in enumerate(self._slots):
            if slot.state is SlotState.FREE and self._memory.count(index) and index not in keep:
                self._discard(index)
                return True
        cached = [i for i, s in enumerate(self._slots) if s.state is SlotState.CACHED and i not in keep]
        if not cached:
            return False
        index = min(cached, key=lambda i: self._slots[i].last_used)
        self._drop(index)
        self._discard(index)
        return True

    def _evacuate(self, slot: int) -> None:
        """Moves a cached content to a free slot when that needs no eviction; otherwise drops it."""
        entry, memory = self._slots[slot], self._memory
        free = [i for i, s in enumerate(self._slots) if s.state is SlotState.FREE]
        target = max(free, key=memory.count, default=None)
        missing = 0
        if target is not None and not self.shares_blocks:
            missing = max(0, _num_blocks(entry.length) - memory.count(target))
        if target is None or memory.num_held + missing > memory.capacity:
            self._drop(slot)
            return
        self.move_slot(slot, target, entry.length)
        tokens, last_used = self._tokens[slot, : entry.length].copy(), entry.last_used
        self._drop(slot)
        if self.shares_blocks:
            self._move_memory(slot, target)
        else:
            memory.grow(target, _num_blocks(len(tokens)))
        self._remember(target, tokens)
        self._set_state(target, SlotState.CACHED)
        self._slots[target].last_used = last_used

    def _move_memory(self, source: int, target: int) -> None:
        """The target's account after the device's slot was moved there."""
        if self.shares_blocks:
            self._memory.discard(target)
            self._memory.move(source, target)
        else:
            self._memory.grow(target, self._memory.count(source))

    def _set_state(self, slot: int, state: SlotState) -> None:
        self._slots[slot].state = state
        self._memory.set_running(slot, state is SlotState.RUNNING)

    def _drop(self, slot: int) -> None:
        self._forget(slot)
        self._set_state(slot, SlotState.FREE)

    def _discard(self, slot: int) -> None:
        if self._memory.count(slot):
            self.discard_slot(slot)
            self._memory.discard(slot)

    def _remember(self, slot: int, token_ids: Sequence[int] | NDArray[np.int64]) -> None:
        self._forget(slot)
        entry = self._slots[slot]
        self._clock += 1
        entry.last_used = self._clock
        if len(token_ids) < MIN_PREFIX_TOKENS:
            return
        entry.length = len(token_ids)
        self._tokens[slot, : entry.length] = token_ids
        entry.prefix_key = tuple(self._tokens[slot, :MIN_PREFIX_TOKENS].tolist())
        self._by_prefix.setdefault(entry.prefix_key, set()).add(slot)

    def _forget(self, slot: int) -> None:
        entry = self._slots[slot]
        if entry.prefix_key is not None:
            members = self._by_prefix[entry.prefix_key]
            members.discard(slot)
            if not members:
                del self._by_prefix[entry.prefix_key]
        entry.prefix_key = None
        entry.length = 0


def _num_blocks(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_TOKENS)
