"""KV slots: who owns which slot, what tokens it holds, and how much memory is resident.

Bookkeeping only: the device's memory belongs to the runner, which moves and discards slots as `KvSlots` decides. This
module knows nothing of requests, scheduling or devices.

A slot is FREE, RUNNING (owned by a sequence) or CACHED (its sequence ended; the content serves as a prefix cache until
the memory is wanted). Memory is counted in tokens by blocks: a slot keeps the blocks that it ever touched until it is
discarded. When the resident tokens would exceed the capacity, free slots are discarded first, then cached ones, the
least recently used first; when that is not enough `reserve` says no and the scheduler must preempt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCK_TOKENS", "KvSlots", "PrefixMatch", "SlotState"]

BLOCK_TOKENS = 64
"""Granularity of memory accounting."""

_EXCESS_TOKENS = 8 * BLOCK_TOKENS
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
    resident: int = 0  # tokens whose memory was touched, a multiple of BLOCK_TOKENS
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
    _slots: list[_Slot] = field(init=False)
    _tokens: NDArray[np.int64] = field(init=False)
    _by_prefix: dict[tuple[int, ...], set[int]] = field(init=False, default_factory=dict)
    _resident_total: int = field(init=False, default=0)
    _clock: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if self.capacity_tokens < _round_up(self.max_model_len):
            raise ValueError(
                f"capacity_tokens must hold one full sequence of {_round_up(self.max_model_len)} tokens, "
                f"got {self.capacity_tokens}"
            )
        self._slots = [_Slot() for _ in range(self.num_slots)]
        self._tokens = np.zeros((self.num_slots, self.max_model_len), np.int64)

    @property
    def used_tokens(self) -> int:
        """Resident tokens of running slots."""
        return sum(slot.resident for slot in self._slots if slot.state is SlotState.RUNNING)

    @property
    def resident_tokens(self) -> int:
        """Resident tokens of all slots."""
        return self._resident_total

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

    def acquire(self, *, num_tokens: int, keep: int | None = None) -> int | None:
        """Takes a slot for a new sequence and reserves memory for its first tokens.

        Prefers a free slot, then the least recently used cached one. `keep` names a cached slot that must survive
        because its prefix is about to be copied. None when the memory cannot be had without preempting.
        """
        wanted = self._wanted(num_tokens)
        index = self._pick(keep, wanted)
        if index is None or not self._can_reserve(index, wanted, keep):
            return None
        self._forget(index)
        if self._slots[index].resident > wanted + _EXCESS_TOKENS:
            self._discard(index)  # what a long sequence left would count against a short one
        self._slots[index].state = SlotState.RUNNING
        if not self.reserve(index, num_tokens, keep=keep):
            raise RuntimeError("the books do not balance: memory that was found is gone")
        return index

    def take_over(self, slot: int, *, num_tokens: int) -> bool:
        """Turns a cached slot into a running one with its content. False when the memory to grow cannot be had."""
        entry = self._slots[slot]
        if entry.state is not SlotState.CACHED:
            raise ValueError(f"slot {slot} is {entry.state.name}, not CACHED")
        entry.state = SlotState.RUNNING
        if self.reserve(slot, num_tokens):
            self._forget(slot)
            return True
        entry.state = SlotState.CACHED
        return False

    def reserve(self, slot: int, num_tokens: int, *, keep: int | None = None) -> bool:
        """Makes sure that the slot may hold so many tokens. False when others would have to be preempted."""
        entry = self._slots[slot]
        wanted = self._wanted(num_tokens)
        missing = wanted - entry.resident
        if missing <= 0:
            return True
        if not self._can_reserve(slot, wanted, keep):
            return False  # before anything cached is given up for nothing
        while self._resident_total + missing > self.capacity_tokens:
            if not self._reclaim_one(keep):
                return False
        entry.resident = wanted
        self._resident_total += missing
        return True

    def _wanted(self, num_tokens: int) -> int:
        return min(_round_up(num_tokens), _round_up(self.max_model_len))

    def _can_reserve(self, slot: int, wanted: int, keep: int | None) -> bool:
        """Whether giving up all that no sequence owns, but for `keep`, makes room for the slot's `wanted` tokens."""
        missing = wanted - self._slots[slot].resident
        if missing <= 0 or self._resident_total + missing <= self.capacity_tokens:
            return True
        reclaimable = sum(
            entry.resident
            for index, entry in enumerate(self._slots)
            if entry.state is not SlotState.RUNNING and index not in (keep, slot)
        )
        return self._resident_total + missing - reclaimable <= self.capacity_tokens

    def reserved(self, slot: int) -> int:
        """Tokens that the slot may hold without another `reserve`."""
        return min(self._slots[slot].resident, self.max_model_len)

    def share(self, slot: int, token_ids: Sequence[int] | NDArray[np.int64]) -> None:
        """Makes the first tokens of a running slot known as a prefix that others may copy."""
        self._remember(slot, token_ids)

    def release(self, slot: int, token_ids: Sequence[int] | NDArray[np.int64], *, cache: bool) -> None:
        """Ends a sequence's ownership. With `cache` the content stays as a prefix until its memory is wanted."""
        self._forget(slot)
        if cache and len(token_ids) >= MIN_PREFIX_TOKENS:
            self._remember(slot, token_ids)
            self._slots[slot].state = SlotState.CACHED
        else:
            self._slots[slot].state = SlotState.FREE

    def move(self, source: int, target: int, num_tokens: int) -> None:
        """Moves a running sequence to a slot that no sequence owns; a cached content there is kept if it can be.

        The source becomes free. Memory: the target takes what it lacks over from the source's account, so a move never
        fails.
        """
        origin, goal = self._slots[source], self._slots[target]
        if origin.state is not SlotState.RUNNING or goal.state is SlotState.RUNNING or source == target:
            raise ValueError(f"cannot move slot {source} ({origin.state.name}) to {target} ({goal.state.name})")
        if goal.state is SlotState.CACHED:
            self._evacuate(target)
        self.move_slot(source, target, num_tokens)
        shared = self._tokens[source, : origin.length].copy() if origin.prefix_key is not None else None
        self._forget(source)
        goal.state, origin.state = SlotState.RUNNING, SlotState.FREE
        self._resident_total += max(0, origin.resident - goal.resident)
        goal.resident = max(goal.resident, origin.resident)
        if shared is not None:
            self._remember(target, shared)
        while self._resident_total > self.capacity_tokens and self._reclaim_one(None):
            pass

    def spare_slot(self, *, exclude: int) -> int:
        """A slot that no sequence owns, other than `exclude`: free if there is one, else the least recently used."""
        index = self._pick(exclude, 0)
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
        assert self._resident_total == sum(slot.resident for slot in self._slots)
        assert self._resident_total <= self.capacity_tokens
        for index, slot in enumerate(self._slots):
            assert slot.resident % BLOCK_TOKENS == 0
            if slot.prefix_key is not None:
                assert index in self._by_prefix[slot.prefix_key]
                assert slot.length >= MIN_PREFIX_TOKENS
            if slot.state is SlotState.CACHED:
                assert slot.prefix_key is not None
                assert slot.resident >= slot.length
            if slot.state is SlotState.FREE:
                assert slot.prefix_key is None
        for key, members in self._by_prefix.items():
            assert members, key

    def _pick(self, exclude: int | None, wanted: int) -> int | None:
        """The free slot whose resident memory fits best, else the least recently used cached slot."""
        free = [i for i, s in enumerate(self._slots) if s.state is SlotState.FREE and i != exclude]
        if free:
            return min(free, key=lambda i: (self._slots[i].resident < wanted, abs(self._slots[i].resident - wanted), i))
        cached = [i for i, s in enumerate(self._slots) if s.state is SlotState.CACHED and i != exclude]
        return min(cached, key=lambda i: self._slots[i].last_used, default=None)

    def _reclaim_one(self, keep: int | None) -> bool:
        """Discards one unowned slot's memory: a free one before a cached one. False when there is none."""
        free = [i for i, s in enumerate(self._slots) if s.state is SlotState.FREE and s.resident and i != keep]
        if free:
            self._discard(free[0])
            return True
        cached = [i for i, s in enumerate(self._slots) if s.state is SlotState.CACHED and i != keep]
        if not cached:
            return False
        index = min(cached, key=lambda i: self._slots[i].last_used)
        self._drop(index)
        self._discard(index)
        return True

    def _evacuate(self, slot: int) -> None:
        """Moves a cached content to a free slot when that needs no eviction; otherwise drops it."""
        entry = self._slots[slot]
        free = [i for i, s in enumerate(self._slots) if s.state is SlotState.FREE]
        target = max(free, key=lambda i: self._slots[i].resident, default=None)
        missing = 0 if target is None else max(0, _round_up(entry.length) - self._slots[target].resident)
        if target is None or self._resident_total + missing > self.capacity_tokens:
            self._drop(slot)
            return
        self.move_slot(slot, target, entry.length)
        self._slots[target].resident += missing
        self._resident_total += missing
        tokens, last_used = self._tokens[slot, : entry.length].copy(), entry.last_used
        self._drop(slot)
        self._remember(target, tokens)
        self._slots[target].state = SlotState.CACHED
        self._slots[target].last_used = last_used

    def _drop(self, slot: int) -> None:
        self._forget(slot)
        self._slots[slot].state = SlotState.FREE

    def _discard(self, slot: int) -> None:
        if self._slots[slot].resident:
            self.discard_slot(slot)
            self._resident_total -= self._slots[slot].resident
            self._slots[slot].resident = 0

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


def _round_up(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_TOKENS) * BLOCK_TOKENS
