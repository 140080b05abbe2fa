"""Threads beside the worker's: they run jobs, and hand what comes after back to the worker's thread."""

from __future__ import annotations

import dataclasses
import logging
import queue
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from vorta_server.vectors.faiss_config import FaissConfig
from vorta_server.vectors.payloads import PayloadReader
from vorta_server.vectors.writes import Change, Delete, Upsert, WriteStore

__all__ = ["Completions", "JobThread", "QueuedWrite", "WriterThread"]

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Completions:
    """Calls that wait for the worker's thread.

    Args:
        wake: Called on other threads when there is one.
    """

    def __init__(self, wake: Callable[[], None] | None) -> None:
        self._calls: deque[Callable[[], None]] = deque()
        self._wake = wake
        self._arrived = threading.Event()

    def __bool__(self) -> bool:
        return bool(self._calls)

    def add(self, call: Callable[[], None]) -> None:
        """Leaves a call for the worker's thread. Any thread."""
        self._calls.append(call)
        self._arrived.set()
        if self._wake is not None:
            self._wake()

    def run(self) -> None:
        """Makes the calls. The worker's thread."""
        self._arrived.clear()
        while self._calls:
            self._calls.popleft()()

    def wait(self, timeout_s: float) -> None:
        """Waits until there is a call, or for a time."""
        self._arrived.wait(timeout_s)


class JobThread:
    """Runs jobs one after the other.

    Args:
        name: Of the thread.
        completions: Gets what follows a job.
        prepare: Called once on the thread.
    """

    def __init__(self, name: str, completions: Completions, prepare: Callable[[], None] | None = None) -> None:
        self._completions = completions
        self._prepare = prepare
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], T], then: Callable[[T | Exception], None]) -> None:
        """Runs a job; `then` gets its result or exception, on the worker's thread."""

        def run() -> None:
            result: T | Exception
            try:
                result = job()
            except Exception as error:
                result = error
            self._completions.add(lambda: then(result))

        self._jobs.put(run)

    def close(self) -> None:
        """Ends the thread after the jobs that it has."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        if self._prepare is not None:
            self._prepare()
        while (job := self._jobs.get()) is not None:
            job()


@dataclasses.dataclass(slots=True)
class QueuedWrite:
    """A write on its way to the disk.

    Attributes:
        path: The collection's database.
        reader: The collection's payloads.
        num_texts: Text fields.
        write: What to write; None closes the database.
        then: Gets what it changed, or the exception, on the worker's thread.
    """

    path: Path
    reader: PayloadReader
    num_texts: int
    write: Upsert | Delete | None
    then: Callable[[Change | Exception | None], None]


class WriterThread:
    """Owns the writing connections. What waits is committed together: one sync of the disk for many writes."""

    def __init__(self, config: FaissConfig, completions: Completions) -> None:
        self._config = config
        self._completions = completions
        self._queue: queue.SimpleQueue[QueuedWrite | None] = queue.SimpleQueue()
        self._stores: dict[Path, WriteStore] = {}
        self._thread = threading.Thread(target=self._run, name="vectors-writer", daemon=True)
        self._thread.start()

    def submit(self, write: QueuedWrite) -> None:
        """Takes a write. The queue's bound is the caller's business."""
        self._queue.put(write)

    def close(self) -> None:
        """Commits what was taken, closes the databases and ends the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        is_open = True
        while is_open:
            taken = [self._queue.get()]
            while len(taken) < self._config.max_group_writes and taken[-1] is not None:
                try:
                    taken.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            is_open = taken[-1] is not None
            self._process([item for item in taken if item is not None])
        for store in self._stores.values():
            _close(store)

    def _process(self, items: list[QueuedWrite]) -> None:
        by_path: dict[Path, list[QueuedWrite]] = {}
        for item in items:
            by_path.setdefault(item.path, []).append(item)
        for path, group in by_path.items():
            writes: list[QueuedWrite] = []
            for item in group:
                if item.write is None:
                    self._commit(path, writes)
                    writes = []
                    if path in self._stores:
                        _close(self._stores.pop(path))
                    self._done([item], [None])
                else:
                    writes.append(item)
            self._commit(path, writes)

    def _commit(self, path: Path, items: list[QueuedWrite]) -> None:
        if not items:
            return
        try:
            store = self._stores.get(path)
            if store is None:
                store = self._stores[path] = WriteStore(path, self._config, items[0].reader, items[0].num_texts)
            changes = store.commit([item.write for item in items if item.write is not None])
        except Exception as error:
            if len(items) == 1:
                self._done(items, [error])
            else:
                # Which one it was is not known, and SQLite may have given up all: each by itself.
                for item in items:
                    self._commit(path, [item])
            return
        self._done(items, changes)

    def _done(self, items: list[QueuedWrite], results: list[Change] | list[Exception] | list[None]) -> None:
        pairs = list(zip(items, results, strict=True))

        def tell() -> None:
            for item, result in pairs:
                item.then(result)

        self._completions.add(tell)


def _close(store: WriteStore) -> None:
    try:
        store.close()
    except sqlite3.Error as error:
        _log.warning("A database could not be closed well: %s", error)
