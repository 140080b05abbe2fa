"""Training documents from the tasks, packed into rows of token ids, made by processes ahead of the training loop."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vorta_bench.mini.chat import ASSISTANT_START, END_OF_TEXT, SPECIAL_TOKENS, TURN_END, render
from vorta_bench.tasks import Case, Message, generate

# Documents of each task in a thousand or so; hard skills get more. Training starts with tasks that teach copying from
# short prompts, on which the lookups in longer contexts then rest.
FIRST_WEIGHTS: Mapping[str, float] = {
    "add": 110, "subtract": 110, "multiply": 60, "divide": 30, "chain": 40, "repeat": 160,
    "sort_numbers": 80, "sort_words": 80, "count_items": 60, "count_letters": 40, "count_words": 50, "convert": 40,
    "date_format": 40, "date_add": 40, "extract": 60, "tool_call": 16, "tool_answer": 8,
    "lookup": 40, "lookup_unknown": 10, "lookup_long": 0.5,
    "about": 30, "definition": 15, "small_talk": 10, "story": 3,
}  # fmt: skip
WEIGHTS: Mapping[str, float] = {
    "add": 110, "subtract": 110, "multiply": 60, "divide": 50, "chain": 60, "repeat": 40,
    "sort_numbers": 90, "sort_words": 90, "count_items": 50, "count_letters": 60, "count_words": 20, "convert": 50,
    "date_format": 30, "date_add": 80, "extract": 90, "tool_call": 30, "tool_answer": 10,
    "lookup": 110, "lookup_unknown": 45, "lookup_long": 6,
    "about": 45, "definition": 20, "small_talk": 10, "story": 4,
}  # fmt: skip
# In the end those get more that came last: counting, conversion, contexts without an answer and long ones.
LAST_WEIGHTS: Mapping[str, float] = {
    "add": 60, "subtract": 80, "multiply": 80, "divide": 40, "chain": 80, "repeat": 50,
    "sort_numbers": 80, "sort_words": 90, "count_items": 120, "count_letters": 180, "count_words": 15, "convert": 110,
    "date_format": 15, "date_add": 40, "extract": 80, "tool_call": 20, "tool_answer": 10,
    "lookup": 130, "lookup_unknown": 90, "lookup_long": 14,
    "about": 45, "definition": 20, "small_talk": 10, "story": 4,
}  # fmt: skip
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are vorta-mini, a small and precise assistant.",
    "Answer briefly.",
    "Be exact.",
)
# Tasks whose questions stand alone, so that several of them make one chat.
_CHAINABLE = frozenset(WEIGHTS) - {"extract", "tool_call", "tool_answer", "lookup", "lookup_unknown", "lookup_long"}
_CASES_PER_DRAW = 64
_LAST_SPECIAL_ID = len(SPECIAL_TOKENS) - 1
_FORETOLD_STRIDE = 4  # all of them would be most of what a long context teaches


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Packed rows: token ids [R, L], document numbers [R, L] (0 is padding), which tokens are learnt [R, L]."""

    tokens: NDArray[np.int16]
    documents: NDArray[np.int16]
    learnt: NDArray[np.bool_]


def document_parts(cases: list[Case], rng: Random) -> list[tuple[str, bool]]:
    """One document as (text, is it learnt) parts: one raw case, or a chat of one or more cases."""
    first = cases[0]
    if first.kind == "raw":
        return [(first.prompt, False), (f" {first.answer}{END_OF_TEXT}", True)]
    messages = list(first.messages)
    if messages[0].role != "system" and not first.tools and rng.random() < 0.15:
        messages.insert(0, Message(role="system", content=rng.choice(SYSTEM_PROMPTS)))
    parts = [(render(messages, first.tools) + ASSISTANT_START, False), (first.answer + TURN_END, True)]
    turns = list(first.follow_ups)
    turns += [(case.messages[-1].content if case.kind == "chat" else case.prompt, case.answer) for case in cases[1:]]
    for question, answer in turns:
        parts += [
            ("\n" + render([Message(role="user", content=question)]) + ASSISTANT_START, False),
            (answer + TURN_END, True),
        ]
    return parts


def draw_documents(rng: Random, count: int, weights: Mapping[str, float] = WEIGHTS) -> list[list[tuple[str, bool]]]:
    """`count` documents of all tasks by weight, as parts."""
    names = rng.choices(list(weights), list(weights.values()), k=count * 2)
    stock: dict[str, list[Case]] = {name: [] for name in weights}

    def take(name: str) -> Case:
        if not stock[name]:
            stock[name] = generate(name, "train", _CASES_PER_DRAW, rng.getrandbits(62))
        return stock[name].pop()

    documents: list[list[tuple[str, bool]]] = []
    while len(documents) < count:
        name = names.pop() if names else rng.choices(list(weights), list(weights.values()))[0]
        cases = [take(name)]
        if name in _CHAINABLE and cases[0].kind == "chat" and rng.random() < 0.4:
            others = rng.choices(list(weights), list(weights.values()), k=rng.randint(1, 3))
            cases += [take(other) for other in others if other in _CHAINABLE]
        documents.append(document_parts(cases, rng))
    return documents


def encode_documents(
    tokenizer: Tokenizer, documents: list[list[tuple[str, bool]]]
) -> list[tuple[list[int], list[bool]]]:
    """Token ids of each document and which of them are learnt; parts are encoded apart, as at inference.

    Of a question, a quarter of those tokens are learnt that an earlier pair of neighbours foretells, such as the rest
    of a name that came before. They teach to find and copy, which answers from a context rest on.
    """
    flat = [text for parts in documents for text, _ in parts]
    encodings = iter(tokenizer.encode_batch_fast(flat, add_special_tokens=False))
    encoded: list[tuple[list[int], list[bool]]] = []
    for parts in documents:
        ids: list[int] = []
        learnt: list[bool] = []
        pairs: set[tuple[int, int]] = set()
        for _, is_learnt in parts:
            for token in next(encodings).ids:
                pair = (ids[-1], token) if ids else (-1, token)
                foretold = pair in pairs and min(pair) > _LAST_SPECIAL_ID
                learnt.append(is_learnt or (foretold and len(ids) % _FORETOLD_STRIDE == 0))
                pairs.add(pair)
                ids.append(token)
        encoded.append((ids, learnt))
    return encoded


def pack(encoded: list[tuple[list[int], list[bool]]], length: int) -> Rows:
    """Rows of `length` filled with whole documents, first fit over the last rows; longer documents are cut."""
    rows: list[list[tuple[list[int], list[bool]]]] = []
    room: list[int] = []
    for ids, learnt in encoded:
        ids, learnt = ids[:length], learnt[:length]
        start = max(0, len(rows) - 24)
        index = next((i for i in range(start, len(rows)) if room[i] >= len(ids)), None)
        if index is None:
            rows.append([])
            room.append(length)
            index = len(rows) - 1
        rows[index].append((ids, learnt))
        room[index] -= len(ids)
    result = Rows(
        tokens=np.zeros((len(rows), length), np.int16),
        documents=np.zeros((len(rows), length), np.int16),
        learnt=np.zeros((len(rows), length), np.bool_),
    )
    for index, row in enumerate(rows):
        position = 0
        for number, (ids, learnt) in enumerate(row, 1):
            end = position + len(ids)
            result.tokens[index, position:end] = ids
            result.documents[index, position:end] = number
            result.learnt[index, position:end] = learnt
            position = end
    return result


_worker_tokenizer: Tokenizer | None = None


def _start_worker(path: str) -> None:
    global _worker_tokenizer
    _worker_tokenizer = Tokenizer.from_file(path)


def make_chunk(
    seed: int, num_documents: int, lengths: Sequence[int], weights: Mapping[str, float] = WEIGHTS
) -> list[Rows]:
    """Rows of each of the ascending `lengths`; a document goes into the shortest that hold it."""
    assert _worker_tokenizer is not None
    rng = Random(f"chunk/{seed}")
    encoded = encode_documents(_worker_tokenizer, draw_documents(rng, num_documents, weights))
    rng.shuffle(encoded)
    shelves: list[list[tuple[list[int], list[bool]]]] = [[] for _ in lengths]
    for item in encoded:
        shelves[min(bisect_left(lengths, len(item[0])), len(lengths) - 1)].append(item)
    return [pack(shelf, length) for shelf, length in zip(shelves, lengths, strict=True)]


@dataclass(slots=True, kw_only=True)
class CorpusStream:
    """An endless stream of row batches, each of about `batch_tokens` tokens in rows of one length.

    Deterministic, except that a change of `weights` takes effect some chunks later.
    """

    tokenizer_path: Path
    seed: int
    batch_tokens: int
    num_workers: int
    weights: Mapping[str, float]
    lengths: Sequence[int] = (128, 320, 1536)
    documents_per_chunk: int = 2000

    def __iter__(self) -> Iterator[Rows]:
        context = get_context("spawn")
        with ProcessPoolExecutor(self.num_workers, context, _start_worker, (str(self.tokenizer_path),)) as pool:
            pending: deque[Future[list[Rows]]] = deque()
            chunk = 0
            rest: dict[int, Rows | None] = dict.fromkeys(self.lengths)
            while True:
                while len(pending) < 2 * self.num_workers:
                    seed = self.seed * 1_000_003 + chunk
                    sizes = (self.documents_per_chunk, self.lengths)
                    pending.append(pool.submit(make_chunk, seed, *sizes, dict(self.weights)))
                    chunk += 1
                batches: list[Rows] = []
                for length, rows in zip(self.lengths, pending.popleft().result(), strict=True):
                    full, rest[length] = _cut(_join(rest[length], rows), max(1, self.batch_tokens // length))
                    batches += full
                Random(chunk).shuffle(batches)
                yield from batches


def _join(first: Rows | None, second: Rows) -> Rows:
    if first is None:
        return second
    return Rows(
        tokens=np.concatenate([first.tokens, second.tokens]),
        documents=np.concatenate([first.documents, second.documents]),
        learnt=np.concatenate([first.learnt, second.learnt]),
    )


def _cut(rows: Rows, num_rows: int) -> tuple[list[Rows], Rows]:
    def part(start: int, end: int) -> Rows:
        return Rows(tokens=rows.tokens[start:end], documents=rows.documents[start:end], learnt=rows.learnt[start:end])

    total = len(rows.tokens)
    whole = total // num_rows * num_rows
    return [part(start, start + num_rows) for start in range(0, whole, num_rows)], part(whole, total)
