"""Tries grammars in a process of their own, which may take bounded time and memory.

The library bounds most of what a grammar can cost, but not all: the intersection of twenty regular expressions keeps it
busy for hours, and nothing can stop it inside a process. Run as a module, this is that process: JSON lines in and out,
one for each grammar. It ends by itself when a grammar takes too long, and with the process that started it.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import threading
from typing import IO

import llguidance

from vorta.errors import InvalidArgument
from vorta_server.tokenization.grammar_text import GrammarText

__all__ = ["GrammarChecker", "parser_limits"]

MAX_COMPILE_S = 2.0
"""Seconds of a core that a grammar may take."""

_MAX_WAIT_S = 60.0
"""For an answer: far above what the process is given of a core, and above its start."""

_MAX_BYTES = 2 << 30
_MAX_MESSAGE = 500


def parser_limits() -> llguidance.LLParserLimits:
    """What a grammar may cost, beside time: states take up to 2 kB, and a step's fuel lasts some 15 ms."""
    return llguidance.LLParserLimits(max_lexer_states=50_000, verbose_errors=False)


class GrammarChecker:
    """Starts the process when it is needed, and again when it has ended. Thread-safe."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._is_closed = False

    def check(self, text: GrammarText) -> str:
        """The grammar as the library takes it.

        Raises:
            InvalidArgument: It is none, or too complex; names the field.
        """
        with self._lock:
            reply = self._ask(json.dumps({"notation": text.notation, "text": text.text}).encode() + b"\n")
        if not reply:
            raise InvalidArgument(
                f"{text.field} is too complex: it takes more than {MAX_COMPILE_S:g} s to compile",
                reason="INVALID_FIELD",
                field=text.field,
            )
        answer = json.loads(reply)
        if answer["error"]:
            raise InvalidArgument(f"{text.field}: {answer['error']}", reason="INVALID_FIELD", field=text.field)
        return str(answer["grammar"])

    def close(self) -> None:
        """Ends the process. Idempotent."""
        self._is_closed = True
        process = self._process
        if process is not None:
            process.kill()  # whoever waits for an answer goes on
            with self._lock:
                _dispose(process)

    def _ask(self, line: bytes) -> bytes:
        """The answer to a line; empty when the process ended instead."""
        process = self._process
        if process is None or process.poll() is not None:
            process = self._process = self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        # The limit on its time on a core does not end a process that gets none.
        limit = threading.Timer(_MAX_WAIT_S, process.kill)
        limit.daemon = True
        limit.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            reply = process.stdout.readline()
        except OSError:
            reply = b""
        finally:
            limit.cancel()
        if not reply:
            _dispose(process)
        return reply

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is not None:
            _dispose(self._process)
        command = [sys.executable, "-m", "vorta_server.tokenization.grammar_check"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if self._is_closed:
            process.kill()
        return process


def _dispose(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _library_grammar(notation: str, text: str) -> str:
    if notation == "regex":
        # As most people mean it, \d is an ASCII digit.
        return llguidance.LLMatcher.grammar_from_lark(f"start: /{llguidance.regex_to_lark(text, 'd')}/")
    if notation == "json_schema":
        return llguidance.LLMatcher.grammar_from_json_schema(text)
    return llguidance.grammar_from("lark" if notation == "lark" else "grammar", text)


def _answer(notation: str, text: str) -> dict[str, str]:
    try:
        grammar = _library_grammar(notation, text)
        error = llguidance.LLMatcher.validate_grammar(grammar, None, limits=parser_limits())
    except (ValueError, RecursionError) as exc:
        return {"error": str(exc)[:_MAX_MESSAGE]}
    is_warning = error.startswith("WARNING")
    return {"grammar": grammar, "error": "" if is_warning else error.strip()[:_MAX_MESSAGE]}


def _serve(lines: IO[bytes], answers: IO[bytes]) -> None:
    for line in lines:
        asked = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, MAX_COMPILE_S)  # its signal ends the process
        answer = _answer(asked["notation"], asked["text"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def main() -> None:
    """Answers until there is nobody to ask."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the server's to handle
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, _MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
