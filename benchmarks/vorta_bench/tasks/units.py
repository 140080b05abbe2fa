"""Unit conversion with whole numbers; the working names the factor."""

from __future__ import annotations

from random import Random

from vorta_bench.tasks.case import Draft

# (large unit, small unit, how many small in one large, largest count asked)
UNITS = (
    ("kilometres", "metres", 1000, 99),
    ("metres", "centimetres", 100, 99),
    ("centimetres", "millimetres", 10, 99),
    ("kilograms", "grams", 1000, 99),
    ("tonnes", "kilograms", 1000, 99),
    ("litres", "millilitres", 1000, 99),
    ("hours", "minutes", 60, 30),
    ("minutes", "seconds", 60, 30),
    ("days", "hours", 24, 20),
    ("weeks", "days", 7, 30),
    ("years", "months", 12, 20),
    ("feet", "inches", 12, 20),
    ("yards", "feet", 3, 30),
    ("gigabytes", "megabytes", 1000, 99),
    ("seconds", "milliseconds", 1000, 99),
    ("dollars", "cents", 100, 99),
)


def convert(rng: Random) -> Draft:
    """A count of one unit in another, both ways."""
    large, small, factor, most = rng.choice(UNITS)
    count = rng.randint(2, most)
    if rng.random() < 0.7:
        question = rng.choice(
            (
                "Convert {n} {a} to {b}.",
                "How many {b} are {n} {a}?",
                "{n} {a} in {b}?",
                "What is {n} {a} in {b}?",
                "Express {n} {a} in {b}.",
            )
        ).format(n=count, a=large, b=small)
        answer = f"{count} * {factor} = {count * factor} {small}"
        key = f"{count} {large} {small}"
    else:
        question = rng.choice(
            ("Convert {n} {a} to {b}.", "How many {b} are {n} {a}?", "{n} {a} in {b}?", "What is {n} {a} in {b}?")
        ).format(n=count * factor, a=small, b=large)
        answer = f"{count * factor} / {factor} = {count} {large}"
        key = f"{count * factor} {small} {large}"
    return Draft(key=key, question=question, answer=answer)
