"""Verifiable tasks: the quality measure of every model, precision and runner.

Knows nothing of models, tokenizers or servers. `generate` makes cases, `score` judges a completion, `evaluate` runs
anything that can complete text over the held-out split.
"""

from vorta_bench.tasks.case import Case, Message
from vorta_bench.tasks.registry import TASKS, VERIFIABLE_TASKS, Task, generate, split_of
from vorta_bench.tasks.scoring import TaskScore, evaluate, format_table, mean_accuracy, score

__all__ = [
    "TASKS",
    "VERIFIABLE_TASKS",
    "Case",
    "Message",
    "Task",
    "TaskScore",
    "evaluate",
    "format_table",
    "generate",
    "mean_accuracy",
    "score",
    "split_of",
]
