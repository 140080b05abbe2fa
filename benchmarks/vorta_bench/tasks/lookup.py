"""Questions about one fact of a given context, and about facts that it does not have.

Names and values are invented, so the answer can only come from the context. A context is a list of passages, numbered
`[1] …` or not, in prose or as notes of `key: value`, from about 50 to 1,500 tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from vorta_bench.tasks.case import Draft
from vorta_bench.tasks.lexicon import (
    COLOURS,
    HOBBIES,
    ITEMS,
    JOBS,
    MONTHS,
    WEEKDAYS,
    WORDS,
    code,
    invent,
    person,
    place,
)

UNKNOWN = "I don't know based on the given context."
INSTRUCTION = "Answer from the context only."


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """A property: its key in a note, sentences that state it ({n} name, {v} value), questions, and its values."""

    key: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    draw: Callable[[Random], str]


def _attribute(key: str, statements: str, questions: str, draw: Callable[[Random], str]) -> Attribute:
    split = [tuple(part.strip() for part in text.split("|")) for text in (statements, questions)]
    return Attribute(key=key, statements=split[0], questions=split[1], draw=draw)


def _number(low: int, high: int, unit: str = "") -> Callable[[Random], str]:
    return lambda rng: f"{rng.randint(low, high)}{unit}"


def _one_of(values: list[str]) -> Callable[[Random], str]:
    return lambda rng: rng.choice(values)


def _day(rng: Random) -> str:
    return f"{rng.randint(1, 28)} {rng.choice(MONTHS)}"


_COMPANY = (
    _attribute(
        "founder",
        "{n} was founded by {v}.|The founder of {n} is {v}.|{v} founded {n}.|{v} started the company {n}.",
        "Who founded {n}?|Who is the founder of {n}?|Who started {n}?|By whom was {n} founded?",
        person,
    ),
    _attribute(
        "headquarters",
        "{n} has its headquarters in {v}.|The headquarters of {n} are in {v}.|"
        "{n} is based in {v}.|The main office of {n} is in {v}.",
        "Where is {n} based?|Where are the headquarters of {n}?|"
        "In which city is {n} based?|Where is the main office of {n}?",
        place,
    ),
    _attribute(
        "founded",
        "{n} was founded in {v}.|The company {n} exists since {v}.|In {v}, {n} was established.",
        "When was {n} founded?|In which year was {n} founded?|"
        "Since when does {n} exist?|What year was {n} established?",
        _number(1850, 2024),
    ),
    _attribute(
        "employees",
        "{n} has {v} employees.|{v} people work at {n}.|{n} employs {v} people.",
        "How many employees does {n} have?|How many people work at {n}?|How many people does {n} employ?",
        _number(12, 9800),
    ),
    _attribute(
        "product",
        "{n} makes {v}.|The main product of {n} is {v}.|{n} is known for its {v}.",
        "What does {n} make?|What is the main product of {n}?|What is {n} known for?",
        lambda rng: f"{rng.choice(COLOURS)} {rng.choice(ITEMS)}s",
    ),
)
_PERSON = (
    _attribute(
        "age",
        "{n} is {v} years old.|At {v}, {n} is still active.|The age of {n} is {v}.",
        "How old is {n}?|What is the age of {n}?|What age is {n}?",
        _number(18, 95),
    ),
    _attribute(
        "city",
        "{n} lives in {v}.|The home of {n} is in {v}.|{n} moved to {v}.",
        "Where does {n} live?|In which city does {n} live?|What is the home city of {n}?",
        place,
    ),
    _attribute(
        "job",
        "{n} works as a {v}.|By profession {n} is a {v}.|{n} is a {v}.",
        "What is the job of {n}?|What does {n} work as?|What is the profession of {n}?",
        _one_of(JOBS),
    ),
    _attribute(
        "hobby",
        "The hobby of {n} is {v}.|In the evening {n} enjoys {v}.|{n} likes {v} most of all.",
        "What is the hobby of {n}?|What does {n} enjoy?|What does {n} like?",
        _one_of(HOBBIES),
    ),
    _attribute(
        "extension",
        "The phone extension of {n} is {v}.|You reach {n} at extension {v}.|Call {n} at extension {v}.",
        "What is the phone extension of {n}?|At which extension do I reach {n}?|How can I call {n}?",
        _number(1000, 9999),
    ),
)
_PRODUCT = (
    _attribute(
        "price",
        "The {n} costs {v}.|The price of the {n} is {v}.|You can buy the {n} for {v}.",
        "What does the {n} cost?|What is the price of the {n}?|How much is the {n}?|How expensive is the {n}?",
        _number(2, 999, " dollars"),
    ),
    _attribute(
        "weight",
        "The {n} weighs {v}.|The weight of the {n} is {v}.|At {v}, the {n} is easy to carry.",
        "How much does the {n} weigh?|What is the weight of the {n}?|How heavy is the {n}?",
        _number(2, 990, " grams"),
    ),
    _attribute(
        "colour",
        "The {n} comes in {v}.|The colour of the {n} is {v}.|Every {n} is painted {v}.",
        "What colour is the {n}?|What is the colour of the {n}?|In which colour does the {n} come?",
        _one_of(COLOURS),
    ),
    _attribute(
        "warranty",
        "The {n} has a warranty of {v}.|The warranty of the {n} lasts {v}.|We repair the {n} for free within {v}.",
        "How long is the warranty of the {n}?|"
        "What warranty does the {n} have?|How long does the warranty of the {n} last?",
        _number(3, 60, " months"),
    ),
    _attribute(
        "maker",
        "The {n} is made by {v}.|{v} builds the {n}.|The maker of the {n} is {v}.",
        "Who makes the {n}?|Who builds the {n}?|Who is the maker of the {n}?",
        invent,
    ),
)
_PLACE = (
    _attribute(
        "population",
        "{n} has {v} inhabitants.|The population of {n} is {v}.|About {v} people live in {n}.",
        "How many inhabitants does {n} have?|What is the population of {n}?|How many people live in {n}?",
        _number(200, 99000),
    ),
    _attribute(
        "mayor",
        "The mayor of {n} is {v}.|{v} is the mayor of {n}.|{v} was elected mayor of {n}.",
        "Who is the mayor of {n}?|Who was elected mayor of {n}?|What is the name of the mayor of {n}?",
        person,
    ),
    _attribute(
        "river",
        "{n} lies on the river {v}.|The river {v} flows through {n}.|The river of {n} is called {v}.",
        "On which river does {n} lie?|Which river flows through {n}?|What is the river of {n} called?",
        invent,
    ),
    _attribute(
        "height",
        "{n} lies at a height of {v}.|The height of {n} is {v}.|{n} is {v} above the sea.",
        "What is the height of {n}?|At what height does {n} lie?|How high above the sea is {n}?",
        _number(5, 2900, " metres"),
    ),
    _attribute(
        "market",
        "The market of {n} is on {v}.|Every {v} there is a market in {n}.|On {v} farmers sell their goods in {n}.",
        "On which day is the market in {n}?|When is the market of {n}?|Which day do farmers sell their goods in {n}?",
        _one_of(WEEKDAYS),
    ),
)
_PROJECT = (
    _attribute(
        "owner",
        "{n} is owned by {v}.|{v} is the owner of {n}.|{v} is responsible for {n}.",
        "Who owns {n}?|Who is the owner of {n}?|Who is responsible for {n}?",
        person,
    ),
    _attribute(
        "port",
        "{n} listens on port {v}.|The port of {n} is {v}.|Connect to {n} on port {v}.",
        "On which port does {n} listen?|What is the port of {n}?|Which port does {n} use?",
        _number(1024, 65000),
    ),
    _attribute(
        "deadline",
        "The deadline of {n} is {v}.|{n} must be ready by {v}.|{n} is due on {v}.",
        "What is the deadline of {n}?|When must {n} be ready?|When is {n} due?",
        _day,
    ),
    _attribute(
        "version",
        "The current version of {n} is {v}.|{n} is at version {v}.|Version {v} of {n} was released.",
        "What is the current version of {n}?|Which version is {n} at?|Which version of {n} was released?",
        lambda rng: f"{rng.randint(0, 19)}.{rng.randint(0, 30)}",
    ),
    _attribute(
        "code",
        "The access code of {n} is {v}.|To open {n}, enter {v}.|{n} is unlocked with the code {v}.",
        "What is the access code of {n}?|What is the code of {n}?|Which code unlocks {n}?",
        code,
    ),
)


def _product_name(rng: Random) -> str:
    return invent(rng) if rng.random() < 0.5 else f"{invent(rng)} {rng.choice(ITEMS)}"


def _project_name(rng: Random) -> str:
    return f"project {invent(rng)}" if rng.random() < 0.5 else f"server {rng.choice(WORDS)}{rng.randint(1, 9)}"


_ENTITIES: tuple[tuple[Callable[[Random], str], tuple[Attribute, ...]], ...] = (
    (invent, _COMPANY),
    (person, _PERSON),
    (_product_name, _PRODUCT),
    (invent, _PLACE),
    (_project_name, _PROJECT),
)
_FILLER = (
    "The weather was {a} all week, and the {b} stood in the garden.",
    "Nobody remembers who left the {a} {b} on the table.",
    "In the old days a {b} was worth more than a {a} coat.",
    "Please keep the {b} away from the {a} door.",
    "The {a} {b} has been repaired twice this year.",
    "Visitors often ask about the {a} {b} in the hall.",
)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _passage(rng: Random, name: str, facts: list[tuple[Attribute, str]]) -> str:
    if rng.random() < 0.25:
        separator = rng.choice(("; ", ", ", "\n"))
        return separator.join([f"name: {name}"] + [f"{attribute.key}: {value}" for attribute, value in facts])
    sentences = [_sentence(rng.choice(attribute.statements).format(n=name, v=value)) for attribute, value in facts]
    if rng.random() < 0.25:
        filler = rng.choice(_FILLER).format(a=rng.choice(COLOURS), b=rng.choice(ITEMS))
        sentences.insert(rng.randint(0, len(sentences)), filler)
    return " ".join(sentences)


def scene(rng: Random, num_entities: int, unknown: bool, num_questions: int) -> Draft:
    """A context about `num_entities` things with questions about them; if `unknown`, the first has no answer there."""
    same_kind = rng.random() < 0.6
    kind = rng.choice(_ENTITIES)
    passages: list[str] = []
    known: list[tuple[str, Attribute, str]] = []
    missing: list[tuple[str, Attribute]] = []
    seen: set[str] = set()
    for _ in range(num_entities):
        draw_name, attributes = kind if same_kind else rng.choice(_ENTITIES)
        name = draw_name(rng)
        if name in seen:
            continue
        seen.add(name)
        chosen = rng.sample(attributes, rng.choice((1, 2, 2, 3)))
        facts = [(attribute, attribute.draw(rng)) for attribute in chosen]
        passages.append(_passage(rng, name, facts))
        known += [(name, attribute, value) for attribute, value in facts]
        missing += [(name, attribute) for attribute in attributes if attribute not in chosen]
    draw_name, attributes = kind
    stranger = draw_name(rng)
    if stranger not in seen:
        missing += [(stranger, attribute) for attribute in rng.sample(attributes, 3)]
    turns: list[tuple[str, str]] = []
    rng.shuffle(known)
    for index in range(num_questions):
        if unknown if index == 0 else rng.random() < 0.2:
            name, attribute = rng.choice(missing)
            value = UNKNOWN
        elif known:
            name, attribute, value = known.pop()
        else:
            break
        turns.append((rng.choice(attribute.questions).format(n=name), value))
    style = rng.random()
    if style < 0.65:
        context = "\n".join(f"[{index}] {passage}" for index, passage in enumerate(passages, 1))
    else:
        context = rng.choice(("\n", "\n\n", "\n- ")).join(passages)
    layout = rng.choice(
        (
            "Context:\n{c}\n\nQuestion: {q}",
            "Context:\n{c}\n\nQuestion: {q}",
            "{c}\n\n{q}",
            "Passages:\n{c}\n\nQuestion: {q}",
        )
    )
    first, *rest = turns
    return Draft(
        key=f"{context}|{first[0]}",
        question=layout.format(c=context, q=first[0]),
        answer=first[1],
        system=INSTRUCTION if rng.random() < 0.6 else None,
        follow_ups=tuple(rest),
    )


_SHORT = (1, 1, 2, 2, 3, 4, 5, 6)  # entities of a short context


def lookup(rng: Random) -> Draft:
    """Short contexts, about 30 to 250 tokens, answer present."""
    return scene(rng, rng.choice(_SHORT), unknown=False, num_questions=rng.randint(3, 8))


def lookup_unknown(rng: Random) -> Draft:
    """Short contexts without the answer."""
    return scene(rng, rng.choice(_SHORT), unknown=True, num_questions=rng.randint(3, 8))


def lookup_long(rng: Random) -> Draft:
    """Contexts of about 300 to 1,500 tokens, one question in seven without an answer."""
    return scene(rng, rng.randint(8, 36), unknown=rng.random() < 0.15, num_questions=rng.randint(8, 20))
