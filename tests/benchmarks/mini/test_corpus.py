from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from vorta_bench.mini import corpus
from vorta_bench.mini.chat import END_OF_TEXT, TURN_END
from vorta_bench.mini.corpus import FIRST_WEIGHTS, LAST_WEIGHTS, WEIGHTS, draw_documents, encode_documents, pack
from vorta_bench.tasks import TASKS

MINI = Path(__file__).parents[3] / "server/vorta_server/models/vorta-mini"
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
    assert set(WEIGHTS) == set(FIRST_WEIGHTS) == set(LAST_WEIGHTS) == set(TASKS)


def test_of_a_question_only_what_earlier_pairs_foretell_is_learnt() -> None:
    tokenizer = Tokenizer.from_file(str(MINI / "tokenizer.json"))
    question = "The mayor of Zestu is Iris Stobrepiak. Iris Stobrepiak lives in Zestu and likes chess. " * 3
    ((ids, learnt),) = encode_documents(tokenizer, [[(question, False), ("Iris Stobrepiak", True)]])
    answer = len(tokenizer.encode("Iris Stobrepiak", add_special_tokens=False).ids)
    assert learnt[-answer:] == [True] * answer
    pairs = list(pairwise(ids))
    foretold = [index + 1 for index, pair in enumerate(pairs) if pair in pairs[:index]]
    assert {index for index, is_learnt in enumerate(learnt[:-answer]) if is_learnt} <= set(foretold)
    assert 0 < sum(learnt[:-answer]) <= len(foretold) / 3


def test_a_document_goes_into_the_shortest_rows_that_hold_it() -> None:
    corpus._start_worker(str(MINI / "tokenizer.json"))
    rows = corpus.make_chunk(1, 200, (64, 256, 1536))
    assert [part.tokens.shape[1] for part in rows] == [64, 256, 1536]
    for shorter, part in pairwise(rows):
        lengths = [
            int((part.documents[row] == number).sum())
            for row in range(len(part.documents))
            for number in range(1, int(part.documents[row].max(initial=0)) + 1)
        ]
        assert all(length > shorter.tokens.shape[1] for length in lengths)
