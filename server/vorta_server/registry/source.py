"""Where a model comes from: a folder, or a hub id that was pulled into the data folder."""

from __future__ import annotations

from pathlib import Path

from vorta.errors import InvalidArgument

__all__ = ["BUILTIN_MODELS", "DEFAULT_MODEL", "resolve_source", "split_model_flag"]

DEFAULT_MODEL = "vorta-mini"

BUILTIN_MODELS = Path(__file__).parent.parent / "models"
"""Models that come with the package, one folder each."""


def resolve_source(source: str, *, data_dir: Path) -> Path:
    """The folder of a source: itself when it is one, a built-in model, or `data_dir/models/<id>`.

    Raises:
        InvalidArgument: There is no such folder.
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
    hint = "" if folder.is_absolute() else f"; a hub id must be pulled first: vorta pull {source}"
    raise InvalidArgument(f"no model at {source!r}: no such folder{hint}", field="source")


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
