"""Keeps the models' workers running: starts them, restarts the dead, stops the unwanted.

Each model has a keeper, one task that owns its worker process and its entry in the registry. A worker that dies is
started again after a back-off; one that keeps dying makes its model FAILED, and is then tried at the slowest pace.
Loop thread only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vorta.errors import AlreadyExists, FailedPrecondition, Unavailable, VortaError
from vorta_server.observability.metrics import Metrics
from vorta_server.registry.model import ModelEntry, ModelState
from vorta_server.registry.registry import ModelRegistry
from vorta_server.workers.config import WorkerConfig
from vorta_server.workers.process import WorkerProcess, WorkerStartError
from vorta_server.workers.protocol import Stats

__all__ = ["HOST_COMMAND", "RestartConfig", "Supervisor"]

logger = logging.getLogger(__name__)

HOST_COMMAND = (sys.executable, "-m", "vorta_server.workers.main")

ConfigFactory = Callable[[ModelEntry, str], WorkerConfig]
"""Makes a worker's config from its model and its socket path. Raises VortaError when the model's source is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartConfig:
    """When to give up on a worker, and how to try again.

    Attributes:
        start_timeout_s: Until a worker must be ready, compilation included.
        first_delay_s, max_delay_s: Back-off between starts; it doubles.
        stable_s: A worker that served this long has its back-off forgotten.
        max_quick_deaths: After so many deaths in a row the model is FAILED.
        stall_timeout_s: A worker that made no step for so long although requests run is not serving.
        stall_kill_s: A worker stalled for so long is killed and started again.
    """

    start_timeout_s: float = 900.0
    first_delay_s: float = 1.0
    max_delay_s: float = 30.0
    stable_s: float = 60.0
    max_quick_deaths: int = 5
    stall_timeout_s: float = 30.0
    stall_kill_s: float = 120.0


class Supervisor:
    """Starts and stops models; the `ModelLoader` of AdminService.

    Args:
        registry: Told of every change.
        metrics: Fed with the workers' reports.
        restart: Limits.
        make_config: Makes a worker's config.
        socket_dir: Where the sockets are made. Needed, and there, from the first start on.
        socket_prefix: How their names begin, different for each supervisor of a folder.
        default_grace_s: Grace of an unload that names none.
        command: The worker program.
    """

    def __init__(
        self,
        *,
        registry: ModelRegistry,
        metrics: Metrics,
        restart: RestartConfig,
        make_config: ConfigFactory,
        socket_dir: Path | None = None,
        socket_prefix: str = "worker",
        default_grace_s: float,
        default_precision: str = "int8",
        command: Sequence[str] = HOST_COMMAND,
    ) -> None:
        self._registry = registry
        self._metrics = metrics
        self._restart = restart
        self._make_config = make_config
        self.socket_dir = socket_dir
        self._socket_prefix = socket_prefix
        self._default_grace_s = default_grace_s
        self._default_precision = default_precision
        self._command = command
        self._keepers: dict[str, _Keeper] = {}
        self._num_started = 0
        self._is_stopping = False

    def start(self, entry: ModelEntry) -> None:
        """Begins to keep a known model serving."""
        self._keep(entry)

    async def load(self, model: str, *, source: str, precision: str, max_model_len: int | None) -> ModelEntry:
        """Loads a model and returns when it serves; see `ModelLoader`."""
        while True:
            if self._is_stopping:
                raise Unavailable("the server is shutting down", reason="DRAINING", retry_delay_s=1.0)
            entry = self._registry.find(model)
            is_down = entry is None or entry.state in (ModelState.UNLOADED, ModelState.FAILED)
            if not is_down or model not in self._keepers:
                break
            # Others may load it meanwhile, so look again.
            await self._stop_keeper(model, 0.0)
        if entry is None:
            entry = ModelEntry(
                model=model,
                source=source or model,
                precision=precision or self._default_precision,
                max_model_len=max_model_len,
            )
            self._make_config(entry, "")  # a source that does not exist makes no known model
            self._registry.add(entry)
        elif is_down:
            self._change(entry, source=source, precision=precision, max_model_len=max_model_len)
        elif entry.state is ModelState.DRAINING:
            raise Unavailable(
                f"model {model} is being unloaded",
                metadata={"model": model, "state": entry.state.name},
                retry_delay_s=1.0,
            )
        elif (
            (source and source != entry.source)
            or (precision and precision != (entry.card.precision if entry.card else entry.precision))
            or (max_model_len is not None and max_model_len != (entry.max_model_len or _card_len(entry)))
        ):
            raise AlreadyExists(
                f"model {model} is loaded already with other options; unload it first",
                reason="ALREADY_LOADED",
                metadata={"model": model},
            )
        keeper = self._keepers.get(model) or self._keep(entry)
        is_first = entry.load_time_s is None
        error = await asyncio.shield(keeper.first_outcome)
        if error is not None:
            if is_first and self._keepers.get(model) is keeper:
                await self._stop_keeper(model, 0.0)
                if model not in self._keepers:
                    self._registry.update(entry, state=ModelState.FAILED, error=error.message)
            raise error
        return entry

    async def unload(self, model: str, *, grace_s: float | None) -> ModelEntry:
        """Drains a model and stops its worker; see `ModelLoader`."""
        entry = self._registry.get(model)
        task = asyncio.create_task(self._stop_keeper(model, self._default_grace_s if grace_s is None else grace_s))
        # The caller may go away; the model is unloaded all the same.
        await asyncio.shield(task)
        return entry

    async def stop(self, grace_s: float) -> None:
        """Drains and stops every worker. Cancelling it kills them at once; none is left in either case."""
        self._is_stopping = True
        keepers = list(self._keepers.values())
        try:
            await asyncio.gather(*(keeper.stop(grace_s) for keeper in keepers))
        finally:
            await asyncio.gather(*(keeper.kill() for keeper in keepers))
            self._keepers.clear()

    def _change(self, entry: ModelEntry, *, source: str, precision: str, max_model_len: int | None) -> None:
        """Gives a model that is down other options. Raises VortaError, and leaves it as it was, when they are wrong."""
        previous = (entry.source, entry.precision, entry.max_model_len)
        entry.source = source or entry.source
        entry.precision = precision or entry.precision
        entry.max_model_len = max_model_len or entry.max_model_len
        try:
            self._make_config(entry, "")
        except VortaError:
            entry.source, entry.precision, entry.max_model_len = previous
            raise

    def _keep(self, entry: ModelEntry) -> _Keeper:
        assert self.socket_dir is not None
        self._num_started += 1
        keeper = _Keeper(
            entry,
            registry=self._registry,
            metrics=self._metrics,
            restart=self._restart,
            make_config=self._make_config,
            socket_path=self.socket_dir / f"{self._socket_prefix}-{self._num_started}.sock",
            command=self._command,
        )
        self._keepers[entry.model] = keeper
        return keeper

    async def _stop_keeper(self, model: str, grace_s: float) -> None:
        keeper = self._keepers.get(model)
        if keeper is None:
            return
        try:
            await keeper.stop(grace_s)
        finally:
            await keeper.kill()
            if self._keepers.get(model) is keeper:
                del self._keepers[model]


class _Keeper:
    """Keeps one model's worker running.

    Attributes:
        first_outcome: Completed when the model first serves (None) or first fails (its error).
    """

    def __init__(
        self,
        entry: ModelEntry,
        *,
        registry: ModelRegistry,
        metrics: Metrics,
        restart: RestartConfig,
        make_config: ConfigFactory,
        socket_path: Path,
        command: Sequence[str],
    ) -> None:
        self._entry = entry
        self._registry = registry
        self._metrics = metrics
        self._restart = restart
        self._make_config = make_config
        self._socket_path = socket_path
        self._command = command
        self._process: WorkerProcess | None = None
        self._stopping = asyncio.Event()
        self._last_stats: Stats | None = None
        self._last_report_s = 0.0
        self._last_step_s = 0.0
        self._served_s: float | None = None
        self.first_outcome: asyncio.Future[VortaError | None] = asyncio.get_running_loop().create_future()
        registry.update(entry, state=ModelState.LOADING, error="")
        self._task = asyncio.create_task(self._run())

    async def stop(self, grace_s: float) -> None:
        """Drains the worker and ends. The model is then UNLOADED. Idempotent."""
        self._stopping.set()
        process = self._process
        if process is None:
            self._task.cancel()  # starting, or waiting to
        else:
            self._registry.update(self._entry, state=ModelState.DRAINING)
            await process.stop(grace_s)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(self._task)

    async def kill(self) -> None:
        """Ends the worker at once. Idempotent."""
        self._stopping.set()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        restart = self._restart
        delay_s, num_quick_deaths = restart.first_delay_s, 0
        try:
            while True:
                error = await self._run_once()
                if self._stopping.is_set():
                    break
                if self._served_s is not None and time.monotonic() - self._served_s >= restart.stable_s:
                    delay_s, num_quick_deaths = restart.first_delay_s, 0
                num_quick_deaths += 1
                # What cannot get better by itself is said at once; it is still tried again, seldom.
                is_hopeless = not isinstance(error, Unavailable)
                has_failed = is_hopeless or num_quick_deaths >= restart.max_quick_deaths
                if has_failed:
                    delay_s = restart.max_delay_s
                self._down(ModelState.FAILED if has_failed else ModelState.LOADING, error.message)
                logger.error("model %s: %s; next start in %.0f s", self._entry.model, error.message, delay_s)
                if not self.first_outcome.done():
                    self.first_outcome.set_result(error)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay_s):
                        await self._stopping.wait()
                if self._stopping.is_set():
                    break
                delay_s = min(delay_s * 2, restart.max_delay_s)
                self._entry.restart_count += 1
                self._metrics.observe_restart(self._entry.model)
        except Exception as error:
            logger.exception("the keeper of model %s failed", self._entry.model)
            if not self.first_outcome.done():
                self.first_outcome.set_result(FailedPrecondition(f"the supervisor failed: {error}"))
        finally:
            if self._process is not None:
                await self._process.kill()
                self._process = None
            self._down(ModelState.UNLOADED, "")
            if not self.first_outcome.done():
                self.first_outcome.set_result(Unavailable("the model was unloaded while it was loading"))

    async def _run_once(self) -> VortaError:
        """Runs a worker from its start to its end and tells why it ended."""
        entry = self._entry
        self._last_stats = None
        self._served_s = None
        try:
            config = self._make_config(entry, str(self._socket_path))
            process = await WorkerProcess.start(
                config,
                command=self._command,
                timeout_s=self._restart.start_timeout_s,
                on_stats=self._on_stats,
            )
        except WorkerStartError as error:
            return error.error
        except VortaError as error:
            return error
        self._process = process
        process.channel.on_lost = self._on_lost
        self._served_s = self._last_report_s = self._last_step_s = time.monotonic()
        self._registry.update(
            entry,
            state=ModelState.SERVING,
            error="",
            card=process.card,
            kind=process.card.kind,
            channel=process.channel,
            worker_pid=process.pid,
            load_time_s=time.time(),
            is_stalled=False,
        )
        logger.info("model %s serves, worker %d", entry.model, process.pid)
        if not self.first_outcome.done():
            self.first_outcome.set_result(None)
        watch = asyncio.create_task(self._watch_progress(process))
        try:
            how = await process.wait()
        finally:
            watch.cancel()
            self._process = None if process.channel.closed.done() else process
        return Unavailable(f"the worker ended: {how}")

    async def _watch_progress(self, process: WorkerProcess) -> None:
        """Marks a worker that makes no progress, and in the end kills it."""
        restart = self._restart
        while True:
            await asyncio.sleep(min(1.0, restart.stall_timeout_s / 4))
            silent_s = time.monotonic() - min(self._last_step_s, self._last_report_s)
            is_stalled = silent_s > restart.stall_timeout_s
            if is_stalled != self._entry.is_stalled:
                logger.error(
                    "model %s: the worker makes %s progress",
                    self._entry.model,
                    "no" if is_stalled else "again",
                )
                self._registry.update(self._entry, is_stalled=is_stalled)
            if silent_s > restart.stall_kill_s:
                logger.error("model %s: killing the worker, stalled for %.0f s", self._entry.model, silent_s)
                await process.kill()
                return

    def _on_stats(self, stats: Stats) -> None:
        now_s = time.monotonic()
        last = self._last_stats
        self._last_report_s = now_s
        if stats.running == 0 or last is None or stats.step_count != last.step_count:
            self._last_step_s = now_s
        self._metrics.observe_stats(self._entry.model, stats, last)
        self._last_stats = self._entry.stats = stats

    def _on_lost(self) -> None:
        if not self._stopping.is_set():
            self._down(ModelState.LOADING, "the worker ended")

    def _down(self, state: ModelState, error: str) -> None:
        self._metrics.observe_worker_gone(self._entry.model)
        self._registry.update(
            self._entry,
            state=state,
            error=error,
            channel=None,
            stats=None,
            worker_pid=0,
            is_stalled=False,
        )


def _card_len(entry: ModelEntry) -> int | None:
    return entry.card.max_model_len if entry.card is not None else None
