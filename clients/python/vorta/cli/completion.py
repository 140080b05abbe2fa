"""`vorta completion`: prints a shell's completion script."""

from __future__ import annotations

import argparse
import sys

from vorta.cli.output import EXIT_OK, EXIT_USAGE

__all__ = ["add_command"]


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "completion",
        help="print a completion script for your shell",
        description='In bash: eval "$(vorta completion bash)". In zsh: vorta completion zsh > a file _vorta in your '
        "fpath. In fish: vorta completion fish | source.",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    try:
        import shtab
    except ImportError:
        sys.stderr.write("error: `vorta completion` needs shtab: pip install shtab\n")
        return EXIT_USAGE
    from vorta.cli.main import build_parser

    # `shell` names the dialect of the script; nothing is run.
    print(shtab.complete(build_parser(["completion"]), shell=arguments.shell))  # nosec B604
    return EXIT_OK
