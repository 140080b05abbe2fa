"""Sums, differences, products, quotients and chains of two, with the working where one step would not do.

Held-out products share no (unordered) pair of factors with training; the partial products in the working are
ordinary table knowledge and do occur in both.
"""

from __future__ import annotations

from random import Random

from vorta_bench.tasks.case import Draft

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
    digits = rng.choice((1, 2, 2, 3, 3, 4))
    return rng.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)


def add(rng: Random) -> Draft:
    """a + b with up to four digits each."""
    a, b = _operand(rng), _operand(rng)
    return Draft(key=f"{min(a, b)}+{max(a, b)}", question=_ask(rng, f"{a} + {b}"), answer=str(a + b))


def subtract(rng: Random) -> Draft:
    """a - b with up to four digits each; the result is never negative."""
    a, b = _operand(rng), _operand(rng)
    a, b = max(a, b), min(a, b)
    return Draft(key=f"{a}-{b}", question=_ask(rng, f"{a} - {b}"), answer=str(a - b))


def multiply_working(a: int, b: int) -> str:
    """The product of two numbers below 100, by partial products when both have two digits."""
    if a < 10 or b < 10:
        return f"{a} * {b} = {a * b}"
    tens, ones = b // 10 * 10, b % 10
    if ones == 0:
        return f"{a} * {b} = {a * b}"
    return f"{a} * {tens} = {a * tens}, {a} * {ones} = {a * ones}, {a * tens} + {a * ones} = {a * b}"


def multiply(rng: Random) -> Draft:
    """a * b, one or two digits each, with partial products for two by two."""
    if rng.random() < 0.4:
        a, b = rng.randint(2, 99), rng.randint(2, 9)
        if rng.random() < 0.3:
            a, b = b, a
    else:
        a, b = rng.randint(11, 99), rng.randint(11, 99)
    return Draft(key=f"{min(a, b)}*{max(a, b)}", question=_ask(rng, f"{a} * {b}"), answer=multiply_working(a, b))


def divide(rng: Random) -> Draft:
    """a / b without remainder, quotient below 100, divisor below 10, by taking off the tens first."""
    divisor, quotient = rng.randint(2, 9), rng.randint(2, 99)
    a = divisor * quotient
    if quotient < 10:
        answer = f"{a} / {divisor} = {quotient}"
    else:
        tens, ones = quotient // 10 * 10, quotient % 10
        answer = f"{divisor} * {tens} = {divisor * tens}, {a} - {divisor * tens} = {a - divisor * tens}, "
        answer += f"{divisor} * {ones} = {divisor * ones}, {tens} + {ones} = {quotient}"
    return Draft(key=f"{a}/{divisor}", question=_ask(rng, f"{a} / {divisor}"), answer=answer)


def chain(rng: Random) -> Draft:
    """a ± b ± c with the value in between written down; no value is negative."""
    while True:
        a, b, c = (rng.randint(1, 99) for _ in range(3))
        first, second = rng.choice("+-"), rng.choice("+-")
        middle = a + b if first == "+" else a - b
        result = middle + c if second == "+" else middle - c
        if middle >= 0 and result >= 0:
            break
    expression = f"{a} {first} {b} {second} {c}"
    answer = f"{a} {first} {b} = {middle}, {middle} {second} {c} = {result}"
    return Draft(key=expression, question=_ask(rng, expression), answer=answer)
