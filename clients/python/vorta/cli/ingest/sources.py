"""Which files are ingested, and under which names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vorta.errors import InvalidArgument

KINDS = {
    ".txt": "text",
    ".text": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".pdf": "pdf",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file to ingest."""

    name: str
    """What its points are known by: the path relative to the root, with slashes."""
    path: Path
    kind: str
    """A value of `KINDS`."""

    def fingerprint(self, options: str) -> str:
        """A hash of the content, and of the options that decide how points are made of it. Raises OSError."""
        with self.path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        return hashlib.sha256(f"{options}\0{self.name}\0{content}".encode()).hexdigest()


def find_sources(paths: Iterable[Path], root: Path | None) -> list[Source]:
    """The files of these paths in a stable order; folders are searched in depth, hidden files and links left out.

    A file is named by its path relative to the root. Without one that is the working directory, or for a path outside
    of it the path's own folder. Raises InvalidArgument for a path that does not exist, a file of an unknown kind, or
    two files of one name.
    """
    found: dict[str, Source] = {}
    for path in paths:
        if not path.exists():
            raise InvalidArgument(f"{path} does not exist", field="path")
        if path.is_file() and path.suffix.lower() not in KINDS:
            raise InvalidArgument(f"{path} is of no known kind: {', '.join(KINDS)}", field="path")
        base = _base(path.resolve(), root)
        for file in [path] if path.is_file() else _walk(path):
            resolved = file.resolve()
            name = os.fsencode(resolved.relative_to(base).as_posix()).decode("utf-8", "replace")
            known = found.setdefault(name, Source(name=name, path=resolved, kind=KINDS[file.suffix.lower()]))
            if known.path != resolved:
                raise InvalidArgument(
                    f"{known.path} and {resolved} would both be named {name}; give --root, a folder above both",
                    field="path",
                )
    return [found[name] for name in sorted(found)]


def _base(path: Path, root: Path | None) -> Path:
    if root is None:
        root = Path.cwd()
        return root if path.is_relative_to(root) else path.parent
    root = root.resolve()
    if not path.is_relative_to(root):
        raise InvalidArgument(f"{path} is not below the root {root}", field="root")
    return root


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(parent, name)
            if not name.startswith(".") and path.suffix.lower() in KINDS and path.is_file() and not path.is_symlink():
                yield path
