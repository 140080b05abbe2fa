"""Pieces of HTML that every section is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from vorta_bench.h200.model_shape import SHAPES
from vorta_bench.report.plot import short

__all__ = ["model_title", "note", "number", "section", "share_text", "table"]


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, num_text: int = 1) -> str:
    """Cells are HTML already; the first `num_text` columns are text, the others figures."""
    body = []
    for row in rows:
        cells = [f"<td{'' if place < num_text else ' class=n'}>{cell}</td>" for place, cell in enumerate(row)]
        body.append(f"<tr>{''.join(cells)}</tr>")
    if not body:
        return ""
    names = [f"<th{'' if place < num_text else ' class=n'}>{name}</th>" for place, name in enumerate(head)]
    return (
        f"<div class=wide><table><thead><tr>{''.join(names)}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def section(title: str, *parts: str, none: str = "") -> str:
    """A heading with its parts; where they are empty, what `none` says."""
    body = "".join(parts)
    return f"<section><h2>{escape(title)}</h2>{body or f'<p class=none>{escape(none)}</p>'}</section>"


def note(text: str) -> str:
    """A quiet paragraph; the text is HTML already."""
    return f"<p class=muted>{text}</p>"


def share_text(value: float | None) -> str:
    """A share as a percentage."""
    return "–" if value is None else f"{value:.0%}" if value < 10 else f"{value:,.0f}x"


def number(value: float | None, factor: float = 1.0) -> str:
    """A number of three digits, or a dash."""
    return "–" if value is None else short(value * factor)


def model_title(model: str) -> str:
    """A model's name for people."""
    return SHAPES[model].title
