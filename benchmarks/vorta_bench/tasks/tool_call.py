"""Tool calls: tools described in the system message, a wish, and the one right call."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

from vorta_bench.tasks.case import Draft, Message
from vorta_bench.tasks.lexicon import CITIES, COLOURS, ITEMS, WEEKDAYS, WORDS, person, place

Arguments = dict[str, str | int]


def _tool(name: str, description: str, **properties: str) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": kind} for key, kind in properties.items()},
                "required": list(properties),
            },
        },
    }


def _weather(rng: Random) -> tuple[str, Arguments]:
    city = place(rng)
    return rng.choice(("What is the weather in {}?", "How is the weather in {} today?", "Will it rain in {}?")).format(
        city
    ), {"city": city}


def _timer(rng: Random) -> tuple[str, Arguments]:
    minutes = rng.randint(1, 120)
    return rng.choice(
        ("Set a timer for {} minutes.", "Remind me in {} minutes.", "Start a timer of {} minutes.")
    ).format(minutes), {"minutes": minutes}


def _message(rng: Random) -> tuple[str, Arguments]:
    to, text = person(rng), " ".join(rng.sample(WORDS, rng.randint(2, 4)))
    question = rng.choice(('Send {to} the message "{text}".', 'Tell {to}: "{text}".', 'Write "{text}" to {to}.'))
    return question.format(to=to, text=text), {"to": to, "text": text}


def _search(rng: Random) -> tuple[str, Arguments]:
    query = " ".join(rng.sample(WORDS, rng.randint(1, 3)))
    return rng.choice(('Search for "{}".', 'Find documents about "{}".', 'Look up "{}".')).format(query), {
        "query": query
    }


def _event(rng: Random) -> tuple[str, Arguments]:
    day, hour, title = (
        rng.choice(WEEKDAYS),
        rng.randint(7, 20),
        f"{rng.choice(WORDS)} {rng.choice(('meeting', 'lesson', 'call'))}",
    )
    question = rng.choice(
        (
            "Add a {t} on {d} at {h}.",
            "Put the {t} in my calendar for {d} at {h}.",
            "Schedule a {t} for {d}, {h} o'clock.",
        )
    )
    return question.format(t=title, d=day, h=hour), {"title": title, "day": day, "hour": hour}


def _price(rng: Random) -> tuple[str, Arguments]:
    product = f"{rng.choice(COLOURS)} {rng.choice(ITEMS)}"
    return rng.choice(("What does the {} cost?", "How much is the {}?", "Tell me the price of the {}.")).format(
        product
    ), {"product": product}


def _route(rng: Random) -> tuple[str, Arguments]:
    start, end = rng.sample(CITIES, 2)
    return rng.choice(
        ("How do I get from {} to {}?", "Find a route from {} to {}.", "Which way is it from {} to {}?")
    ).format(start, end), {
        "start": start,
        "end": end,
    }


def _light(rng: Random) -> tuple[str, Arguments]:
    room, level = rng.choice(("kitchen", "bedroom", "hall", "garden", "office", "bathroom")), rng.randint(0, 100)
    return rng.choice(
        ("Set the light in the {} to {} percent.", "Dim the {} light to {} percent.", "{} light to {} percent, please.")
    ).format(room, level), {"room": room, "level": level}


Asker = Callable[[Random], tuple[str, Arguments]]
TOOLS: tuple[tuple[dict[str, Any], Asker], ...] = (
    (_tool("get_weather", "Current weather of a city.", city="string"), _weather),
    (_tool("set_timer", "Start a timer.", minutes="integer"), _timer),
    (_tool("send_message", "Send a text message to a person.", to="string", text="string"), _message),
    (_tool("search", "Search the documents.", query="string"), _search),
    (_tool("add_event", "Add an event to the calendar.", title="string", day="string", hour="integer"), _event),
    (_tool("get_price", "Look up the price of a product.", product="string"), _price),
    (_tool("find_route", "Find a route between two cities.", start="string", end="string"), _route),
    (_tool("set_light", "Set the brightness of a light.", room="string", level="integer"), _light),
)


def render_call(name: str, arguments: Arguments) -> str:
    """The text of a call, as the assistant writes it."""
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def tool_call(rng: Random) -> Draft:
    """One to three tools are offered; the wish fits exactly one of them."""
    offered = rng.sample(TOOLS, rng.choice((1, 2, 2, 3)))
    tool, ask = rng.choice(offered)
    question, arguments = ask(rng)
    name = tool["function"]["name"]
    return Draft(
        key=question,
        question=question,
        answer=render_call(name, arguments),
        tools=tuple(offer for offer, _ in offered),
    )


def tool_answer(rng: Random) -> Draft:
    """A tool has answered; the assistant says it in a sentence."""
    kind = rng.randrange(3)
    if kind == 0:
        tool, ask = TOOLS[0]
        question, arguments = ask(rng)
        degrees, sky = rng.randint(-9, 35), rng.choice(("sunny", "cloudy", "rainy", "windy", "clear", "foggy"))
        result: Arguments = {"temperature": degrees, "sky": sky}
        answer = f"It is {degrees} degrees and {sky} in {arguments['city']}."
    elif kind == 1:
        tool, ask = TOOLS[5]
        question, arguments = ask(rng)
        price = rng.randint(1, 999)
        result = {"price": price}
        answer = f"The {arguments['product']} costs {price} dollars."
    else:
        tool, ask = TOOLS[1]
        question, arguments = ask(rng)
        result = {"status": "started"}
        answer = f"The timer is set for {arguments['minutes']} minutes."
    history = (
        Message(role="user", content=question),
        Message(role="assistant", content=render_call(tool["function"]["name"], arguments)),
        Message(role="tool", content=json.dumps(result)),
    )
    return Draft(key=f"{question}|{json.dumps(result)}", question="", answer=answer, tools=(tool,), history=history)
