"""How commands print: text for people on a terminal, JSON for programs, errors as one line."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from vorta.answer_result import AnswerEvent
from vorta.errors import InvalidArgument, Unavailable, VortaError
from vorta.result import Event, Generation
from vorta.vector_result import Hit

__all__ = [
    "EXIT_INTERRUPTED",
    "EXIT_OK",
    "EXIT_SERVER",
    "EXIT_UNAVAILABLE",
    "EXIT_USAGE",
    "error_line",
    "event_object",
    "exit_code",
    "human_bytes",
    "print_error",
    "print_fields",
    "print_hits",
    "print_json",
    "print_table",
    "print_timings",
    "print_token",
    "shorten",
    "text_of",
    "to_json",
]

EXIT_OK = 0
EXIT_SERVER = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 3
EXIT_INTERRUPTED = 130

# Control characters that a model could use to move the cursor or rewrite the terminal; tab and newline stay.
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n\r"}


def print_json(value: Any) -> None:
    """Prints a value of ours, or of plain JSON types, on one line."""
    print(to_json(value), flush=True)


def to_json(value: Any) -> str:
    """A value's JSON text: dataclasses as objects, times in ISO 8601."""
    return json.dumps(value, default=_plain, ensure_ascii=False)


def event_object(event: Event | AnswerEvent) -> dict[str, Any]:
    """A stream's event as a JSON object whose `event` names its kind."""
    return {"event": type(event).__name__.removeprefix("Answer").lower(), **dataclasses.asdict(event)}


def print_hits(hits: Iterable[Hit]) -> None:
    """Prints hits, best first, one a line: score, id, and the beginning of the text."""
    rows = [(f"{hit.score:.4f}", hit.id, shorten(text_of(hit.payload))) for hit in hits]
    width = max((len(id) for _, id, _ in rows), default=0)
    for score, id, text in rows:
        print_token(f"{score:>8}  {id:<{width}}  {text}".rstrip() + "\n")


def text_of(payload: Mapping[str, Any]) -> str:
    """The payload's text: its field "text", else its longest one."""
    texts = [value for value in payload.values() if isinstance(value, str)]
    text = payload.get("text")
    return text if isinstance(text, str) else max(texts, key=len, default="")


def shorten(text: str, length: int = 80) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text[: 8 * length].split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def print_fields(rows: Iterable[tuple[str, object]]) -> None:
    """Prints names and values, one a line."""
    for name, value in rows:
        print(f"{name:<17}{value}")


def human_bytes(number: int) -> str:
    """A size, as people write it."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} B"


def print_token(text: str) -> None:
    """Prints new text at once; on a terminal without control characters."""
    if text:
        sys.stdout.write(text.translate(_CONTROLS) if sys.stdout.isatty() else text)
        sys.stdout.flush()


def print_timings(generation: Generation) -> None:
    """One line about the generation on stderr, when a person is looking."""
    if sys.stderr.isatty():
        usage, timings = generation.usage, generation.timings
        sys.stderr.write(
            f"\033[2m{usage.completion_tokens} tokens · {generation.tokens_per_second:.1f} tokens/s · "
            f"first token {timings.ttft_s * 1000:.0f} ms · {generation.finish_reason}\033[0m\n"
        )


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints rows in aligned columns."""
    lines = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def error_line(error: VortaError) -> str:
    """The error in one line: message, reason, and the field at fault."""
    message = " ".join(error.message.split())
    field = f", field {error.field}" if error.field else ""
    return f"error: {message} ({error.reason}{field})"


def exit_code(error: VortaError) -> int:
    """The exit code that an error stands for."""
    if isinstance(error, Unavailable):
        return EXIT_UNAVAILABLE
    return EXIT_USAGE if isinstance(error, InvalidArgument) else EXIT_SERVER


def print_error(error: VortaError, *, as_json: bool) -> int:
    """Prints the error, as JSON to stdout too when asked for, and returns the exit code."""
    if as_json:
        values = {"reason": error.reason, "message": error.message, "metadata": error.metadata}
        print_json({"error": {**values, "retry_delay_s": error.retry_delay_s}})
    sys.stdout.flush()
    sys.stderr.write(error_line(error) + "\n")
    return exit_code(error)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON")
