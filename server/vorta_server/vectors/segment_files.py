"""Sealed segments on the disk: a folder each, whole or not there, with the hash of every file.

    manifest.json    what it is, and size and SHA-256 of the others
    rows.npy         row numbers
    ids.bin ids.npy  ids as UTF-8, and where each ends
    vectors.f32      where the index keeps no vectors of its own
    index.faiss      where there is an index

Hashes are checked before a file is used: FAISS may crash on a damaged index, and a changed vector would never show.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import faiss
import msgspec
import numpy as np

from vorta_server.vectors.index import Matrix, VectorIndex, load_index
from vorta_server.vectors.segment import IdTable, Segment
from vorta_server.vectors.store import Rows

__all__ = [
    "MANIFEST",
    "FileEntry",
    "SegmentManifest",
    "damaged_files",
    "entry_of",
    "load_segments",
    "save_segment",
    "sync",
]

MANIFEST = "manifest.json"

_TEMPORARY = "tmp-"
_log = logging.getLogger(__name__)


class FileEntry(msgspec.Struct, frozen=True):
    """A file's size and hash."""

    bytes: int
    sha256: str


class SegmentManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a segment's folder holds.

    Attributes:
        sequence: Of the last write when it was made.
    """

    format: int = 1
    kind: str
    distance: str
    dimension: int
    num_rows: int
    first_row: int
    last_row: int
    sequence: int
    faiss: str
    files: dict[str, FileEntry]


def sync(path: Path) -> None:
    """Writes a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def entry_of(path: Path) -> FileEntry:
    """A file's size and hash, read from it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return FileEntry(path.stat().st_size, digest.hexdigest())


def save_segment(
    folder: Path,
    rows: Rows,
    ids: IdTable,
    vectors: Matrix,
    index: VectorIndex | None,
    *,
    distance: str,
    sequence: int,
) -> Segment:
    """Writes a segment, and gives it back with its vectors mapped from the file where that saves memory.

    Args:
        folder: Of all segments.
        rows: Ascending, at least one.
        ids: Of the rows.
        vectors: Shape (rows, dimension).
        index: Over the vectors, or None.
        distance: "cosine", "dot" or "l2".
        sequence: Of the last write.
    """
    name = f"{rows[0]}-{rows[-1]}-{os.urandom(4).hex()}"
    temporary = folder / f"{_TEMPORARY}{name}"
    temporary.mkdir(parents=True)
    try:
        np.save(temporary / "rows.npy", rows)
        np.save(temporary / "ids.npy", ids.ends)
        ids.data.tofile(temporary / "ids.bin")
        if index is None or not index.keeps_vectors:
            vectors.tofile(temporary / "vectors.f32")
        if index is not None:
            index.save(temporary / "index.faiss")
        files = {}
        for path in sorted(temporary.iterdir()):
            sync(path)
            files[path.name] = entry_of(path)
        manifest = SegmentManifest(
            kind="flat" if index is None else index.kind,
            distance=distance,
            dimension=vectors.shape[1],
            num_rows=len(rows),
            first_row=int(rows[0]),
            last_row=int(rows[-1]),
            sequence=sequence,
            faiss=faiss.__version__,
            files=files,
        )
        (temporary / MANIFEST).write_bytes(msgspec.json.encode(manifest))
        sync(temporary / MANIFEST)
        sync(temporary)
        temporary.rename(folder / name)
        sync(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if index is None or not index.keeps_vectors:
        vectors = _mapped(folder / name, manifest)
        if index is not None:
            index.vectors = vectors
    return Segment(rows, ids, vectors if index is None else index.vectors, distance, index=index, name=name)


def load_segments(folder: Path, distance: str, dimension: int) -> list[tuple[Segment, SegmentManifest]]:
    """The segments that are whole, by rows, no two of the same rows. Others are deleted: the database has their points.

    Args:
        folder: Of all segments.
        distance: The collection's.
        dimension: The collection's.
    """
    found: list[tuple[Path, SegmentManifest]] = []
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        manifest = None if path.name.startswith(_TEMPORARY) else _read_manifest(path)
        if manifest is None or (manifest.distance, manifest.dimension) != (distance, dimension):
            _drop(path, "has no valid manifest")
        else:
            found.append((path, manifest))
    loaded: list[tuple[Segment, SegmentManifest]] = []
    # After a crash between making a merged segment and deleting its parts there are both: the larger one wins.
    for path, manifest in sorted(found, key=lambda item: -item[1].num_rows):
        if any(manifest.first_row <= m.last_row and m.first_row <= manifest.last_row for _, m in loaded):
            _drop(path, "was merged into another")
            continue
        segment = _load(path, manifest)
        if segment is not None:
            loaded.append((segment, manifest))
    return sorted(loaded, key=lambda item: item[1].first_row)


def damaged_files(folder: Path, files: dict[str, FileEntry]) -> Iterator[str]:
    """Names of files that are not what the manifest says."""
    for name, entry in files.items():
        try:
            is_whole = entry_of(folder / name) == entry
        except OSError:
            is_whole = False
        if not is_whole:
            yield name


def _read_manifest(path: Path) -> SegmentManifest | None:
    try:
        manifest = msgspec.json.decode((path / MANIFEST).read_bytes(), type=SegmentManifest)
    except (OSError, msgspec.MsgspecError):
        return None
    names_are_plain = all(Path(name).name == name for name in manifest.files)
    return manifest if manifest.format == 1 and names_are_plain and manifest.num_rows > 0 else None


def _load(path: Path, manifest: SegmentManifest) -> Segment | None:
    damaged = next(damaged_files(path, manifest.files), None)
    if damaged is not None:
        _drop(path, f"is damaged ({damaged})")
        return None
    try:
        rows = np.load(path / "rows.npy", allow_pickle=False)
        ids = IdTable(np.fromfile(path / "ids.bin", np.uint8), np.load(path / "ids.npy", allow_pickle=False))
        vectors = _mapped(path, manifest) if "vectors.f32" in manifest.files else None
        index = None
        if "index.faiss" in manifest.files:
            index = load_index(manifest.kind, path / "index.faiss", vectors, manifest.distance)
    except (OSError, ValueError, RuntimeError) as error:
        _drop(path, f"cannot be read ({error})")
        return None
    compared = index.vectors if index is not None else vectors
    assert compared is not None
    return Segment(rows, ids, compared, manifest.distance, index=index, name=path.name)


def _mapped(path: Path, manifest: SegmentManifest) -> Matrix:
    return np.memmap(path / "vectors.f32", np.float32, "r", shape=(manifest.num_rows, manifest.dimension))


def _drop(path: Path, why: str) -> None:
    if not path.name.startswith(_TEMPORARY):
        _log.warning("Segment %s %s; its points are read from the database.", path.name, why)
    shutil.rmtree(path, ignore_errors=True)
