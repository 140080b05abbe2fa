"""One worker process: started, greeted, watched and ended.

The process is a plain child in the server's process group, and asks the kernel to die with it (see `host`). Its
standard error goes into the server's log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from vorta import errors
from vorta_server.workers.channel import WorkerChannel
from vorta_server.workers.config import WorkerConfig
from vorta_server.workers.protocol import ModelCard, Stats

__all__ = ["WorkerProcess", "WorkerStartError"]

logger = logging.getLogger(__name__)

_CONNECT_INTERVAL_S = 0.02
_EXIT_WAIT_S = 2.0
_TAIL_LINES = 20
_STDERR_BYTES = 64 * 1024
_RAISED = re.compile(r"vorta\.errors\.(\w+)(?:\[([A-Z_]+)\])?: (.*)")


class WorkerStartError(Exception):
    """A worker could not be started; `error` says why, and whether it may help to try again."""

    def __init__(self, error: errors.VortaError) -> None:
        super().__init__(error.message)
        self.error = error


class WorkerProcess:
    """A running worker. Make one with `start`.

    Attributes:
        channel: To the worker.
        card: What it serves.
        pid: Its process id.
    """

    def __init__(self, process: Process, config: WorkerConfig, on_stats: Callable[[Stats], None]) -> None:
        self._process = process
        self._config = config
        self._on_stats = on_stats
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._log_task = asyncio.create_task(self._log_stderr())
        self.channel: WorkerChannel
        self.card: ModelCard
        self.pid = process.pid

    @classmethod
    async def start(
        cls,
        config: WorkerConfig,
        *,
        command: Sequence[str],
        timeout_s: float,
        on_stats: Callable[[Stats], None],
    ) -> WorkerProcess:
        """Starts a worker and returns when it is ready. Nothing is left behind when that fails.

        Args:
            config: What the worker is told.
            command: The program; `--config JSON` is added.
            timeout_s: How long it may take, compilation included.
            on_stats: Takes its reports.

        Raises:
            WorkerStartError: It ended before it was ready, or took too long.
        """
        _remove(config.socket_path)
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                "--config",
                msgspec.json.encode(config).decode(),
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=PIPE,
            )
        except OSError as error:
            raise WorkerStartError(errors.Unavailable(f"cannot start a worker: {error}")) from error
        worker = cls(process, config, on_stats)
        try:
            async with asyncio.timeout(timeout_s):
                await worker._greet()
        except TimeoutError:
            await worker.kill()
            late = errors.Unavailable(f"the worker was not ready after {timeout_s:g} s")
            raise WorkerStartError(late) from None
        except BaseException:
            await worker.kill()
            raise
        return worker

    async def wait(self) -> str:
        """Returns when the worker has ended, however; the answer says how."""
        ended = asyncio.create_task(self._process.wait())
        closed = self.channel.closed
        # Its socket ends with it, unless a child of its own holds on to it.
        ended.add_done_callback(lambda _: self.channel.close())
        try:
            await asyncio.shield(closed)
            # A worker that closed its socket is of no use any more, even if its process hangs.
            await asyncio.wait({ended}, timeout=_EXIT_WAIT_S)
        finally:
            ended.cancel()
        await self.kill()
        return self._describe_end()

    async def stop(self, grace_s: float) -> None:
        """Drains the worker for `grace_s` and ends it, by force when it does not go."""
        self.channel.drain(grace_s)
        try:
            async with asyncio.timeout(grace_s + _EXIT_WAIT_S):
                await self._process.wait()
        except TimeoutError:
            logger.warning("worker %s of %s did not end, killing it", self.pid, self._config.model)
        finally:
            await self.kill()

    async def kill(self) -> None:
        """Ends the worker now and waits for its end. Idempotent."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_EXIT_WAIT_S):
                await self._process.wait()
                await asyncio.shield(self._log_task)
        self._log_task.cancel()
        channel = getattr(self, "channel", None)
        if channel is not None:
            # What it sent before its end is still in the socket; it ends by itself.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EXIT_WAIT_S):
                    await asyncio.shield(channel.closed)
            channel.close()
        _remove(self._config.socket_path)

    async def _greet(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self._process.returncode is not None:
                await self._raise_early_end()
            try:
                _, self.channel = await loop.create_unix_connection(
                    lambda: WorkerChannel(on_stats=self._on_stats), self._config.socket_path
                )
                break
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(_CONNECT_INTERVAL_S)
        try:
            hello = await asyncio.shield(self.channel.hello)
        except errors.Unavailable:
            await self._raise_early_end()
        else:
            self.card = hello.card

    async def _raise_early_end(self) -> None:
        # One that closed its socket is ending: killed in the middle of that it could not tell how it ended.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_EXIT_WAIT_S):
                await self._process.wait()
        await self.kill()
        raise WorkerStartError(self._early_error())

    def _early_error(self) -> errors.VortaError:
        """The error with which the worker ended, from the last line of its traceback."""
        for line in reversed(self._tail):
            raised = _RAISED.search(line)
            if raised is not None:
                cls = getattr(errors, raised[1], None)
                if isinstance(cls, type) and issubclass(cls, errors.VortaError):
                    reason = raised[2] or ("CHECKPOINT_INVALID" if cls is errors.FailedPrecondition else None)
                    return cls(raised[3], reason=reason)
        last = next((line for line in reversed(self._tail) if line.strip()), "")
        detail = f": {last.strip()}" if last else ""
        return errors.Unavailable(f"the worker ended before it was ready ({self._describe_end()}){detail}")

    def _describe_end(self) -> str:
        code = self._process.returncode
        if code is None:
            return "does not end"
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"

    async def _log_stderr(self) -> None:
        stream = self._process.stderr
        assert stream is not None
        rest = b""
        while data := await stream.read(_STDERR_BYTES):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._log_line(line)
            if len(rest) > _STDERR_BYTES:
                self._log_line(rest)
                rest = b""
        if rest:
            self._log_line(rest)

    def _log_line(self, data: bytes) -> None:
        line = data.decode("utf-8", "replace").rstrip()
        if line:
            self._tail.append(line)
            logger.info("[%s %s] %s", self._config.model, self.pid, line)


def _remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)
