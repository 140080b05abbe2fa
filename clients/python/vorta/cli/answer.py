"""Printing an answer: live, whole, or as JSON; shared by generate and chat."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from vorta.cli.output import event_object, print_json, print_timings, print_token
from vorta.result import Generation

if TYPE_CHECKING:
    from vorta.stream import Stream

__all__ = ["add_stream_option", "answer"]


def add_stream_option(parser: argparse.ArgumentParser) -> None:
    """Adds --stream and --no-stream."""
    parser.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="print tokens as they come, with --json one event per line (default: yes, with --json no)",
    )


def answer(arguments: argparse.Namespace, call: Callable[[], Generation], stream: Callable[[], Stream]) -> Generation:
    """Makes the call in the way that the options ask for, prints it, and returns it."""
    is_streamed = arguments.stream if arguments.stream is not None else not arguments.json
    # Sequences side by side cannot be read while they grow.
    if not is_streamed or (not arguments.json and (arguments.n or 1) > 1):
        generation = call()
        if arguments.json:
            print_json(generation)
        else:
            _print_whole(generation)
    else:
        generation = _print_live(stream(), as_json=arguments.json)
    if not arguments.json:
        print_timings(generation)
    return generation


def _print_whole(generation: Generation) -> None:
    if not generation.sequences:
        print_token(generation.text + "\n")
    for sequence in generation.sequences:
        print_token(f"[{sequence.sequence_index}] {sequence.text}\n")


def _print_live(stream: Stream, *, as_json: bool) -> Generation:
    # Leaving the block early, by Ctrl-C or a closed pipe, cancels the request on the server.
    has_text = False
    with stream:
        try:
            for event in stream:
                if as_json:
                    print_json(event_object(event))
                else:
                    print_token(event.text)
                    has_text = True
        finally:
            if has_text:
                print_token("\n")
        return stream.result()
