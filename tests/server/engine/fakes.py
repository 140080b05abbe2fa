"""A vocabulary of bytes and an engine over the fake runner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from vorta_server.engine.engine import Engine, EngineConfig
from vorta_server.engine.kv import BLOCK_TOKENS
from vorta_server.engine.request import Delta, Event, Finished, GenerationRequest, SamplingParams
from vorta_server.engine.runner import RunnerInfo, StepBatch, StepResult
from vorta_server.engine.scheduler import SchedulerConfig
from vorta_server.runners.cuda.blocks import BlockTables
from vorta_server.runners.fake import FakeRunner, FakeRunnerConfig, next_token

PROMPT = list(range(1, 30))


class Letters:
    """Token id to one character; the ids in `eos_token_ids` are silent."""

    eos_token_ids: tuple[int, ...] = (0,)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool) -> str:
        return "".join(chr(97 + i % 26) for i in token_ids if i not in self.eos_token_ids or not skip_special_tokens)

    def token_text(self, token_id: int) -> str:
        return self.decode([token_id], False)


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class BookedRunner(FakeRunner):
    """A fake runner that books its slots' memory as the cuda runner does, with no block more than the engine counts."""

    tables: BlockTables
    shares_blocks = False
    instead: Callable[[StepBatch], StepResult] | None = None
    """Takes the steps in place of `compute`, for as long as it is set."""

    @property
    def info(self) -> RunnerInfo:
        return replace(super().info, shares_blocks=self.shares_blocks)

    def book(self, capacity_tokens: int) -> None:
        self.tables = BlockTables(
            num_blocks=1 + capacity_tokens // BLOCK_TOKENS,
            block_size=BLOCK_TOKENS,
            num_slots=self.config.num_slots,
            max_model_len=self.config.max_model_len,
        )

    def run(self, batch: StepBatch) -> StepResult:
        return (self.instead or self.compute)(batch)

    def compute(self, batch: StepBatch) -> StepResult:
        for slot, length in enumerate(batch.decode_lengths.tolist()):
            if length >= self.tables.writable[slot]:
                self.tables.extend(slot, length, length + 1)
        for chunk in batch.prefills:
            self.tables.extend(chunk.slot, chunk.num_past, chunk.num_past + len(chunk.token_ids))
        self.tables.check_integrity()
        return super().run(batch)

    def copy_slot(self, source: int, target: int, num_tokens: int) -> None:
        super().copy_slot(source, target, num_tokens)
        self.tables.share(source, target, num_tokens)

    def move_slot(self, source: int, target: int, num_tokens: int) -> None:
        FakeRunner.copy_slot(self, source, target, num_tokens)
        self.tables.move(source, target, num_tokens)

    def discard_slot(self, slot: int) -> None:
        super().discard_slot(slot)
        self.tables.discard(slot)


def make_engine(
    *,
    max_running: int = 4,
    max_model_len: int = 256,
    capacity: int = 1024,
    max_batched_tokens: int = 32,
    max_waiting: int = 64,
    prefix_cache: bool = True,
    shares_blocks: bool = False,
    clock: Clock | None = None,
    **fake: int,
) -> tuple[Engine, BookedRunner]:
    runner = BookedRunner(
        config=FakeRunnerConfig(
            vocab_size=64, max_model_len=max_model_len, num_slots=2 * max_running + 1, alphabet=(1, 60), **fake
        )
    )
    runner.book(capacity)
    runner.shares_blocks = shares_blocks
    config = EngineConfig(
        scheduler=SchedulerConfig(
            max_running_requests=max_running, max_batched_tokens=max_batched_tokens, prefix_cache=prefix_cache
        ),
        max_waiting_requests=max_waiting,
        kv_capacity_tokens=capacity,
    )
    return Engine(runner, Letters(), config, clock=clock or Clock()), runner


def request(
    request_id: str,
    prompt: Sequence[int],
    *,
    priority: int = 0,
    deadline_s: float | None = None,
    arrival_s: float = 100.0,
    **sampling: object,
) -> GenerationRequest:
    options = {"temperature": 0.0, "max_tokens": 8, **sampling}
    return GenerationRequest(
        request_id=request_id,
        prompt_token_ids=list(prompt),
        sampling=SamplingParams(**options),
        priority=priority,
        deadline_s=deadline_s,
        arrival_s=arrival_s,
    )


def run(engine: Engine, max_steps: int = 10_000, *, hold: bool = False) -> list[Event]:
    """Steps until nothing is left."""
    events: list[Event] = []
    for _ in range(max_steps):
        if not engine.has_work:
            return events
        events += engine.step(hold=hold)
    raise AssertionError("the engine does not come to an end")


def tokens_of(events: Sequence[Event], request_id: str, sequence_index: int = 0) -> list[int]:
    return [
        token
        for event in events
        if isinstance(event, Delta) and event.request_id == request_id and event.sequence_index == sequence_index
        for token in event.token_ids
    ]


def text_of(events: Sequence[Event], request_id: str) -> str:
    return "".join(e.text for e in events if isinstance(e, Delta) and e.request_id == request_id)


def ends_of(events: Sequence[Event], request_id: str) -> list[Finished]:
    return [event for event in events if isinstance(event, Finished) and event.request_id == request_id]


def expected(runner: FakeRunner, prompt: Sequence[int], count: int) -> list[int]:
    """The greedy continuation, computed without the engine."""
    history = list(prompt)
    for _ in range(count):
        history.append(next_token(runner.config, history))
    return history[len(prompt) :]
