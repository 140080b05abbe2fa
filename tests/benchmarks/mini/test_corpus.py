from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vorta_bench.mini.chat import END_OF_TEXT, TURN_END
from vorta_bench.mini.corpus import FIRST_WEIGHTS, WEIGHTS, draw_documents, pack
from vorta_bench.tasks import TASKS

_DOCUMENTS = st.lists(st.lists(st.integers(1, 4095), min_size=1, max_size=40), max_size=60)


@settings(deadline=None)
@given(_DOCUMENTS)
def test_packing_keeps_every_token_in_order(documents: list[list[int]]) -> None:
    rows = pack([(ids, [True] * len(ids)) for ids in documents], 32)
    packed = [
        rows.tokens[row][rows.documents[row] == number].tolist()
        for row in range(len(rows.tokens))
        for number in range(1, int(rows.documents[row].max(initial=0)) + 1)
    ]
    assert sorted(packed) == sorted(ids[:32] for ids in documents)
    assert np.array_equal(rows.learnt, rows.documents > 0)


def test_documents_are_the_same_for_a_seed_and_end_in_a_learnt_end_token() -> None:
    documents = draw_documents(Random(3), 200)
    assert documents == draw_documents(Random(3), 200)
    for parts in documents:
        text, is_learnt = parts[-1]
        assert is_learnt
        assert text.endswith((TURN_END, END_OF_TEXT))
        assert not parts[0][1]


def test_every_task_has_a_weight() -> None:
    assert set(WEIGHTS) == set(FIRST_WEIGHTS) == set(TASKS)
