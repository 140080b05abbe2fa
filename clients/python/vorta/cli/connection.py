"""The options that say which server a command talks to.

grpc is loaded only when a command connects: `vorta --help` stays quick, and `vorta serve` sets grpc up in its own way.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vorta.client import Client

__all__ = ["add_connection", "connect", "json_numbers", "json_object", "positive_seconds"]


def add_connection(parser: argparse.ArgumentParser, *, is_action: bool = False) -> None:
    """Adds --server, --api-key, --tls, --timeout and --json.

    An action below a command that has them too leaves what was given before it as it is (`is_action`).
    """
    group = parser.add_argument_group("connection")
    absent = argparse.SUPPRESS if is_action else None
    address = argparse.SUPPRESS if is_action else "localhost:50051"
    group.add_argument("--server", default=address, metavar="HOST:PORT", help="default: localhost:50051")
    group.add_argument("--api-key", default=absent, metavar="KEY", help="sent as a bearer token")
    group.add_argument("--tls", action="store_true", default=absent or False, help="connect with TLS")
    group.add_argument(
        "--timeout", type=positive_seconds, default=absent, metavar="SECONDS", help="deadline of the call"
    )
    parser.add_argument(
        "--json", action="store_true", default=absent or False, help="print one JSON object instead of text"
    )


def connect(arguments: argparse.Namespace) -> Client:
    """A client of the server that the options name."""
    from vorta.client import Client

    return Client(arguments.server, api_key=arguments.api_key, tls=arguments.tls, timeout_s=arguments.timeout)


def positive_seconds(text: str) -> float:
    """A number of seconds above 0, for argparse."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"must be above 0, not {text}")
    return value


def json_object(text: str) -> dict[str, Any]:
    """A JSON object, for argparse."""
    value = _json(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, not {text:.40}")
    return value


def json_numbers(text: str) -> list[float]:
    """A JSON list of numbers, for argparse."""
    value = _json(text)
    if not isinstance(value, list) or not all(type(entry) in (int, float) for entry in value):
        raise argparse.ArgumentTypeError(f"must be a JSON list of numbers, not {text:.40}")
    return value


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"not JSON: {exc}") from None
