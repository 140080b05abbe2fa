"""From a client's arguments to VectorService's requests; shared by the sync and the async client."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from google.protobuf.message import Message

from vorta import _request
from vorta._filter_message import filter_message
from vorta._packed import Vector, pack_vector
from vorta.errors import InvalidArgument
from vorta.filters import Filter
from vorta.v1 import inference_pb2, vector_pb2
from vorta.vector_result import IndexOptions, Point

PointLike = Point | Mapping[str, Any]
FilterLike = Filter | Mapping[str, Any]

MAX_POINTS = 10_000
"""Most points of one write."""

_POINT_KEYS = ("id", "vector", "text", "payload")
_SEARCH_KEYWORDS = (
    "limit",
    "offset",
    "filter",
    "score_threshold",
    "exact",
    "ef_search",
    "num_probes",
    "with_payload",
    "with_vector",
    "group_by",
    "group_size",
)
_HYBRID_KEYWORDS = (*_SEARCH_KEYWORDS, "fusion", "dense_weight", "rrf_k", "num_candidates")
_ANSWER_KEYWORDS = tuple(
    name
    for name in _request.keywords_of(inference_pb2.StreamAnswerRequest)
    if name not in ("model", "question", "collection")
)

_M = TypeVar("_M", bound=Message)


def create_collection_request(
    name: str, *, index: IndexOptions | str | None, schema: Mapping[str, str] | None, **values: Any
) -> vector_pb2.CreateCollectionRequest:
    """A CreateCollectionRequest. Raises InvalidArgument naming the field and the names that it takes."""
    request = _request.simple_request(vector_pb2.CreateCollectionRequest, collection=name, **values)
    if index is not None:
        options = index if isinstance(index, IndexOptions) else IndexOptions(kind=index)
        fields = {key: getattr(options, key) for key in vector_pb2.IndexOptions.DESCRIPTOR.fields_by_name}
        request.index.CopyFrom(_request.simple_request(vector_pb2.IndexOptions, **fields))
    type_field = vector_pb2.CreateCollectionRequest.SchemaEntry.DESCRIPTOR.fields_by_name["value"]
    for field, kind in (schema or {}).items():
        try:
            request.schema[field] = _request.enum_number(type_field, kind)
        except (InvalidArgument, TypeError) as exc:
            raise InvalidArgument(f"schema of {field!r}: {exc}", field="schema") from None
    return request


def upsert_request(
    collection: str, points: PointLike | Iterable[PointLike], wait: bool | None
) -> vector_pb2.UpsertRequest:
    """An UpsertRequest; raises TypeError and InvalidArgument naming the point, as `points[3].vector`."""
    request = _request.simple_request(vector_pb2.UpsertRequest, collection=collection, wait=wait)
    listed = [points] if isinstance(points, Point | Mapping) else points
    request.points.extend(point_message(point, f"points[{place}]") for place, point in enumerate(listed))
    return request


def stream_upsert_request(collection: str, points: Sequence[PointLike], first: int) -> vector_pb2.StreamUpsertRequest:
    """A StreamUpsertRequest of points numbered from `first` in the whole stream; raises as `upsert_request`."""
    request = _request.simple_request(vector_pb2.StreamUpsertRequest, collection=collection)
    request.points.extend(point_message(point, f"points[{first + place}]") for place, point in enumerate(points))
    return request


def check_stream_options(batch_size: int, max_in_flight: int) -> None:
    """Refuses a batch size or a bound that makes no sense."""
    if not 1 <= batch_size <= MAX_POINTS:
        raise InvalidArgument(f"batch_size must be between 1 and {MAX_POINTS}, not {batch_size}", field="batch_size")
    if max_in_flight < 1:
        raise InvalidArgument(f"max_in_flight must be at least 1, not {max_in_flight}", field="max_in_flight")


def point_message(point: PointLike, place: str) -> vector_pb2.Point:
    """A point's message, vector packed and payload as JSON text."""
    if isinstance(point, Point):
        fields: Mapping[str, Any] = {key: getattr(point, key) for key in _POINT_KEYS}
    elif isinstance(point, Mapping):
        fields = point
        for key in point:
            if key not in _POINT_KEYS:
                raise TypeError(f"{place} has an unknown key {key!r}; it takes {', '.join(_POINT_KEYS)}")
    else:
        raise TypeError(f"{place} must be a Point or a mapping, not {type(point).__name__}")
    message = vector_pb2.Point()
    for key in ("id", "text"):
        value = fields.get(key)
        if value is not None:
            try:
                setattr(message, key, value)
            except TypeError:
                raise TypeError(f"{place}.{key} must be a string, not {type(value).__name__}") from None
            except ValueError as exc:
                raise InvalidArgument(f"{place}.{key}: {exc}", field=f"{place}.{key}") from None
    if fields.get("vector") is not None:
        message.vector_packed = pack_vector(fields["vector"], f"{place}.vector")
    if fields.get("payload") is not None:
        message.payload_json = _payload_json(fields["payload"], f"{place}.payload")
    return message


def delete_request(
    collection: str, ids: Sequence[str] | None, filter: FilterLike | None, wait: bool | None
) -> vector_pb2.DeletePointsRequest:
    """A DeletePointsRequest of ids or of a filter; InvalidArgument when neither or both are given."""
    if (ids is None) == (filter is None):
        reason = "MISSING_FIELD" if ids is None else "CONFLICTING_FIELDS"
        raise InvalidArgument("delete() takes either ids or a filter", reason=reason, field="ids")
    return filtered_request(vector_pb2.DeletePointsRequest, filter, collection=collection, ids=ids, wait=wait)


def filtered_request(request_type: type[_M], filter: FilterLike | None, **values: Any) -> _M:
    """A request of these fields and a filter; None leaves a field out."""
    request: Any = _request.simple_request(request_type, **values)
    if filter is not None:
        request.filter.CopyFrom(filter_message(filter))
    return request  # type: ignore[no-any-return]


def search_request(
    collection: str, vector: Vector | None, text: str | None, id: str | None, options: Mapping[str, Any]
) -> vector_pb2.SearchRequest:
    """A SearchRequest. InvalidArgument unless exactly one of vector, text and id is given."""
    if sum(query is not None for query in (vector, text, id)) != 1:
        reason = "MISSING_FIELD" if vector is None and text is None and id is None else "CONFLICTING_FIELDS"
        raise InvalidArgument("search() takes one of vector, text and id", reason=reason, field="vector")
    request = _request.simple_request(vector_pb2.SearchRequest, collection=collection, text=text, id=id, compact=True)
    if vector is not None:
        request.vector_packed = pack_vector(vector, "vector")
    _set_search_options(request, options, _SEARCH_KEYWORDS, "search")
    return request


def batch_search_request(
    collection: str,
    vectors: Iterable[Vector] | None,
    texts: Sequence[str] | None,
    ids: Sequence[str] | None,
    options: Mapping[str, Any],
) -> vector_pb2.BatchSearchRequest:
    """A BatchSearchRequest. InvalidArgument unless exactly one of vectors, texts and ids is given."""
    if sum(queries is not None for queries in (vectors, texts, ids)) != 1:
        reason = "MISSING_FIELD" if vectors is None and texts is None and ids is None else "CONFLICTING_FIELDS"
        raise InvalidArgument("batch_search() takes one of vectors, texts and ids", reason=reason, field="queries")
    request = _request.simple_request(vector_pb2.BatchSearchRequest, collection=collection, compact=True)
    for place, vector in enumerate(vectors if vectors is not None else ()):
        request.queries.add(vector_packed=pack_vector(vector, f"vectors[{place}]"))
    for name, queries in (("text", texts), ("id", ids)):
        if isinstance(queries, str):
            raise TypeError(f"{name}s must be a sequence of strings, not a string")
        for query in queries or ():
            request.queries.append(_request.simple_request(vector_pb2.SearchQuery, **{name: query}))
    _set_search_options(request, options, _SEARCH_KEYWORDS, "batch_search")
    return request


def hybrid_search_request(
    collection: str, text: str, vector: Vector | None, options: Mapping[str, Any]
) -> vector_pb2.HybridSearchRequest:
    """A HybridSearchRequest."""
    request = _request.simple_request(vector_pb2.HybridSearchRequest, collection=collection, text=text, compact=True)
    if vector is not None:
        request.vector_packed = pack_vector(vector, "vector")
    _set_search_options(request, options, _HYBRID_KEYWORDS, "hybrid_search")
    return request


def answer_request(
    question: str, collection: str, model: str | None, options: Mapping[str, Any]
) -> inference_pb2.StreamAnswerRequest:
    """A StreamAnswerRequest. Its id is drawn here unless the caller gave one, so that it can be cancelled."""
    request = _request.simple_request(
        inference_pb2.StreamAnswerRequest, question=question, collection=collection, model=model
    )
    _set_search_options(request, options, _ANSWER_KEYWORDS, "answer")
    request.request_id = request.request_id or uuid.uuid4().hex
    return request


def _set_search_options(request: Any, options: Mapping[str, Any], known: Sequence[str], function: str) -> None:
    plain = {name: value for name, value in options.items() if name != "filter"}
    _request.set_options(request, plain, known, function)
    if options.get("filter") is not None:
        request.filter.CopyFrom(filter_message(options["filter"]))


def _payload_json(payload: Any, place: str) -> str:
    if not isinstance(payload, Mapping):
        raise TypeError(f"{place} must be a mapping, not {type(payload).__name__}")
    try:
        return json.dumps(dict(payload), ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)
    except ValueError as exc:  # NaN, infinity or a loop
        raise InvalidArgument(f"{place}: {exc}", field=place) from None
    except TypeError as exc:
        raise TypeError(f"{place} must be JSON values: {exc}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):  # numbers and arrays of numpy
        return value.tolist()
    raise TypeError(f"{value!r:.100} is no JSON")
