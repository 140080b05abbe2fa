"""Refuses operations with values out of range, before Weaviate is asked. Needs no weaviate package."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from vorta.errors import InvalidArgument
from vorta_server.vectors.checks import check_name
from vorta_server.vectors.operation import Collection, Search, UpsertPoints
from vorta_server.vectors.weaviate_schema import PREFIXES, property_name

__all__ = [
    "MAX_LIMIT",
    "check_collection",
    "check_ids",
    "check_limit",
    "check_name",
    "check_search",
    "check_upsert",
    "check_vectors",
]

MAX_LIMIT = 10_000
_MAX_QUERIES = 1024


def check_collection(collection: Collection) -> None:
    """Refuses a definition with values out of range."""
    check_name(collection.name, "collection")
    _within("dimension", collection.dimension, 1, 65_536)
    _one_of("distance", collection.distance, ("cosine", "dot", "l2"))
    index = collection.index
    _one_of("index.kind", index.kind, ("auto", "flat", "hnsw", "ivf_pq", "sq8"))
    _within("index.m", index.m, 4, 128)
    _within("index.ef_construction", index.ef_construction, 8, 4096)
    _within("index.ef_search", index.ef_search, 1, 4096)
    for path, kind in collection.schema.items():
        _one_of(f"schema[{path}]", kind, tuple(PREFIXES))
        if not path or property_name(kind, path) is None:
            raise InvalidArgument(f"schema: {path!r} is empty or too long.", field="schema")
        if path in collection.text_fields and kind != "text":
            raise InvalidArgument(
                f"schema: {path} is among the text fields.", reason="CONFLICTING_FIELDS", field="schema"
            )
    for path in collection.text_fields:
        if not path or property_name("text", path) is None:
            raise InvalidArgument(f"text_fields: {path!r} is empty or too long.", field="text_fields")


def check_ids(ids: list[str], field: str, *, are_distinct: bool = False) -> None:
    """Refuses ids that are not 1 to 256 bytes, more than 10,000 of them, or equal ones."""
    if len(ids) > MAX_LIMIT:
        raise InvalidArgument(f"{field} has more than {MAX_LIMIT} ids.", field=field)
    for index, point_id in enumerate(ids):
        try:
            size = len(point_id.encode())
        except UnicodeEncodeError:
            size = 0
        if not 1 <= size <= 256:
            raise InvalidArgument(f"{field}[{index}] must be 1 to 256 bytes.", field=f"{field}[{index}]")
    if are_distinct and len(set(ids)) < len(ids):
        raise InvalidArgument(f"{field} must be distinct.", field=field)


def check_limit(limit: int, field: str = "limit") -> None:
    """Refuses a limit that is not 1 to 10,000."""
    _within(field, limit, 1, MAX_LIMIT)


def check_vectors(
    vectors: bytes, collection: Collection, field: str, *, count: int | None = None
) -> npt.NDArray[np.float32]:
    """The vectors as rows.

    Raises:
        InvalidArgument: DIMENSION_MISMATCH, or INVALID_FIELD for values that are not finite or a zero vector under
            cosine.
    """
    row_bytes = 4 * collection.dimension
    rows, rest = divmod(len(vectors), row_bytes)
    if rest or (count is not None and rows != count):
        got = len(vectors) / (4 * count) if count else len(vectors) / 4
        raise InvalidArgument(
            f"{field}: vectors of {collection.name} have {collection.dimension} numbers.",
            reason="DIMENSION_MISMATCH",
            field=field,
            metadata={"dimension": collection.dimension, "got": f"{got:g}"},
        )
    array = np.frombuffer(vectors, dtype="<f4").reshape(rows, collection.dimension)
    bad = ~np.isfinite(array).all(axis=1)
    if bad.any():
        raise InvalidArgument(f"{field}[{int(bad.argmax())}] has a number that is not finite.", field=field)
    if collection.distance == "cosine":
        zero = ~array.any(axis=1)
        if zero.any():
            raise InvalidArgument(f"{field}[{int(zero.argmax())}] is a zero vector, which has no angle.", field=field)
    return array


def check_upsert(operation: UpsertPoints) -> None:
    """Refuses an upsert whose parts do not fit together."""
    if not operation.ids:
        raise InvalidArgument("points must not be empty.", reason="MISSING_FIELD", field="points")
    check_ids(operation.ids, "ids", are_distinct=True)
    if operation.payloads and len(operation.payloads) != len(operation.ids):
        raise InvalidArgument("There must be one payload for each id.", field="payloads")


def check_search(search: Search) -> int:
    """Refuses a search with values out of range; the number of its queries.

    What has vectors is checked against the collection by `check_vectors`.
    """
    if search.vectors and search.ids:
        raise InvalidArgument("Vectors and ids exclude each other.", reason="CONFLICTING_FIELDS", field="ids")
    check_ids(search.ids, "ids")
    check_limit(search.limit)
    _within("offset", search.offset, 0, MAX_LIMIT)
    _within("num_candidates", search.num_candidates, 0, MAX_LIMIT)
    _one_of("fusion", search.fusion, ("rrf", "weighted"))
    _within("rrf_k", search.rrf_k, 1, 1000)
    _within("dense_weight", search.dense_weight, 0.0, 1.0)
    _within("group_size", search.group_size, 1, 100)
    if search.score_threshold is not None and not math.isfinite(search.score_threshold):
        raise InvalidArgument("score_threshold is no number.", field="score_threshold")
    num_queries = len(search.ids) or len(search.texts)
    if not num_queries and not search.vectors:
        raise InvalidArgument("A query is required.", reason="MISSING_FIELD", field="vector")
    if search.ids and search.texts and len(search.ids) != len(search.texts):
        raise InvalidArgument("There must be one text for each id.", field="text")
    if num_queries > _MAX_QUERIES:
        raise InvalidArgument(f"There are more than {_MAX_QUERIES} queries.", field="queries")
    return num_queries


def _within(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InvalidArgument(f"{field} must be {low} to {high}, got {value}.", field=field)


def _one_of(field: str, value: str, values: tuple[str, ...]) -> None:
    if value not in values:
        raise InvalidArgument(f"{field} must be one of {', '.join(values)}, got {value!r}.", field=field)
