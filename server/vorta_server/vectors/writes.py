"""What is written to a collection's database, in one transaction for many writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vorta_server.vectors.faiss_config import FaissConfig
from vorta_server.vectors.payloads import PayloadReader
from vorta_server.vectors.store import Rows, connect, in_chunks

__all__ = ["Change", "Delete", "Upsert", "WriteStore"]


@dataclasses.dataclass(slots=True)
class Upsert:
    """Points to write.

    Attributes:
        ids: Distinct.
        vectors: float32 rows as bytes.
        payloads: JSON text, one for each id, or empty.
        texts: Texts of the text fields, one list for each id, or None without text fields.
        new_fields: (path, kind) that the collection has not had.
    """

    ids: list[str]
    vectors: bytes
    payloads: list[str]
    texts: list[list[str]] | None
    new_fields: list[tuple[str, str]]

    @property
    def num_bytes(self) -> int:
        """Size, for the queue's bound."""
        return len(self.vectors) + sum(map(len, self.payloads)) + 64 * len(self.ids)


@dataclasses.dataclass(slots=True)
class Delete:
    """Points to delete, by ids or by rows."""

    ids: list[str] | None = None
    rows: list[int] | None = None

    @property
    def num_bytes(self) -> int:
        """Size, for the queue's bound."""
        return 64 * len(self.ids or self.rows or ())


@dataclasses.dataclass(slots=True)
class Change:
    """What a committed write changed.

    Attributes:
        sequence: The write's number.
        first_row: Row of the first new point; later ones follow without gaps.
        dead_rows: Rows that are no more.
    """

    sequence: int
    first_row: int
    dead_rows: Rows


class WriteStore:
    """The writing side of one collection's database; used by one thread."""

    def __init__(self, path: Path, config: FaissConfig, reader: PayloadReader, num_texts: int) -> None:
        self._connection = connect(path, config, is_reader=False)
        self._payloads = reader
        self._texts = [f"f{index}" for index in range(num_texts)]
        self._next_row, self._sequence = self._counters()

    def close(self) -> None:
        """Ends the connection, which writes the log into the database."""
        self._connection.close()

    def commit(self, writes: Sequence[Upsert | Delete]) -> list[Change]:
        """Makes all writes durable, in order, or raises `sqlite3.Error` and keeps none."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            changes = [self._upsert(w) if isinstance(w, Upsert) else self._delete(w) for w in writes]
            self._connection.executemany(
                "UPDATE meta SET value = ? WHERE key = ?",
                [(self._next_row, "next_row"), (self._sequence, "sequence")],
            )
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            self._next_row, self._sequence = self._counters()
            raise
        return changes

    def _counters(self) -> tuple[int, int]:
        values = dict(self._connection.execute("SELECT key, value FROM meta WHERE key IN ('next_row', 'sequence')"))
        return int(values["next_row"]), int(values["sequence"])

    def _upsert(self, write: Upsert) -> Change:
        if write.new_fields:
            self._connection.executemany("INSERT OR IGNORE INTO fields VALUES(?, ?)", write.new_fields)
        dead = self._rows_of(write.ids)
        self._remove(dead)
        first, count = self._next_row, len(write.ids)
        rows = range(first, first + count)
        self._insert(
            "points(row, id, payload)", list(zip(rows, write.ids, write.payloads or [""] * count, strict=True))
        )
        width = len(write.vectors) // count
        data = memoryview(write.vectors)
        self._insert(
            "vectors(row, data)", [(row, data[index * width : (index + 1) * width]) for index, row in enumerate(rows)]
        )
        if write.texts is not None:
            self._insert(
                f"texts(rowid, {', '.join(self._texts)})",
                [(row, *texts) for row, texts in zip(rows, write.texts, strict=True) if any(texts)],
            )
        self._next_row += count
        return self._changed(first, dead)

    def _delete(self, write: Delete) -> Change:
        if write.ids is not None:
            dead = self._rows_of(write.ids)
        else:
            dead = [row for (row,) in self._select("SELECT row FROM points WHERE row IN", write.rows or [])]
        self._remove(dead)
        return self._changed(self._next_row, dead)

    def _changed(self, first_row: int, dead: list[int]) -> Change:
        self._sequence += 1
        return Change(self._sequence, first_row, np.array(dead, np.int64))

    def _rows_of(self, ids: list[str]) -> list[int]:
        return [row for (row,) in self._select("SELECT row FROM points WHERE id IN", ids)]

    def _remove(self, rows: list[int]) -> None:
        if not rows:
            return
        if self._texts:
            # An index without a copy of its texts has to be told what to take out.
            old = self._select("SELECT row, payload FROM points WHERE payload <> '' AND row IN", rows)
            taken = [(row, *self._payloads.texts(msgspec.json.decode(payload))) for row, payload in old]
            self._connection.executemany(
                f"INSERT INTO texts(texts, rowid, {', '.join(self._texts)})"  # nosec B608: names of our own columns
                f" VALUES('delete', ?{', ?' * len(self._texts)})",
                [entry for entry in taken if any(entry[1:])],
            )
        for chunk in in_chunks(rows):
            marks = ",".join("?" * len(chunk))
            self._connection.execute(f"DELETE FROM points WHERE row IN ({marks})", chunk)  # nosec B608: question marks
            self._connection.execute(f"DELETE FROM vectors WHERE row IN ({marks})", chunk)  # nosec B608: question marks

    def _select(self, select: str, values: Sequence[Any]) -> list[Any]:
        found: list[Any] = []
        for chunk in in_chunks(values):
            found += self._connection.execute(f"{select} ({','.join('?' * len(chunk))})", chunk).fetchall()
        return found

    def _insert(self, table: str, entries: Sequence[tuple[Any, ...]]) -> None:
        for chunk in in_chunks(entries):
            marks = f"({','.join('?' * len(chunk[0]))})"
            self._connection.execute(
                f"INSERT INTO {table} VALUES {','.join([marks] * len(chunk))}",  # nosec B608: our table, question marks
                [v for entry in chunk for v in entry],
            )
