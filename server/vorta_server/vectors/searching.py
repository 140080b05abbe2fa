"""Searches of one collection: by vector, by words or by both, filtered, grouped. On the worker's thread.

Searches with equal options are computed together: their queries are one batch for each segment. A filtered search of a
segment takes whichever is estimated to be faster, comparing with the rows that pass or looking through the index.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from vorta.errors import InvalidArgument
from vorta_server.vectors.collection import VectorCollection
from vorta_server.vectors.filtering import CompiledFilter, compile_filter, match_any_word
from vorta_server.vectors.fusion import fuse
from vorta_server.vectors.index import Found, Matrix, scan, set_threads, worst_score
from vorta_server.vectors.operation import Condition, Filter, Group, Hit, Search, SearchResult, SearchResults
from vorta_server.vectors.payloads import values_at
from vorta_server.vectors.planning import FilterView, filtered_width
from vorta_server.vectors.prepared import PreparedSearch, prepare_search
from vorta_server.vectors.segment import Segment

__all__ = [
    "Views",
    "complete_columns",
    "filter_views",
    "run_plain_searches",
    "run_searches",
    "settle_views",
]

# Below so many queries a second thread costs more than it brings.
_PARALLEL_QUERIES = 8

# Widths beyond this are no search of a graph any more.
_MAX_WIDTH = 8_192

Views = list[FilterView] | None
"""What a filter lets through, one view for each of the collection's segments; None for no filter."""

Ranked = list[tuple[int, float]]
"""Rows and scores, best first."""

Candidate = tuple[int, float, float | None, float | None]
"""Row, score, and under hybrid search the scores of both sides."""


def run_plain_searches(collection: VectorCollection, searches: Sequence[Search]) -> list[SearchResults]:
    """Answers searches by vector whose hits are ids and scores, of equal `plain_key`: checked and computed as one.

    Raises:
        InvalidArgument: One of them at least cannot be answered, or they are too many for one; which, it does not say.
    """
    row_bytes = 4 * collection.definition.dimension
    asked = searches[0]
    if len(searches) > 1:
        if any(len(search.vectors) % row_bytes for search in searches):
            raise InvalidArgument("The vectors of one of the searches are of another length.", field="vectors")
        asked = msgspec.structs.replace(asked, vectors=b"".join([search.vectors for search in searches]))
    prepared = prepare_search(collection, asked)
    assert prepared.queries is not None
    runner = _Runner(collection, None)
    columns = iter(_columns(collection, asked, *runner.dense(prepared.queries, prepared.depth, asked)))
    return [
        SearchResults(results=list(itertools.islice(columns, len(search.vectors) // row_bytes))) for search in searches
    ]


def filter_views(collection: VectorCollection, compiled: CompiledFilter | None) -> Views:
    """What a filter lets through. The segments' columns must be complete for it."""
    if compiled is None:
        return None
    found_rows: list[Any] | None = None
    views = []
    for segment in collection.segments:
        view = collection.views.get(segment, compiled.key)
        if view is None:
            if found_rows is None:
                found_rows = compiled.look_up(collection.store)
            mask = compiled.mask(segment.rows, segment.columns, found_rows)
            view = collection.views.make(segment, compiled.key, mask)
        views.append(view)
    return views


def settle_views(collection: VectorCollection, compiled: CompiledFilter | None) -> None:
    """Counts what the views of a filter take after their use."""
    if compiled is not None:
        for segment in list(collection.segments):
            collection.views.settle(segment, compiled.key)


def run_searches(collection: VectorCollection, batch: Sequence[PreparedSearch]) -> list[SearchResults]:
    """Answers searches of equal keys."""
    compiled = batch[0].compiled
    views = filter_views(collection, compiled)
    runner = _Runner(collection, views)
    found = _Found.nothing()
    strategy = "text"
    if batch[0].queries is not None:
        queries = np.concatenate([prepared.queries for prepared in batch if prepared.queries is not None])
        extra = 1 if any(prepared.own_rows for prepared in batch) else 0
        found, strategy = runner.dense(np.ascontiguousarray(queries), batch[0].depth + extra, batch[0].search)
    results = []
    start = 0
    if all(prepared.allows_columns and not prepared.search.offset for prepared in batch):
        columns = iter(_columns(collection, batch[0].search, found, strategy))
        settle_views(collection, compiled)
        return [SearchResults(results=list(itertools.islice(columns, prepared.num_queries))) for prepared in batch]
    for prepared in batch:
        part = found.part(start, prepared.num_queries)
        start += prepared.num_queries if prepared.queries is not None else 0
        if prepared.allows_columns:
            results.append(SearchResults(results=_columns(collection, prepared.search, part, strategy)))
        else:
            results.append(SearchResults(results=list(_answers(runner, prepared, part, strategy))))
    settle_views(collection, compiled)
    return results


def _columns(collection: VectorCollection, search: Search, found: _Found, strategy: str) -> list[SearchResult]:
    """Ids and scores without an object for each hit: those of all queries are looked up at once."""
    page = slice(search.offset, search.offset + search.limit)
    rows, scores = found.rows[:, page], found.scores[:, page]
    if rows.size and rows.min() >= 0:
        ids, width = collection.ids_of(rows.ravel()), rows.shape[1]
        return [
            SearchResult(strategy=strategy, ids=ids[start : start + width], scores=values.tobytes())
            for start, values in zip(range(0, len(ids), width), scores.astype("<f4", copy=False), strict=True)
        ]
    results = []
    for some, values in zip(rows, scores, strict=True):
        is_hit = some >= 0
        ids = collection.ids_of(some[is_hit])
        results.append(SearchResult(strategy=strategy, ids=ids, scores=values[is_hit].astype("<f4").tobytes()))
    return results


def _answers(runner: _Runner, prepared: PreparedSearch, found: _Found, strategy: str) -> Iterator[SearchResult]:
    search = prepared.search
    for number in range(prepared.num_queries):
        candidates: list[Candidate]
        dense: Ranked = found.ranked(number) if prepared.queries is not None else []
        if prepared.own_rows:
            own = prepared.own_rows[number]
            dense = [item for item in dense if item[0] != own][: prepared.depth]
        if prepared.words:
            text = runner.text(prepared.words[number], prepared.depth)
            if prepared.queries is None:
                candidates = [(row, score, None, None) for row, score in text]
            else:
                strategy = "hybrid"
                candidates = fuse(
                    dense,
                    text,
                    fusion=search.fusion,
                    dense_weight=search.dense_weight,
                    rrf_k=search.rrf_k,
                    is_less_better=runner.is_less_better,
                )
        else:
            candidates = [(row, score, None, None) for row, score in dense]
        if search.score_threshold is not None:
            is_less_better = runner.is_less_better and not prepared.words
            limit = search.score_threshold
            candidates = [c for c in candidates if (c[1] <= limit if is_less_better else c[1] >= limit)]
        if search.group_by:
            groups = _Grouping(runner, prepared, number).groups(candidates)
            yield SearchResult(groups=groups, strategy=strategy)
        else:
            page = candidates[search.offset : search.offset + search.limit]
            yield SearchResult(hits=runner.hits(page, search), strategy=strategy)


@dataclasses.dataclass(slots=True)
class _Found:
    """Rows and scores of each query, best first, both of shape (queries, hits); row -1 where there are fewer hits."""

    rows: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]

    @classmethod
    def nothing(cls, num_queries: int = 0) -> _Found:
        return cls(np.empty((num_queries, 0), np.int64), np.empty((num_queries, 0), np.float32))

    def part(self, start: int, count: int) -> _Found:
        return _Found(self.rows[start : start + count], self.scores[start : start + count])

    def ranked(self, number: int) -> Ranked:
        rows, scores = self.rows[number].tolist(), self.scores[number].tolist()
        return [(row, score) for row, score in zip(rows, scores, strict=True) if row >= 0]


class _Runner:
    """Searches one collection under one filter."""

    def __init__(self, collection: VectorCollection, views: Views) -> None:
        self.collection = collection
        self.views = views
        self.is_less_better = collection.distance == "l2"

    def dense(self, queries: Matrix, k: int, search: Search) -> tuple[_Found, str]:
        """The best rows by vector of each query, and how they were found."""
        collection = self.collection
        set_threads(collection.config.search_threads if len(queries) >= _PARALLEL_QUERIES else 1)
        parts: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]] = []
        used_index = False
        for number, segment in enumerate(collection.segments):
            if not segment.num_alive:
                continue
            view = self.views[number] if self.views is not None else None
            if view is not None:
                if not view.count:
                    continue
                (scores, positions), by_index = self._filtered(segment, view, queries, k, search)
            else:
                (scores, positions), by_index = self._unfiltered(segment, queries, k, search)
            used_index |= by_index
            # A position of -1, none, takes the last row first.
            rows = segment.rows[positions]
            if positions.min(initial=0) < 0:
                rows[positions < 0] = -1
            parts.append((scores, rows))
        names = ("filtered_exact", "filtered_index") if self.views is not None else ("exact", "index")
        return self._merged(parts, len(queries), k), names[used_index]

    def _unfiltered(self, segment: Segment, queries: Matrix, k: int, search: Search) -> tuple[Found, bool]:
        k = min(k, segment.num_rows)
        if search.exact or segment.index is None:
            return segment.scan(queries, k), False
        index = self.collection.definition.index
        ef, probes = search.ef_search or index.ef_search, search.num_probes or index.num_probes
        if segment.num_rows <= self.collection.config.scan_rows_per_width * max(ef, k):
            return segment.scan(queries, k), False
        return segment.search(queries, k, ef=ef, probes=probes), True

    def _filtered(
        self, segment: Segment, view: FilterView, queries: Matrix, k: int, search: Search
    ) -> tuple[Found, bool]:
        costs, config, index = self.collection.costs, self.collection.config, self.collection.definition.index
        count, num_queries = view.count, len(queries)
        k = min(k, count)
        is_gathered = view.gathered is not None
        costs.calibrate(segment, queries[:1], self.collection.distance)
        exact_s = costs.exact_s(count, num_queries, is_gathered=is_gathered)
        start_s = time.perf_counter()
        if segment.index is not None and not search.exact:
            ef = search.ef_search or index.ef_search
            probes = search.num_probes or index.num_probes
            if segment.kind == "ivf_pq":
                width = probes = _widened_probes(segment, probes, count)
                index_s, unit = costs.cells_s(width, num_queries), "probe_s"
            else:
                width = ef = filtered_width(ef, k, count / segment.num_rows)
                index_s, unit = costs.graph_s(width, num_queries), "ef_s"
            if index_s < exact_s and width <= _MAX_WIDTH:
                found = segment.index.search(queries, k, ef=ef, probes=probes, selector=view.selector)
                costs.note(unit, width * num_queries, time.perf_counter() - start_s)
                return found, True
        num_bytes = 4 * count * queries.shape[1]
        if is_gathered or num_bytes <= config.cache_bytes // 4:
            gathered = view.gather()
            gathered_s = time.perf_counter()
            if not is_gathered:
                costs.note("gather_row_s", count, gathered_s - start_s)
            scores, positions = scan(queries, gathered, k, self.collection.distance)
            costs.note("scan_row_s", count * num_queries, time.perf_counter() - gathered_s)
            return (scores, view.positions[positions]), False
        return scan(queries, segment.vectors[: view.num_rows], k, self.collection.distance, view.selector), False

    def _merged(self, parts: Sequence[Found], num_queries: int, k: int) -> _Found:
        if not parts:
            return _Found.nothing(num_queries)
        scores = parts[0][0] if len(parts) == 1 else np.concatenate([part[0] for part in parts], axis=1)
        rows = parts[0][1] if len(parts) == 1 else np.concatenate([part[1] for part in parts], axis=1)
        if len(parts) > 1:
            scores = np.where(rows < 0, worst_score(self.collection.distance), scores)
            order = np.argsort(scores if self.is_less_better else -scores, axis=1, kind="stable")[:, :k]
            scores, rows = np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
        return _Found(rows, scores)

    def text(self, words: list[str], k: int) -> Ranked:
        """The best rows by words."""
        if not words:
            return []
        match = match_any_word(words)
        limit = k if self.views is None else 4 * k
        while True:
            # The database may be ahead of what was applied here: rows that are not here yet are not seen.
            found = self.collection.store.text_hits(match, limit)
            kept = [(row, score) for row, score in found if self._passes(row)][:k]
            if len(kept) == k or len(found) < limit:
                return kept
            limit *= 4

    def _passes(self, row: int) -> bool:
        found = self.collection.locate(row)
        if found is None:
            return False
        if self.views is None:
            return True
        segment, position = found
        view = self.views[self.collection.segments.index(segment)]
        return position < view.num_rows and bool(view.mask[position])

    def hits(self, page: Sequence[Candidate], search: Search) -> list[Hit]:
        """Hits with what the search wants to see of them."""
        store = self.collection.store
        rows = [row for row, *_ in page]
        payloads = store.payloads_of(rows) if search.with_payload else None
        vectors = store.vectors_of(rows) if search.with_vector else None
        hits = []
        ids = self.collection.ids_of(np.array(rows, np.int64))
        for point_id, (row, score, dense_score, text_score) in zip(ids, page, strict=True):
            hit = Hit(id=point_id, score=score, dense_score=dense_score, text_score=text_score)
            if payloads is not None:
                hit.payload = payloads.get(row, "")
            if vectors is not None:
                hit.vector = vectors.get(row, b"")
            hits.append(hit)
        return hits


def _widened_probes(segment: Segment, probes: int, count: int) -> int:
    """Cells to look at so that about as many passing rows are seen as without a filter, all at most."""
    index = segment.index
    assert index is not None
    base = probes or int(index.faiss_index.nprobe)
    widened = max(base, round(base * math.sqrt(segment.num_rows / count)))
    return min(int(index.faiss_index.nlist), widened)


class _Grouping:
    """Makes groups of one query's hits: of more hits where they are too few, each filled by a search of its own."""

    def __init__(self, runner: _Runner, prepared: PreparedSearch, number: int) -> None:
        self._runner = runner
        self._prepared = prepared
        self._search = prepared.search
        self._number = number

    def groups(self, candidates: list[Candidate]) -> list[Group]:
        """The groups, by their best hit."""
        search, collection = self._search, self._runner.collection
        wanted = search.limit + search.offset
        grouped = self._grouped(candidates)
        depth = self._prepared.depth
        if self._can_go_on:
            while len(grouped) < wanted and depth < min(collection.num_points, 1 << 20):
                depth *= 4
                candidates = self._more(None, depth)
                grouped = self._grouped(candidates)
        page = grouped[search.offset : wanted]
        groups = []
        for value, members in page:
            if len(members) < search.group_size and depth < collection.num_points and self._can_go_on:
                members = self._more(Condition(field=search.group_by, match=value), search.group_size)
            hits = self._runner.hits(members[: search.group_size], search)
            if hits:
                groups.append(Group(value=value, hits=hits))
        return groups

    @property
    def _can_go_on(self) -> bool:
        """Whether deeper searches can be made: those of fused lists have the candidates that they have."""
        return not (self._prepared.words and self._prepared.queries is not None)

    def _more(self, condition: Condition | None, k: int) -> list[Candidate]:
        """Hits of the query beyond its first ones, or those of one group."""
        collection, search, prepared = self._runner.collection, self._search, self._prepared
        runner = self._runner
        compiled = None
        if condition is not None:
            must = [condition]
            if search.filter is not None:
                must.append(Condition(filter=search.filter))
            compiled = compile_filter(Filter(must=must), collection.kinds, collection.text_fields, collection.config)
            complete_columns(collection, compiled)
            runner = _Runner(collection, filter_views(collection, compiled))
        if prepared.words:
            ranked = runner.text(prepared.words[self._number], k)
        else:
            assert prepared.queries is not None
            query = np.ascontiguousarray(prepared.queries[self._number : self._number + 1])
            ranked = runner.dense(query, k + bool(prepared.own_rows), search)[0].ranked(0)
            if prepared.own_rows:
                ranked = [item for item in ranked if item[0] != prepared.own_rows[self._number]][:k]
        settle_views(collection, compiled)
        limit = search.score_threshold
        is_less_better = self._runner.is_less_better and not prepared.words
        return [
            (row, score, None, None)
            for row, score in ranked
            if limit is None or (score <= limit if is_less_better else score >= limit)
        ]

    def _grouped(self, candidates: list[Candidate]) -> list[tuple[str | int | bool, list[Candidate]]]:
        payloads = self._runner.collection.store.payloads_of([row for row, *_ in candidates])
        groups: dict[Any, tuple[str | int | bool, list[Any]]] = {}
        for item in candidates:
            value = _group_value(payloads.get(item[0], ""), self._search.group_by)
            if value is not None:
                # True and 1 are equal keys of a dictionary, and different groups.
                groups.setdefault((type(value), value), (value, []))[1].append(item)
        return list(groups.values())


def _group_value(payload: str, path: str) -> str | int | bool | None:
    """What a point is grouped by: a text, whole number or boolean, of several the first; None without one."""
    for value in values_at(msgspec.json.decode(payload) if payload else None, path):
        if isinstance(value, float):
            if value.is_integer():
                return int(value)
        elif isinstance(value, str | int | bool):
            return value
    return None


def complete_columns(collection: VectorCollection, compiled: CompiledFilter) -> None:
    """Reads what a filter needs of payloads and is not in memory, now."""
    for segment in collection.segments:
        paths = segment.columns.missing(compiled.paths, segment.num_rows)
        if paths:
            first = segment.columns.start_of(paths)
            rows = segment.rows
            payloads = collection.store.payloads_between(int(rows[first]), int(rows[-1]))
            segment.columns.extend(paths, collection.types, rows, payloads)
