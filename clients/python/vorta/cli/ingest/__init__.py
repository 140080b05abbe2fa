"""`vorta ingest`: files into a collection, piece by piece. Each step has its module; `command` puts them together."""

from vorta.cli.ingest.command import add_command

__all__ = ["add_command"]
