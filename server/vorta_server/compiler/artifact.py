"""The artifact: a folder of graphs, weights, tokenizer and a manifest that names every file with its hash.

An artifact appears under its name complete or not at all: it is written into a temporary folder beside its
place and renamed. The manifest is written last and read first.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

FORMAT = "vorta-artifact"
MANIFEST_FILE = "manifest.json"
SLOT_COPY_FILE = "copy_slot.onnx"  # of decoders in standard operators: copies one slot of the KV cache

Opener = Callable[[Path], BinaryIO]


class ArtifactError(ValueError):
    """A folder that is no artifact, or one whose files are not what its manifest says.

    Attributes:
        field: the manifest's field or the file's name at fault, or None.
        path: the artifact's folder.
    """

    def __init__(self, message: str, *, path: Path, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.path = path


class StorageError(OSError):
    """An artifact could not be written (disk full, no permission); nothing of it is left behind.

    `errno` and `filename` are those of the system's error; `out` is the artifact's folder.
    """

    def __init__(self, message: str, *, error: OSError, out: Path) -> None:
        super().__init__(error.errno, message, str(out))
        self.out = out

    @property
    def is_disk_full(self) -> bool:
        """True when space or quota ran out: making room helps, trying again does not."""
        return self.errno in (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """A file's sha256 in hexadecimal and its size."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphEntry:
    """A graph's file, and the number of rows (B * S) from which it is the one to run."""

    file: str
    min_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceEntry:
    """What the artifact was compiled from: Checkpoint.fingerprint()."""

    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What manifest.json holds.

    Attributes:
        kind: what the model does: continue a text, make a vector of one, or score pairs of them.
        kernels: whose operators the graphs need: ONNX Runtime's alone, or those of `vorta_kernels.cpu` too.
        num_parameters: weights of the checkpoint, shared ones counted once; 0 when unknown.
        hidden_size: of an embedding model the numbers of a vector, behind its last layer.
        head_dim: elements of a head in the KV cache, at least the model's own.
        max_model_len: positions that the artifact can address; tokens of an encoder's input, special ones included.
        eos_token_ids: tokens that end a generation; may be empty.
        pooling, normalize: how an embedding model makes one vector of a text by default: "mean", "cls" or "last" of its
            tokens, and whether it is scaled to length 1.
        prompts: texts that an embedding model's authors put before an input, by name.
        default_prompt_name: the one used when none is asked for; empty for none.
        num_labels: scores of a reranker's input; 0 for other kinds.
        uses_sigmoid: whether a reranker's score is the logistic function of its logit by default.
        has_token_types: whether an encoder's graphs have the input token_types.
        graphs: by ascending min_rows; the last whose min_rows <= B * S is to be run.
        files: every file of the folder but the manifest.
    """

    format: Literal["vorta-artifact"] = "vorta-artifact"
    format_version: Literal[1] = 1
    kind: Literal["generation", "embedding", "rerank"] = "generation"
    architecture: str
    model_type: str
    target: str
    precision: str
    kernels: Literal["portable", "vorta"] = "portable"
    num_parameters: int = 0
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_model_len: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    kv_dtype: str
    pooling: Literal["", "mean", "cls", "last"] = ""
    normalize: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str = ""
    num_labels: int = 0
    uses_sigmoid: bool = False
    has_token_types: bool = False
    graphs: tuple[GraphEntry, ...]
    files: dict[str, FileEntry]
    source: SourceEntry
    versions: dict[str, str]

    def graph_for(self, num_rows: int) -> GraphEntry:
        """The graph to run for a step of num_rows = B * S rows."""
        return [graph for graph in self.graphs if graph.min_rows <= num_rows][-1]


class ArtifactWriter:
    """Writes an artifact's files into a temporary folder and puts it in place at `commit`.

    Use it in a `with` statement: leaving without a commit removes everything, and an OSError of a write
    becomes a StorageError. `out` must not exist, or be an empty folder, unless `overwrite` allows replacing
    an artifact.
    """

    def __init__(self, out: Path, *, overwrite: bool = False, opener: Opener | None = None) -> None:
        self._out = out
        self._overwrite = overwrite
        self._open: Opener = opener or (lambda path: path.open("xb"))
        self._temporary = out.parent / f".{out.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}"
        self._files: dict[str, FileEntry] = {}
        self._committed = False

    def __enter__(self) -> ArtifactWriter:
        self._check_place()
        try:
            self._temporary.mkdir(parents=True)
        except OSError as error:
            raise self._storage_error(error) from error
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not self._committed:
            shutil.rmtree(self._temporary, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            raise self._storage_error(error) from error

    def create(self, name: str) -> BinaryIO:
        """Opens a new file of the artifact; the caller closes it, then calls `record`."""
        return self._open(self._temporary / name)

    def record(self, name: str, sha256: str, num_bytes: int) -> None:
        """Notes a file that the caller has written through `create`."""
        self._files[name] = FileEntry(sha256=sha256, bytes=num_bytes)

    def write(self, name: str, data: bytes) -> None:
        """Writes and records a whole file."""
        with self.create(name) as stream:
            stream.write(data)
        self.record(name, hashlib.sha256(data).hexdigest(), len(data))

    @property
    def files(self) -> dict[str, FileEntry]:
        """The files recorded so far."""
        return dict(self._files)

    def commit(self, manifest: Manifest) -> None:
        """Writes the manifest and puts the folder in place."""
        data = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
        with self._open(self._temporary / MANIFEST_FILE) as stream:
            stream.write(data)
        previous = None
        if self._overwrite and self._out.exists():
            previous = self._out.parent / f".{self._out.name}.old-{secrets.token_hex(4)}"
            self._out.rename(previous)
        try:
            self._temporary.rename(self._out)
        except OSError:
            if previous is not None:
                previous.rename(self._out)
            raise
        self._committed = True
        if previous is not None:
            shutil.rmtree(previous, ignore_errors=True)

    def _check_place(self) -> None:
        if not self._out.exists() and not self._out.is_symlink():
            return
        if not self._out.is_dir():
            raise ArtifactError(f"{self._out} exists and is not a folder", path=self._out, field="out")
        if any(self._out.iterdir()) and not (self._overwrite and is_artifact(self._out)):
            hint = "is not empty" if not is_artifact(self._out) else "already holds an artifact"
            raise ArtifactError(f"{self._out} {hint}", path=self._out, field="out")

    def _storage_error(self, error: OSError) -> StorageError:
        reason = error.strerror or str(error)
        return StorageError(f"cannot write the artifact {self._out}: {reason}", error=error, out=self._out)


def is_artifact(path: Path) -> bool:
    """True when the folder has a manifest of our format, of whatever version; its files are not looked at."""
    try:
        header = msgspec.json.decode((path / MANIFEST_FILE).read_bytes(), type=dict[str, object])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return header.get("format") == FORMAT


def load_manifest(path: Path, *, verify: bool = True) -> Manifest:
    """Reads an artifact's manifest and checks its files: present, of the right size and, with `verify`, of
    the right content (about a second per gigabyte).

    Raises ArtifactError naming the field or the file.
    """
    try:
        data = (path / MANIFEST_FILE).read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{path} is no artifact: {MANIFEST_FILE} cannot be read ({error.strerror})",
            path=path,
            field=MANIFEST_FILE,
        ) from error
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} has a broken {MANIFEST_FILE}: {error}", path=path, field=MANIFEST_FILE) from error
    _check_graphs(path, manifest)
    for name, entry in manifest.files.items():
        _check_file(path, name, entry, verify=verify)
    return manifest


def _check_graphs(path: Path, manifest: Manifest) -> None:
    rows = [graph.min_rows for graph in manifest.graphs]
    if not rows or rows[0] != 1 or rows != sorted(set(rows)):
        raise ArtifactError(f"{path}: graphs must ascend in min_rows from 1, not {rows}", path=path, field="graphs")
    for graph in manifest.graphs:
        if graph.file not in manifest.files:
            raise ArtifactError(f"{path}: the graph {graph.file} is not among the files", path=path, field="graphs")


def _check_file(path: Path, name: str, entry: FileEntry, *, verify: bool) -> None:
    if Path(name).name != name:
        raise ArtifactError(f"{path}: {name!r} is no file name", path=path, field="files")
    file = path / name
    try:
        num_bytes = file.stat().st_size
        if num_bytes != entry.bytes:
            raise ArtifactError(f"{file} has {num_bytes} bytes, the manifest says {entry.bytes}", path=path, field=name)
        if verify and sha256_of(file) != entry.sha256:
            raise ArtifactError(f"{file} is not what was compiled: its sha256 differs", path=path, field=name)
    except OSError as error:
        raise ArtifactError(f"{file} cannot be read ({error.strerror})", path=path, field=name) from error


def sha256_of(file: Path) -> str:
    """The file's sha256 in hexadecimal."""
    with file.open("rb", buffering=0) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remove_leftovers(out: Path) -> None:
    """Removes what killed compilations of `out` left. Safe only while nobody else compiles it."""
    for folder in [*out.parent.glob(f".{out.name}.tmp-*"), *out.parent.glob(f".{out.name}.old-*")]:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
