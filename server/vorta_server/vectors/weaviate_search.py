"""Searches in Weaviate: by vector, by a point's id, by words, or by both; groups.

Fusing and grouping happen here and not in Weaviate, so that both backends rank alike. Imports the weaviate package:
import this module only where that is installed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from weaviate.classes.query import Filter as Where
from weaviate.classes.query import FilterReturn, MetadataQuery
from weaviate.collections import Collection as WeaviateCollection

from vorta.errors import InvalidArgument, NotFound, Unimplemented
from vorta_server.vectors.operation import (
    Collection,
    Condition,
    Filter,
    Group,
    Hit,
    Search,
    SearchResult,
    SearchResults,
)
from vorta_server.vectors.weaviate_checks import MAX_LIMIT, check_search, check_vectors
from vorta_server.vectors.weaviate_client import call_deadline, current_deadline_s
from vorta_server.vectors.weaviate_filter import Fields, translate
from vorta_server.vectors.weaviate_rank import fuse, group_value, in_order, passes
from vorta_server.vectors.weaviate_schema import FIELDS, ID, PAYLOAD, encode_name, object_uuid, property_name

__all__ = ["Searcher", "found_vector"]

_MAX_QUERIES = 1024
_MAX_GROUP_QUERIES = 32


def found_vector(item: Any) -> bytes:
    """An object's vector as float32."""
    return np.asarray(item.vector["default"], dtype="<f4").tobytes()


class Searcher:
    """Runs searches; the queries of one search beside each other.

    Weaviate chooses by itself how a graph is searched: `ef_search` and `num_probes` of a search count for nothing
    there, the collection's `ef_search` does.
    """

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def search(
        self,
        search: Search,
        collection: Collection,
        objects: WeaviateCollection[dict[str, Any], None],
        where: FilterReturn | None,
        fields: Fields,
    ) -> SearchResults:
        """The search's results.

        Args:
            search: What is asked.
            collection: The definition.
            objects: The class.
            where: The search's filter in Weaviate's terms.
            fields: The kinds of values that the payload fields have.

        Raises:
            InvalidArgument: A value is out of range, or a text is given to a collection without text fields.
            NotFound: POINT_NOT_FOUND for a query by an unknown id.
            Unimplemented: An exact search of a collection with an approximate index.
        """
        num_queries = check_search(search)
        if search.texts and not collection.text_fields:
            raise InvalidArgument(f"{collection.name} has no text fields to search.", field="text")
        vectors = check_vectors(
            search.vectors, collection, "vectors", count=(num_queries or None) if search.vectors else 0
        )
        if len(vectors) > _MAX_QUERIES:
            raise InvalidArgument(f"There are more than {_MAX_QUERIES} queries.", field="queries")
        has_vector_side = bool(len(vectors) or search.ids)
        if search.exact and has_vector_side and collection.index.kind != "flat":
            raise Unimplemented(
                'Weaviate searches exactly only in collections whose index is of kind "flat".',
                metadata={"field": "exact"},
            )
        query = _Query(search, collection, objects, where, fields)
        rows: list[list[float] | None] = list(vectors.tolist()) if len(vectors) else []
        if search.ids:
            rows = list(query.vectors_of(search.ids))
        texts: list[str | None] = list(search.texts) or [None] * len(rows)
        rows = rows or [None] * len(texts)
        ids: list[str | None] = list(search.ids) or [None] * len(texts)
        jobs = list(zip(rows, texts, ids, strict=True))
        if len(jobs) == 1:
            return SearchResults(results=[query.run(*jobs[0])])
        deadline_s = current_deadline_s()

        def run(job: tuple[list[float] | None, str | None, str | None]) -> SearchResult:
            with call_deadline(deadline_s):
                return query.run(*job)

        return SearchResults(results=list(self._started().map(run, jobs)))

    def close(self) -> None:
        """Ends the threads."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    def _started(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="weaviate-query")
            return self._pool


class _Query:
    """One search's queries."""

    def __init__(
        self,
        search: Search,
        collection: Collection,
        objects: WeaviateCollection[dict[str, Any], None],
        where: FilterReturn | None,
        fields: Fields,
    ) -> None:
        self._fields = fields
        self._search = search
        self._collection = collection
        self._objects = objects
        self._is_less_better = collection.distance == "l2"
        self._is_filtered = where is not None
        if search.group_by:
            has_group = Where.by_property(FIELDS).equal(encode_name(search.group_by))
            where = has_group if where is None else Where.all_of([where, has_group])
        self._where = where
        self._needs_payload = search.with_payload or bool(search.group_by)
        self._text_properties = [name for path in collection.text_fields if (name := property_name("text", path))]

    def vectors_of(self, ids: list[str]) -> list[list[float]]:
        """Vectors of points."""
        distinct = list(dict.fromkeys(ids))
        reply = self._objects.query.fetch_objects(
            filters=Where.by_id().contains_any([object_uuid(point_id) for point_id in distinct]),
            limit=len(distinct),
            return_properties=[ID],
            include_vector=True,
        )
        found: dict[str, Any] = {str(item.properties[ID]): item.vector["default"] for item in reply.objects}
        for point_id in distinct:
            if point_id not in found:
                name = self._collection.name
                raise NotFound(
                    f"{name} has no point {point_id}.",
                    reason="POINT_NOT_FOUND",
                    metadata={"collection": name, "id": point_id},
                )
        return [found[point_id] for point_id in ids]

    def run(self, vector: list[float] | None, text: str | None, own_id: str | None) -> SearchResult:
        """One query's result; the point `own_id` is not among the hits."""
        search = self._search
        if vector is not None and text is not None:
            wanted = search.limit + search.offset
            k = search.num_candidates or min(max(100, 4 * wanted), MAX_LIMIT)
            hits = fuse(
                self._dense(vector, k, own_id, self._where),
                self._words(text, k, own_id, self._where),
                fusion=search.fusion,
                dense_weight=search.dense_weight,
                rrf_k=search.rrf_k,
                is_less_better=self._is_less_better,
            )
            return self._result(hits, "hybrid", is_less_better=False)
        if vector is None:
            assert text is not None
            return self._ranked(lambda k, where: self._words(text, k, own_id, where), "text", is_less_better=False)
        strategy = "exact" if self._collection.index.kind == "flat" else "index"
        return self._ranked(
            lambda k, where: self._dense(vector, k, own_id, where),
            f"filtered_{strategy}" if self._is_filtered else strategy,
            is_less_better=self._is_less_better,
        )

    def _ranked(
        self, find: Callable[[int, FilterReturn | None], list[Hit]], strategy: str, *, is_less_better: bool
    ) -> SearchResult:
        search = self._search
        wanted = search.limit + search.offset
        if not search.group_by:
            return self._result(find(wanted, self._where), strategy, is_less_better=is_less_better)
        # Groups need an unknown number of hits: ask for more until there are enough groups or no more hits.
        k = min(wanted * search.group_size, MAX_LIMIT)
        while True:
            hits = find(k, self._where)
            groups = _grouped(hits, search.group_by)
            is_cut = bool(hits) and not passes(hits[-1].score, search.score_threshold, is_less_better=is_less_better)
            if is_cut or len(hits) < k or k >= MAX_LIMIT:
                break
            unfilled = [group for group in groups[search.offset : wanted] if len(group.hits) < search.group_size]
            if len(groups) >= wanted and len(unfilled) <= _MAX_GROUP_QUERIES:
                for group in unfilled:
                    group.hits = self._of_group(group, find)
                hits = in_order((hit for group in groups for hit in group.hits), is_less_better=is_less_better)
                break
            k = min(4 * k, MAX_LIMIT)
        return self._result(hits, strategy, is_less_better=is_less_better)

    def _of_group(self, group: Group, find: Callable[[int, FilterReturn | None], list[Hit]]) -> list[Hit]:
        """The best hits of one group."""
        search = self._search
        try:
            equal = translate(Filter(must=[Condition(field=search.group_by, match=group.value)]), self._fields)
        except InvalidArgument:  # a field so new that only another process knows it
            return group.hits
        parts = [part for part in (self._where, equal) if part is not None]
        found = find(search.group_size, Where.all_of(parts))
        # Of a list any item is equal to the value, but the first one decides the group.
        same = [hit for hit in found if hit.id not in {known.id for known in group.hits}]
        return group.hits + [hit for hit in same if group_value(hit.payload, search.group_by) == group.value]

    def _result(self, hits: list[Hit], strategy: str, *, is_less_better: bool) -> SearchResult:
        search = self._search
        good = [hit for hit in hits if passes(hit.score, search.score_threshold, is_less_better=is_less_better)]
        if not search.group_by:
            return SearchResult(hits=good[search.offset : search.offset + search.limit], strategy=strategy)
        groups = _grouped(good, search.group_by)[search.offset : search.offset + search.limit]
        for group in groups:
            del group.hits[search.group_size :]
            if not search.with_payload:
                for hit in group.hits:
                    hit.payload = ""
        return SearchResult(groups=groups, strategy=strategy)

    def _dense(self, vector: list[float], k: int, own_id: str | None, where: FilterReturn | None) -> list[Hit]:
        reply = self._objects.query.near_vector(
            near_vector=vector,
            target_vector="default",
            limit=min(k + (own_id is not None), MAX_LIMIT),
            filters=where,
            return_metadata=MetadataQuery(distance=True),
            return_properties=self._properties(),
            include_vector=self._search.with_vector,
        )
        hits = [self._hit(item, self._score(float(item.metadata.distance or 0.0))) for item in reply.objects]
        return in_order((h for h in hits if h.id != own_id), is_less_better=self._is_less_better)[:k]

    def _score(self, distance: float) -> float:
        """The score of one of Weaviate's distances: 1 - cosine, - dot product, or squared Euclidean."""
        if self._collection.distance == "l2":
            return distance
        return 1.0 - distance if self._collection.distance == "cosine" else -distance

    def _words(self, text: str, k: int, own_id: str | None, where: FilterReturn | None) -> list[Hit]:
        reply = self._objects.query.bm25(
            query=text,
            query_properties=self._text_properties,
            limit=min(k + (own_id is not None), MAX_LIMIT),
            filters=where,
            return_metadata=MetadataQuery(score=True),
            return_properties=self._properties(),
            include_vector=self._search.with_vector,
        )
        hits = [self._hit(item, float(item.metadata.score or 0.0)) for item in reply.objects]
        return in_order((h for h in hits if h.id != own_id), is_less_better=False)[:k]

    def _properties(self) -> list[str]:
        return [ID, PAYLOAD] if self._needs_payload else [ID]

    def _hit(self, item: Any, score: float) -> Hit:
        return Hit(
            id=str(item.properties[ID]),
            score=score,
            payload=str(item.properties.get(PAYLOAD) or "") if self._needs_payload else "",
            vector=found_vector(item) if self._search.with_vector else b"",
        )


def _grouped(hits: list[Hit], path: str) -> list[Group]:
    groups: dict[tuple[type, str | int | bool], Group] = {}
    for hit in hits:
        value = group_value(hit.payload, path)
        if value is not None:
            # The type too: 1 and true are equal to Python.
            groups.setdefault((type(value), value), Group(value=value, hits=[])).hits.append(hit)
    return list(groups.values())
