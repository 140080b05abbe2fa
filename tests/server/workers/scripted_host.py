"""A worker program for the supervisor's tests: `python -m tests.server.workers.scripted_host --config JSON`.

The config's `source` says what it does, as JSON: {"mode": ..., "marker": file that is appended to at each start}.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from pathlib import Path

from tests.server.front import scripted
from tests.server.front.scripted import ScriptedWorker, stats
from vorta.errors import FailedPrecondition


class Host(ScriptedWorker):
    """Ends when it is told to drain."""

    def __init__(self, path, mode):
        script = scripted.hang if mode in ("hang", "stall") else scripted.speak
        super().__init__(path, script=script)
        self.mode = mode
        self.ended = asyncio.Event()

    def _handle(self, message):
        super()._handle(message)
        if self.drained and self.mode != "deaf":
            self.ended.set()


async def run(path, mode):
    host = Host(path, mode)
    host.card.model = "scripted"
    await host.start()
    if mode == "dies":
        await asyncio.sleep(0.05)
        os._exit(3)
    while not host.ended.is_set():
        report = stats(running=1 if mode == "stall" else 0, step_count=7)
        host.send(report)
        await asyncio.sleep(0.02)
    await host.stop()


def main():
    config = json.loads(sys.argv[sys.argv.index("--config") + 1])
    source = json.loads(config["source"])
    marker, mode = Path(source["marker"]), source["mode"]
    with marker.open("a") as file:
        file.write(f"{os.getpid()}\n")
    if mode == "torn":
        raise FailedPrecondition("config.json is torn")
    if mode == "crash":
        sys.stderr.write("first line\nout of luck\n")
        os._exit(7)
    if mode == "leaves":  # closes its socket, and takes its time to end
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(config["socket_path"])
            listener.listen()
            listener.accept()[0].close()
        time.sleep(0.3)
        os._exit(9)
    if mode == "never":
        time.sleep(60)
    if mode == "second" and len(marker.read_text().splitlines()) == 1:
        os._exit(5)
    asyncio.run(run(Path(config["socket_path"]), mode))


if __name__ == "__main__":
    main()
