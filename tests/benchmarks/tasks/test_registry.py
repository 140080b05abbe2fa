import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vorta_bench.tasks import TASKS, VERIFIABLE_TASKS, Case, generate, split_of
from vorta_bench.tasks.about import FACTS
from vorta_bench.tasks.case import TABLE
from vorta_bench.tasks.lookup import UNKNOWN


@pytest.mark.parametrize("task", TASKS)
def test_same_arguments_give_same_cases(task: str) -> None:
    assert generate(task, "train", 20, 7) == generate(task, "train", 20, 7)
    assert generate(task, "train", 20, 7) != generate(task, "train", 20, 8)


@pytest.mark.parametrize("task", [*VERIFIABLE_TASKS, "about"])
def test_splits_share_no_problem(task: str) -> None:
    train = {case.key for case in generate(task, "train", 1500, 1)}
    heldout = {case.key for case in generate(task, "heldout", 150, 1)}
    assert heldout
    assert not train & heldout
    assert all(split_of(task, key) == "heldout" for key in heldout)


@settings(deadline=None)
@given(st.sampled_from(VERIFIABLE_TASKS), st.text())
def test_split_depends_on_the_key_alone(task: str, key: str) -> None:
    assert split_of(task, key) == split_of(task, key)
    assert split_of(task, key) in ("train", "heldout")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing", "train"), "task: unknown task 'nothing'"),
        (("add", "test"), "split: must be 'train' or 'heldout'"),
        (("story", "heldout"), "task: 'story' has no held-out problems"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(*arguments, 1, 0)  # type: ignore[arg-type]


def _question(case: Case) -> str:
    return case.prompt or case.messages[-1].content


@pytest.mark.parametrize("task", ["add", "subtract", "multiply", "divide", "chain"])
def test_arithmetic_is_right(task: str) -> None:
    for case in generate(task, "train", 300, 3):
        expression = case.key.removeprefix(TABLE).replace("/", "//")
        wanted = eval(expression)
        assert int(re.findall(r"-?\d+", case.answer)[-1]) == wanted
        for left, right in re.findall(r"([\d */+-]+) = (\d+)", case.answer):
            assert eval(left) == int(right)


def test_json_answers_are_json() -> None:
    for case in generate("extract", "train", 200, 3):
        fields = json.loads(case.answer)
        assert all(str(value) in _question(case) for value in fields.values())
    for case in generate("tool_call", "train", 200, 3):
        call = json.loads(case.answer.removeprefix("<tool_call>").removesuffix("</tool_call>"))
        offered = [tool["function"]["name"] for tool in case.tools]
        assert call["name"] in offered


def test_lookup_answers_stand_in_the_context() -> None:
    for case in generate("lookup", "heldout", 200, 3):
        assert case.answer in _question(case)
    assert {case.answer for case in generate("lookup_unknown", "heldout", 50, 3)} == {UNKNOWN}


def test_facts_have_unique_keys_and_questions() -> None:
    keys = [fact.key for fact in FACTS]
    assert len(keys) == len(set(keys))
    questions = [question for fact in FACTS for question in fact.questions]
    assert len(questions) == len(set(questions))
    assert len(questions) >= 240
    assert all(len(fact.questions) >= 3 for fact in FACTS)
