"""Reads files: texts with what is known of them, and what could not be read."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vorta.cli.ingest.missing import MissingPackage
from vorta.cli.ingest.sources import Source

_LARGEST_CELL = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A text of a file: the whole, a record, or a page."""

    text: str
    payload: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What could not be read."""

    place: str
    """Where in the file, such as "line 3"; empty for the whole of it."""
    reason: str
    is_whole: bool = False
    """Whether nothing more comes of the file."""


Item = Passage | Fault


def read(source: Source, text_field: str, text_column: str) -> Iterator[Item]:
    """The file's texts, in order. Faults come in their places, and never as exceptions.

    Raises MissingPackage for a PDF without pypdf.
    """
    try:
        if source.kind == "jsonl":
            yield from _read_jsonl(source.path, text_field)
        elif source.kind == "csv":
            yield from _read_csv(source.path, text_column)
        elif source.kind == "pdf":
            yield from _read_pdf(source.path)
        else:
            yield from _read_text(source.path)
    except OSError as exc:
        yield Fault(place="", reason=exc.strerror or str(exc), is_whole=True)


def _read_text(path: Path) -> Iterator[Item]:
    data = path.read_bytes()
    try:
        yield Passage(text=data.decode("utf-8-sig"))
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        yield Fault(place=f"line {line}", reason=f"not UTF-8: {exc.reason}", is_whole=True)


def _read_jsonl(path: Path, text_field: str) -> Iterator[Item]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line.decode("utf-8-sig"))
                # Python reads more than JSON is, and than can be sent: NaN, infinity, lone surrogates.
                json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
            except (ValueError, RecursionError) as exc:
                kind = "not UTF-8" if isinstance(exc, UnicodeError) else "not JSON"
                yield Fault(place=f"line {number}", reason=f"{kind}: {exc}")
                continue
            if not isinstance(record, dict):
                yield Fault(place=f"line {number}", reason="no JSON object")
            elif not isinstance(record.get(text_field), str):
                yield Fault(place=f"line {number}", reason=f"no text in the field {text_field!r}")
            else:
                yield Passage(text=record.pop(text_field), payload=record)


def _read_csv(path: Path, text_column: str) -> Iterator[Item]:
    csv.field_size_limit(_LARGEST_CELL)
    with path.open("rb") as file:
        reader = csv.reader(_decoded(line) for line in file)
        try:
            header = next(reader, [])
            if text_column not in header:
                reason = f"no column {text_column!r} among {', '.join(header) or 'none'}; --text-column names it"
                yield Fault(place="line 1", reason=reason, is_whole=True)
                return
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    reason = f"{len(row)} cells, but the header has {len(header)}"
                    yield Fault(place=f"line {reader.line_num}", reason=reason)
                    continue
                record = dict(zip(header, row, strict=True))
                yield Passage(text=record.pop(text_column), payload=record)
        except UnicodeDecodeError as exc:
            place = f"line {reader.line_num + 1}"
            yield Fault(place=place, reason=f"not UTF-8: {exc.reason}", is_whole=True)
        except csv.Error as exc:
            yield Fault(place=f"line {reader.line_num}", reason=str(exc), is_whole=True)


def _decoded(line: bytes) -> str:
    return line.decode("utf-8-sig")


def _read_pdf(path: Path) -> Iterator[Item]:
    try:
        import pypdf
    except ImportError:
        raise MissingPackage("pypdf") from None
    # It reports oddities that it can live with on its logger.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    number = 0
    try:
        with pypdf.PdfReader(path) as reader:
            for number, page in enumerate(reader.pages, 1):
                text = page.extract_text().encode("utf-8", "replace").decode()  # may have lone surrogates
                yield Passage(text=text, payload={"page": number})
    except Exception as exc:  # what a broken file can make of a parser has no end: KeyError, RecursionError, …
        reason = f"no readable PDF: {exc or type(exc).__name__}"
        yield Fault(place=f"page {number + 1}" if number else "", reason=reason, is_whole=True)
