from collections.abc import Sequence

import pytest

from vorta_bench.tasks import Case, evaluate, format_table, generate, mean_accuracy, score


def test_exact_match_ignores_outer_white_space_only() -> None:
    case = generate("add", "train", 1, 1)[0]
    assert score(case, f" {case.answer}\n")
    assert not score(case, f"{case.answer}.")
    assert not score(case, "")


def test_evaluate_counts_each_task() -> None:
    def complete(cases: Sequence[Case]) -> list[str]:
        return [case.answer if case.task == "add" else "no" for case in cases]

    scores = evaluate(complete, tasks=("add", "chain"), num_cases=10)
    assert scores["add"].accuracy == 1.0
    assert scores["chain"].accuracy == 0.0
    assert mean_accuracy(scores) == 0.5
    assert "| add | 10 | 100.0 |" in format_table({"fp32": scores})


def test_a_missing_completion_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 completions for 5 cases"):
        evaluate(lambda cases: [], tasks=("add",), num_cases=5)
