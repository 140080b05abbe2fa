"""What counts as right, and the runner that measures it for anything that can complete text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vorta_bench.tasks.case import Case
from vorta_bench.tasks.registry import VERIFIABLE_TASKS, generate

Complete = Callable[[Sequence[Case]], Sequence[str]]
DEFAULT_SEED = 2024


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """Exact matches of one task."""

    task: str
    num_cases: int
    num_right: int

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 to 1."""
        return self.num_right / self.num_cases if self.num_cases else 0.0


def score(case: Case, completion: str) -> bool:
    """Exact match: the whole completion, apart from white space at its ends, is the answer."""
    return completion.strip() == case.answer


def evaluate(
    complete: Complete, *, tasks: Sequence[str] = VERIFIABLE_TASKS, num_cases: int = 100, seed: int = DEFAULT_SEED
) -> dict[str, TaskScore]:
    """Score `complete`, which maps cases to completions in the same order, on held-out cases of each task."""
    scores: dict[str, TaskScore] = {}
    for task in tasks:
        cases = generate(task, "heldout", num_cases, seed)
        completions = complete(cases)
        if len(completions) != len(cases):
            raise ValueError(f"complete: returned {len(completions)} completions for {len(cases)} cases")
        num_right = sum(score(case, text) for case, text in zip(cases, completions, strict=True))
        scores[task] = TaskScore(task=task, num_cases=len(cases), num_right=num_right)
    return scores


def mean_accuracy(scores: Mapping[str, TaskScore]) -> float:
    """Mean over tasks, each with equal weight, 0 to 1."""
    return sum(score.accuracy for score in scores.values()) / len(scores) if scores else 0.0


def format_table(columns: Mapping[str, Mapping[str, TaskScore]]) -> str:
    """A table in Markdown: one row a task, one column a run (such as a precision), exact match in percent."""
    names = list(columns)
    tasks = list(dict.fromkeys(task for scores in columns.values() for task in scores))
    lines = ["| task | cases | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for task in tasks:
        cells = [f"{100 * columns[name][task].accuracy:.1f}" if task in columns[name] else "" for name in names]
        num_cases = next(columns[name][task].num_cases for name in names if task in columns[name])
        lines.append(f"| {task} | {num_cases} | " + " | ".join(cells) + " |")
    lines.append(
        "| **mean** | | " + " | ".join(f"**{100 * mean_accuracy(columns[name]):.1f}**" for name in names) + " |"
    )
    return "\n".join(lines)
