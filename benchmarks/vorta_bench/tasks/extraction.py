"""Fields of a sentence, as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

from vorta_bench.tasks.case import Draft
from vorta_bench.tasks.lexicon import COLOURS, ITEMS, JOBS, MONTHS, code, person, place

Fields = dict[str, str | int]


def _person(rng: Random) -> tuple[str, Fields]:
    fields: Fields = {"name": person(rng), "age": rng.randint(18, 90), "city": place(rng), "job": rng.choice(JOBS)}
    text = rng.choice(
        (
            "{name} is {age} years old, lives in {city} and works as a {job}.",
            "{name}, {age}, is a {job} from {city}.",
            "Meet {name}, a {job} in {city}, aged {age}.",
            "In {city} there is a {job} called {name} who is {age}.",
            "My neighbour {name} turned {age} last week; they moved to {city} to work as a {job}.",
        )
    )
    return text.format(**fields), fields


def _order(rng: Random) -> tuple[str, Fields]:
    fields: Fields = {
        "customer": person(rng),
        "item": f"{rng.choice(COLOURS)} {rng.choice(ITEMS)}",
        "quantity": rng.randint(1, 99),
        "price": rng.randint(1, 999),
    }
    text = rng.choice(
        (
            "{customer} ordered {quantity} of the {item} at {price} dollars each.",
            "Order: {quantity} x {item}, {price} dollars, for {customer}.",
            "Please send {quantity} pieces of the {item} to {customer}; the price is {price} dollars.",
            "For {price} dollars each, {customer} bought {quantity} of the {item}.",
        )
    )
    return text.format(**fields), fields


def _event(rng: Random) -> tuple[str, Fields]:
    fields: Fields = {
        "event": rng.choice(("meeting", "concert", "workshop", "dinner", "lecture", "party", "exam", "wedding")),
        "place": place(rng),
        "date": f"{rng.randint(1, 28)} {rng.choice(MONTHS)}",
        "time": f"{rng.randint(8, 21)}:{rng.choice(('00', '15', '30', '45'))}",
    }
    text = rng.choice(
        (
            "The {event} takes place in {place} on {date} at {time}.",
            "On {date} at {time} there is a {event} in {place}.",
            "Join us for the {event} in {place}, {date}, {time}.",
            "We moved the {event} to {date}, {time}; it is still in {place}.",
        )
    )
    return text.format(**fields), fields


def _parcel(rng: Random) -> tuple[str, Fields]:
    fields: Fields = {"parcel": code(rng), "sender": person(rng), "receiver": person(rng), "weight": rng.randint(1, 40)}
    text = rng.choice(
        (
            "Parcel {parcel} from {sender} to {receiver} weighs {weight} kg.",
            "{sender} sent {receiver} the parcel {parcel}, {weight} kg.",
            "{receiver} received a parcel of {weight} kg from {sender}; its number is {parcel}.",
        )
    )
    return text.format(**fields), fields


_KINDS: tuple[Callable[[Random], tuple[str, Fields]], ...] = (_person, _order, _event, _parcel)


def extract(rng: Random) -> Draft:
    """Two to four named fields of one sentence, in the order asked, as one JSON object."""
    sentence, fields = rng.choice(_KINDS)(rng)
    names = list(fields)
    wanted = names if rng.random() < 0.5 else rng.sample(names, rng.randint(2, len(names)))
    listed = ", ".join(wanted)
    question = rng.choice(
        (
            "Extract {f} as JSON: {s}",
            "Extract {f} as JSON from this sentence: {s}",
            "Return a JSON object with {f}.\n{s}",
            "{s}\nGive {f} as JSON.",
        )
    ).format(f=listed, s=sentence)
    return Draft(
        key=f"{listed}|{sentence}", question=question, answer=json.dumps({name: fields[name] for name in wanted})
    )
