"""`vorta embed`: turns texts into vectors."""

from __future__ import annotations

import argparse

from vorta.cli.connection import add_connection, connect
from vorta.cli.generate import read_texts
from vorta.cli.output import print_json, print_token, shorten

__all__ = ["add_command"]

_SHOWN = 4


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "embed", help="turn texts into vectors", description="Turn texts into vectors; --json prints them whole."
    )
    parser.add_argument("text", nargs="*", help="the texts; absent or '-': the lines of standard input")
    parser.add_argument("--model", metavar="ID", help="default: the server's")
    parser.add_argument(
        "--normalize", action=argparse.BooleanOptionalAction, help="scale vectors to length 1 (default: yes)"
    )
    parser.add_argument("--truncate", action=argparse.BooleanOptionalAction, help="cut texts that are too long")
    parser.add_argument("--truncation-side", choices=("left", "right"), help="which end is cut (default: right)")
    parser.add_argument("--dimensions", type=int, metavar="N", help="keep only the first numbers of each vector")
    parser.add_argument("--prompt-name", metavar="NAME", help="put this prompt of the model before each text")
    parser.add_argument("--instruction", metavar="TEXT", help="put this before each text")
    parser.add_argument("--pooling", choices=("mean", "cls", "last", "token"), help="how tokens become one vector")
    add_connection(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    texts = read_texts(arguments.text, "text")
    with connect(arguments) as client:
        got = client.embed(
            texts,
            model=arguments.model,
            normalize=arguments.normalize,
            truncate=arguments.truncate,
            truncation_side=arguments.truncation_side,
            dimensions=arguments.dimensions,
            prompt_name=arguments.prompt_name,
            instruction=arguments.instruction,
            pooling=arguments.pooling,
        )
    is_tokens = arguments.pooling == "token"
    if arguments.json:
        entries = [
            {
                "index": entry.index,
                "vectors" if is_tokens else "vector": entry.token_vectors if is_tokens else entry.vector,
                "num_tokens": entry.num_tokens,
                "num_truncated_tokens": entry.num_truncated_tokens,
            }
            for entry in got
        ]
        print_json({"model": got.model, "dimensions": got.dimensions, "usage": got.usage, "embeddings": entries})
        return
    for text, entry in zip(texts, got, strict=True):
        numbers = ", ".join(f"{number:.4f}" for number in entry.vector[:_SHOWN])
        vectors = f"{entry.num_tokens} × " if is_tokens else ""
        cut = f", {entry.num_truncated_tokens} cut" if entry.num_truncated_tokens else ""
        print_token(f"[{numbers}, … {vectors}{got.dimensions}]  {entry.num_tokens} tokens{cut}  {shorten(text, 60)}\n")
