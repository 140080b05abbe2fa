"""Sums, differences, products, quotients and chains of two with small numbers; longer working is written out."""

from __future__ import annotations

from random import Random

from vorta_bench.tasks.case import TABLE, Draft

_WORDS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}


def _ask(rng: Random, expression: str) -> str:
    spoken = expression
    if rng.random() < 0.15:
        spoken = " ".join(_WORDS.get(part, part) for part in expression.split())
    return rng.choice(
        (
            "What is {}?",
            "What is {}?",
            "Calculate {}.",
            "{} = ?",
            "Compute {}.",
            "How much is {}?",
            "{}",
            "{} =",
            "Solve {}.",
        )
    ).format(spoken)


def _operand(rng: Random) -> int:
    return rng.randint(0, 99) if rng.random() < 0.85 else rng.randint(0, 9)


def add(rng: Random) -> Draft:
    """a + b below 100 each."""
    a, b = _operand(rng), _operand(rng)
    return Draft(key=f"{min(a, b)}+{max(a, b)}", question=_ask(rng, f"{a} + {b}"), answer=str(a + b))


def subtract(rng: Random) -> Draft:
    """a - b below 100 each; the result is never negative."""
    a, b = _operand(rng), _operand(rng)
    a, b = max(a, b), min(a, b)
    return Draft(key=f"{a}-{b}", question=_ask(rng, f"{a} - {b}"), answer=str(a - b))


def multiply_working(a: int, b: int) -> str:
    """The product of a number below 100 and one below 10, by its tens and ones."""
    tens, ones = a // 10 * 10, a % 10
    if tens == 0 or ones == 0:
        return f"{a} * {b} = {a * b}"
    return f"{tens} * {b} = {tens * b}, {ones} * {b} = {ones * b}, {tens * b} + {ones * b} = {a * b}"


def multiply(rng: Random) -> Draft:
    """a * b with one digit in b and one or two in a; the small multiplication table itself is all training."""
    b = rng.randint(2, 9)
    if rng.random() < 0.35:
        a = rng.choice((rng.randint(2, 10), 10 * rng.randint(1, 9)))
        return Draft(key=f"{TABLE}{a}*{b}", question=_ask(rng, f"{a} * {b}"), answer=multiply_working(a, b))
    a = rng.randint(11, 99)
    return Draft(key=f"{a}*{b}", question=_ask(rng, f"{a} * {b}"), answer=multiply_working(a, b))


def divide(rng: Random) -> Draft:
    """a / b below 100 without remainder, by taking off ten times b first; the table's inverse is all training."""
    divisor = rng.randint(2, 9)
    quotient = rng.randint(2, 9) if rng.random() < 0.4 else rng.randint(10, max(10, 99 // divisor))
    a = divisor * quotient
    if quotient <= 10:
        return Draft(
            key=f"{TABLE}{a}/{divisor}", question=_ask(rng, f"{a} / {divisor}"), answer=f"{a} / {divisor} = {quotient}"
        )
    tens, ones = quotient // 10 * 10, quotient % 10
    answer = f"{divisor} * {tens} = {divisor * tens}"
    if ones:
        rest = a - divisor * tens
        answer += f", {a} - {divisor * tens} = {rest}, {rest} / {divisor} = {ones}, {tens} + {ones} = {quotient}"
    else:
        answer += f", {a} / {divisor} = {quotient}"
    return Draft(key=f"{a}/{divisor}", question=_ask(rng, f"{a} / {divisor}"), answer=answer)


def chain(rng: Random) -> Draft:
    """a ± b ± c below 50 each, with the value in between written down; no value is negative."""
    while True:
        a, b, c = (rng.randint(1, 49) for _ in range(3))
        first, second = rng.choice("+-"), rng.choice("+-")
        middle = a + b if first == "+" else a - b
        result = middle + c if second == "+" else middle - c
        if middle >= 0 and result >= 0:
            break
    expression = f"{a} {first} {b} {second} {c}"
    answer = f"{a} {first} {b} = {middle}, {middle} {second} {c} = {result}"
    return Draft(key=expression, question=_ask(rng, expression), answer=answer)
