"""A TCP proxy that cuts its connections on command."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading


class CuttingProxy:
    """Forwards connections to a port of this host until `cut`; while `is_refusing`, it resets new ones at once."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("localhost", 0))
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self.is_refusing = False
        self.num_connections = 0
        self.num_cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def target(self) -> str:
        return f"localhost:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        """Resets every connection."""
        with self._lock:
            sockets, self._sockets = self._sockets, []
            self.num_cuts += 1
        for connection in sockets:
            reset(connection)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.is_refusing:
                reset(near)
                continue
            far = socket.create_connection(("localhost", self._port))
            with self._lock:
                self.num_connections += 1
                self._sockets += [near, far]
            threading.Thread(target=forward, args=(near, far), daemon=True).start()
            threading.Thread(target=forward, args=(far, near), daemon=True).start()


def forward(source: socket.socket, sink: socket.socket) -> None:
    """Copies bytes until either side ends."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for side in (source, sink):
        with contextlib.suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)


def reset(connection: socket.socket) -> None:
    """Closes with a reset, dropping what is under way; the forwarding threads see the end of it."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
