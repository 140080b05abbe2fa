"""llama-cpp-python's own HTTP server as a peer over the wire."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["LlamaServer", "serving_llama"]


class LlamaServer:
    """A running `python -m llama_cpp.server`."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def rate(self, streams: int, num_tokens: int, prompt_tokens: int) -> float:
        """Tokens per second of so many completions at once, from the first request sent to the last reply read."""
        started = time.perf_counter()
        counts = await asyncio.gather(*(self._complete(i, num_tokens, prompt_tokens) for i in range(streams)))
        return sum(counts) / (time.perf_counter() - started)

    async def _complete(self, index: int, num_tokens: int, prompt_tokens: int) -> int:
        """The number of tokens of one completion. Replies come whole, which spares this peer the cost of events."""
        # This server takes text only: about one token a word.
        prompt = " ".join(str((index * 7919 + i * 104729) % 10) for i in range(prompt_tokens))
        body = json.dumps({"prompt": prompt, "max_tokens": num_tokens, "temperature": 0.0}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n"
        writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
        reply = await asyncio.wait_for(reader.read(), 600)
        writer.close()
        status, _, rest = reply.partition(b"\r\n")
        if b" 200 " not in status:
            raise RuntimeError(f"the peer answered {status.decode()}: {rest[-500:].decode(errors='replace')}")
        count: int = json.loads(rest.partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"]
        return count


@contextmanager
def serving_llama(python: str, gguf: Path, *, threads: int) -> Iterator[LlamaServer]:
    """Starts the server and waits until its port answers.

    Args:
        python: An interpreter with llama-cpp-python[server].
        gguf: The model.
        threads: Compute threads.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [python, "-m", "llama_cpp.server", "--model", str(gguf), "--port", str(port), "--n_ctx", "4096"]
    command += ["--n_threads", str(threads), "--n_threads_batch", str(threads), "--verbose", "False"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while True:
            if process.poll() is not None:
                raise SystemExit(f"llama_cpp.server ended with status {process.returncode}")
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if time.monotonic() > until:
                    raise SystemExit("llama_cpp.server did not answer within 120 s") from None
                time.sleep(0.2)
        yield LlamaServer(port)
    finally:
        process.terminate()
        process.wait(30)
