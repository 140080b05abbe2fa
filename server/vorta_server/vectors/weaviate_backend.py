"""Collections held by a Weaviate, as a vector backend."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ClassVar

from vorta.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    ResourceExhausted,
    Unavailable,
    VortaError,
)
from vorta_server.vectors.operation import (
    CreateCollection,
    DeleteAlias,
    DeleteCollection,
    DeletePoints,
    Operation,
    RestoreSnapshot,
    Result,
    ScrollPoints,
    SwapAlias,
    Ticket,
    UpsertPoints,
    Written,
)
from vorta_server.vectors.weaviate_config import WeaviateConfig
from vorta_server.vectors.weaviate_schema import UnorderedScroll

if TYPE_CHECKING:
    from vorta_server.vectors.weaviate_store import WeaviateStore

__all__ = ["WeaviateBackend"]

_log = logging.getLogger(__name__)
_RETRY_DELAY_S = 0.5


class WeaviateBackend:
    """Answers operations by asking a Weaviate, with a bounded number of threads. A `VectorBackend`.

    Nothing is asked before the first operation, so that a server starts while its Weaviate does not run yet. Writes of
    one collection name run one after the other, in the order they were submitted; everything else runs beside each
    other. A deadline becomes the timeout of calls over gRPC; those over REST (definitions, aliases) end by the
    configured timeouts. Operations still waiting at their deadline are failed by `step`.
    """

    bulk_scroll: ClassVar[type[ScrollPoints]] = UnorderedScroll
    """What a whole collection is best read with."""

    def __init__(self, config: WeaviateConfig) -> None:
        """Starts no connection yet.

        Raises:
            FailedPrecondition: SETTINGS_INVALID when the weaviate package is not installed.
        """
        self._store = _new_store(config)
        self._limit = config.num_threads + config.max_queue
        self._pool = ThreadPoolExecutor(config.num_threads, thread_name_prefix="weaviate")
        self._lock = threading.Lock()
        self._num_pending = 0
        self._is_closed = False
        self._lanes: dict[str, deque[_Job]] = {}
        self._deadlines: list[tuple[float, int, _Job]] = []
        self._order = itertools.count()

    @property
    def has_work(self) -> bool:
        """Whether a deadline passed that nobody has answered yet."""
        with self._lock:
            return bool(self._deadlines) and self._deadlines[0][0] <= time.monotonic()

    @property
    def num_pending(self) -> int:
        """Operations without an answer, and accepted writes that are not done."""
        with self._lock:
            return self._num_pending

    def submit(self, ticket: Ticket) -> None:
        """Takes an operation, or refuses it: ResourceExhausted when full, Unavailable after `close`."""
        lane = _lane(ticket.operation)
        with self._lock:
            refusal = self._refusal()
            if refusal is None:
                job = _Job(ticket, lane)
                self._num_pending += 1
                while self._deadlines and self._deadlines[0][2].is_begun:
                    heapq.heappop(self._deadlines)
                if ticket.deadline_s is not None:
                    heapq.heappush(self._deadlines, (ticket.deadline_s, next(self._order), job))
                waits = lane is not None and lane in self._lanes
                if lane is not None:
                    self._lanes.setdefault(lane, deque())
                    if waits:
                        self._lanes[lane].append(job)
                if not waits:
                    self._pool.submit(self._run, job)
        if refusal is not None:
            ticket.fail(refusal)

    def step(self) -> None:
        """Fails operations that waited past their deadline."""
        now = time.monotonic()
        expired: list[_Job] = []
        with self._lock:
            while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][2].is_begun):
                job = heapq.heappop(self._deadlines)[2]
                if not job.is_begun:
                    job.is_begun = True  # a thread that comes to it finds nothing to do
                    expired.append(job)
                    self._num_pending -= 1
        for job in expired:
            job.fail(DeadlineExceeded("The deadline passed while the operation waited for Weaviate."))

    def close(self) -> None:
        """Finishes accepted writes, fails reads that have not begun, ends the threads. Idempotent.

        Takes as long as the writes that are under way, at most their timeouts.
        """
        with self._lock:
            self._is_closed = True
        self._pool.shutdown(wait=True)
        self._store.close()

    def _refusal(self) -> VortaError | None:
        if self._is_closed:
            return _closed()
        if self._num_pending >= self._limit:
            return ResourceExhausted(
                f"{self._limit} operations wait for Weaviate already.",
                metadata={"limit": self._limit},
                retry_delay_s=_RETRY_DELAY_S,
            )
        return None

    def _run(self, job: _Job) -> None:
        """Does a job, then those that waited behind it in its lane."""
        next_job: _Job | None = job
        while next_job is not None:
            with self._lock:
                is_mine, next_job.is_begun = not next_job.is_begun, True
            if is_mine:
                try:
                    self._answer(next_job)
                except Exception:  # of who takes the answer; others still wait for theirs
                    _log.exception("an answer could not be delivered")
                del next_job.ticket  # its points are of no use while the deadline is
                with self._lock:
                    self._num_pending -= 1
            next_job = self._next_in_lane(next_job.lane)

    def _next_in_lane(self, lane: str | None) -> _Job | None:
        if lane is None:
            return None
        with self._lock:
            waiting = self._lanes[lane]
            if waiting:
                return waiting.popleft()
            del self._lanes[lane]
            return None

    def _answer(self, job: _Job) -> None:
        ticket = job.ticket
        if self._is_closed and job.lane is None:
            job.fail(_closed())
            return
        if ticket.is_abandoned:
            job.fail(Cancelled("Nobody waits for the answer."))
            return
        if ticket.deadline_s is not None and ticket.deadline_s <= time.monotonic():
            job.fail(DeadlineExceeded("The deadline passed while the operation waited for Weaviate."))
            return
        try:
            result = self._store.execute(
                ticket.operation,
                # Nobody waits for the end of such a write, so it has all the time that writes have.
                deadline_s=ticket.deadline_s if getattr(ticket.operation, "wait", True) else None,
                on_accepted=lambda: job.accept(ticket.operation),
            )
        except VortaError as error:
            job.fail(error)
        except Exception as error:  # a ticket must be answered whatever happens
            _log.exception("a vector operation failed")
            job.fail(Internal(f"The operation failed: {type(error).__name__}."))
        else:
            job.finish(result)


class _Job:
    """A ticket under way. Once a write is accepted that is not waited for, what comes of it is only logged."""

    __slots__ = ("_is_answered", "is_begun", "lane", "ticket")

    def __init__(self, ticket: Ticket, lane: str | None) -> None:
        self.ticket = ticket
        self.lane = lane
        self.is_begun = False
        self._is_answered = False

    def accept(self, operation: Operation) -> None:
        if isinstance(operation, UpsertPoints | DeletePoints) and not operation.wait:
            count = len(operation.ids) if isinstance(operation, UpsertPoints) else 0
            self.finish(Written(count=count, sequence=0))

    def finish(self, result: Result) -> None:
        self._once(lambda: self.ticket.finish(result))

    def fail(self, error: VortaError) -> None:
        if self._is_answered:
            _log.error("an accepted write failed: %s", error)
            return
        self._once(lambda: self.ticket.fail(error))

    def _once(self, deliver: Callable[[], None]) -> None:
        if not self._is_answered:
            self._is_answered = True
            deliver()


def _lane(operation: Operation) -> str | None:
    """What an operation must not overtake: writes go one by one for each name; None for reads."""
    if isinstance(operation, CreateCollection):
        return operation.collection.name
    if isinstance(operation, UpsertPoints | DeletePoints | DeleteCollection):
        return operation.collection
    if isinstance(operation, SwapAlias | DeleteAlias):
        return operation.alias
    if isinstance(operation, RestoreSnapshot):
        return operation.target or operation.collection
    return None


def _new_store(config: WeaviateConfig) -> WeaviateStore:
    try:
        # authlib, which the client imports, warns about httpx whatever the filters say; nobody here can do about it.
        with warnings.catch_warnings(record=True):
            from vorta_server.vectors.weaviate_store import WeaviateStore
    except ImportError as error:
        if not (error.name or "").startswith(("weaviate", "authlib", "validators", "httpx", "pydantic")):
            raise
        raise FailedPrecondition(
            'Weaviate needs the extra "weaviate": pip install "vorta[weaviate]", and then '
            f'pip install --no-deps "weaviate-client>=4.24,<4.25" ({error}).',
            reason="SETTINGS_INVALID",
            field="vectors",
        ) from error
    return WeaviateStore(config)


def _closed() -> Unavailable:
    return Unavailable("The server is shutting down.", reason="DRAINING", retry_delay_s=_RETRY_DELAY_S)
