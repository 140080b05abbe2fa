"""Dates: from one format to another, and a few days on."""

from __future__ import annotations

from datetime import date, timedelta
from random import Random

from vorta_bench.tasks.case import Draft
from vorta_bench.tasks.lexicon import MONTHS

FIRST_YEAR, LAST_YEAR = 1950, 2049


def _draw(rng: Random) -> date:
    return date(rng.randint(FIRST_YEAR, LAST_YEAR), 1, 1) + timedelta(days=rng.randint(0, 364))


def _written(day: date, style: str) -> str:
    month = MONTHS[day.month - 1]
    return {
        "iso": day.isoformat(),
        "long": f"{day.day} {month} {day.year}",
        "us": f"{month} {day.day}, {day.year}",
        "slash": f"{day.day:02d}/{day.month:02d}/{day.year}",
        "dot": f"{day.day:02d}.{day.month:02d}.{day.year}",
    }[style]


_NAMES = {
    "iso": "YYYY-MM-DD",
    "long": "day month year",
    "slash": "DD/MM/YYYY",
    "us": "month day, year",
    "dot": "DD.MM.YYYY",
}


def date_format(rng: Random) -> Draft:
    """One date in another format; ISO is on one side."""
    day = _draw(rng)
    other = rng.choice(("long", "us", "slash", "dot"))
    source, target = (other, "iso") if rng.random() < 0.6 else ("iso", other)
    asked = "ISO format" if target == "iso" and rng.random() < 0.5 else _NAMES[target]
    question = rng.choice(
        (
            "Write {d} as {f}.",
            "Convert {d} to {f}.",
            "Convert the date {d} to {f}.",
            "What is {d} in {f}?",
            "Reformat {d} as {f}.",
        )
    ).format(d=_written(day, source), f=asked)
    return Draft(key=f"{source}>{target}:{day}", question=question, answer=_written(day, target))


def date_add(rng: Random) -> Draft:
    """The date some days (at most 9) after or before an ISO date, in the same month."""
    forward = rng.random() < 0.65
    while True:
        day, offset = _draw(rng), rng.randint(1, 9)
        if (day + timedelta(days=offset if forward else -offset)).month == day.month:
            break
    answer = (day + timedelta(days=offset if forward else -offset)).isoformat()
    unit = "day" if offset == 1 else "days"
    question = (
        rng.choice(
            (
                "What date is {n} {u} after {d}?",
                "Which date is {n} {u} after {d}?",
                "Add {n} {u} to {d}.",
                "What is {d} plus {n} {u}?",
            )
        )
        if forward
        else rng.choice(
            ("What date is {n} {u} before {d}?", "Which date is {n} {u} before {d}?", "What is {d} minus {n} {u}?")
        )
    ).format(n=offset, u=unit, d=day.isoformat())
    return Draft(key=f"{day}{'+' if forward else '-'}{offset}", question=question, answer=answer)
