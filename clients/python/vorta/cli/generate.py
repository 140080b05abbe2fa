"""`vorta generate`: continues a prompt."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from vorta.cli.answer import add_stream_option, answer
from vorta.cli.connection import add_connection, connect
from vorta.cli.sampling import add_sampling, sampling_of
from vorta.errors import InvalidArgument

__all__ = ["add_command", "read_text", "read_texts"]


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "generate", help="continue a prompt", description="Continue a prompt, without a chat template."
    )
    parser.add_argument("prompt", nargs="?", help="the prompt; absent or '-': standard input")
    parser.add_argument("--model", metavar="ID", help="default: the server's")
    add_stream_option(parser)
    add_connection(parser)
    add_sampling(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    prompt = read_text(arguments.prompt, "prompt")
    options = sampling_of(arguments)
    with connect(arguments) as client:
        answer(
            arguments,
            lambda: client.generate(prompt, model=arguments.model, **options),
            lambda: client.stream_generate(prompt, model=arguments.model, **options),
        )


def read_text(argument: str | None, name: str) -> str:
    """The argument, or standard input when it is absent or "-". InvalidArgument when there is neither."""
    if argument is not None and argument != "-":
        return argument
    if argument is None and sys.stdin.isatty():
        raise InvalidArgument(f"no {name} given, as an argument or on standard input", field=name)
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as exc:
        raise InvalidArgument(f"standard input is not UTF-8: {exc}", field=name) from None


def read_texts(words: Sequence[str], name: str) -> list[str]:
    """The texts, each "-" replaced by the lines of standard input that are not empty; without texts, those lines."""
    texts: list[str] = []
    asked: Sequence[str | None] = words or [None]
    for word in asked:
        text = read_text(word, name)
        texts += [line for line in text.splitlines() if line.strip()] if word in (None, "-") else [text]
    return texts
