"""Typed reading of config.json: every wrong value is refused with its field's name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vorta_server.compiler.checkpoint import CheckpointError

# Bounds against values that no model has and that would overflow a float32 or ask for all memory.
_MAX_INT = 2**31 - 1
_MAX_FLOAT = 1e30


class ConfigReader:
    """Reads fields of one JSON object. Every method raises CheckpointError naming the field."""

    def __init__(self, values: Mapping[str, Any], path: Path, prefix: str = "") -> None:
        self._values = values
        self.path = path
        self._prefix = prefix

    def error(self, field: str, what: str) -> CheckpointError:
        """The error that says what is wrong with the field."""
        name = self._prefix + field
        return CheckpointError(f"{self.path.name}: {name} {what}", field=name, path=self.path)

    def has(self, field: str) -> bool:
        """True when the field is present and not null."""
        return self._values.get(field) is not None

    def raw(self, field: str) -> Any:
        """The field as JSON gave it, None when absent."""
        return self._values.get(field)

    def positive_int(self, field: str, default: int | None = None, *, maximum: int = _MAX_INT) -> int:
        """An integer from 1 to the maximum."""
        value = self._values.get(field)
        if value is None:
            value = default
        if value is None:
            raise self.error(field, "is missing")
        if type(value) is not int or not 1 <= value <= maximum:
            raise self.error(field, f"must be an integer from 1 to {maximum}, not {value!r}")
        return value

    def positive_float(
        self, field: str, default: float | None = None, *, above: float = 0.0, maximum: float = _MAX_FLOAT
    ) -> float:
        """A number greater than `above`, up to the maximum."""
        value = self._values.get(field)
        if value is None:
            value = default
        if value is None:
            raise self.error(field, "is missing")
        if type(value) not in (int, float) or not above < value <= maximum:
            raise self.error(field, f"must be a number above {above:g}, at most {maximum:g}, not {value!r}")
        return float(value)

    def flag(self, field: str, default: bool) -> bool:
        """A boolean."""
        value = self._values.get(field)
        if value is None:
            return default
        if type(value) is not bool:
            raise self.error(field, f"must be true or false, not {value!r}")
        return value

    def text(self, field: str) -> str:
        """A non-empty string."""
        value = self._values.get(field)
        if value is None:
            raise self.error(field, "is missing")
        if not isinstance(value, str) or not value:
            raise self.error(field, f"must be a text, not {value!r}")
        return value

    def section(self, field: str) -> ConfigReader | None:
        """The nested object, None when absent or null."""
        value = self._values.get(field)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(field, f"must be an object, not {value!r}")
        return ConfigReader(value, self.path, f"{self._prefix}{field}.")

    def token_ids(self, field: str) -> tuple[int, ...]:
        """A token id or a list of them, () when absent or null."""
        value = self._values.get(field)
        if value is None:
            return ()
        items = value if isinstance(value, list) else [value]
        if not all(type(item) is int and item >= 0 for item in items):
            raise self.error(field, f"must be a token id or a list of token ids, not {value!r}")
        return tuple(dict.fromkeys(items))
