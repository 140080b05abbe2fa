"""`vorta answer`: answers a question from a collection."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from vorta.cli.connection import add_connection, connect, json_object
from vorta.cli.generate import read_text
from vorta.cli.output import event_object, print_hits, print_json, print_token
from vorta.cli.sampling import add_sampling, sampling_of
from vorta.v1 import inference_pb2

if TYPE_CHECKING:
    from vorta.answer_stream import AnswerStream

__all__ = ["add_command"]


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "answer",
        help="answer a question from a collection",
        description="Search a collection, print what was found, then the answer as it comes, then the ids of the hits "
        "that it rests on. With --json: one event a line.",
    )
    parser.add_argument("collection", help="its name or an alias")
    parser.add_argument("question", nargs="?", help="the question; absent or '-': standard input")
    parser.add_argument("--model", metavar="ID", help="default: the server's")
    parser.add_argument("--limit", type=int, metavar="N", help="most hits to answer from (default: 4)")
    parser.add_argument("--filter", type=json_object, metavar="JSON", help="only points that pass")
    parser.add_argument("--score-threshold", type=float, metavar="X", help="only hits at least this good")
    parser.add_argument(
        "--hybrid", action=argparse.BooleanOptionalAction, help="search by words too (default: where there are some)"
    )
    parser.add_argument("--text-field", metavar="FIELD", help="payload field that holds a point's text")
    parser.add_argument("--instruction", metavar="TEXT", help="the system message before context and question")
    add_connection(parser)
    add_sampling(parser, inference_pb2.StreamAnswerRequest)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    question = read_text(arguments.question, "question")
    names = ("limit", "filter", "score_threshold", "hybrid", "text_field", "instruction")
    options: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    options |= sampling_of(arguments, inference_pb2.StreamAnswerRequest)
    with (
        connect(arguments) as client,
        client.answer(question, arguments.collection, model=arguments.model, **options) as stream,
    ):
        if arguments.json:
            for event in stream:
                print_json(event_object(event))
        else:
            _print_live(stream)


def _print_live(stream: AnswerStream) -> None:
    is_open = has_hits = False
    try:
        for event in stream:
            if stream.hits and not has_hits:
                has_hits = True
                print_hits(stream.hits)
                print_token("\n")
            if event.text:
                is_open = True
                print_token(event.text)
    finally:
        if is_open:
            print_token("\n")
    if stream.cited_ids:
        print_token(f"\ncited: {', '.join(stream.cited_ids)}\n")
