"""Two backends as one: all data in one that is durable and shared, the hot collections copied into one that is fast."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from vorta.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
    VortaError,
)
from vorta_server.vectors.operation import (
    Aliases,
    AliasInfo,
    CollectionInfo,
    CreateCollection,
    DeleteAlias,
    DeleteCollection,
    DeletePoints,
    GetPoints,
    ListAliases,
    ListCollections,
    Operation,
    Point,
    Points,
    RestoreSnapshot,
    Result,
    ScrollPoints,
    Search,
    SwapAlias,
    Ticket,
    UpsertPoints,
    VectorBackend,
    Written,
)
from vorta_server.vectors.operation import Collections as CollectionList
from vorta_server.vectors.tiered_copy import Answer, HotCopy, upsert_of

__all__ = ["TieredBackend", "TieredConfig", "TieredCounters"]

_log = logging.getLogger(__name__)

_CallersFault = (InvalidArgument, DeadlineExceeded, Cancelled, Unimplemented)
_NothingWritten = (InvalidArgument, NotFound, FailedPrecondition, Unimplemented, PermissionDenied)
_CLOSE_POLL_S = 0.002


@dataclass(frozen=True, kw_only=True)
class TieredConfig:
    """What is copied, and how.

    Attributes:
        hot: Names of collections that are copied (their own names, not aliases); "*" among them for all.
        page_points: Points read from the truth at once while a copy is filled, 1 to 10,000.
        retry_s: Wait before a failed copy is filled again; doubled for each failure in a row.
        max_retry_s: Longest such wait.
        max_pending: Operations without an answer; one more is refused.
        close_timeout_s: Longest time that `close` waits for what was accepted.
    """

    hot: tuple[str, ...] = ("*",)
    page_points: int = 1000
    retry_s: float = 1.0
    max_retry_s: float = 60.0
    max_pending: int = 4096
    close_timeout_s: float = 30.0


@dataclass(kw_only=True)
class TieredCounters:
    """What happened so far.

    Attributes:
        hot_answers: Searches and gets that a copy answered.
        truth_answers: Those that the truth answered.
        hot_failures: Failures of the hot backend: each made a copy unusable until it is filled again.
        fills: Copies that became complete.
    """

    hot_answers: int = 0
    truth_answers: int = 0
    hot_failures: int = 0
    fills: int = 0


class _Child(Ticket):
    """A ticket of ours to one of the backends, abandoned when the caller's is."""

    __slots__ = ("_parent",)

    def __init__(self, operation: Operation, deliver: Callable[[Answer], None], parent: Ticket | None) -> None:
        self._parent = parent
        super().__init__(operation, deliver, deadline_s=None if parent is None else parent.deadline_s)

    @property
    def is_abandoned(self) -> bool:
        return self._parent is not None and self._parent.is_abandoned

    @is_abandoned.setter
    def is_abandoned(self, value: bool) -> None:
        """Only the caller's ticket decides."""


class TieredBackend:
    """Answers searches and gets of hot collections from copies, everything else from the truth. A `VectorBackend`.

    A write goes to the truth; once that acknowledges it, to the copy; then it is answered, so a caller who waited finds
    what he wrote. Writes of one collection go one by one. Copies are filled from the truth at the start and after each
    failure of the hot backend; until a copy is complete the truth answers. Copies miss what others write to the truth:
    run one server with hot copies for each truth, or let the others only read.

    All state belongs to the worker's thread: answers of the backends, from whatever thread, wait for `step`.
    """

    def __init__(
        self,
        truth: VectorBackend,
        hot: VectorBackend,
        config: TieredConfig | None = None,
        *,
        wake: Callable[[], None] | None = None,
    ) -> None:
        """Takes both backends over: `close` closes them.

        Args:
            truth: Holds everything.
            hot: Holds copies; whatever else it holds under their names is replaced.
            config: What is copied.
            wake: Called from any thread when `step` has something to do; None where the worker looks at `has_work`
                by itself every few milliseconds.
        """
        self.counters = TieredCounters()
        self._truth = truth
        self._hot = hot
        self._config = config or TieredConfig()
        self._wake = wake
        self._events: deque[tuple[Callable[[Answer], None], Answer]] = deque()
        self._copies: dict[str, HotCopy] = {}
        self._aliases: dict[str, str] = {}
        self._lanes: dict[str, deque[Callable[[], None]]] = {}
        self._pending: set[Ticket] = set()
        self._survey_at_s: float | None = 0.0
        self._is_closed = False

    @property
    def has_work(self) -> bool:
        """Whether answers of the backends wait, one of them has work, or a copy is due to be filled."""
        return bool(self._events) or self._truth.has_work or self._hot.has_work or self._is_due(time.monotonic())

    @property
    def num_pending(self) -> int:
        """Operations without an answer so far."""
        return len(self._pending)

    @property
    def ready_collections(self) -> list[str]:
        """Collections whose copies are complete."""
        return sorted(name for name, copy in self._copies.items() if copy.is_ready)

    def submit(self, ticket: Ticket) -> None:
        """Takes an operation, or refuses it: ResourceExhausted when full, Unavailable after `close`."""
        if self._is_closed:
            ticket.fail(Unavailable("The server is shutting down.", reason="DRAINING", retry_delay_s=0.5))
            return
        if len(self._pending) >= self._config.max_pending:
            ticket.fail(
                ResourceExhausted(
                    f"{self._config.max_pending} vector operations are under way.",
                    metadata={"limit": self._config.max_pending},
                    retry_delay_s=0.5,
                )
            )
            return
        self._pending.add(ticket)
        operation = ticket.operation
        if isinstance(operation, Search | GetPoints):
            self._read(ticket, operation)
        elif isinstance(operation, UpsertPoints | DeletePoints):
            name = self._own_name(operation.collection)
            write = msgspec.structs.replace(operation, collection=name, wait=True)
            self._in_lane(name, lambda: self._write(ticket, write))
        elif (name_of := _changed_name(operation)) is not None:
            self._in_lane(name_of, lambda: self._change(ticket, operation, name_of))
        else:
            self._ask(self._truth, operation, lambda answer: self._from_truth(ticket, answer), ticket)

    def step(self) -> None:
        """Lets both backends work, and goes on with what they answered."""
        if self._truth.has_work:
            self._truth.step()
        self._step_hot()
        self._handle_events()
        now = time.monotonic()
        if not self._is_closed and self._is_due(now):
            self._start_due(now)

    def close(self) -> None:
        """Finishes what was accepted, then closes both backends. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        give_up_at_s = time.monotonic() + self._config.close_timeout_s
        while (self._pending or self._lanes) and time.monotonic() < give_up_at_s:
            self.step()
            if not self._events:
                time.sleep(_CLOSE_POLL_S)
        for copy in self._copies.values():
            copy.is_dropped = True  # a filling under way ends here
        self._truth.close()
        self._handle_events()
        self._step_hot()
        self._hot.close()
        self._handle_events()
        for ticket in list(self._pending):
            self._fail(ticket, Unavailable("The server shut down.", reason="DRAINING", retry_delay_s=0.5))

    # Reads

    def _read(self, ticket: Ticket, operation: Search | GetPoints) -> None:
        copy = self._copies.get(self._own_name(operation.collection))
        if copy is None or not copy.is_ready:
            self._read_truth(ticket)
            return

        def answered(answer: Answer) -> None:
            if not isinstance(answer, VortaError):
                self.counters.hot_answers += 1
                self._finish(ticket, answer)
            elif isinstance(answer, _CallersFault) or answer.reason == "POINT_NOT_FOUND":
                self._fail(ticket, answer)
            else:
                if not isinstance(answer, ResourceExhausted):  # being busy harms no copy
                    self._hot_failed(copy, "a read", answer)
                self._read_truth(ticket)

        self._ask(self._hot, msgspec.structs.replace(operation, collection=copy.name), answered, ticket)

    def _read_truth(self, ticket: Ticket) -> None:
        self.counters.truth_answers += 1
        self._ask(self._truth, ticket.operation, lambda answer: self._from_truth(ticket, answer), ticket)

    def _from_truth(self, ticket: Ticket, answer: Answer) -> None:
        if isinstance(answer, Aliases):
            self._learn_aliases(answer)
        self._deliver(ticket, answer)

    # Writes

    def _write(self, ticket: Ticket, write: UpsertPoints | DeletePoints) -> None:
        """Writes to the truth, lets the lane go on, and writes to the copy."""
        ticket_waits = getattr(ticket.operation, "wait", True)

        def acknowledged(answer: Answer) -> None:
            # The name may have been an alias that was unknown when the write was submitted.
            name = self._own_name(write.collection)
            copy = self._copies.get(name)
            receives = copy is not None and copy.is_receiving
            if isinstance(answer, Written) and not ticket_waits:
                answer = Written(count=answer.count if isinstance(write, UpsertPoints) else 0, sequence=0)
            if isinstance(answer, VortaError):
                self._deliver(ticket, answer)
                if copy is not None and receives and not isinstance(answer, _NothingWritten):
                    self._repair(copy, write, answer)
            elif copy is None or not receives:
                self._deliver(ticket, answer)
            else:
                self._copy_write(copy, write, ticket, answer)
            self._next_in_lane(write.collection)

        self._ask(self._truth, write, acknowledged, ticket)

    def _copy_write(self, copy: HotCopy, write: UpsertPoints | DeletePoints, ticket: Ticket, answer: Result) -> None:
        copy.touch(write)
        must_wait = getattr(ticket.operation, "wait", True)

        def copied(hot_answer: Answer) -> None:
            if isinstance(hot_answer, VortaError):
                self._hot_failed(copy, "a write", hot_answer)
            if must_wait:
                self._deliver(ticket, answer)

        self._ask(self._hot, msgspec.structs.replace(write, collection=copy.name), copied, None)
        if not must_wait:
            self._deliver(ticket, answer)

    def _repair(self, copy: HotCopy, write: UpsertPoints | DeletePoints, error: VortaError) -> None:
        """After a write that the truth may have done or not: what it has now goes to the copy."""
        copy.touch(write)
        if not write.ids:
            self._refill(copy, f"a deletion by filter failed: {error.message}")
            return

        def read(answer: Answer) -> None:
            if copy.is_receiving and not copy.is_dropped:
                if isinstance(answer, Points):
                    copy.touch(write)
                    self._put(copy, answer.points, gone=set(write.ids) - {point.id for point in answer.points})
                else:
                    self._refill(copy, "points could not be read after a failed write")
            self._next_in_lane(copy.name)

        get = GetPoints(collection=copy.name, ids=write.ids, with_payload=True, with_vector=True)
        # At the head of the lane: later writes must not be overwritten by what is read before them.
        self._in_lane(copy.name, lambda: self._ask(self._truth, get, read, None), is_first=True)

    def _put(self, copy: HotCopy, points: list[Point], *, gone: set[str]) -> None:
        def copied(answer: Answer) -> None:
            if isinstance(answer, VortaError):
                self._hot_failed(copy, "a write", answer)

        if points:
            self._ask(self._hot, upsert_of(copy.name, points), copied, None)
        if gone:
            self._ask(self._hot, DeletePoints(collection=copy.name, ids=sorted(gone)), copied, None)

    # Collections and aliases

    def _change(self, ticket: Ticket, operation: Operation, name: str) -> None:
        def changed(answer: Answer) -> None:
            if isinstance(operation, DeleteCollection) and not isinstance(answer, VortaError):
                self._drop(ticket, operation.collection, answer)
            else:
                if not isinstance(answer, VortaError):
                    self._follow(operation, answer)
                self._deliver(ticket, answer)
            self._next_in_lane(name)

        self._ask(self._truth, operation, changed, ticket)

    def _follow(self, operation: Operation, answer: Result) -> None:
        if isinstance(operation, SwapAlias) and isinstance(answer, AliasInfo):
            self._aliases[answer.alias] = answer.collection
        elif isinstance(operation, DeleteAlias):
            self._aliases.pop(operation.alias, None)
        elif isinstance(operation, CreateCollection | RestoreSnapshot) and isinstance(answer, CollectionInfo):
            name = answer.collection.name
            if self._is_hot(name):
                self._start_copy(name)

    def _drop(self, ticket: Ticket, name: str, answer: Result) -> None:
        """Deletes the copy of a collection that the truth deleted, then answers."""
        self._aliases = {alias: target for alias, target in self._aliases.items() if target != name}
        copy = self._copies.pop(name, None)
        if copy is None:
            self._deliver(ticket, answer)
            return
        copy.is_dropped = True

        def dropped(hot_answer: Answer) -> None:
            if isinstance(hot_answer, VortaError) and not isinstance(hot_answer, NotFound):
                # Harmless: a copy is replaced before it is used again.
                self.counters.hot_failures += 1
                _log.warning("the copy of %s could not be deleted: %s", name, hot_answer)
            self._deliver(ticket, answer)

        self._ask(self._hot, DeleteCollection(collection=name), dropped, None)

    # Filling

    def _is_due(self, now_s: float) -> bool:
        if self._survey_at_s is not None and self._survey_at_s <= now_s:
            return True
        return any(copy.retry_at_s is not None and copy.retry_at_s <= now_s for copy in self._copies.values())

    def _start_due(self, now_s: float) -> None:
        if self._survey_at_s is not None and self._survey_at_s <= now_s:
            self._survey_at_s = None
            self._ask(self._truth, ListAliases(), self._surveyed, None)
            self._ask(self._truth, ListCollections(), self._surveyed, None)
        for copy in list(self._copies.values()):
            if copy.retry_at_s is not None and copy.retry_at_s <= now_s:
                copy.fill()

    def _surveyed(self, answer: Answer) -> None:
        """Learns at the start what the truth holds."""
        if isinstance(answer, Aliases):
            self._learn_aliases(answer)
        elif isinstance(answer, CollectionList):
            for info in answer.collections:
                name = info.collection.name
                if self._is_hot(name) and name not in self._copies:
                    self._start_copy(name)
        else:
            _log.warning("the collections to copy are not known yet: %s", answer)
            self._survey_at_s = time.monotonic() + self._config.retry_s

    def _start_copy(self, name: str) -> None:
        if (old := self._copies.get(name)) is not None:
            old.is_dropped = True
        self._copies[name] = copy = HotCopy(
            name,
            ask_truth=lambda operation, then: self._ask(self._truth, operation, then, None),
            ask_hot=lambda operation, then: self._ask(self._hot, operation, then, None),
            scroll=getattr(self._truth, "bulk_scroll", ScrollPoints),
            page_points=self._config.page_points,
            on_end=self._filling_ended,
        )
        copy.fill()

    def _filling_ended(self, copy: HotCopy, what: str, error: VortaError | None) -> None:
        if error is None:
            self.counters.fills += 1
            _log.info("the copy of %s is complete", copy.name)
        elif what == "gone":
            copy.is_dropped = True
            self._copies.pop(copy.name, None)
        elif what == "hot":
            self._hot_failed(copy, "its filling", error)
        else:
            self._refill(copy, f"the truth cannot be read: {error}")

    def _hot_failed(self, copy: HotCopy, what: str, error: VortaError) -> None:
        self.counters.hot_failures += 1
        self._refill(copy, f"{what} failed: {error}")

    def _refill(self, copy: HotCopy, why: str) -> None:
        """Gives a copy up until it is filled again."""
        if copy.is_dropped or copy.retry_at_s is not None:
            return
        wait_s = min(self._config.retry_s * 2 ** min(copy.num_failures, 30), self._config.max_retry_s)
        copy.give_up()
        copy.num_failures += 1
        copy.retry_at_s = time.monotonic() + wait_s
        _log.warning("the copy of %s is not used: %s; it is filled again in %.1f s", copy.name, why, wait_s)

    # The rest

    def _is_hot(self, name: str) -> bool:
        return "*" in self._config.hot or name in self._config.hot

    def _own_name(self, name: str) -> str:
        return self._aliases.get(name, name)

    def _learn_aliases(self, answer: Aliases) -> None:
        self._aliases = {info.alias: info.collection for info in answer.aliases}

    def _in_lane(self, name: str, run: Callable[[], None], *, is_first: bool = False) -> None:
        """Runs what may not overtake others of that name; each calls `_next_in_lane` at its end."""
        lane = self._lanes.get(name)
        if lane is None:
            self._lanes[name] = deque()
            run()
        elif is_first:
            lane.appendleft(run)
        else:
            lane.append(run)

    def _next_in_lane(self, name: str) -> None:
        lane = self._lanes[name]
        if lane:
            lane.popleft()()
        else:
            del self._lanes[name]

    def _ask(
        self,
        backend: VectorBackend,
        operation: Operation,
        then: Callable[[Answer], None],
        parent: Ticket | None,
    ) -> None:
        """Submits an operation; `then` gets the answer in a later `step`."""

        def deliver(answer: Answer) -> None:
            self._events.append((then, answer))
            if self._wake is not None:
                self._wake()

        try:
            backend.submit(_Child(operation, deliver, parent))
        except Exception as error:  # the contract is to answer, but one side's bug must not end the other
            _log.exception("a vector backend failed")
            deliver(Internal(f"The backend failed: {type(error).__name__}."))

    def _step_hot(self) -> None:
        try:
            if self._hot.has_work:
                self._hot.step()
        except Exception as error:
            _log.exception("the hot vector backend failed")
            for copy in list(self._copies.values()):
                self._hot_failed(copy, "a step", Internal(f"{type(error).__name__}: {error}"))

    def _handle_events(self) -> None:
        while self._events:
            then, answer = self._events.popleft()
            then(answer)

    def _deliver(self, ticket: Ticket, answer: Answer) -> None:
        if isinstance(answer, VortaError):
            self._fail(ticket, answer)
        else:
            self._finish(ticket, answer)

    def _finish(self, ticket: Ticket, result: Result) -> None:
        if ticket in self._pending:
            self._pending.remove(ticket)
            ticket.finish(result)

    def _fail(self, ticket: Ticket, error: VortaError) -> None:
        if ticket in self._pending:
            self._pending.remove(ticket)
            ticket.fail(error)


def _changed_name(operation: Operation) -> str | None:
    """The name whose meaning an operation changes; None for those that change none."""
    if isinstance(operation, CreateCollection):
        return operation.collection.name
    if isinstance(operation, DeleteCollection):
        return operation.collection
    if isinstance(operation, RestoreSnapshot):
        return operation.target or operation.collection
    if isinstance(operation, SwapAlias | DeleteAlias):
        return operation.alias
    return None
