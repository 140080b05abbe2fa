"""The database of one collection: SQLite, the truth about its points.

    meta(key, value)            definition, created_s, next_row, sequence
    points(row, id, payload)    a point's row changes with every write of it; rows only grow and are never used again
    vectors(row, data)          float32 as it was given; apart, so that scans of ids and payloads do not read vectors
    fields(path, kind)          payload fields and the kinds of values they have had; kind "" for presence alone
    texts(f0, f1, …)            FTS5 over the text fields, without a copy of the texts

Statements touch many rows each: Python's sqlite3 gives the interpreter lock away and takes it back at every step, and
with one step a row the writing thread would wait for the lock thousands of times a batch.
"""

from __future__ import annotations

import dataclasses
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from vorta.errors import FailedPrecondition, Internal, ResourceExhausted, VortaError
from vorta_server.vectors.faiss_config import FaissConfig
from vorta_server.vectors.operation import Collection

__all__ = ["DATABASE", "ReadStore", "Rows", "connect", "create_store", "in_chunks", "is_corrupt", "store_error"]

DATABASE = "data.sqlite"

_APPLICATION_ID = 0x766F7274
_FORMAT = 1
_PAGE_BYTES = 8192
_CHECKPOINT_PAGES = 4000
_CHUNKS = (256, 64, 16, 4, 1)
_MAX_GAP_ROWS = 10_000
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}

# int64, one for each row number
Rows = npt.NDArray[np.int64]


def is_corrupt(error: BaseException) -> bool:
    """Whether an error of SQLite says that the file is damaged."""
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, sqlite3.DatabaseError) and code is not None and code & 0xFF in _CORRUPT


def store_error(error: BaseException, collection: str, path: Path) -> VortaError:
    """An error of the family for one of SQLite or of the operating system."""
    if isinstance(error, VortaError):
        return error
    code = getattr(error, "sqlite_errorcode", 0) or 0
    if is_corrupt(error):
        return FailedPrecondition(
            f"The database of {collection} is damaged: {error}. Restore a snapshot of it, or delete it.",
            reason="STORE_CORRUPT",
            metadata={"collection": collection, "path": path.name},
        )
    if code & 0xFF == sqlite3.SQLITE_FULL or getattr(error, "errno", None) in (28, 122):
        return ResourceExhausted(
            f"The disk is full; nothing of this write to {collection} was kept.",
            reason="DISK_FULL",
            metadata={"collection": collection},
            retry_delay_s=5.0,
        )
    return Internal(f"The database of {collection} failed: {error}")


def in_chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Pieces whose lengths are few different numbers, so that their statements are compiled once."""
    start = 0
    for size in _CHUNKS:
        while len(items) - start >= size:
            yield items[start : start + size]
            start += size


def connect(path: Path, config: FaissConfig, *, is_reader: bool) -> sqlite3.Connection:
    """A connection to an existing database; it may be handed from thread to thread, but used by one at a time."""
    connection = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode=rw",
        uri=True,
        isolation_level=None,
        timeout=config.busy_timeout_s,
        check_same_thread=False,
        cached_statements=256,
    )
    try:
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA cache_size=-{config.database_cache_bytes // 1024}")
        if is_reader:
            connection.execute("PRAGMA query_only=ON")
        else:
            connection.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
            connection.execute(f"PRAGMA journal_size_limit={2 * _CHECKPOINT_PAGES * _PAGE_BYTES}")
            if config.max_database_pages:
                connection.execute(f"PRAGMA max_page_count={config.max_database_pages}")
    except BaseException:
        connection.close()
        raise
    return connection


def create_store(path: Path, collection: Collection, text_fields: list[str], created_s: float | None = None) -> None:
    """Makes the database of a new collection."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute(f"PRAGMA page_size={_PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID")
        connection.execute(
            "CREATE TABLE points(row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, payload TEXT NOT NULL)"
        )
        connection.execute("CREATE TABLE vectors(row INTEGER PRIMARY KEY, data BLOB NOT NULL)")
        connection.execute("CREATE TABLE fields(path TEXT, kind TEXT, PRIMARY KEY(path, kind)) WITHOUT ROWID")
        if text_fields:
            columns = ", ".join(f"f{index}" for index in range(len(text_fields)))
            connection.execute(f"CREATE VIRTUAL TABLE texts USING fts5({columns}, content='')")
        connection.executemany(
            "INSERT INTO meta VALUES(?, ?)",
            [
                ("definition", msgspec.json.encode(collection).decode()),
                ("created_s", time.time() if created_s is None else created_s),
                ("next_row", 1),
                ("sequence", 0),
            ],
        )
        connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={_FORMAT}")
        connection.execute("COMMIT")
    finally:
        connection.close()


@dataclasses.dataclass(frozen=True)
class _Meta:
    definition: Collection
    created_s: float
    next_row: int
    sequence: int


class ReadStore:
    """Reads of one thread. Every method may raise `sqlite3.Error`.

    Args:
        path: The database.
        config: Limits.
    """

    def __init__(self, path: Path, config: FaissConfig) -> None:
        self._connection = connect(path, config, is_reader=True)
        try:
            self._check_format()
        except BaseException:
            self._connection.close()
            raise

    def _check_format(self) -> None:
        found = [
            self._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        ]
        if found != [_APPLICATION_ID, _FORMAT]:
            raise self.corrupt(f"it is no database of this store (application and format {found})")

    @staticmethod
    def corrupt(what: str) -> sqlite3.DatabaseError:
        """The error that SQLite itself gives for a damaged file."""
        error = sqlite3.DatabaseError(what)
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        return error

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    def pin(self) -> int:
        """Has all reads see the database as it is now, until `unpin`. Returns the sequence of its last write."""
        self.unpin()
        self._connection.execute("BEGIN")
        (sequence,) = self._connection.execute("SELECT value FROM meta WHERE key = 'sequence'").fetchone()
        return int(sequence)

    def unpin(self) -> None:
        """Has reads see what is newest. A database that is pinned for long keeps its log from being written back."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def meta(self) -> _Meta:
        """What the database says of the collection."""
        values = dict(self._connection.execute("SELECT key, value FROM meta"))
        try:
            definition = msgspec.json.decode(values["definition"], type=Collection)
            return _Meta(definition, float(values["created_s"]), int(values["next_row"]), int(values["sequence"]))
        except (KeyError, ValueError, TypeError, msgspec.MsgspecError) as error:
            raise self.corrupt(f"its meta table is wrong ({error!r})") from error

    def fields(self) -> dict[str, set[str]]:
        """Kinds of values by path."""
        kinds: dict[str, set[str]] = {}
        for path, kind in self._connection.execute("SELECT path, kind FROM fields"):
            kinds.setdefault(path, set()).add(kind)
        return kinds

    def all_rows(self) -> Rows:
        """Rows of all points, ascending."""
        cursor = self._connection.execute("SELECT row FROM points")  # by the index of ids, which is far smaller
        rows = np.fromiter((row for (row,) in cursor), np.int64)
        rows.sort()
        return rows

    def count_points(self) -> int:
        """Points."""
        return int(self._connection.execute("SELECT count(*) FROM points").fetchone()[0])

    def points_of(self, rows: Rows) -> Iterator[tuple[int, str, bytes]]:
        """Row, id and vector of those of the rows (ascending) that there are, ascending."""
        for first, last, wanted in _ranges(rows):
            cursor = self._connection.execute(
                "SELECT points.row, id, data FROM points JOIN vectors USING (row)"
                " WHERE points.row BETWEEN ? AND ? ORDER BY points.row",
                (first, last),
            )
            yield from (found for found in cursor if found[0] in wanted)

    def payloads_between(self, first: int, last: int) -> Iterator[tuple[int, str]]:
        """Row and payload from `first` to `last`, ascending; those without a payload are left out."""
        return iter(
            self._connection.execute(
                "SELECT row, payload FROM points WHERE row BETWEEN ? AND ? AND payload <> '' ORDER BY row",
                (first, last),
            )
        )

    def rows_of(self, ids: Sequence[str]) -> dict[str, int]:
        """Rows of those of the ids that exist."""
        return dict(self._in("SELECT id, row FROM points WHERE id IN", ids))

    def ids_of(self, rows: Sequence[int]) -> dict[int, str]:
        """Ids of those of the rows that exist."""
        return dict(self._in("SELECT row, id FROM points WHERE row IN", rows))

    def payloads_of(self, rows: Sequence[int]) -> dict[int, str]:
        """Payloads of those of the rows that exist."""
        return dict(self._in("SELECT row, payload FROM points WHERE row IN", rows))

    def vectors_of(self, rows: Sequence[int]) -> dict[int, bytes]:
        """Vectors, as they were given, of those of the rows that exist."""
        return dict(self._in("SELECT row, data FROM vectors WHERE row IN", rows))

    def ids_after(self, after: str, limit: int) -> list[tuple[str, int]]:
        """Ids greater than a text by their UTF-8 bytes, and their rows; by id."""
        return self._connection.execute(
            "SELECT id, row FROM points WHERE id > ? ORDER BY id LIMIT ?", (after, limit)
        ).fetchall()

    def text_hits(self, match: str, limit: int) -> list[tuple[int, float]]:
        """Rows and BM25 scores (greater is better), best first, of a match in FTS5's language."""
        return self._connection.execute(
            "SELECT rowid, -bm25(texts) AS score FROM texts WHERE texts MATCH ? ORDER BY score DESC, rowid LIMIT ?",
            (match, limit),
        ).fetchall()

    def text_rows(self, match: str) -> Rows:
        """Rows of a match, ascending."""
        cursor = self._connection.execute("SELECT rowid FROM texts WHERE texts MATCH ?", (match,))
        return np.fromiter((row for (row,) in cursor), np.int64)

    def copy_to(self, path: Path) -> None:
        """Writes a consistent copy, while others write. The copy is not synced to the disk."""
        self._connection.execute("PRAGMA query_only=OFF")
        try:
            self._connection.execute("VACUUM INTO ?", (str(path),))
        finally:
            self._connection.execute("PRAGMA query_only=ON")

    def _in(self, select: str, values: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        for chunk in in_chunks(values):
            marks = ",".join("?" * len(chunk))
            yield from self._connection.execute(f"{select} ({marks})", chunk).fetchall()


def _ranges(rows: Rows) -> Iterable[tuple[int, int, set[int]]]:
    if not len(rows):
        return
    cuts = np.flatnonzero(np.diff(rows) > _MAX_GAP_ROWS) + 1
    for part in np.split(rows, cuts):
        for start in range(0, len(part), _MAX_GAP_ROWS):
            wanted = part[start : start + _MAX_GAP_ROWS]
            yield int(wanted[0]), int(wanted[-1]), set(wanted.tolist())
