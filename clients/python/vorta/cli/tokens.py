"""`vorta tokenize`: shows how a text splits into tokens."""

from __future__ import annotations

import argparse

from vorta.cli.connection import add_connection, connect
from vorta.cli.generate import read_text
from vorta.cli.output import print_json
from vorta.result import ChatMessage

__all__ = ["add_command"]


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("tokenize", help="show the tokens of a text")
    parser.add_argument("text", nargs="?", help="the text; absent or '-': standard input")
    parser.add_argument("--chat", action="store_true", help="render the text as a user's message first")
    parser.add_argument("--model", metavar="ID", help="default: the server's")
    add_connection(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    text = read_text(arguments.text, "text")
    with connect(arguments) as client:
        tokens = client.tokenize([ChatMessage("user", text)] if arguments.chat else text, model=arguments.model)
    if arguments.json:
        print_json(tokens)
        return
    for token_id, token in zip(tokens.token_ids, tokens.tokens, strict=True):
        print(f"{token_id:>8}  {token!r}")
    print(f"{tokens.count} of {tokens.max_model_len} tokens")
