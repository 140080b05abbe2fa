"""Puts the commands together, runs one, and turns its errors into a line and an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import NoReturn

import vorta
from vorta.cli import (
    chat,
    collections,
    completion,
    embed,
    generate,
    grounded,
    health,
    info,
    ingest,
    model,
    rerank,
    search,
    tokens,
)
from vorta.cli.output import EXIT_INTERRUPTED, EXIT_OK, print_error
from vorta.errors import VortaError

__all__ = ["build_parser", "main"]

ENTRY_POINT_GROUP = "vorta.commands"

_EPILOG = """exit codes: 0 success, 1 the server refused or failed, 2 wrong usage, 3 no server, 130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; argparse exits by itself on wrong usage and --help."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser(words)
    arguments = parser.parse_args(words)
    try:
        code: int | None = arguments.run(arguments)
        sys.stdout.flush()
        return code or EXIT_OK
    except VortaError as error:
        return print_error(error, as_json=getattr(arguments, "json", False))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away; what is left in the buffer has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def build_parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of all commands.

    The server's commands come from entry points. Those are loaded only when `words` could need them, so that a
    client's command does not pay for the server's imports.
    """
    parser = argparse.ArgumentParser(
        prog="vorta", description="Serve language models, and talk to them.", epilog=_EPILOG, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"vorta {vorta.__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")
    commands = (
        generate,
        chat,
        grounded,
        embed,
        rerank,
        search,
        collections,
        ingest,
        model,
        tokens,
        health,
        info,
        completion,
    )
    for command in commands:
        command.add_command(subparsers)
    own = set(subparsers.choices)
    found = [entry for entry in entry_points(group=ENTRY_POINT_GROUP) if entry.name not in own]
    wanted = next((word for word in words if not word.startswith("-")), "")
    is_listing = wanted == "completion" or wanted not in own | {entry.name for entry in found}
    for entry_point in sorted(found, key=lambda entry: entry.name):
        if is_listing or entry_point.name == wanted:
            _add_entry_point(subparsers, entry_point)
    return parser


def _add_entry_point(subparsers: argparse._SubParsersAction[argparse.ArgumentParser], entry_point: EntryPoint) -> None:
    try:
        entry_point.load()(subparsers)
    except ImportError as exc:
        _add_missing(subparsers, entry_point.name, str(exc))


def _add_missing(subparsers: argparse._SubParsersAction[argparse.ArgumentParser], name: str, missing: str) -> None:
    """A command whose package is not installed: says what to install."""

    def run(arguments: argparse.Namespace) -> NoReturn:
        sys.stderr.write(f'error: `vorta {name}` needs the server: pip install "vorta[server]" ({missing})\n')
        raise SystemExit(2)

    # With a prefix that no word has, every option of the absent command is taken as a plain word.
    parser = subparsers.add_parser(name, help='needs pip install "vorta[server]"', add_help=False, prefix_chars="\0")
    parser.add_argument("rest", nargs="*")
    parser.set_defaults(run=run)
