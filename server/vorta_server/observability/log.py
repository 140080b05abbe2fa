"""Logging of the server's process: one handler on standard error, as text or as JSON lines."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from typing import TextIO

__all__ = ["JsonFormatter", "LineHandler", "TextFormatter", "set_up_logging"]


_HOLD_S = 0.01


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes lines. What an event loop's thread logs below WARNING is held for a moment, so that lines of calls that
    end together are one write: a write for each call is a tenth of what a server of short calls does.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Takes a record; the caller holds the lock."""
        try:
            self._lines.append(self.format(record) + self.terminator)
            loop = asyncio._get_running_loop()
            if loop is None or record.levelno >= logging.WARNING:
                self.flush()
            elif loop is not self._loop:
                self._loop = loop
                loop.call_later(_HOLD_S, self.flush)
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Writes what is held. Also called when the process ends."""
        self.acquire()
        try:
            self._loop = None
            lines, self._lines = self._lines, []
            if lines:
                self.stream.write("".join(lines))
            super().flush()
        finally:
            self.release()


class TextFormatter(logging.Formatter):
    """Time, level, logger and message. A second is spelled out once, not for each of its records."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")
        self._second = 0
        self._text = ""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line; without the steps that only other formats and records need."""
        if record.exc_info or record.exc_text or record.stack_info:
            return super().format(record)
        return f"{self.formatTime(record)} {record.levelname} {record.name} {record.getMessage()}"

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """The local time with milliseconds."""
        second = int(record.created)
        if second != self._second:
            self._second, self._text = second, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        return f"{self._text},{int(record.msecs):03d}"


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        fields = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def set_up_logging(*, level: str, format: str) -> None:
    """Sends this process's log of `level` and above to standard error, as "text" or "json". Called by the command."""
    handler = LineHandler(sys.stderr)
    if format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(TextFormatter())
    # gRPC reports the last write to a client that has just gone as an error; the access log has told already.
    logging.getLogger("grpc._cython.cygrpc").addFilter(
        lambda record: "ExecuteBatchError" not in str(record.msg) + str(record.args)
    )
    # What no format shows need not be found out for each record (logging's own advice on being fast).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
