"""`vorta info`: what the server is."""

from __future__ import annotations

import argparse

from vorta.cli.connection import add_connection, connect
from vorta.cli.output import print_json

__all__ = ["add_command"]


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("info", help="show the server's version and limits")
    add_connection(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    with connect(arguments) as client:
        info = client.server_info()
    if arguments.json:
        print_json(info)
        return
    print(f"version        {info.version}")
    if info.start_time is not None:
        print(f"started        {info.start_time:%Y-%m-%d %H:%M:%S} UTC")
    print(f"default model  {info.default_model or '-'}")
    print(f"embedding      {info.default_embedding_model or '-'}")
    print(f"reranking      {info.default_rerank_model or '-'}")
    print(f"largest call   {info.max_message_bytes} bytes")
    print(f"draining       {'yes' if info.is_draining else 'no'}")
    for service in info.services:
        print(f"service        {service}")
