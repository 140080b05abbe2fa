"""The worker process's entry: `python -m vorta_server.workers.main --config JSON`. Started by the supervisor."""

from __future__ import annotations

import argparse
import ctypes
import gc
import logging
import os
import signal
import sys
from pathlib import Path

import msgspec

from vorta.errors import VortaError
from vorta_server.registry.source import FAKE_KINDS, model_kind
from vorta_server.workers.call_host import CallHost
from vorta_server.workers.config import WorkerConfig
from vorta_server.workers.host import WorkerHost
from vorta_server.workers.pacing import WritePacer
from vorta_server.workers.transport import WorkerTransport

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1

# Answers that wait for a front: vectors of many texts, or hits with their payloads, are large.
_MAX_UNSENT_BYTES = 512 * 1024 * 1024

# Seconds that a thread may keep the interpreter from another: searches must not wait for the threads that write.
_SWITCH_INTERVAL_S = 0.0005

# Turns of that loop before a thread sleeps: microseconds instead of milliseconds.
_SPIN_COUNT = "1000"


def main(arguments: list[str] | None = None) -> None:
    """Runs a worker until it is told to drain."""
    parser = argparse.ArgumentParser(description="A Vorta worker; started by the server.")
    parser.add_argument("--config", required=True, help="WorkerConfig as JSON")
    config = msgspec.json.decode(parser.parse_args(arguments).config, type=WorkerConfig)
    _die_with_parent(config.parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the front's to handle
    logging.basicConfig(level=config.log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        host = _host(config)
    except VortaError as error:
        # The supervisor reads this line; a traceback would say no more.
        raise SystemExit(f"vorta.errors.{type(error).__name__}[{error.reason}]: {error.message}") from error
    # A group's SIGTERM reaches the server too, which then drains its workers by message.
    signal.signal(signal.SIGTERM, signal.SIG_IGN if config.parent_pid else lambda *_: host.stop())
    # What was built so far lives until the end: looking at it again would hold a step up by 12 ms.
    gc.collect()
    gc.freeze()
    host.run()


def _host(config: WorkerConfig) -> WorkerHost | CallHost:
    """Loads what the worker serves. A front that connects meanwhile waits for the greeting."""
    socket_path = Path(config.socket_path)
    if config.vector is not None:
        from vorta_server.workers.vectors import build_vectors

        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        # FAISS's threads wait for each other in a loop, on cores that the front needs; read when the library is loaded.
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)
        transport = WorkerTransport(socket_path, max_unsent_bytes=_MAX_UNSENT_BYTES)
        vectors, card = build_vectors(config.vector, wake=transport.wake)
        return CallHost(service=vectors, card=card, transport=transport)
    if _is_encoder(config):
        from vorta_server.workers.encoder import build_encoder

        transport = WorkerTransport(socket_path, max_unsent_bytes=_MAX_UNSENT_BYTES)
        encoder, card = build_encoder(config, wake=transport.wake)
        return CallHost(service=encoder, card=card, transport=transport)
    from vorta_server.workers.generation import build_generation

    model = build_generation(config)
    return WorkerHost(
        engine=model.engine,
        codec=model.codec,
        card=model.card,
        transport=WorkerTransport(socket_path),
        formats=model.formats,
        pacer=WritePacer(
            interval_per_stream_s=config.write_interval_per_stream_s,
            max_interval_s=config.max_write_interval_s,
            min_interval_s=config.flush_interval_s,
        ),
    )


def _is_encoder(config: WorkerConfig) -> bool:
    if config.runner == "fake":
        return config.source in FAKE_KINDS
    return model_kind(Path(config.source)) in ("embedding", "rerank")


def _die_with_parent(parent_pid: int) -> None:
    """Has the kernel kill this process when its parent ends, however it ends."""
    if parent_pid and sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent_pid:
            raise SystemExit("the server is gone")


if __name__ == "__main__":
    main()
