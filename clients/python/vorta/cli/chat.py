"""`vorta chat`: one answer, or a conversation on a terminal."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vorta.cli.answer import add_stream_option, answer
from vorta.cli.connection import add_connection, connect
from vorta.cli.generate import read_text
from vorta.cli.output import EXIT_INTERRUPTED, EXIT_OK, error_line
from vorta.cli.sampling import add_sampling, sampling_of
from vorta.errors import InvalidArgument, VortaError
from vorta.result import ChatMessage

if TYPE_CHECKING:
    from vorta.client import Client

__all__ = ["add_command"]

_HELP = (
    "/reset forgets the conversation, /system TEXT sets its instruction, /exit or Ctrl-D leaves, Ctrl-C stops an answer"
)


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "chat",
        help="chat with a model",
        description=f"Answer a message; on a terminal without one, hold a conversation. There, {_HELP}.",
    )
    parser.add_argument("message", nargs="?", help="the message; '-': standard input")
    parser.add_argument("--system", metavar="TEXT", help="instruction that opens the conversation")
    parser.add_argument("--tools", type=Path, metavar="FILE", help="JSON list of tools that the model may call")
    parser.add_argument(
        "--tool-choice", metavar="NAME", help="auto, none, required, or the tool to call (default: auto)"
    )
    parser.add_argument("--model", metavar="ID", help="default: the server's")
    add_stream_option(parser)
    add_connection(parser)
    add_sampling(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command."""
    options: dict[str, Any] = {"model": arguments.model, **sampling_of(arguments)}
    if arguments.tools is not None:
        options["tools"] = _read_tools(arguments.tools)
    options["tool_choice"] = arguments.tool_choice
    with connect(arguments) as client:
        conversation = Conversation(client, arguments, options)
        if arguments.message is None and sys.stdin.isatty() and not arguments.json:
            return conversation.hold()
        conversation.ask(read_text(arguments.message, "message"))
    return EXIT_OK


class Conversation:
    """The messages so far, and the loop that adds to them."""

    def __init__(self, client: Client, arguments: argparse.Namespace, options: dict[str, Any]) -> None:
        self._client = client
        self._arguments = arguments
        self._options = options
        self._system: str | None = arguments.system
        self.messages: list[ChatMessage] = []

    def ask(self, text: str) -> None:
        """Asks, prints the answer, and remembers both; a failed question is not remembered."""
        system = [ChatMessage("system", self._system)] if self._system else []
        question = ChatMessage("user", text)
        messages = [*system, *self.messages, question]
        generation = answer(
            self._arguments,
            lambda: self._client.chat(messages, **self._options),
            lambda: self._client.stream_chat(messages, **self._options),
        )
        message = generation.message or ChatMessage("assistant", generation.text)
        self.messages += [question, message]

    def hold(self) -> int:
        """Reads messages from the terminal until its end. Ctrl-C stops an answer, or leaves at the prompt."""
        _enable_line_editing()
        sys.stderr.write(f"Chat with {self._arguments.server}. {_HELP}.\n")
        while True:
            try:
                text = input("> ").strip()
            except EOFError:
                sys.stdout.write("\n")
                return EXIT_OK
            except KeyboardInterrupt:
                sys.stdout.write("\n")
                return EXIT_INTERRUPTED
            if text == "/exit":
                return EXIT_OK
            if text.startswith("/"):
                self._command(text)
            elif text:
                self._ask_and_go_on(text)

    def _ask_and_go_on(self, text: str) -> None:
        try:
            self.ask(text)
        except KeyboardInterrupt:
            sys.stderr.write("stopped\n")
        except VortaError as error:
            sys.stderr.write(error_line(error) + "\n")

    def _command(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        if name == "/reset":
            self.messages.clear()
        elif name == "/system":
            self._system = rest.strip() or None
        else:
            sys.stderr.write(f"{_HELP}\n")


def _enable_line_editing() -> None:
    """History and editing keys for input(), where Python has readline."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return


def _read_tools(path: Path) -> list[Any]:
    try:
        tools = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as exc:
        raise InvalidArgument(f"cannot read tools from {path}: {exc}", field="tools") from None
    if not isinstance(tools, list):
        raise InvalidArgument(f"{path} must hold a JSON list of tools", field="tools")
    return tools
