"""Where the commands that need no server find its data folder."""

from __future__ import annotations

from pathlib import Path

__all__ = ["find_data_dir"]


def find_data_dir(flag: Path | None) -> Path:
    """The flag's folder, or the one that `vorta serve` would take from its settings."""
    from vorta_server.settings import load_settings

    settings = load_settings({} if flag is None else {"data_dir": flag})
    return settings.data_dir.expanduser().absolute()
