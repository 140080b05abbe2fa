"""`vorta search`: finds points of a collection."""

from __future__ import annotations

import argparse
from typing import Any

from vorta.cli.connection import add_connection, connect, json_numbers, json_object
from vorta.cli.output import print_hits, print_json, print_token, to_json
from vorta.errors import InvalidArgument

__all__ = ["add_command"]


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "search",
        help="search a collection",
        description="Find the points most like a text, a point or a vector, best first: score, id, text.",
    )
    parser.add_argument("collection", help="its name or an alias")
    parser.add_argument("query", nargs="?", help="a text, which the server embeds")
    parser.add_argument("--id", metavar="ID", help="search by this point instead of a text")
    parser.add_argument("--vector", type=json_numbers, metavar="JSON", help="search by this list of numbers instead")
    parser.add_argument("--hybrid", action="store_true", help="search by words too, and fuse both lists")
    parser.add_argument("--limit", type=int, metavar="N", help="most hits (default: 10)")
    parser.add_argument(
        "--filter",
        type=json_object,
        metavar="JSON",
        help='only points that pass, such as {"must": [{"field": "lang", "match": "en"}]}',
    )
    parser.add_argument("--score-threshold", type=float, metavar="X", help="only hits at least this good")
    parser.add_argument("--group-by", metavar="FIELD", help="group hits by this payload field")
    parser.add_argument("--exact", action="store_true", default=None, help="compare with every vector")
    parser.add_argument("--with-vector", action="store_true", default=None, help="with --json: vectors too")
    add_connection(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    names = ("limit", "filter", "score_threshold", "group_by", "exact", "with_vector")
    options: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    if arguments.hybrid and (arguments.query is None or arguments.id is not None):
        raise InvalidArgument("--hybrid needs a text, and takes no --id", field="query")
    with connect(arguments) as client:
        collection = client.collection(arguments.collection)
        if arguments.hybrid:
            result = collection.hybrid_search(arguments.query, vector=arguments.vector, **options)
        else:
            result = collection.search(arguments.vector, text=arguments.query, id=arguments.id, **options)
    if arguments.json:
        print_json(result)
        return
    print_hits(result.hits)
    for group in result.groups:
        print_token(f"{arguments.group_by} = {to_json(group.value)}\n")
        print_hits(group.hits)
