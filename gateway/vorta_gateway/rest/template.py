"""Path templates of google.api.http.

    Template = "/" Segments [ Verb ]     Segments = Segment { "/" Segment }     Verb = ":" LITERAL
    Segment  = "*" | "**" | LITERAL | Variable                Variable = "{" FieldPath [ "=" Segments ] "}"

as google/api/http.proto has it, with what it says beside the grammar: `**` is the last segment, and no variable stands
twice or inside another. A verb may contain colons.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

__all__ = ["ANY", "REST", "PathTemplate", "TemplateError", "Variable", "decode_all", "decode_but_slashes"]

ANY = "*"
"""A segment that matches one segment with something in it."""

REST = "**"
"""A segment that matches all that is left, also nothing."""

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
# What a path segment may hold by RFC 3986, less ":" (a verb's sign) and "*" (a wildcard's).
_LITERAL = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()+,;=@]|%[0-9A-Fa-f]{2})+")
_VERB = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()+,;=@:]|%[0-9A-Fa-f]{2})+")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SLASH = re.compile("(%2[Ff])")


class TemplateError(ValueError):
    """A path template, or what a rule says beside it, is wrong."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable: which field, and which segments.

    Attributes:
        field_path: Dotted.
        start: Its first segment.
        num_segments: How many; for one that ends in `**`, how many before it.
        takes_rest: Whether it ends in `**`.
    """

    field_path: str
    start: int
    num_segments: int
    takes_rest: bool

    @property
    def is_single(self) -> bool:
        """Whether it is one segment; only then is a slash in it decoded."""
        return self.num_segments == 1 and not self.takes_rest


@dataclass(frozen=True, slots=True)
class PathTemplate:
    """A parsed template.

    Attributes:
        segments: `ANY`, `REST`, or a literal, decoded.
        verb: Without its colon; empty for none.
        variables: In their order.
    """

    segments: tuple[str, ...]
    verb: str
    variables: tuple[Variable, ...]

    @classmethod
    def parse(cls, text: str) -> PathTemplate:
        """The template that a text is. Raises TemplateError, which says where it is wrong."""
        return _Parser(text).parse()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._segments: list[str] = []
        self._variables: list[Variable] = []

    def parse(self) -> PathTemplate:
        self._expect("/")
        self._parse_segments(in_variable=False)
        verb = ""
        if self._peek() == ":":
            self._at += 1
            verb = decode_all(self._take(_VERB, "a verb"))
        if self._at != len(self._text):
            raise self._error("nothing more can stand here")
        return PathTemplate(tuple(self._segments), verb, tuple(self._variables))

    def _parse_segments(self, *, in_variable: bool) -> None:
        while True:
            if self._segments and self._segments[-1] == REST:
                raise self._error("nothing can follow **")
            self._parse_segment(in_variable=in_variable)
            if self._peek() != "/":
                return
            self._at += 1

    def _parse_segment(self, *, in_variable: bool) -> None:
        if self._text.startswith(REST, self._at):
            self._at += 2
            self._segments.append(REST)
        elif self._peek() == ANY:
            self._at += 1
            self._segments.append(ANY)
        elif self._peek() == "{":
            if in_variable:
                raise self._error("a variable cannot stand in a variable")
            self._parse_variable()
        else:
            self._segments.append(decode_all(self._take(_LITERAL, "a segment")))

    def _parse_variable(self) -> None:
        self._at += 1
        field_path = self._take(_IDENTIFIER, "a field's path")
        if any(variable.field_path == field_path for variable in self._variables):
            raise self._error(f"{field_path} is bound twice")
        start = len(self._segments)
        if self._peek() == "=":
            self._at += 1
            self._parse_segments(in_variable=True)
        else:
            self._segments.append(ANY)
        self._expect("}")
        takes_rest = self._segments[-1] == REST
        self._variables.append(Variable(field_path, start, len(self._segments) - start - takes_rest, takes_rest))

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _expect(self, char: str) -> None:
        if self._peek() != char:
            raise self._error(f"{char!r} is missing")
        self._at += 1

    def _take(self, pattern: re.Pattern[str], what: str) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise self._error(f"{what} is missing")
        self._at = match.end()
        return match.group()

    def _error(self, why: str) -> TemplateError:
        return TemplateError(f"path template {self._text!r}, at {self._at}: {why}")


def decode_all(text: str) -> str:
    """Percent-decoded. Raises ValueError for a bad escape or what is not UTF-8."""
    if "%" not in text:
        return text
    if _BAD_PERCENT.search(text):
        raise ValueError(f"{text[:80]!r} has a % that is not followed by two hexadecimal digits")
    return unquote_to_bytes(text).decode()


def decode_but_slashes(text: str) -> str:
    """Percent-decoded, slashes left as they were sent. Raises ValueError like `decode_all`."""
    if "%" not in text:
        return text
    return "".join(part if index % 2 else decode_all(part) for index, part in enumerate(_SLASH.split(text)))
