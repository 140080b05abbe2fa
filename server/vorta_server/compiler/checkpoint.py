"""Reading a Hugging Face checkpoint: config.json, safetensors (one file or sharded) and the tokenizer's
files.

Weights are read a few rows at a time and handed out as float32, so that a checkpoint of any size needs a few
megabytes of memory. They are read, not mapped: a file that shrinks while it is compiled is then an error,
and not the end of the process. Knows nothing of model families: which tensors must exist is `weight.py`'s
business.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]

# safetensors' names of the floating-point types that a checkpoint may be stored in.
_DTYPES: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}

# The format's own bound on its header, against a torn first word that asks for terabytes.
_MAX_HEADER_BYTES = 100_000_000

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)

# What sentence-transformers writes beside a checkpoint, and the modules' folders.
MODULES_FILE = "modules.json"
_SENTENCE_PATTERNS = (MODULES_FILE, "sentence_*_config.json", "config_sentence_*.json", "*_*/config.json")


class CheckpointError(ValueError):
    """A checkpoint that cannot be compiled: missing, torn, inconsistent or of an unsupported kind.

    Attributes:
        field: the tensor, configuration key or argument at fault, or None.
        path: the file or folder at fault, or None.
    """

    def __init__(self, message: str, *, field: str | None = None, path: Path | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.path = path


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """Where one tensor lies: its file, its type, its shape and its bytes' range inside the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start_bytes: int
    end_bytes: int


class Checkpoint:
    """An opened checkpoint folder. Close it, or use it in a `with` statement.

    Opening reads the configuration and every safetensors header, and checks that each file is as long as its
    header says; no weight is read. Raises CheckpointError for anything that is missing or torn.

    Attributes:
        config: config.json.
        generation_config: generation_config.json, empty when there is none.
        tokenizer_size: how many token ids the tokenizer's model uses, 0 when it does not say.
        tokenizer_files: the files that go into an artifact as they are.
        sentence_files: what sentence-transformers wrote beside the checkpoint.
        files: the safetensors files.
        tensors: every tensor of them by name.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.exists():
            raise CheckpointError(f"checkpoint {folder} does not exist", path=folder)
        if not folder.is_dir():
            raise CheckpointError(f"checkpoint {folder} is not a folder", path=folder)
        self.folder = folder
        self.config = read_json_object(folder / "config.json")
        generation = folder / "generation_config.json"
        self.generation_config = read_json_object(generation) if generation.exists() else {}
        self.tokenizer_size = _tokenizer_size(folder / "tokenizer.json")
        self.tokenizer_files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
        self.sentence_files = sorted(file for pattern in _SENTENCE_PATTERNS for file in folder.glob(pattern))
        self._descriptors: dict[Path, int] = {}
        self.files = _weight_files(folder)
        self.tensors: dict[str, TensorEntry] = {}
        self._header_digests: list[str] = []
        try:
            for file in self.files:
                self._open_file(file)
            _check_index(folder, self.tensors)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files. Idempotent."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def tokenizer_contents(self) -> dict[str, bytes]:
        """The files that go with the weights into an artifact, by name; some megabytes."""
        return {file.name: file.read_bytes() for file in self.tokenizer_files}

    def entry(self, name: str, shape: tuple[int, ...]) -> TensorEntry:
        """The tensor's entry; raises CheckpointError when it is missing, misshapen or of an unsupported
        type."""
        entry = self.tensors.get(name)
        if entry is None:
            raise CheckpointError(f"checkpoint {self.folder} lacks the tensor {name}", field=name, path=self.folder)
        if entry.shape != shape:
            raise CheckpointError(
                f"tensor {name} has the shape {list(entry.shape)}, the configuration asks for {list(shape)}",
                field=name,
                path=entry.file,
            )
        if entry.dtype not in _DTYPES:
            raise CheckpointError(
                f"tensor {name} is stored as {entry.dtype}; supported are {', '.join(_DTYPES)}",
                field=name,
                path=entry.file,
            )
        return entry

    def rows(self, entry: TensorEntry, start: int, stop: int) -> Float32Array:
        """Rows [start, stop) of the tensor's first axis as float32, perhaps read-only. Thread-safe.

        Raises CheckpointError when a value is infinite or not a number: no useful model has one, and a
        quantiser would spread it over its block.
        """
        dtype = _DTYPES[entry.dtype]
        row_shape = entry.shape[1:]
        row_bytes = math.prod(row_shape) * dtype.itemsize
        offset = entry.start_bytes + start * row_bytes
        count = (stop - start) * math.prod(row_shape)
        raw = self._read(entry.file, offset, count * dtype.itemsize)
        values = _to_float32(np.frombuffer(raw, dtype=np.uint8), dtype).reshape(stop - start, *row_shape)
        with np.errstate(invalid="ignore", over="ignore"):
            total = values.sum()
        if not np.isfinite(total) and not np.isfinite(values).all():
            raise CheckpointError(
                f"tensor {entry.name} holds values that are infinite or not a number",
                field=entry.name,
                path=entry.file,
            )
        return values

    def fingerprint(self) -> str:
        """A digest that changes when the checkpoint changes: configuration and tokenizer by content,
        weights by header, size and modification time (so that gigabytes need not be read to know that
        nothing changed)."""
        digest = hashlib.sha256()
        for file in [self.folder / "config.json", *self.tokenizer_files, *self.sentence_files]:
            name = file.relative_to(self.folder).as_posix()
            digest.update(name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
        for file, header in zip(self.files, self._header_digests, strict=True):
            status = file.stat()
            digest.update(f"{file.name}\0{status.st_size}\0{status.st_mtime_ns}\0{header}\0".encode())
        return digest.hexdigest()

    def _read(self, file: Path, offset: int, num_bytes: int) -> bytes:
        pieces = []
        while num_bytes > 0:
            try:
                piece = os.pread(self._descriptors[file], num_bytes, offset)  # at most 2 GiB come at once
            except OSError as error:
                raise CheckpointError(f"{file} cannot be read: {error.strerror}", path=file) from error
            if not piece:
                raise CheckpointError(f"{file} is truncated at byte {offset}", path=file)
            pieces.append(piece)
            offset += len(piece)
            num_bytes -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _open_file(self, file: Path) -> None:
        num_bytes = file.stat().st_size
        if num_bytes < 8:
            raise CheckpointError(f"{file} is truncated: {num_bytes} bytes, no header", path=file)
        try:
            self._descriptors[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror}", path=file) from error
        (header_bytes,) = struct.unpack("<Q", self._read(file, 0, 8))
        if header_bytes > min(_MAX_HEADER_BYTES, num_bytes - 8):
            raise CheckpointError(
                f"{file} is truncated or not safetensors: {header_bytes} bytes of header in {num_bytes}",
                path=file,
            )
        header_text = self._read(file, 8, header_bytes)
        self._header_digests.append(hashlib.sha256(header_text).hexdigest())
        for entry in parse_header(header_text, file, 8 + header_bytes, num_bytes):
            if entry.name in self.tensors:
                raise CheckpointError(
                    f"tensor {entry.name} is in both {self.tensors[entry.name].file.name} and {file.name}",
                    field=entry.name,
                    path=file,
                )
            self.tensors[entry.name] = entry


def check_tokenizer(checkpoint: Checkpoint, vocab_size: int) -> None:
    """Raises CheckpointError when the tokenizer has tokens that the model has no rows for."""
    if checkpoint.tokenizer_size > vocab_size:
        raise CheckpointError(
            f"tokenizer.json has {checkpoint.tokenizer_size} tokens, but vocab_size is {vocab_size}: "
            "it belongs to another model",
            field="tokenizer.json",
            path=checkpoint.folder / "tokenizer.json",
        )


def read_small_tensors(file: Path) -> dict[str, Float32Array]:
    """All tensors of a safetensors file of some megabytes, as float32.

    Raises CheckpointError when it is missing, torn or of a type that is not floating-point.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}", field=file.name, path=file) from error
    header_bytes = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else len(data)
    if header_bytes > len(data) - 8:
        raise CheckpointError(f"{file} is truncated or not safetensors", field=file.name, path=file)
    tensors = {}
    for entry in parse_header(data[8 : 8 + header_bytes], file, 8 + header_bytes, len(data)):
        if entry.dtype not in _DTYPES:
            raise CheckpointError(f"tensor {entry.name} is stored as {entry.dtype}", field=entry.name, path=file)
        raw = np.frombuffer(data[entry.start_bytes : entry.end_bytes], np.uint8)
        tensors[entry.name] = _to_float32(raw, _DTYPES[entry.dtype]).reshape(entry.shape)
    return tensors


def parse_header(text: bytes, file: Path, data_start: int, num_bytes: int) -> list[TensorEntry]:
    """The tensors that a safetensors header names, with their ranges checked against the file's size.

    Raises CheckpointError when the header is not what the format says or a range lies outside the file.
    """
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} has a broken safetensors header: {error}", path=file) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file} has a broken safetensors header: not an object", path=file)
    return [
        _parse_entry(name, value, file, data_start, num_bytes)
        for name, value in header.items()
        if name != "__metadata__"
    ]


def _parse_entry(name: str, value: object, file: Path, data_start: int, num_bytes: int) -> TensorEntry:
    def broken(what: str) -> CheckpointError:
        return CheckpointError(f"{file}: tensor {name} {what}", field=name, path=file)

    if not isinstance(value, dict):
        raise broken("has a broken header entry")
    dtype, shape, offsets = value.get("dtype"), _sizes(value.get("shape")), _sizes(value.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
        raise broken("has a broken header entry")
    start, end = offsets
    if end < start:
        raise broken(f"has the impossible byte range {offsets}")
    if data_start + end > num_bytes:
        raise broken(f"ends at byte {data_start + end}, but the file has {num_bytes}: it is truncated")
    if dtype in _DTYPES and end - start != math.prod(shape) * _DTYPES[dtype].itemsize:
        raise broken(f"has {end - start} bytes, which is not the size of {dtype} {shape}")
    return TensorEntry(
        name=name,
        dtype=dtype,
        shape=tuple(shape),
        file=file,
        start_bytes=data_start + start,
        end_bytes=data_start + end,
    )


def _sizes(value: object) -> list[int] | None:
    if isinstance(value, list) and all(type(item) is int and item >= 0 for item in value):
        return value
    return None


def _to_float32(raw: npt.NDArray[np.uint8], dtype: np.dtype[Any]) -> Float32Array:
    if dtype == np.float32:
        return raw.view(np.float32)
    if dtype == np.float16:
        return raw.view(np.float16).astype(np.float32)
    # bfloat16 is the upper half of a float32; shifting is several times faster than a cast through ml_dtypes.
    return (raw.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def read_json_object(file: Path) -> dict[str, Any]:
    """The JSON object in the file; raises CheckpointError when it is missing, broken or no object."""
    try:
        value = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing", field=file.name, path=file) from error
    except OSError as error:
        what = f"{file} cannot be read: {error.strerror}"
        raise CheckpointError(what, field=file.name, path=file) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}", field=file.name, path=file) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} does not hold a JSON object", field=file.name, path=file)
    return value


def _tokenizer_size(file: Path) -> int:
    """One more than the largest token id of the tokenizer's model (added tokens not counted), 0 when unknown."""
    model = read_json_object(file).get("model")
    if not isinstance(model, dict):
        raise CheckpointError(f"{file} has no tokenizer model", field="tokenizer.json", path=file)
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):  # Unigram: the index is the id
        return len(vocabulary)
    if isinstance(vocabulary, dict):
        return max((value for value in vocabulary.values() if type(value) is int), default=-1) + 1
    return 0


def _weight_files(folder: Path) -> list[Path]:
    index_file = folder / "model.safetensors.index.json"
    if index_file.exists():
        shards = sorted(set(_weight_map(index_file).values()))
        for shard in shards:
            if not (folder / shard).is_file():
                raise CheckpointError(
                    f"{folder / shard} is missing, though {index_file.name} names it",
                    field=shard,
                    path=folder / shard,
                )
        return [folder / shard for shard in shards]
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    pickled = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pth"))
    hint = f" ({pickled[0].name} is a pickle, which is not read: convert it)" if pickled else ""
    raise CheckpointError(f"checkpoint {folder} has no model.safetensors{hint}", field="model.safetensors", path=folder)


def _weight_map(index_file: Path) -> dict[str, str]:
    weight_map = read_json_object(index_file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_file} has no weight_map", field="weight_map", path=index_file)
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(
                f"{index_file}: weight_map sends {name} to {shard!r}, which is no file name",
                field="weight_map",
                path=index_file,
            )
    return weight_map


def _check_index(folder: Path, tensors: Mapping[str, TensorEntry]) -> None:
    index_file = folder / "model.safetensors.index.json"
    if not index_file.exists():
        return
    for name, shard in _weight_map(index_file).items():
        if name not in tensors or tensors[name].file.name != shard:
            raise CheckpointError(
                f"tensor {name} is missing from {shard}, where {index_file.name} says it is",
                field=name,
                path=folder / shard,
            )
