"""Refuses operations with values out of range, naming the field."""

from __future__ import annotations

import math
import re

import numpy as np
import numpy.typing as npt

from vorta.errors import InvalidArgument
from vorta_server.vectors.faiss_config import FaissConfig
from vorta_server.vectors.operation import Collection, Search, UpsertPoints
from vorta_server.vectors.payloads import KINDS

__all__ = [
    "SMALLEST_SQUARE",
    "check_collection",
    "check_ids",
    "check_limit",
    "check_name",
    "check_search",
    "check_upsert",
    "read_vectors",
]

SMALLEST_SQUARE = 1e-30
"""Squared length from which a vector can be normalised."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def check_name(name: str, field: str) -> None:
    """Refuses what is no name of a collection or alias."""
    if not name:
        raise InvalidArgument(f"{field} is required.", reason="MISSING_FIELD", field=field)
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"{field} must be 1 to 64 letters, digits, '_' or '-', the first a letter or digit.", field=field
        )


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
    _within("index.num_lists", index.num_lists, 0, 1 << 20)
    _within("index.num_probes", index.num_probes, 0, 1 << 20)
    if len(collection.description.encode()) > 1024:
        raise InvalidArgument("description has more than 1024 bytes.", field="description")
    for path, kind in collection.schema.items():
        _one_of(f"schema[{path}]", kind, KINDS)
        if not path:
            raise InvalidArgument("schema has an empty path.", field="schema")
        if path in collection.text_fields and kind != "text":
            raise InvalidArgument(
                f"schema: {path} is among the text fields.", reason="CONFLICTING_FIELDS", field="schema"
            )
    for index_of, path in enumerate(collection.text_fields):
        if not path or collection.text_fields.index(path) != index_of:
            raise InvalidArgument("text_fields must be distinct paths.", field=f"text_fields[{index_of}]")
    if len(collection.text_fields) > 64:
        raise InvalidArgument("text_fields has more than 64 paths.", field="text_fields")


def check_ids(ids: list[str], field: str, config: FaissConfig) -> None:
    """Refuses ids that are not 1 to 256 bytes, equal ones, or too many."""
    if len(ids) > config.max_batch_points:
        raise InvalidArgument(f"{field} has more than {config.max_batch_points} ids.", field=field)
    for index, point_id in enumerate(ids):
        # Characters are at most 4 bytes: most ids need no encoding to be judged. Lone surrogates are no text.
        if 1 <= len(point_id) <= 64 and point_id.isascii():
            continue
        try:
            size = len(point_id.encode())
        except UnicodeEncodeError:
            size = 0
        if not 1 <= size <= 256:
            raise InvalidArgument(f"{field}[{index}] must be 1 to 256 bytes.", field=f"{field}[{index}]")


def check_limit(limit: int, config: FaissConfig, field: str = "limit") -> None:
    """Refuses a limit that is not 1 to the greatest."""
    _within(field, limit, 1, config.max_limit)


def read_vectors(
    vectors: bytes, collection: Collection, field: str, *, count: int | None = None
) -> npt.NDArray[np.float32]:
    """Vectors as rows, float32 of shape (count, dimension), not normalised.

    Raises:
        InvalidArgument: DIMENSION_MISMATCH, or INVALID_FIELD for values that are not finite or a zero vector under
            cosine; the field is that of the first such vector.
    """
    row_bytes = 4 * collection.dimension
    rows, rest = divmod(len(vectors), row_bytes)
    if rest or (count is not None and rows != count):
        got = len(vectors) / (4 * count) if count else len(vectors) / 4
        raise InvalidArgument(
            f"{field}: vectors of {collection.name} have {collection.dimension} numbers.",
            reason="DIMENSION_MISMATCH",
            field=field if count != 1 else f"{field}[0]",
            metadata={"dimension": collection.dimension, "got": f"{got:g}"},
        )
    array = np.frombuffer(vectors, dtype="<f4").reshape(rows, collection.dimension)
    # Squares of the largest finite numbers overflow, so a sum that is finite proves that all are; else look closer.
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", array, array)
    # The common case with the fewest looks at it: what is not a number is neither above nor below anything.
    if not rows or (squares.min() >= SMALLEST_SQUARE and squares.max() < math.inf):
        return array
    if not np.isfinite(squares).all():
        bad = ~np.isfinite(array).all(axis=1)
        if bad.any():
            at = f"{field}[{int(bad.argmax())}]"
            raise InvalidArgument(f"{at} has a number that is not finite.", field=at)
        at = f"{field}[{int((~np.isfinite(squares)).argmax())}]"
        raise InvalidArgument(f"{at} is too long: its squared length is beyond float32.", field=at)
    # Lengths whose squares underflow cannot be normalised either.
    if collection.distance == "cosine" and (squares < SMALLEST_SQUARE).any():
        at = f"{field}[{int((squares < SMALLEST_SQUARE).argmax())}]"
        raise InvalidArgument(f"{at} is a zero vector, which has no angle.", field=at)
    return array


def check_upsert(operation: UpsertPoints, config: FaissConfig) -> None:
    """Refuses an upsert whose parts do not fit together."""
    ids = operation.ids
    if not ids:
        raise InvalidArgument("points must not be empty.", reason="MISSING_FIELD", field="points")
    check_ids(ids, "ids", config)
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        for index, point_id in enumerate(ids):
            if point_id in seen:
                raise InvalidArgument(f"ids[{index}] is in the batch already.", field=f"ids[{index}]")
            seen.add(point_id)
    if operation.payloads and len(operation.payloads) != len(ids):
        raise InvalidArgument("There must be one payload for each id.", field="payloads")


def check_search(search: Search, config: FaissConfig) -> None:
    """Refuses a search with values out of range. Vectors are checked by `read_vectors`."""
    if search.vectors and search.ids:
        raise InvalidArgument("Vectors and ids exclude each other.", reason="CONFLICTING_FIELDS", field="ids")
    check_limit(search.limit, config)
    _within("offset", search.offset, 0, config.max_limit)
    _within("ef_search", search.ef_search, 0, 4096)
    _within("num_probes", search.num_probes, 0, 1 << 20)
    if search.score_threshold is not None and not math.isfinite(search.score_threshold):
        raise InvalidArgument("score_threshold is no number.", field="score_threshold")
    if search.group_by:
        _within("group_size", search.group_size, 1, 100)
    if not search.texts and not search.ids and not search.vectors:
        raise InvalidArgument("A query is required.", reason="MISSING_FIELD", field="vector")
    if search.ids:
        check_ids(search.ids, "ids", config)
    if search.texts:
        _within("num_candidates", search.num_candidates, 0, config.max_limit)
        _one_of("fusion", search.fusion, ("rrf", "weighted"))
        _within("rrf_k", search.rrf_k, 1, 1000)
        _within("dense_weight", search.dense_weight, 0.0, 1.0)
        if search.ids and len(search.ids) != len(search.texts):
            raise InvalidArgument("There must be one text for each id.", field="texts")
    if max(len(search.ids), len(search.texts)) > config.max_queries:
        raise InvalidArgument(f"There are more than {config.max_queries} queries.", field="queries")


def _within(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InvalidArgument(f"{field} must be {low} to {high}, got {value}.", field=field)


def _one_of(field: str, value: str, values: tuple[str, ...]) -> None:
    if value not in values:
        raise InvalidArgument(f"{field} must be one of {', '.join(values)}, got {value!r}.", field=field)
