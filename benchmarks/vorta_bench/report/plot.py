"""Plots as SVG text. Colours are classes of the page's style, so that they follow its light and dark schemes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Bar", "Series", "bars", "lines", "short"]

_WIDTH, _HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 14, 42
_BAR_HEIGHT, _BAR_GAP, _BAR_LABEL = 18, 8, 150


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A line.

    Attributes:
        style: A class of the page: what the line is of.
        points: (x, y); x is one of the plot's marks.
        is_dashed: For a bound or another percentile of the same thing.
    """

    name: str
    style: str
    points: Sequence[tuple[float, float]]
    is_dashed: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar with its value in words."""

    name: str
    style: str
    value: float
    text: str


def short(value: float) -> str:
    """A number of three digits: 12.3k, 1.5M, 0.042."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{_digits(value / (1e3 if unit == 'k' else size))}{unit}"
    return _digits(value)


def lines(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    is_log: bool = False,
    rule: tuple[float, str] | None = None,
) -> str:
    """Lines over marks that stand side by side at equal distances.

    Args:
        is_log: Whether y is logarithmic; from 0 otherwise.
        rule: A level to draw across, and what it is.
    """
    shown = [one for one in series if one.points]
    if not shown:
        return ""
    marks = sorted({x for one in shown for x, _ in one.points})
    values = [y for one in shown for _, y in one.points]
    ticks = _log_ticks(min(values), max(values)) if is_log else _ticks(max(values) or 1.0)
    low, high = ticks[0], ticks[-1]

    def place_x(x: float) -> float:
        inner = _WIDTH - _LEFT - _RIGHT
        return _LEFT + inner * (marks.index(x) + 0.5) / len(marks)

    def place_y(y: float) -> float:
        share = math.log(y / low) / math.log(high / low) if is_log else (y - low) / (high - low)
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share

    parts = []
    for tick in ticks:
        y = place_y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short(tick)}</text>')
    for mark in marks:
        x, y = place_x(mark), _HEIGHT - _BOTTOM + 16
        parts.append(f'<text class="tick" x="{x:.1f}" y="{y}" text-anchor="middle">{mark:,g}</text>')
    if rule is not None and low <= rule[0] <= high:
        y = place_y(rule[0])
        parts.append(f'<line class="rule" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{_WIDTH - _RIGHT}" y="{y - 5:.1f}" text-anchor="end">{escape(rule[1])}</text>'
        )
    for one in shown:
        places = [(place_x(x), place_y(y), x, y) for x, y in sorted(one.points)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in places)
        dashed = " dashed" if one.is_dashed else ""
        parts.append(f'<polyline class="line {one.style}{dashed}" points="{path}"/>')
        for x, y, mark, value in places:
            about = escape(f"{one.name}, {x_label} {mark:,g}: {short(value)} {y_label}")
            size = 3 if one.is_dashed else 4
            parts.append(
                f'<circle class="dot {one.style}{dashed}" cx="{x:.1f}" cy="{y:.1f}" r="{size}">'
                f"<title>{about}</title></circle>"
            )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="label" x="{middle:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    legend = "".join(
        f'<span><i class="key {one.style}{" dashed" if one.is_dashed else ""}"></i>{escape(one.name)}</span>'
        for one in shown
    )
    scale = ", logarithmic" if is_log else ""
    return (
        f"<figure><figcaption><b>{escape(title)}</b><br><small>{escape(y_label)}{scale}</small></figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
        f'<div class="legend">{legend}</div></figure>'
    )


def bars(title: str, rows: Sequence[Bar], *, y_label: str) -> str:
    """Horizontal bars from 0."""
    if not rows:
        return ""
    most = max(row.value for row in rows) or 1.0
    height = len(rows) * (_BAR_HEIGHT + _BAR_GAP) + 6
    inner = _WIDTH - _BAR_LABEL - 90
    parts = []
    for index, row in enumerate(rows):
        y = 4 + index * (_BAR_HEIGHT + _BAR_GAP)
        width = max(2.0, inner * row.value / most)
        middle = y + _BAR_HEIGHT / 2 + 4
        parts.append(
            f'<text class="label" x="{_BAR_LABEL - 8}" y="{middle}" text-anchor="end">{escape(row.name)}</text>'
        )
        parts.append(
            f'<rect class="bar {row.style}" x="{_BAR_LABEL}" y="{y}" width="{width:.1f}" height="{_BAR_HEIGHT}" rx="2">'
            f"<title>{escape(f'{row.name}: {row.text}')}</title></rect>"
        )
        parts.append(f'<text class="tick" x="{_BAR_LABEL + width + 6:.1f}" y="{middle}">{escape(row.text)}</text>')
    return (
        f"<figure><figcaption><b>{escape(title)}</b><br><small>{escape(y_label)}</small></figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg></figure>'
    )


def _digits(value: float) -> str:
    if value == 0:
        return "0"
    places = 2 - math.floor(math.log10(abs(value)))
    text = f"{round(value, places):,.{max(0, min(places, 9))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _ticks(most: float) -> list[float]:
    """From 0 past the largest value, four to seven."""
    size = 10.0 ** math.floor(math.log10(most))
    step = next(size * factor for factor in (0.2, 0.25, 0.5, 1.0, 2.0) if most / (size * factor) <= 6)
    return [step * index for index in range(math.ceil(most / step - 1e-9) + 1)]


def _log_ticks(least: float, most: float) -> list[float]:
    """1, 2 and 5 of each decade, of wide ranges 1 alone."""
    factors = (1, 2, 5) if most / least < 500 else (1,)
    marks = [
        factor * 10.0**decade
        for decade in range(math.floor(math.log10(least)) - 1, math.ceil(math.log10(most)) + 2)
        for factor in factors
    ]
    begin = max(index for index, mark in enumerate(marks) if mark <= least * 1.0000001)
    end = min(index for index, mark in enumerate(marks) if mark >= most * 0.9999999)
    return marks[begin : max(end, begin + 1) + 1]
