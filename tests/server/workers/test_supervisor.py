"""Workers as processes: starting, dying, stalling, draining; none is ever left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from vorta.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from vorta_server.engine.request import Finished, SamplingParams
from vorta_server.observability.metrics import Metrics
from vorta_server.registry.model import ModelEntry, ModelState
from vorta_server.registry.registry import ModelRegistry
from vorta_server.workers.config import WorkerConfig
from vorta_server.workers.protocol import Prompt, Submit
from vorta_server.workers.supervisor import RestartConfig, Supervisor

COMMAND = (sys.executable, "-m", "tests.server.workers.scripted_host")


class Nursery:
    """A supervisor and what it told."""

    def __init__(self, folder: Path, **restart: float) -> None:
        self.folder = folder
        self.marker = folder / "starts"
        self.metrics = Metrics()
        self.registry = ModelRegistry(default_models={"generation": "m"})
        self.states: list[ModelState] = []
        self.changed = asyncio.Event()
        self.registry.listen(self._listen)
        limits = {"first_delay_s": 0.01, "max_delay_s": 0.05, "start_timeout_s": 30.0, **restart}
        self.supervisor = Supervisor(
            registry=self.registry,
            metrics=self.metrics,
            restart=RestartConfig(**limits),
            make_config=self._config,
            socket_dir=folder,
            default_grace_s=5.0,
            command=COMMAND,
        )

    def source(self, mode: str) -> str:
        """A source that makes the worker behave."""
        return json.dumps({"mode": mode, "marker": str(self.marker)})

    def start(self, mode: str) -> ModelEntry:
        """Keeps a model that behaves so."""
        entry = ModelEntry(model="m", source=self.source(mode), precision="int8")
        self.registry.add(entry)
        self.supervisor.start(entry)
        return entry

    async def until(self, condition) -> None:
        """Waits for a change after which the condition holds."""
        async with asyncio.timeout(60):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    @property
    def pids(self) -> list[int]:
        """Every worker ever started."""
        return [int(line) for line in self.marker.read_text().splitlines()] if self.marker.exists() else []

    def assert_nothing_left(self) -> None:
        """No worker process, no socket."""
        for pid in self.pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        assert not list(self.folder.glob("*.sock"))

    def _listen(self, entry: ModelEntry) -> None:
        if not self.states or self.states[-1] is not entry.state:
            self.states.append(entry.state)
        self.changed.set()

    def _config(self, entry: ModelEntry, socket_path: str) -> WorkerConfig:
        if entry.source == "missing":
            raise InvalidArgument("no such folder", field="source")
        return WorkerConfig(model=entry.model, source=entry.source, socket_path=socket_path)


async def test_a_model_serves_and_is_stopped(tmp_path):
    nursery = Nursery(tmp_path)
    entry = nursery.start("speak")
    await nursery.until(lambda: entry.is_serving)
    assert entry.worker_pid == nursery.pids[0]
    assert os.getpgid(entry.worker_pid) == os.getpgid(0)
    assert nursery.registry.resolve("", "generation").card.model == "scripted"
    await nursery.supervisor.stop(5.0)
    assert nursery.states == [
        ModelState.UNLOADED,
        ModelState.LOADING,
        ModelState.SERVING,
        ModelState.DRAINING,
        ModelState.UNLOADED,
    ]
    nursery.assert_nothing_left()


async def test_a_killed_worker_is_replaced(tmp_path):
    nursery = Nursery(tmp_path)
    entry = nursery.start("speak")
    await nursery.until(lambda: entry.is_serving)
    first = entry.worker_pid
    os.kill(first, signal.SIGKILL)
    await nursery.until(lambda: not entry.is_serving)
    assert entry.channel is None
    await nursery.until(lambda: entry.is_serving)
    assert entry.worker_pid != first
    assert entry.restart_count == 1
    assert 'vorta_worker_restarts_total{model="m"} 1.0' in nursery.metrics.render().decode()
    await nursery.supervisor.stop(5.0)
    nursery.assert_nothing_left()


async def test_whoever_is_told_of_a_death_finds_the_model_not_serving(tmp_path):
    nursery = Nursery(tmp_path)
    entry = nursery.start("hang")
    await nursery.until(lambda: entry.is_serving)
    seen = []
    message = Submit(request_id="r", prompt=Prompt(text="x"), sampling=SamplingParams())
    entry.channel.submit(message, lambda event: seen.append((type(event), entry.state, entry.channel)))
    call = asyncio.ensure_future(entry.channel.tokenize(Prompt(text="hang")))
    call.add_done_callback(lambda _: seen.append((Prompt, entry.state, entry.channel)))
    os.kill(entry.worker_pid, signal.SIGKILL)
    with pytest.raises(Unavailable):
        await call
    assert seen[-2:] == [(Finished, ModelState.LOADING, None), (Prompt, ModelState.LOADING, None)]
    await nursery.supervisor.stop(5.0)
    nursery.assert_nothing_left()


async def test_a_worker_that_keeps_dying_makes_its_model_failed_and_is_tried_again(tmp_path):
    nursery = Nursery(tmp_path, max_quick_deaths=2)
    entry = nursery.start("dies")
    await nursery.until(lambda: entry.state is ModelState.FAILED)
    assert len(nursery.pids) == 2
    assert "exit code 3" in entry.error
    with pytest.raises(Unavailable) as caught:
        nursery.registry.resolve("m", "generation")
    assert caught.value.metadata["state"] == "FAILED"
    await nursery.until(lambda: entry.restart_count >= 3)
    await nursery.supervisor.stop(0.0)
    nursery.assert_nothing_left()


async def test_a_slow_start_is_not_a_stable_life(tmp_path):
    nursery = Nursery(tmp_path, max_quick_deaths=2, stable_s=0.001)
    entry = nursery.start("crash")  # which takes longer than stable_s to die
    await nursery.until(lambda: entry.restart_count >= 2 or entry.state is ModelState.FAILED)
    assert entry.state is ModelState.FAILED
    await nursery.supervisor.stop(0.0)
    nursery.assert_nothing_left()


@pytest.mark.parametrize(
    ("mode", "error_type", "text"),
    [
        ("torn", FailedPrecondition, "config.json is torn"),
        ("crash", Unavailable, "exit code 7.*out of luck"),
        ("leaves", Unavailable, "exit code 9"),
    ],
)
async def test_a_worker_that_cannot_start_says_why(tmp_path, mode, error_type, text):
    nursery = Nursery(tmp_path)
    with pytest.raises(error_type, match=text):
        await nursery.supervisor.load("m", source=nursery.source(mode), precision="", max_model_len=None)
    assert nursery.registry.get("m").state is ModelState.FAILED
    await nursery.supervisor.stop(0.0)
    nursery.assert_nothing_left()


async def test_what_cannot_get_better_is_failed_at_once(tmp_path):
    nursery = Nursery(tmp_path, max_delay_s=1000.0)
    entry = nursery.start("torn")
    await nursery.until(lambda: entry.state is ModelState.FAILED)
    assert len(nursery.pids) == 1
    await nursery.supervisor.stop(0.0)


async def test_a_worker_that_is_never_ready_is_killed(tmp_path):
    nursery = Nursery(tmp_path, start_timeout_s=1.0)
    with pytest.raises(Unavailable, match="not ready after 1 s"):
        await nursery.supervisor.load("m", source=nursery.source("never"), precision="", max_model_len=None)
    await nursery.supervisor.stop(0.0)
    nursery.assert_nothing_left()


async def test_a_first_failure_is_got_over(tmp_path):
    nursery = Nursery(tmp_path)
    entry = nursery.start("second")
    await nursery.until(lambda: entry.is_serving)
    assert len(nursery.pids) == 2
    await nursery.supervisor.stop(0.0)
    nursery.assert_nothing_left()


async def test_a_stalled_worker_is_not_serving_and_then_killed(tmp_path):
    nursery = Nursery(tmp_path, stall_timeout_s=0.2, stall_kill_s=1.5)
    entry = nursery.start("stall")
    await nursery.until(lambda: entry.is_serving)
    first = entry.worker_pid
    await nursery.until(lambda: entry.is_stalled)
    assert not entry.is_serving
    await nursery.until(lambda: entry.worker_pid not in (first, 0))
    await nursery.supervisor.stop(0.0)
    nursery.assert_nothing_left()


async def test_a_worker_that_ignores_its_drain_is_killed(tmp_path):
    nursery = Nursery(tmp_path)
    entry = nursery.start("deaf")
    await nursery.until(lambda: entry.is_serving)
    await nursery.supervisor.stop(0.1)
    nursery.assert_nothing_left()


async def test_stopping_while_starting_and_while_draining(tmp_path):
    nursery = Nursery(tmp_path)
    entry = nursery.start("never")
    await nursery.until(lambda: True)
    while not nursery.pids:  # noqa: ASYNC110 - another process writes it
        await asyncio.sleep(0.01)
    await nursery.supervisor.stop(1000.0)
    assert entry.state is ModelState.UNLOADED
    nursery.assert_nothing_left()


async def test_a_cancelled_stop_kills(tmp_path):
    nursery = Nursery(tmp_path)
    entry = nursery.start("deaf")
    await nursery.until(lambda: entry.is_serving)
    stop = asyncio.create_task(nursery.supervisor.stop(1000.0))
    await nursery.until(lambda: entry.state is ModelState.DRAINING)
    stop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stop
    nursery.assert_nothing_left()


async def test_load_and_unload(tmp_path):
    nursery = Nursery(tmp_path)
    supervisor, source = nursery.supervisor, nursery.source("speak")
    entry = await supervisor.load("m", source=source, precision="int4", max_model_len=None)
    assert entry.is_serving
    pid = entry.worker_pid
    assert await supervisor.load("m", source="", precision="", max_model_len=None) is entry
    assert entry.worker_pid == pid
    for change in ({"source": "other"}, {"precision": "int8"}, {"max_model_len": 64}):
        options = {"source": source, "precision": "", "max_model_len": None, **change}
        with pytest.raises(AlreadyExists) as caught:
            await supervisor.load("m", **options)
        assert caught.value.reason == "ALREADY_LOADED"
    assert (await supervisor.unload("m", grace_s=None)).state is ModelState.UNLOADED
    assert (await supervisor.unload("m", grace_s=None)).state is ModelState.UNLOADED
    with pytest.raises(NotFound):
        await supervisor.unload("nobody", grace_s=None)
    with pytest.raises(InvalidArgument):
        await supervisor.load("m", source="missing", precision="", max_model_len=None)
    assert entry.source == source
    with pytest.raises(InvalidArgument):
        await supervisor.load("other", source="missing", precision="", max_model_len=None)
    assert nursery.registry.find("other") is None
    assert (await supervisor.load("m", source="", precision="", max_model_len=None)).is_serving
    await supervisor.stop(5.0)
    with pytest.raises(Unavailable) as caught:
        await supervisor.load("m", source="", precision="", max_model_len=None)
    assert caught.value.reason == "DRAINING"
    nursery.assert_nothing_left()


async def test_of_two_loads_of_a_failed_model_with_other_options_one_is_refused(tmp_path):
    nursery = Nursery(tmp_path, max_delay_s=1000.0)
    entry = nursery.start("torn")
    await nursery.until(lambda: entry.state is ModelState.FAILED)
    outcomes = await asyncio.gather(
        *(
            nursery.supervisor.load("m", source=nursery.source("speak"), precision=precision, max_model_len=None)
            for precision in ("int4", "fp32")
        ),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [ModelEntry, AlreadyExists]
    assert entry.precision == "int4"
    await nursery.supervisor.stop(5.0)
    nursery.assert_nothing_left()
