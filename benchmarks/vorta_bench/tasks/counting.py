"""Counting items, letters and words; the working counts aloud."""

from __future__ import annotations

from random import Random

from vorta_bench.tasks.case import Draft
from vorta_bench.tasks.lexicon import ANIMALS, COLOURS, ITEMS, WORDS


def _aloud(parts: list[str]) -> str:
    return ", ".join(f"{index} {part}" for index, part in enumerate(parts, 1))


def count_items(rng: Random) -> Draft:
    """How many items a list has, or how often one of them occurs in it."""
    pool = rng.choice((ITEMS, ANIMALS, COLOURS))
    if rng.random() < 0.5:
        items = rng.sample(pool, rng.randint(2, 9))
        listed = ", ".join(items)
        question = rng.choice(
            (
                "How many items are in this list: {}?",
                "Count the items: {}",
                "How many things are listed here: {}?",
                "Count these: {}",
            )
        ).format(listed)
        return Draft(key=f"items:{listed}", question=question, answer=f"{_aloud(items)}. Total: {len(items)}")
    kinds = rng.sample(pool, rng.randint(2, 3))
    items = [rng.choice(kinds) for _ in range(rng.randint(3, 9))]
    wanted = rng.choice(kinds)
    found = [item for item in items if item == wanted]
    listed = ", ".join(items)
    question = rng.choice(
        ("How many times does {w} occur in: {l}?", "Count {w} in this list: {l}", "How often is {w} in: {l}?")
    ).format(w=wanted, l=listed)
    answer = f"{_aloud(found)}. Total: {len(found)}" if found else "Total: 0"
    return Draft(key=f"{wanted}:{listed}", question=question, answer=answer)


_SHORT_WORDS = tuple(word for word in WORDS if len(word) <= 5)


def count_letters(rng: Random) -> Draft:
    """How often a letter occurs in a word, or how many letters it has; the word is spelled first."""
    word = rng.choice(_SHORT_WORDS)
    spelled = "-".join(word)
    if rng.random() < 0.3:
        question = rng.choice(
            ("How many letters are in {}?", "How many letters does the word {} have?", "Count the letters of {}.")
        )
        return Draft(key=word, question=question.format(word), answer=f"{_aloud(list(word))}. Total: {len(word)}")
    letter = rng.choice(word) if rng.random() < 0.85 else rng.choice("aeioust")
    question = rng.choice(
        (
            "How many times does the letter {c} occur in {w}?",
            "How many {c} are in the word {w}?",
            "Count the letter {c} in {w}.",
        )
    ).format(c=letter, w=word)
    return Draft(key=f"{letter}:{word}", question=question, answer=f"{spelled}. Total: {word.count(letter)}")


def count_words(rng: Random) -> Draft:
    """How many words a phrase has."""
    words = rng.sample(WORDS, rng.randint(2, 8))
    phrase = " ".join(words)
    question = rng.choice(
        ("How many words are here: {}", "Count the words: {}", 'How many words does "{}" have?')
    ).format(phrase)
    return Draft(key=phrase, question=question, answer=f"{_aloud(words)}. Total: {len(words)}")
