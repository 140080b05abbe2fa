"""The fake's gRPC side: weaviate.v1.Weaviate."""

from __future__ import annotations

import math
import struct
import uuid
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import numpy as np
from weaviate.proto.v1 import (
    aggregate_pb2,
    base_pb2,
    batch_delete_pb2,
    batch_pb2,
    properties_pb2,
    search_get_pb2,
    weaviate_pb2_grpc,
)

from tests.server.vectors.fake_weaviate.filters import passes, tokenize
from tests.server.vectors.fake_weaviate.state import Refused, State, Stored, WeaviateClass

if TYPE_CHECKING:
    from tests.server.vectors.fake_weaviate.server import Faults

_MAX_RESULTS = 10_000
_T = TypeVar("_T")


class Service(weaviate_pb2_grpc.WeaviateServicer):
    """Search, batch objects, batch delete and aggregate, by brute force."""

    def __init__(self, state: State, faults: Faults) -> None:
        self._state = state
        self._faults = faults

    def Search(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self._answer("Search", request, context, self._search)

    def BatchObjects(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self._answer("BatchObjects", request, context, self._batch_objects)

    def BatchDelete(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self._answer("BatchDelete", request, context, self._batch_delete)

    def Aggregate(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self._answer("Aggregate", request, context, self._aggregate)

    def _answer(self, method: str, request: Any, context: grpc.ServicerContext, do: Callable[[Any], _T]) -> _T:
        metadata = {item.key: item.value for item in context.invocation_metadata()}
        fault = self._faults.take(method, metadata.get("authorization", ""))
        if fault is not None:
            context.abort(*fault)
        try:
            with self._state.lock:
                return do(request)
        except Refused as error:
            context.abort(grpc.StatusCode.UNKNOWN, str(error))  # as Weaviate does
            raise

    def _search(self, request: search_get_pb2.SearchRequest) -> search_get_pb2.SearchReply:
        target = self._state.get(request.collection)
        if request.limit + request.offset > _MAX_RESULTS:
            raise Refused(422, "query maximum results exceeded")
        has_filters = request.HasField("filters")
        if request.after and (has_filters or request.sort_by):
            raise Refused(422, "where and sort cannot be set with after and limit parameters")
        found = [o for o in target.objects.values() if not has_filters or passes(o, target, request.filters)]
        distances: dict[str, float] = {}
        scores: dict[str, float] = {}
        if request.HasField("near_vector"):
            near = request.near_vector
            query = np.frombuffer(near.vectors[0].vector_bytes if near.vectors else near.vector_bytes, dtype="<f4")
            distances = {o.uuid: _distance(target, query, o) for o in found}
            found.sort(key=lambda o: distances[o.uuid])
        elif request.HasField("bm25_search"):
            bm25 = request.bm25_search
            scores = _bm25(target, bm25.query, list(bm25.properties), found)
            found = sorted((o for o in found if o.uuid in scores), key=lambda o: -scores[o.uuid])
        elif request.sort_by:
            key = request.sort_by[0]
            name = key.path[0]
            # Only a hash of insertion decides between equals there; here ids do.
            found.sort(key=lambda o: str(o.properties.get(name, "")).lower(), reverse=not key.ascending)
        else:
            found.sort(key=lambda o: o.uuid)
            if request.after:
                found = [o for o in found if o.uuid > request.after]
        page = found[request.offset : request.offset + request.limit]
        return search_get_pb2.SearchReply(
            results=[_result(request, target, o, distances.get(o.uuid), scores.get(o.uuid)) for o in page]
        )

    def _batch_objects(self, request: batch_pb2.BatchObjectsRequest) -> batch_pb2.BatchObjectsReply:
        errors = []
        for index, item in enumerate(request.objects):
            try:
                self._put(item)
            except Refused as error:
                errors.append(batch_pb2.BatchObjectsReply.BatchError(index=index, error=str(error)))
        return batch_pb2.BatchObjectsReply(errors=errors)

    def _put(self, item: batch_pb2.BatchObject) -> None:
        if item.uuid in self._faults.refused_uuids:
            raise Refused(500, "the disk of this shard is read-only")
        target = self._state.get(item.collection)
        properties: dict[str, Any] = {}
        for name, value in item.properties.non_ref_properties.fields.items():
            kind = value.WhichOneof("kind")
            if kind == "struct_value":
                fields = value.struct_value.fields
                properties[name] = (fields["latitude"].number_value, fields["longitude"].number_value)
            else:
                properties[name] = getattr(value, kind)
        for arrays in (
            item.properties.text_array_properties,
            item.properties.int_array_properties,
            item.properties.boolean_array_properties,
        ):
            properties |= {array.prop_name: list(array.values) for array in arrays}
        for array in item.properties.number_array_properties:
            count = len(array.values_bytes) // 8
            properties[array.prop_name] = list(struct.unpack(f"<{count}d", array.values_bytes))
        properties |= {name: [] for name in item.properties.empty_list_props}
        for name, value in properties.items():
            _check_type(target, name, value)
        vectors = {vector.name: vector.vector_bytes for vector in item.vectors}
        sizes = {len(o.vectors["default"]) for o in target.objects.values()}
        if sizes and len(vectors["default"]) not in sizes:
            raise Refused(500, "new node has a vector with another length")
        target.objects[item.uuid] = Stored(item.uuid, properties, vectors)

    def _batch_delete(self, request: batch_delete_pb2.BatchDeleteRequest) -> batch_delete_pb2.BatchDeleteReply:
        target = self._state.get(request.collection)
        found = [o.uuid for o in target.objects.values() if passes(o, target, request.filters)]
        found = found[: self._faults.max_deleted]
        for key in found:
            del target.objects[key]
        return batch_delete_pb2.BatchDeleteReply(matches=len(found), successful=len(found))

    def _aggregate(self, request: aggregate_pb2.AggregateRequest) -> aggregate_pb2.AggregateReply:
        target = self._state.get(request.collection)
        count = sum(
            1 for o in target.objects.values() if not request.HasField("filters") or passes(o, target, request.filters)
        )
        return aggregate_pb2.AggregateReply(single_result=aggregate_pb2.AggregateReply.Single(objects_count=count))


_PYTHON_TYPES: dict[str, type | tuple[type, ...]] = {
    "text": str,
    "date": str,
    "int": int,
    "number": float,
    "boolean": bool,
    "geoCoordinates": tuple,
}


def _check_type(target: WeaviateClass, name: str, value: Any) -> None:
    data_type = target.data_type(name)
    if data_type is None:
        # A real Weaviate would guess a type; the adapter must never rely on that.
        raise Refused(422, f"no such prop with name '{name}'")
    items = value if data_type.endswith("[]") else [value]
    if not isinstance(items, list) or not all(
        isinstance(item, _PYTHON_TYPES[data_type.removesuffix("[]")]) for item in items
    ):
        raise Refused(422, f"invalid {data_type} property '{name}'")


def _distance(target: WeaviateClass, query: np.ndarray, stored: Stored) -> float:
    metric = target.schema["vectorConfig"]["default"]["vectorIndexConfig"]["distance"]
    a, b = query.astype(np.float64), np.frombuffer(stored.vectors["default"], dtype="<f4").astype(np.float64)
    if metric == "cosine":
        return 1.0 - float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))
    return -float(a @ b) if metric == "dot" else float((a - b) @ (a - b))


def _bm25(target: WeaviateClass, query: str, names: list[str], found: list[Stored]) -> dict[str, float]:
    """Scores of those that have a word of the query; k1 1.2, b 0.75, statistics of the whole class."""
    for name in names:
        if not target.property(name).get("indexSearchable"):
            raise Refused(422, f"property {name} is not searchable")

    def words(stored: Stored, name: str) -> list[str]:
        return [token for text in stored.properties.get(name) or [] for token in tokenize(text, "word")]

    scores: dict[str, float] = {}
    for name in names:
        documents = {o.uuid: Counter(words(o, name)) for o in target.objects.values()}
        lengths = {key: sum(counts.values()) for key, counts in documents.items()}
        average = sum(lengths.values()) / max(1, len(lengths)) or 1.0
        for word in tokenize(query, "word"):
            having = sum(1 for counts in documents.values() if word in counts)
            weight = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
            for stored in found:
                tf = documents[stored.uuid][word]
                if tf:
                    norm = tf + 1.2 * (0.25 + 0.75 * lengths[stored.uuid] / average)
                    scores[stored.uuid] = scores.get(stored.uuid, 0.0) + weight * tf * 2.2 / norm
    return scores


def _result(
    request: search_get_pb2.SearchRequest,
    target: WeaviateClass,
    stored: Stored,
    distance: float | None,
    score: float | None,
) -> search_get_pb2.SearchResult:
    metadata = search_get_pb2.MetadataResult(id=stored.uuid, id_as_bytes=uuid.UUID(stored.uuid).bytes)
    if request.metadata.distance and distance is not None:
        metadata.distance, metadata.distance_present = distance, True
    if request.metadata.score and score is not None:
        metadata.score, metadata.score_present = score, True
    if request.metadata.vector or request.metadata.vectors:
        for name, packed in stored.vectors.items():
            metadata.vectors.append(
                base_pb2.Vectors(name=name, vector_bytes=packed, type=base_pb2.Vectors.VECTOR_TYPE_SINGLE_FP32)
            )
    fields = {}
    for name in request.properties.non_ref_properties:
        if target.data_type(name) is None:
            raise Refused(422, f"no such prop with name '{name}'")
        value = stored.properties.get(name)
        if isinstance(value, str):
            fields[name] = properties_pb2.Value(text_value=value)
    return search_get_pb2.SearchResult(
        metadata=metadata,
        properties=search_get_pb2.PropertiesResult(
            target_collection=target.schema["class"], non_ref_props=properties_pb2.Properties(fields=fields)
        ),
    )
