"""Repeating a text: the plainest skill that lookups, extraction and tool calls rest on."""

from __future__ import annotations

from random import Random

from vorta_bench.tasks.case import Draft
from vorta_bench.tasks.lexicon import WORDS, code, invent, person, place


def _item(rng: Random) -> str:
    kind = rng.randrange(6)
    if kind == 0:
        return str(rng.randint(0, 9999))
    if kind == 1:
        return code(rng)
    if kind == 2:
        return person(rng)
    return (invent, place)[kind - 3](rng) if kind < 5 else rng.choice(WORDS)


def repeat(rng: Random) -> Draft:
    """Two to eight words, names, numbers or codes, said again."""
    separator = rng.choice((" ", " ", ", "))
    text = separator.join(_item(rng) for _ in range(rng.randint(2, 8)))
    if rng.random() < 0.4:
        text = " ".join(rng.choice(WORDS) for _ in range(rng.randint(2, 8)))
    question = rng.choice(("Repeat: {}", "Say: {}", "Copy this: {}", "Repeat after me: {}")).format(text)
    return Draft(key=text, question=question, answer=text)
