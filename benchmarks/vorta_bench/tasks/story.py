"""Short templated stories: no right answer, they are there for fluency."""

from __future__ import annotations

from random import Random

from vorta_bench.tasks.case import Draft
from vorta_bench.tasks.lexicon import ANIMALS, COLOURS, FIRST_NAMES, ITEMS

_PLACES = ["forest", "village", "garden", "valley", "castle", "harbor", "island", "kitchen"]
_MOODS = ["happy", "curious", "brave", "quiet", "clever", "gentle"]
_OPENINGS = (
    "Once upon a time there was a {m} {a} called {n} who lived in a {p}.",
    "In a small {p} lived a {m} {a}. Its name was {n}.",
    "Long ago, a {m} {a} named {n} had a home near the {p}.",
)
_FINDS = (
    "One morning {n} found a {c} {i} under an old tree.",
    "One day {n} saw a {c} {i} by the road.",
    "On a rainy evening {n} discovered a {c} {i} in the grass.",
)
_TURNS = (
    "Nobody knew whose {i} it was, so {n} asked every neighbour.",
    "The {i} belonged to a lonely {b}, and {n} wanted to give it back.",
    "A {b} came along and said that the {i} was lost by a friend.",
)
_WAYS = (
    "They walked together over the hill and talked all the way.",
    "It was a long way, but the {a} did not give up.",
    "The {b} was shy at first, but soon they laughed together.",
)
_ENDINGS = (
    "In the end they shared the {i} and became good friends.",
    "That evening everybody in the {p} celebrated, and {n} was very {m}.",
    "From that day on {n} and the {b} met every week in the {p}.",
)


def story(rng: Random) -> Draft:
    """Five sentences about an animal that finds something."""
    animal, friend = rng.sample(ANIMALS, 2)
    words = {"a": animal, "b": friend, "n": rng.choice(FIRST_NAMES), "p": rng.choice(_PLACES), "m": rng.choice(_MOODS)}
    words |= {"c": rng.choice(COLOURS), "i": rng.choice(ITEMS)}
    text = " ".join(rng.choice(part) for part in (_OPENINGS, _FINDS, _TURNS, _WAYS, _ENDINGS)).format(**words)
    question = rng.choice(
        (
            "Tell me a story.",
            "Tell me a story about a {a}.",
            "Write a short story about a {a}.",
            "Tell a story about a {a} and a {i}.",
        )
    ).format(**words)
    return Draft(key=text, question=question, answer=text)
