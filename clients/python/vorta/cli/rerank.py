"""`vorta rerank`: ranks documents by how well they answer a query."""

from __future__ import annotations

import argparse

from vorta.cli.connection import add_connection, connect
from vorta.cli.generate import read_texts
from vorta.cli.output import print_json, print_token, shorten

__all__ = ["add_command"]


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "rerank",
        help="rank documents by a query",
        description="Rank documents by how well they answer a query, best first: score, number (from 0), text.",
    )
    parser.add_argument("query", help="the query")
    parser.add_argument("document", nargs="*", help="the documents; absent or '-': the lines of standard input")
    parser.add_argument("--model", metavar="ID", help="default: the server's")
    parser.add_argument("--top-n", type=int, metavar="N", help="most results (default: all documents)")
    parser.add_argument("--max-tokens-per-doc", type=int, metavar="N", help="cut documents that are longer")
    parser.add_argument("--raw-scores", action="store_true", default=None, help="scores as the model gives them")
    add_connection(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    documents = read_texts(arguments.document, "document")
    with connect(arguments) as client:
        ranking = client.rerank(
            arguments.query,
            documents,
            model=arguments.model,
            top_n=arguments.top_n,
            max_tokens_per_doc=arguments.max_tokens_per_doc,
            raw_scores=arguments.raw_scores,
            return_documents=arguments.json or None,
        )
    if arguments.json:
        print_json(ranking)
        return
    for result in ranking:
        print_token(f"{result.relevance_score:>8.4f}  {result.index:>4}  {shorten(documents[result.index])}\n")
