"""All task families, the split of their problems, and `generate`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType

from vorta_bench.tasks import arithmetic, copying, counting, dates, extraction, lookup, sorting, tool_call, units
from vorta_bench.tasks.about import about, is_heldout_question
from vorta_bench.tasks.case import TABLE, Case, Draft, Generator, Message, Split
from vorta_bench.tasks.conversation import definition, small_talk
from vorta_bench.tasks.story import story

HELDOUT_SHARE = 0.08
_MAX_DRAWS_PER_CASE = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A family: its generator, whether it is judged on unseen problems, whether it is also asked raw.

    A task with `is_verifiable` false is recall or prose: it has no held-out problems, except that
    `about` holds out wordings.
    """

    draw: Generator
    is_verifiable: bool = True
    allows_raw: bool = False


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "add": Task(draw=arithmetic.add, allows_raw=True),
        "subtract": Task(draw=arithmetic.subtract, allows_raw=True),
        "multiply": Task(draw=arithmetic.multiply, allows_raw=True),
        "divide": Task(draw=arithmetic.divide, allows_raw=True),
        "chain": Task(draw=arithmetic.chain, allows_raw=True),
        "repeat": Task(draw=copying.repeat),
        "sort_numbers": Task(draw=sorting.sort_numbers),
        "sort_words": Task(draw=sorting.sort_words),
        "count_items": Task(draw=counting.count_items),
        "count_letters": Task(draw=counting.count_letters),
        "count_words": Task(draw=counting.count_words),
        "convert": Task(draw=units.convert, allows_raw=True),
        "date_format": Task(draw=dates.date_format),
        "date_add": Task(draw=dates.date_add),
        "extract": Task(draw=extraction.extract),
        "tool_call": Task(draw=tool_call.tool_call),
        "tool_answer": Task(draw=tool_call.tool_answer),
        "lookup": Task(draw=lookup.lookup),
        "lookup_unknown": Task(draw=lookup.lookup_unknown),
        "lookup_long": Task(draw=lookup.lookup_long),
        "about": Task(draw=about, is_verifiable=False, allows_raw=True),
        "definition": Task(draw=definition, is_verifiable=False, allows_raw=True),
        "small_talk": Task(draw=small_talk, is_verifiable=False),
        "story": Task(draw=story, is_verifiable=False),
    }
)
VERIFIABLE_TASKS: tuple[str, ...] = tuple(name for name, task in TASKS.items() if task.is_verifiable)


def split_of(task: str, key: str) -> Split:
    """The split to which the problem `key` belongs, whatever the seed.

    Recall tasks are all training, except that `about` keeps one wording of each fact apart.
    """
    if task == "about":
        return "heldout" if is_heldout_question(key) else "train"
    if not TASKS[task].is_verifiable or key.startswith(TABLE):
        return "train"
    digest = hashlib.blake2b(f"{task}:{key}".encode(), digest_size=4).digest()
    return "heldout" if int.from_bytes(digest, "big") < HELDOUT_SHARE * 2**32 else "train"


def generate(task: str, split: Split, count: int, seed: int) -> list[Case]:
    """`count` cases of one task and split, the same for the same arguments.

    Raises:
        ValueError: unknown task, unknown split, or a task that has no held-out problems.
    """
    if task not in TASKS:
        raise ValueError(f"task: unknown task {task!r}, known are {', '.join(TASKS)}")
    if split not in ("train", "heldout"):
        raise ValueError(f"split: must be 'train' or 'heldout', got {split!r}")
    if split == "heldout" and not TASKS[task].is_verifiable and task != "about":
        raise ValueError(f"task: {task!r} has no held-out problems")
    rng = Random(f"{task}/{split}/{seed}")
    cases: list[Case] = []
    for _ in range(count * _MAX_DRAWS_PER_CASE):
        if len(cases) == count:
            break
        draft = TASKS[task].draw(rng)
        if split_of(task, draft.key) == split:
            cases.append(_case(task, draft, rng))
    return cases


def _case(task: str, draft: Draft, rng: Random) -> Case:
    if TASKS[task].allows_raw and rng.random() < 0.25:
        return Case(task=task, kind="raw", answer=draft.answer, key=draft.key, prompt=draft.question)
    messages: list[Message] = []
    if draft.system is not None:
        messages.append(Message(role="system", content=draft.system))
    messages += draft.history
    if draft.question:
        messages.append(Message(role="user", content=draft.question))
    return Case(
        task=task,
        kind="chat",
        answer=draft.answer,
        key=draft.key,
        messages=tuple(messages),
        tools=draft.tools,
        follow_ups=draft.follow_ups,
    )
