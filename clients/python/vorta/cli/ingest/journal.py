"""What a collection has acknowledged of which file, so that an interrupted run goes on where it was.

A file of JSON lines, appended to with each answer of the server: whatever interrupts a run, no more is lost than a torn
last line, and what is sent twice is replaced by itself. It belongs to one collection; when that was made anew since, it
counts as empty.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from vorta.errors import FailedPrecondition

_VERSION = 1
_MAX_OUTDATED = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a file is."""

    fingerprint: str
    num_chunks: int
    """Chunks that are acknowledged, from the first on."""
    is_done: bool = False
    """Whether all are, and the stale ones deleted."""


def default_path(server: str, collection: str) -> Path:
    """Where the journal is when nobody says: in the user's cache folder, by server and collection."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    key = hashlib.sha256(f"{server}\0{collection}".encode()).hexdigest()[:32]
    return Path(cache, "vorta", "ingest", f"{key}.jsonl")


class Journal:
    """The journal, locked while it is open; a context manager.

    Args:
        path: The file; made with its folder where need be.
        collection: What identifies the collection.

    Raises FailedPrecondition when the file cannot be written, or another run has it open.
    """

    def __init__(self, path: Path, collection: str) -> None:
        self._path = path
        self._entries: dict[str, Progress] = {}
        header = {"version": _VERSION, "collection": collection}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[str] = path.open("a+", encoding="utf-8")
        except OSError as exc:
            raise FailedPrecondition(f"cannot open the state file {path}: {exc.strerror}", field="state") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise FailedPrecondition(f"another run uses the state file {path}", field="state") from None
        self._load(header)

    def progress(self, source: str, fingerprint: str) -> Progress:
        """How far this content of the file is."""
        entry = self._entries.get(source)
        if entry is None or entry.fingerprint != fingerprint:
            return Progress(fingerprint=fingerprint, num_chunks=0)
        return entry

    def record(self, source: str, progress: Progress) -> None:
        """Notes how far the file is."""
        self._entries[source] = progress
        self._file.write(_line(source, progress))
        self._file.flush()

    def close(self) -> None:
        """Closes and unlocks the file. Idempotent."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _load(self, header: dict[str, Any]) -> None:
        self._file.seek(0)
        text = self._file.read()
        lines = text.splitlines()
        is_current = bool(lines) and _parsed(lines[0]) == header
        for line in lines[1:] if is_current else []:
            entry = _parsed(line)
            with contextlib.suppress(KeyError, TypeError):
                self._entries[entry["source"]] = Progress(
                    fingerprint=entry["fingerprint"], num_chunks=entry["chunks"], is_done=entry["done"]
                )
        if is_current and text.endswith("\n") and len(lines) < _MAX_OUTDATED + 2 * len(self._entries):
            return
        # In place, since the lock is the file's. Should this be interrupted, chunks are sent again, and no harm done.
        self._file.truncate(0)
        self._file.write(json.dumps(header) + "\n")
        self._file.writelines(_line(source, progress) for source, progress in self._entries.items())
        self._file.flush()


def _line(source: str, progress: Progress) -> str:
    entry = {
        "source": source,
        "fingerprint": progress.fingerprint,
        "chunks": progress.num_chunks,
        "done": progress.is_done,
    }
    return json.dumps(entry) + "\n"


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
