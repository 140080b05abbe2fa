"""`vorta health`: is the server, or one of its services or models, serving?"""

from __future__ import annotations

import argparse

from vorta.cli.connection import add_connection, connect
from vorta.cli.output import EXIT_OK, EXIT_SERVER, print_json
from vorta.result import HealthStatus

__all__ = ["add_command"]


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "health", help="ask whether the server serves", description="Exits with 0 when it does, else 1 or 3."
    )
    parser.add_argument("service", nargs="?", default="", help="a service's full name; default: the server")
    add_connection(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    with connect(arguments) as client:
        status = client.health(arguments.service)
    if arguments.json:
        print_json({"service": arguments.service, "status": status})
    else:
        print(status)
    return EXIT_OK if status is HealthStatus.SERVING else EXIT_SERVER
