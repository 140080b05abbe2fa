"""From VectorService's messages to the values that clients return; shared by the sync and the async client."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from google.protobuf import struct_pb2

from vorta._packed import unpack_vector
from vorta.errors import Internal
from vorta.v1 import vector_pb2
from vorta.vector_result import (
    Alias,
    CollectionInfo,
    CollectionStats,
    Distance,
    FieldType,
    Hit,
    HitGroup,
    IndexKind,
    IndexOptions,
    Point,
    SearchResult,
    Snapshot,
    UpsertAck,
    WriteResult,
)

_DISTANCES = {number: Distance(name.removeprefix("DISTANCE_").lower()) for name, number in vector_pb2.Distance.items()}
_INDEX_KINDS = {
    number: IndexKind(name.removeprefix("INDEX_KIND_").lower()) for name, number in vector_pb2.IndexKind.items()
}
_FIELD_TYPES = {
    number: FieldType(name.removeprefix("FIELD_TYPE_").lower()) for name, number in vector_pb2.FieldType.items()
}


def collection(message: vector_pb2.Collection) -> CollectionInfo:
    """Of a Collection."""
    return CollectionInfo(
        name=message.collection,
        dimension=message.dimension,
        distance=_DISTANCES.get(message.distance, Distance.UNSPECIFIED),
        index=_index_options(message.index),
        text_fields=tuple(message.text_fields),
        schema={name: _FIELD_TYPES.get(kind, FieldType.UNSPECIFIED) for name, kind in sorted(message.schema.items())},
        embedding_model=message.embedding_model,
        description=message.description,
        aliases=tuple(message.aliases),
        created_time=_time(message.created_time_s),
        stats=stats(message.stats),
    )


def stats(message: vector_pb2.CollectionStats) -> CollectionStats:
    """Of a CollectionStats."""
    return CollectionStats(
        num_points=message.num_points,
        num_deleted=message.num_deleted,
        num_unindexed=message.num_unindexed,
        num_segments=message.num_segments,
        index_kind=_INDEX_KINDS.get(message.index_kind, IndexKind.UNSPECIFIED),
        is_building=message.is_building,
        build_progress=message.build_progress,
        sequence=message.sequence,
        snapshot_sequence=message.snapshot_sequence,
        disk_bytes=message.disk_bytes,
        memory_bytes=message.memory_bytes,
        vector_bytes=message.vector_bytes,
    )


def alias(message: vector_pb2.Alias, previous_collection: str = "") -> Alias:
    """Of an Alias."""
    return Alias(alias=message.alias, collection=message.collection, previous_collection=previous_collection)


def snapshot(message: vector_pb2.Snapshot) -> Snapshot:
    """Of a Snapshot."""
    return Snapshot(
        snapshot=message.snapshot,
        collection=message.collection,
        created_time=_time(message.created_time_s),
        num_points=message.num_points,
        sequence=message.sequence,
        size_bytes=message.size_bytes,
    )


def written(response: Any) -> WriteResult:
    """Of an UpsertResponse or a DeletePointsResponse."""
    return WriteResult(count=response.count, sequence=response.sequence)


def upsert_ack(response: vector_pb2.StreamUpsertResponse) -> UpsertAck:
    """Of a StreamUpsertResponse."""
    return UpsertAck(index=response.index, count=response.count, sequence=response.sequence)


def point(message: vector_pb2.Point) -> Point:
    """Of a Point that was read."""
    return Point(id=message.id, vector=_vector(message), payload=_payload(message))


def search_result(response: Any) -> SearchResult:
    """Of a SearchResponse or a HybridSearchResponse."""
    is_hybrid = isinstance(response, vector_pb2.HybridSearchResponse)
    return SearchResult(
        hits=hits(response.hits),
        groups=tuple(HitGroup(value=_value(group.value), hits=hits(group.hits)) for group in response.groups),
        strategy="hybrid" if is_hybrid else response.strategy,
    )


def hits(messages: Iterable[vector_pb2.Hit]) -> tuple[Hit, ...]:
    """Of Hits."""
    return tuple(
        Hit(
            id=message.id,
            score=message.score,
            payload=_payload(message),
            vector=_vector(message),
            dense_score=message.dense_score if message.HasField("dense_score") else None,
            text_score=message.text_score if message.HasField("text_score") else None,
        )
        for message in messages
    )


def _index_options(message: vector_pb2.IndexOptions) -> IndexOptions:
    numbers: dict[str, Any] = {
        name: getattr(message, name)
        for name in ("m", "ef_construction", "ef_search", "num_lists", "num_probes")
        if message.HasField(name)
    }
    return IndexOptions(kind=_INDEX_KINDS.get(message.kind, IndexKind.UNSPECIFIED), **numbers)


def _vector(message: Any) -> list[float] | None:
    if message.vector_packed:
        return unpack_vector(message.vector_packed)
    return list(message.vector) or None


def _payload(message: Any) -> dict[str, Any]:
    if not message.payload_json:
        return {name: _value(value) for name, value in message.payload.fields.items()}
    try:
        payload = json.loads(message.payload_json)
    except ValueError as exc:
        raise Internal(f"the server sent a payload of {message.id!r} that is no JSON: {exc}") from None
    return payload if isinstance(payload, dict) else {}


def _value(value: struct_pb2.Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return {name: _value(entry) for name, entry in value.struct_value.fields.items()}
    if kind == "list_value":
        return [_value(entry) for entry in value.list_value.values]
    if kind == "number_value":
        # A Struct knows doubles only; whole numbers are what was written, as far as anybody can tell.
        number = value.number_value
        return int(number) if number.is_integer() else number
    return None if kind in ("null_value", None) else getattr(value, kind)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
