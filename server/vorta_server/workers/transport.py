"""The worker's side of the socket: accepts fronts, cuts frames, writes without ever blocking the engine.

Single-threaded and synchronous: the worker calls `poll` between two steps. What a front does not read in time is kept
up to a bound; past it the connection is dropped, as if that front had died.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from vorta_server.workers.protocol import FrameBuffer, FrontMessage, WorkerMessage, decode_front_message, encode

__all__ = ["Connection", "WorkerTransport"]

logger = logging.getLogger(__name__)

_READ_BYTES = 256 * 1024


@dataclass(slots=True, eq=False)
class Connection:
    """One front. Its request ids are its own: inside the worker each is qualified by the connection's number."""

    socket: socket.socket
    number: int
    frames: FrameBuffer = field(default_factory=FrameBuffer)
    unsent: bytearray = field(default_factory=bytearray)
    is_open: bool = True

    def qualify(self, request_id: str) -> str:
        """The id that is unique over all fronts."""
        return f"{self.number}/{request_id}"

    def unqualify(self, request_id: str) -> str:
        """The front's own id."""
        return request_id[request_id.index("/") + 1 :]


class WorkerTransport:
    """Listens on a Unix socket.

    Args:
        path: Where; an old socket file there is replaced.
        max_unsent_bytes: Bound on what waits for one front.
    """

    def __init__(self, path: Path, *, max_unsent_bytes: int = 64 * 1024 * 1024) -> None:
        self._path = path
        self._max_unsent_bytes = max_unsent_bytes
        self._selector = selectors.DefaultSelector()
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen(64)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self._num_accepted = 0
        # A buffer of its own for each read would be mapped and unmapped each time: ten times what the read takes.
        self._received = memoryview(bytearray(_READ_BYTES))
        self.connections: list[Connection] = []

    def wake(self) -> None:
        """Makes a waiting `poll` return. Thread-safe; does nothing once closed."""
        with contextlib.suppress(OSError):  # full, which wakes as well, or closed
            self._wake_writer.send(b"x")

    def is_ready(self) -> bool:
        """Whether `poll` has something to read, to write or to accept now."""
        return bool(self._selector.select(0))

    def poll(
        self, timeout_s: float | None
    ) -> tuple[list[Connection], list[tuple[Connection, FrontMessage]], list[Connection]]:
        """Reads and writes what can be without blocking, waiting up to `timeout_s` for something to happen.

        Returns:
            The new connections, the messages received, and the connections that were lost.
        """
        opened: list[Connection] = []
        received: list[tuple[Connection, FrontMessage]] = []
        lost: list[Connection] = []
        for key, events in self._selector.select(timeout_s):
            if key.fileobj is self._listener:
                self._accept(opened)
            elif key.fileobj is self._wake_reader:
                with contextlib.suppress(BlockingIOError):
                    self._wake_reader.recv(4096)
            else:
                connection: Connection = key.data
                if events & selectors.EVENT_WRITE:
                    self._flush(connection)
                if events & selectors.EVENT_READ and connection.is_open:
                    self._read(connection, received)
        for connection in [entry for entry in self.connections if not entry.is_open]:
            self.connections.remove(connection)
            lost.append(connection)
        return opened, received, lost

    def send(self, connection: Connection, message: WorkerMessage) -> None:
        """Sends a message, or keeps what the socket does not take now. Dropped when the connection is lost."""
        if connection.is_open:
            self.send_frames(connection, encode(message))

    def send_frames(self, connection: Connection, frame: bytearray) -> None:
        """The same with one or several messages that are encoded already."""
        if not connection.is_open:
            return
        if connection.unsent:
            connection.unsent += frame
            if len(connection.unsent) > self._max_unsent_bytes:
                logger.error("a front reads too slowly: %d bytes wait, connection dropped", len(connection.unsent))
                self._close(connection)
            return
        try:
            sent = connection.socket.send(frame)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(connection)
            return
        if sent < len(frame):
            connection.unsent += memoryview(frame)[sent:]
            self._selector.modify(connection.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)

    def drain(self, timeout_s: float) -> None:
        """Writes what is left, for at most `timeout_s` without progress."""
        for connection in self.connections:
            if connection.is_open and connection.unsent:
                connection.socket.settimeout(timeout_s)
                with contextlib.suppress(OSError):
                    connection.socket.sendall(connection.unsent)

    def close(self) -> None:
        """Closes every socket and removes the file. Idempotent."""
        for connection in self.connections:
            if connection.is_open:
                self._close(connection)
        if self._listener.fileno() >= 0:
            self._selector.close()
            self._listener.close()
            self._wake_reader.close()
            self._wake_writer.close()
            self._path.unlink(missing_ok=True)

    def _accept(self, opened: list[Connection]) -> None:
        try:
            accepted, _ = self._listener.accept()
        except BlockingIOError:
            return
        accepted.setblocking(False)
        self._num_accepted += 1
        connection = Connection(accepted, self._num_accepted)
        self._selector.register(accepted, selectors.EVENT_READ, connection)
        self.connections.append(connection)
        opened.append(connection)

    def _read(self, connection: Connection, received: list[tuple[Connection, FrontMessage]]) -> None:
        try:
            data = bytes(self._received[: connection.socket.recv_into(self._received)])
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(connection)
            return
        try:
            for body in connection.frames.feed(data):
                received.append((connection, decode_front_message(body)))
        except (ValueError, msgspec.DecodeError):
            logger.exception("a front sent what is no message, connection dropped")
            self._close(connection)

    def _flush(self, connection: Connection) -> None:
        try:
            sent = connection.socket.send(connection.unsent)
        except BlockingIOError:
            return
        except OSError:
            self._close(connection)
            return
        del connection.unsent[:sent]
        if not connection.unsent:
            self._selector.modify(connection.socket, selectors.EVENT_READ, connection)

    def _close(self, connection: Connection) -> None:
        connection.is_open = False
        connection.unsent.clear()
        self._selector.unregister(connection.socket)
        connection.socket.close()
