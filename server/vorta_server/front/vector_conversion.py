"""Vector messages as operations and results as messages. What values may be, the backend checks.

Vectors go as float32 bytes and payloads as JSON text on the inside, whichever of their forms the caller used.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any

import msgspec
from google.protobuf.struct_pb2 import Struct, Value

from vorta.errors import InvalidArgument
from vorta.v1 import vector_pb2
from vorta_server.front.conversion import plain_struct
from vorta_server.front.embedder import floats, packed
from vorta_server.vectors import operation as op

__all__ = [
    "collection_definition",
    "collection_message",
    "fill_hit",
    "fill_point",
    "fill_search",
    "fill_struct",
    "operation_filter",
    "payload_json",
    "query_vector",
    "required",
    "search_options",
    "snapshot_message",
    "stats_message",
]

DEFAULT_LIMIT = 10

_DISTANCES = {
    vector_pb2.DISTANCE_UNSPECIFIED: "cosine",
    vector_pb2.DISTANCE_COSINE: "cosine",
    vector_pb2.DISTANCE_DOT: "dot",
    vector_pb2.DISTANCE_L2: "l2",
}
_INDEX_KINDS = {
    vector_pb2.INDEX_KIND_UNSPECIFIED: "auto",
    vector_pb2.INDEX_KIND_AUTO: "auto",
    vector_pb2.INDEX_KIND_FLAT: "flat",
    vector_pb2.INDEX_KIND_HNSW: "hnsw",
    vector_pb2.INDEX_KIND_IVF_PQ: "ivf_pq",
    vector_pb2.INDEX_KIND_SQ8: "sq8",
}
_FIELD_TYPES = {
    vector_pb2.FIELD_TYPE_KEYWORD: "keyword",
    vector_pb2.FIELD_TYPE_INTEGER: "integer",
    vector_pb2.FIELD_TYPE_FLOAT: "float",
    vector_pb2.FIELD_TYPE_BOOL: "bool",
    vector_pb2.FIELD_TYPE_DATETIME: "datetime",
    vector_pb2.FIELD_TYPE_GEO: "geo",
    vector_pb2.FIELD_TYPE_TEXT: "text",
}
_DISTANCE_NUMBERS = {name: number for number, name in _DISTANCES.items()}
_INDEX_NUMBERS = {name: number for number, name in _INDEX_KINDS.items()}
_TYPE_NUMBERS = {name: number for number, name in _FIELD_TYPES.items()}

SearchMessage = vector_pb2.SearchRequest | vector_pb2.BatchSearchRequest | vector_pb2.HybridSearchRequest


def required(message: Any, field: str) -> str:
    """A text field that must be set. Raises InvalidArgument (MISSING_FIELD)."""
    value: str = getattr(message, field)
    if not value:
        raise InvalidArgument(f"{field} is required", reason="MISSING_FIELD", field=field)
    return value


def collection_definition(request: vector_pb2.CreateCollectionRequest, dimension: int) -> op.Collection:
    """The definition that a request asks for. Raises InvalidArgument naming the field."""
    index, options = op.IndexConfig(kind=_known("index.kind", request.index.kind, _INDEX_KINDS)), request.index
    for name in ("m", "ef_construction", "ef_search", "num_lists", "num_probes"):
        if options.HasField(name):
            setattr(index, name, getattr(options, name))
    return op.Collection(
        name=required(request, "collection"),
        dimension=dimension,
        distance=_known("distance", request.distance, _DISTANCES),
        index=index,
        text_fields=list(request.text_fields),
        schema={
            field: _known(f"schema.{field}", kind, _FIELD_TYPES)
            for field, kind in request.schema.items()
            if kind != vector_pb2.FIELD_TYPE_UNSPECIFIED
        },
        embedding_model=request.embedding_model,
        description=request.description,
    )


def collection_message(info: op.CollectionInfo) -> vector_pb2.Collection:
    """A collection as callers see it."""
    definition, index = info.collection, info.collection.index
    return vector_pb2.Collection(
        collection=definition.name,
        dimension=definition.dimension,
        distance=_DISTANCE_NUMBERS[definition.distance],
        index=vector_pb2.IndexOptions(
            kind=_INDEX_NUMBERS[index.kind],
            m=index.m,
            ef_construction=index.ef_construction,
            ef_search=index.ef_search,
            num_lists=index.num_lists or None,
            num_probes=index.num_probes or None,
        ),
        text_fields=definition.text_fields,
        schema={field: _TYPE_NUMBERS[kind] for field, kind in definition.schema.items() if kind in _TYPE_NUMBERS},
        embedding_model=definition.embedding_model,
        description=definition.description,
        aliases=info.aliases,
        created_time_s=info.created_s,
        stats=stats_message(info.stats),
    )


def stats_message(stats: op.CollectionStats) -> vector_pb2.CollectionStats:
    """A collection's state as callers see it."""
    return vector_pb2.CollectionStats(
        num_points=stats.num_points,
        num_deleted=stats.num_deleted,
        num_unindexed=stats.num_unindexed,
        num_segments=stats.num_segments,
        index_kind=_INDEX_NUMBERS.get(stats.index_kind, vector_pb2.INDEX_KIND_UNSPECIFIED),
        is_building=stats.is_building,
        build_progress=stats.build_progress,
        sequence=stats.sequence,
        snapshot_sequence=stats.snapshot_sequence,
        disk_bytes=stats.disk_bytes,
        memory_bytes=stats.memory_bytes,
        vector_bytes=stats.vector_bytes,
    )


def snapshot_message(info: op.SnapshotInfo) -> vector_pb2.Snapshot:
    """A snapshot as callers see it."""
    return vector_pb2.Snapshot(
        snapshot=info.snapshot,
        collection=info.collection,
        created_time_s=info.created_s,
        num_points=info.num_points,
        sequence=info.sequence,
        size_bytes=info.bytes,
    )


def query_vector(message: Any, prefix: str = "") -> bytes:
    """The vector in `vector` or `vector_packed`, empty when there is none. Raises InvalidArgument."""
    data: bytes = message.vector_packed
    if data:
        if message.vector:
            raise InvalidArgument(
                f"{prefix}vector and {prefix}vector_packed exclude each other",
                reason="CONFLICTING_FIELDS",
                field=f"{prefix}vector_packed",
            )
        if len(data) % 4:
            raise InvalidArgument(
                f"{prefix}vector_packed has {len(data)} bytes, which are no float32 numbers",
                field=f"{prefix}vector_packed",
            )
        return data
    return packed(message.vector) if message.vector else b""


def payload_json(point: vector_pb2.Point, prefix: str) -> str:
    """The point's payload as JSON text, empty for none. Raises InvalidArgument when it has two."""
    if not point.HasField("payload"):
        return point.payload_json
    if point.payload_json:
        raise InvalidArgument(
            f"{prefix}payload and {prefix}payload_json exclude each other",
            reason="CONFLICTING_FIELDS",
            field=f"{prefix}payload_json",
        )
    return msgspec.json.encode(plain_struct(point.payload)).decode()


def search_options(request: SearchMessage) -> dict[str, Any]:
    """The fields of `op.Search` that the three requests share."""
    options: dict[str, Any] = {
        "collection": required(request, "collection"),
        "filter": operation_filter(request.filter, "filter") if request.HasField("filter") else None,
        "group_by": request.group_by,
        "columns": True,
    }
    for name in (
        "limit",
        "offset",
        "score_threshold",
        "exact",
        "with_payload",
        "with_vector",
        "group_size",
        "ef_search",
        "num_probes",
    ):
        if request.HasField(name):
            value = getattr(request, name)
            if value == 0 and name in ("ef_search", "num_probes"):  # a zero would mean the collection's
                raise InvalidArgument(f"{name} must be at least 1, got 0", field=name)
            options[name] = value
    return options


def operation_filter(message: vector_pb2.Filter, field: str) -> op.Filter:
    """A filter. Raises InvalidArgument naming the condition, such as `filter.must[0].range`."""
    return op.Filter(
        must=_conditions(message.must, f"{field}.must"),
        should=_conditions(message.should, f"{field}.should"),
        must_not=_conditions(message.must_not, f"{field}.must_not"),
    )


def _conditions(messages: Iterable[vector_pb2.Condition], field: str) -> list[op.Condition]:
    return [_condition(message, f"{field}[{index}]") for index, message in enumerate(messages)]


def _condition(message: vector_pb2.Condition, field: str) -> op.Condition:
    test = message.WhichOneof("test")
    if test is None:
        raise InvalidArgument(f"{field} has no test", reason="MISSING_FIELD", field=field)
    if test in ("has_id", "filter"):
        if message.field:
            raise InvalidArgument(f"{field}.field must be empty beside {test}", field=f"{field}.field")
    elif not message.field:
        raise InvalidArgument(f"{field}.field is required", reason="MISSING_FIELD", field=f"{field}.field")
    condition = op.Condition(field=message.field)
    match test:
        case "match":
            condition.match = _scalar(message.match, f"{field}.match")
        case "any_of":
            condition.any_of = [
                _scalar(value, f"{field}.any_of[{index}]") for index, value in enumerate(message.any_of.values)
            ]
        case "range":
            condition.range = _range(message.range)
        case "datetime_range":
            condition.datetime_range = _datetime_range(message.datetime_range, f"{field}.datetime_range")
        case "exists":
            condition.exists = message.exists
        case "text":
            condition.text = message.text
        case "geo_radius":
            circle = message.geo_radius
            condition.geo_radius = op.GeoRadius(
                latitude=circle.latitude, longitude=circle.longitude, radius_m=circle.radius_m
            )
        case "has_id":
            condition.has_id = list(message.has_id.ids)
        case _:
            condition.filter = operation_filter(message.filter, f"{field}.filter")
    return condition


def _scalar(value: Value, field: str) -> str | int | bool:
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "number_value" if value.number_value.is_integer():
            return int(value.number_value)
    raise InvalidArgument(
        f"{field} must be a text, a whole number, or true or false; numbers are compared by range", field=field
    )


def _range(message: vector_pb2.NumberRange) -> op.Range:
    bounds = op.Range()
    for name in ("gt", "gte", "lt", "lte"):
        if message.HasField(name):
            setattr(bounds, name, getattr(message, name))
    return bounds


def _datetime_range(message: vector_pb2.DatetimeRange, field: str) -> op.Range:
    bounds = op.Range()
    for name in ("gt", "gte", "lt", "lte"):
        text = getattr(message, name)
        if not text:
            continue
        try:
            moment = datetime.datetime.fromisoformat(text)
        except ValueError:
            raise InvalidArgument(
                f"{field}.{name} is no RFC 3339 time: {text[:64]!r}", field=f"{field}.{name}"
            ) from None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        setattr(bounds, name, moment.timestamp())
    return bounds


def fill_point(message: vector_pb2.Point, point: op.Point, *, is_compact: bool) -> None:
    """Writes a point."""
    message.id = point.id
    _fill(message, point.vector, point.payload, is_compact=is_compact)


def fill_hit(message: vector_pb2.Hit, hit: op.Hit, *, is_compact: bool) -> None:
    """Writes a hit."""
    message.id = hit.id
    message.score = hit.score
    if hit.dense_score is not None:
        message.dense_score = hit.dense_score
    if hit.text_score is not None:
        message.text_score = hit.text_score
    if hit.vector or hit.payload:
        _fill(message, hit.vector, hit.payload, is_compact=is_compact)


def fill_search(response: Any, result: op.SearchResult, *, is_compact: bool) -> None:
    """Writes what one query found."""
    if result.ids:
        add = response.hits.add
        for point_id, score in zip(result.ids, floats(result.scores), strict=True):
            add(id=point_id, score=score)
        return
    for hit in result.hits:
        fill_hit(response.hits.add(), hit, is_compact=is_compact)
    for group in result.groups:
        entry = response.groups.add()
        _set_value(entry.value, group.value)
        for hit in group.hits:
            fill_hit(entry.hits.add(), hit, is_compact=is_compact)


def _fill(message: vector_pb2.Point | vector_pb2.Hit, vector: bytes, payload: str, *, is_compact: bool) -> None:
    if is_compact:
        message.vector_packed = vector
        message.payload_json = payload
        return
    if vector:
        message.vector.extend(floats(vector))
    if payload:
        message.payload.SetInParent()
        fill_struct(message.payload, msgspec.json.decode(payload))


def fill_struct(struct: Struct, values: dict[str, Any]) -> None:
    """Writes a JSON object into a Struct."""
    for name, value in values.items():
        _set_value(struct.fields[name], value)


def _set_value(message: Value, value: Any) -> None:
    if isinstance(value, str):
        message.string_value = value
    elif isinstance(value, bool):
        message.bool_value = value
    elif isinstance(value, int | float):
        message.number_value = value
    elif value is None:
        message.null_value = 0  # type: ignore[assignment]
    elif isinstance(value, dict):
        message.struct_value.SetInParent()
        fill_struct(message.struct_value, value)
    else:
        message.list_value.SetInParent()
        for item in value:
            _set_value(message.list_value.values.add(), item)


def _known(field: str, number: int, names: dict[Any, str]) -> str:
    name = names.get(number)
    if name is None:
        raise InvalidArgument(f"{field} is {number}, which this server does not know", field=field)
    return name
