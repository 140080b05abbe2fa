"""Searches as they are asked, checked and ready to be computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from vorta.errors import InvalidArgument, NotFound
from vorta_server.vectors.checks import check_search
from vorta_server.vectors.collection import VectorCollection
from vorta_server.vectors.filtering import CompiledFilter, compile_filter, words_of
from vorta_server.vectors.index import Matrix
from vorta_server.vectors.operation import Search

__all__ = ["PreparedSearch", "plain_key", "prepare_search"]

_MIN_CANDIDATES = 100
_CANDIDATE_FACTOR = 4
_MIN_GROUP_HITS = 64
_MAX_GROUP_HITS = 10_000


@dataclasses.dataclass(eq=False)
class PreparedSearch:
    """A search that was checked.

    Attributes:
        search: What is asked.
        queries: Shape (queries, dimension), or None for words alone.
        own_rows: Rows that are not among the hits of each query: the points that are the queries.
        words: Of each query; empty without words.
        compiled: The filter.
        num_queries: How many.
        depth: Hits that each side gives for each query.
    """

    search: Search
    queries: Matrix | None
    own_rows: list[int]
    words: list[list[str]]
    compiled: CompiledFilter | None
    num_queries: int
    depth: int

    @property
    def allows_columns(self) -> bool:
        """Whether its hits are ids and scores and nothing else."""
        search = self.search
        return (
            search.columns
            and self.queries is not None
            and not (self.words or self.own_rows or search.group_by or search.with_payload or search.with_vector)
            and search.score_threshold is None
        )

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for searches whose vector sides can be computed as one batch."""
        search = self.search
        filter_key = self.compiled.key if self.compiled is not None else None
        return (filter_key, self.depth, search.exact, search.ef_search, search.num_probes, self.queries is None)


def prepare_search(collection: VectorCollection, search: Search) -> PreparedSearch:
    """Checks a search.

    Raises:
        InvalidArgument: Naming the field.
        NotFound: POINT_NOT_FOUND for a query by the id of no point.
    """
    config = collection.config
    check_search(search, config)
    num_queries = len(search.texts) or len(search.ids)
    queries: Matrix | None = None
    own_rows: list[int] = []
    if search.vectors:
        queries = collection.read_queries(search.vectors, num_queries or None)
    elif search.ids:
        queries, own_rows = _queries_by_id(collection, search.ids)
    if queries is not None:
        num_queries = len(queries)
    if num_queries > config.max_queries:
        raise InvalidArgument(f"There are more than {config.max_queries} queries.", field="queries")
    words: list[list[str]] = []
    if search.texts:
        if not collection.text_fields:
            raise InvalidArgument(f"{collection.definition.name} has no text fields to search.", field="text")
        words = [words_of(text, config.max_text_words) for text in search.texts]
    compiled = None
    if search.filter is not None:
        compiled = compile_filter(search.filter, collection.kinds, collection.text_fields, config)
        if not (search.filter.must or search.filter.should or search.filter.must_not):
            compiled = None
    depth = search.limit + search.offset
    if search.group_by:
        depth = min(max(_MIN_GROUP_HITS, 2 * depth * search.group_size), _MAX_GROUP_HITS)
    if words and queries is not None:
        depth = search.num_candidates or max(_MIN_CANDIDATES, _CANDIDATE_FACTOR * (search.limit + search.offset))
    return PreparedSearch(search, queries, own_rows, words, compiled, num_queries, depth)


def _queries_by_id(collection: VectorCollection, ids: Sequence[str]) -> tuple[Matrix, list[int]]:
    rows = collection.store.rows_of(ids)
    vectors = []
    for index, point_id in enumerate(ids):
        found = collection.locate(rows[point_id]) if point_id in rows else None
        if found is None:
            raise NotFound(
                f"{collection.definition.name} has no point {point_id[:256]!r}.",
                reason="POINT_NOT_FOUND",
                metadata={"field": f"ids[{index}]", "id": point_id[:256]},
            )
        segment, position = found
        vectors.append(segment.vectors[position])
    return np.array(vectors, np.float32), [rows[point_id] for point_id in ids]


def plain_key(search: Search) -> tuple[Any, ...] | None:
    """Equal for searches that `run_plain_searches` answers together; None for those that it does not answer."""
    if not search.columns or not search.vectors or search.with_payload or search.with_vector:
        return None
    if search.filter is not None or search.texts or search.ids or search.group_by:
        return None
    if search.score_threshold is not None:
        return None
    return search.limit, search.offset, search.exact, search.ef_search, search.num_probes
