"""Sorting numbers and words."""

from __future__ import annotations

from random import Random

from vorta_bench.tasks.case import Draft
from vorta_bench.tasks.lexicon import WORDS


def sort_numbers(rng: Random) -> Draft:
    """Three to five different numbers below 100, ascending or descending."""
    numbers = rng.sample(range(1, 100), rng.randint(3, 5))
    descending = rng.random() < 0.35
    listed = ", ".join(map(str, numbers))
    if descending:
        question = rng.choice(
            (
                "Sort from largest to smallest: {}",
                "Sort these numbers in descending order: {}",
                "Put these in descending order: {}",
            )
        )
    else:
        question = rng.choice(
            (
                "Sort these numbers: {}",
                "Sort from smallest to largest: {}",
                "Sort these numbers in ascending order: {}",
                "Put these in ascending order: {}",
            )
        )
    answer = ", ".join(map(str, sorted(numbers, reverse=descending)))
    return Draft(key=f"{descending}:{sorted(numbers)}", question=question.format(listed), answer=answer)


def sort_words(rng: Random) -> Draft:
    """Three to five words in alphabetical order."""
    words = rng.sample(WORDS, rng.randint(3, 5))
    question = rng.choice(
        (
            "Sort these words: {}",
            "Sort alphabetically: {}",
            "Put these words in alphabetical order: {}",
            "Order these words from A to Z: {}",
        )
    ).format(", ".join(words))
    return Draft(key=",".join(sorted(words)), question=question, answer=", ".join(sorted(words)))
