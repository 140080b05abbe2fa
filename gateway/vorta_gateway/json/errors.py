"""What is wrong with a JSON value, and where."""

from __future__ import annotations

from vorta.errors import InvalidArgument

__all__ = ["JsonError", "shown"]

_MAX_SHOWN_CHARS = 60


class JsonError(ValueError):
    """A value does not fit its field.

    Attributes:
        why: What is wrong.
        path: Where, from the message that was decoded; filled from inside out.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why
        self.path = ""

    def within(self, part: str) -> None:
        """Notes that the value is in this field, or in this "[index]"."""
        if not self.path:
            self.path = part
        elif self.path.startswith("["):
            self.path = part + self.path
        else:
            self.path = f"{part}.{self.path}"

    def invalid_argument(self) -> InvalidArgument:
        """The error of the family, naming the field."""
        if not self.path:
            return InvalidArgument(self.why)
        return InvalidArgument(f"{self.path}: {self.why}", field=self.path)


def shown(value: object) -> str:
    """A value as an error shows it, cut short."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[: _MAX_SHOWN_CHARS - 1] + "…"
