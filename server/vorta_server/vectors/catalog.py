"""Which collections there are, in which folders, and their aliases: a small database of its own."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from vorta.errors import FailedPrecondition
from vorta_server.vectors.store import is_corrupt

__all__ = ["Catalog"]

_FORMAT = 1


class Catalog:
    """Names, folders and aliases. Every change is on the disk when the method returns.

    Args:
        path: The database; made when absent.

    Raises:
        FailedPrecondition: STORE_CORRUPT.
    """

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=30.0)
        try:
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            with self._transaction():
                self._connection.execute("CREATE TABLE IF NOT EXISTS collections(name TEXT PRIMARY KEY, folder TEXT)")
                self._connection.execute(
                    "CREATE TABLE IF NOT EXISTS aliases(alias TEXT PRIMARY KEY, collection TEXT NOT NULL)"
                )
                if self._connection.execute("PRAGMA user_version").fetchone()[0] not in (0, _FORMAT):
                    raise sqlite3.DatabaseError("its format is unknown")
                self._connection.execute(f"PRAGMA user_version={_FORMAT}")
            self.folders = dict(self._connection.execute("SELECT name, folder FROM collections"))
            self.aliases = dict(self._connection.execute("SELECT alias, collection FROM aliases"))
        except sqlite3.DatabaseError as error:
            self._connection.close()
            if isinstance(error, sqlite3.OperationalError) and not is_corrupt(error):
                raise
            raise FailedPrecondition(
                f"The catalog of the vector store is damaged: {error}.",
                reason="STORE_CORRUPT",
                metadata={"path": path.name},
            ) from error

    folders: dict[str, str]
    """Folder names by collection."""

    aliases: dict[str, str]
    """Collections by alias."""

    def close(self) -> None:
        """Ends the connection."""
        self._connection.close()

    def resolve(self, name: str) -> str:
        """The collection that a name or alias means; the name itself when it is neither."""
        return name if name in self.folders else self.aliases.get(name, name)

    def put(self, name: str, folder: str) -> None:
        """Adds a collection, or gives it another folder."""
        with self._transaction():
            self._connection.execute("INSERT OR REPLACE INTO collections VALUES(?, ?)", (name, folder))
        self.folders[name] = folder

    def remove(self, name: str) -> None:
        """Takes a collection and its aliases out."""
        with self._transaction():
            self._connection.execute("DELETE FROM collections WHERE name = ?", (name,))
            self._connection.execute("DELETE FROM aliases WHERE collection = ?", (name,))
        del self.folders[name]
        self.aliases = {alias: target for alias, target in self.aliases.items() if target != name}

    def put_alias(self, alias: str, collection: str) -> None:
        """Points an alias to a collection."""
        with self._transaction():
            self._connection.execute("INSERT OR REPLACE INTO aliases VALUES(?, ?)", (alias, collection))
        self.aliases[alias] = collection

    def remove_alias(self, alias: str) -> None:
        """Takes an alias out."""
        with self._transaction():
            self._connection.execute("DELETE FROM aliases WHERE alias = ?", (alias,))
        del self.aliases[alias]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
