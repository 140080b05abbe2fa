"""Scripted services of vectors: a text's vector is its length, words and first character; points are kept in dicts.

A search finds points by id, each half as good as the one before. Filters know match, any_of and has_id, which is what
the tests of the command line need.
"""

from __future__ import annotations

import json
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from vorta import errors
from vorta.v1 import common_pb2, embedding_pb2, embedding_pb2_grpc, inference_pb2, vector_pb2, vector_pb2_grpc

CREATED_S = 1_700_000_000.0

Enter = Callable[[str, Any, grpc.ServicerContext], None]
Abort = Callable[[grpc.ServicerContext, errors.VortaError], None]


def vector_of(text: str) -> list[float]:
    """The scripted embedding."""
    return [float(len(text)), float(len(text.split())), float(ord(text[0]))]


def packed_of(text: str) -> bytes:
    """The same, packed."""
    return struct.pack("<3f", *vector_of(text))


class FakeEmbeddings(embedding_pb2_grpc.EmbeddingServiceServicer):
    """See the module. An input that begins with "bad" has no vector."""

    def __init__(self, enter: Enter, abort: Abort) -> None:
        self._enter = enter
        self._abort = abort
        self.is_cut_short = False
        """Streams end without their last event."""
        self.on_inputs: Callable[[int], None] = lambda count: None
        """Runs when that many inputs have come."""

    def Embed(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("Embed", request, context)
        for place, text in enumerate(request.inputs):
            if text.startswith("bad"):
                self._abort(
                    context, errors.InvalidArgument("too long", reason="INPUT_TOO_LONG", field=f"inputs[{place}]")
                )
        return embedding_pb2.EmbedResponse(
            model=request.model or "embedder",
            embeddings=[embedding(place, text, request) for place, text in enumerate(request.inputs)],
            dimensions=3,
            usage=common_pb2.Usage(prompt_tokens=len(request.inputs), total_tokens=len(request.inputs)),
        )

    def StreamEmbed(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        count = num_failures = 0
        first = None
        for request in requests:
            self._enter("StreamEmbed", request, context)
            first = first or request
            batch = embedding_pb2.EmbeddingBatch()
            for text in request.inputs:
                if text.startswith("bad"):
                    error = common_pb2.RequestError(reason="INPUT_TOO_LONG", message=f"{text} is too long")
                    batch.failures.add(index=count, error=error)
                    num_failures += 1
                else:
                    batch.embeddings.insert(0, embedding(count, text, first.options))
                count += 1
            self.on_inputs(count)
            yield embedding_pb2.StreamEmbedResponse(batch=batch)
        if self.is_cut_short or first is None:
            return
        finished = embedding_pb2.EmbeddingFinished(
            model=first.model or "embedder", num_inputs=count, num_failures=num_failures, dimensions=3
        )
        yield embedding_pb2.StreamEmbedResponse(finished=finished)

    def Rerank(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("Rerank", request, context)
        return ranking(request)

    def StreamRerank(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        self._enter("StreamRerank", request, context)
        for place, text in enumerate(request.documents):
            result = embedding_pb2.RerankResult(index=place, relevance_score=len(text))
            yield embedding_pb2.StreamRerankResponse(batch=embedding_pb2.RerankBatch(results=[result]))
        if not self.is_cut_short:
            yield embedding_pb2.StreamRerankResponse(finished=ranking(request))


class FakeVectors(vector_pb2_grpc.VectorServiceServicer):
    """See the module."""

    def __init__(self, enter: Enter, abort: Abort) -> None:
        self._enter = enter
        self._abort = abort
        self.collections: dict[str, vector_pb2.Collection] = {}
        self.points: dict[str, dict[str, vector_pb2.Point]] = defaultdict(dict)
        self.aliases: dict[str, str] = {}
        self.snapshots: list[vector_pb2.Snapshot] = []
        self.sequence = 0
        self.on_batch: Callable[[int], None] = lambda index: None
        """Runs before a batch of a stream is written."""
        self.max_batches: int | None = None
        """A stream ends, without an error, after this many batches."""

    def CreateCollection(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("CreateCollection", request, context)
        if request.collection in self.collections:
            metadata = {"collection": request.collection}
            error = errors.AlreadyExists("exists", reason="COLLECTION_ALREADY_EXISTS", metadata=metadata)
            self._abort(context, error)
        return vector_pb2.CreateCollectionResponse(collection=self.add(request.collection, request))

    def add(self, name: str, request: Any = None) -> vector_pb2.Collection:
        """Makes a collection."""
        collection = vector_pb2.Collection(collection=name, created_time_s=CREATED_S, dimension=3)
        if request is not None:
            for field in ("distance", "embedding_model", "description"):
                setattr(collection, field, getattr(request, field))
            collection.index.CopyFrom(request.index)
            collection.text_fields.extend(request.text_fields)
            collection.schema.update(request.schema)
            collection.dimension = request.dimension or 3
        self.collections[name] = collection
        return collection

    def GetCollection(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("GetCollection", request, context)
        collection = vector_pb2.Collection()
        collection.CopyFrom(self.collections[self._resolve(request, context)])
        collection.stats.CopyFrom(self._stats(collection.collection))
        return vector_pb2.GetCollectionResponse(collection=collection)

    def ListCollections(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("ListCollections", request, context)
        return vector_pb2.ListCollectionsResponse(
            collections=[self.collections[name] for name in sorted(self.collections)]
        )

    def DeleteCollection(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("DeleteCollection", request, context)
        del self.collections[self._resolve(request, context)]
        self.points.pop(request.collection, None)
        return vector_pb2.DeleteCollectionResponse()

    def GetCollectionStats(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("GetCollectionStats", request, context)
        return vector_pb2.GetCollectionStatsResponse(stats=self._stats(self._resolve(request, context)))

    def SwapAlias(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("SwapAlias", request, context)
        previous = self.aliases.get(request.alias, "")
        self.aliases[request.alias] = request.collection
        alias = vector_pb2.Alias(alias=request.alias, collection=request.collection)
        return vector_pb2.SwapAliasResponse(alias=alias, previous_collection=previous)

    def DeleteAlias(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("DeleteAlias", request, context)
        if self.aliases.pop(request.alias, None) is None:
            self._abort(context, errors.NotFound("no such alias", reason="ALIAS_NOT_FOUND"))
        return vector_pb2.DeleteAliasResponse()

    def ListAliases(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("ListAliases", request, context)
        aliases = [vector_pb2.Alias(alias=alias, collection=name) for alias, name in sorted(self.aliases.items())]
        return vector_pb2.ListAliasesResponse(aliases=aliases)

    def CreateSnapshot(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("CreateSnapshot", request, context)
        snapshot = vector_pb2.Snapshot(
            snapshot=f"s{len(self.snapshots)}",
            collection=self._resolve(request, context),
            created_time_s=CREATED_S,
            num_points=len(self.points[request.collection]),
            size_bytes=2_000_000,
        )
        self.snapshots.insert(0, snapshot)
        return vector_pb2.CreateSnapshotResponse(snapshot=snapshot)

    def ListSnapshots(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("ListSnapshots", request, context)
        return vector_pb2.ListSnapshotsResponse(snapshots=self.snapshots)

    def DeleteSnapshot(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("DeleteSnapshot", request, context)
        self.snapshots = [entry for entry in self.snapshots if entry.snapshot != request.snapshot]
        return vector_pb2.DeleteSnapshotResponse()

    def RestoreSnapshot(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("RestoreSnapshot", request, context)
        if request.snapshot not in {entry.snapshot for entry in self.snapshots}:
            self._abort(context, errors.NotFound("no such snapshot", reason="SNAPSHOT_NOT_FOUND"))
        return vector_pb2.RestoreSnapshotResponse(collection=self.add(request.target or request.collection))

    def Upsert(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("Upsert", request, context)
        self._write(self._resolve(request, context), request.points, context)
        return vector_pb2.UpsertResponse(count=len(request.points), sequence=self.sequence)

    def StreamUpsert(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        for index, request in enumerate(requests):
            if index == self.max_batches:
                return
            self._enter("StreamUpsert", request, context)
            self.on_batch(index)
            self._write(self._resolve(request, context), request.points, context)
            yield vector_pb2.StreamUpsertResponse(index=index, count=len(request.points), sequence=self.sequence)

    def GetPoints(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("GetPoints", request, context)
        kept = self.points[self._resolve(request, context)]
        points = [shown(kept[id], request) for id in request.ids if id in kept]
        return vector_pb2.GetPointsResponse(points=points)

    def DeletePoints(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("DeletePoints", request, context)
        kept = self.points[self._resolve(request, context)]
        gone = [
            id for id, point in kept.items() if id in request.ids or (not request.ids and passes(point, request.filter))
        ]
        for id in gone:
            del kept[id]
        self.sequence += 1
        return vector_pb2.DeletePointsResponse(count=len(gone), sequence=self.sequence)

    def ScrollPoints(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("ScrollPoints", request, context)
        points = self._passing(request, context)
        begin = int(request.page_token or 0)
        end = begin + request.limit
        token = str(end) if end < len(points) else ""
        page = [shown(point, request) for point in points[begin:end]]
        return vector_pb2.ScrollPointsResponse(points=page, next_page_token=token)

    def CountPoints(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("CountPoints", request, context)
        return vector_pb2.CountPointsResponse(count=len(self._passing(request, context)))

    def Search(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("Search", request, context)
        response = vector_pb2.SearchResponse(strategy="exact")
        if request.group_by:
            for hit in self._hits(request, context):
                group = response.groups.add(hits=[hit])
                group.value.number_value = 7
        else:
            response.hits.extend(self._hits(request, context))
        return response

    def BatchSearch(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("BatchSearch", request, context)
        hits = self._hits(request, context)
        results = [vector_pb2.SearchResponse(hits=hits, strategy="index") for _ in request.queries]
        return vector_pb2.BatchSearchResponse(results=results)

    def HybridSearch(self, request: Any, context: grpc.ServicerContext) -> Any:
        self._enter("HybridSearch", request, context)
        hits = self._hits(request, context)
        for place, hit in enumerate(hits):
            if place % 2:
                hit.text_score = 3.0
            else:
                hit.dense_score = 0.0
        return vector_pb2.HybridSearchResponse(hits=hits)

    def _passing(self, request: Any, context: grpc.ServicerContext) -> list[vector_pb2.Point]:
        kept = self.points[self._resolve(request, context)]
        return [kept[id] for id in sorted(kept) if passes(kept[id], request.filter)]

    def _hits(self, request: Any, context: grpc.ServicerContext) -> list[vector_pb2.Hit]:
        points = self._passing(request, context)[: request.limit or 10]
        return [
            vector_pb2.Hit(id=point.id, score=0.5**place, payload_json=point.payload_json)
            for place, point in enumerate(points)
        ]

    def _write(self, name: str, points: Any, context: grpc.ServicerContext) -> None:
        for place, point in enumerate(points):
            if point.id.startswith("bad"):
                self._abort(context, errors.InvalidArgument("bad id", field=f"points[{place}].id"))
        for point in points:
            kept = vector_pb2.Point()
            kept.CopyFrom(point)
            if point.text:
                kept.vector_packed = packed_of(point.text)
                kept.payload_json = json.dumps({"text": point.text, **json.loads(point.payload_json or "{}")})
            self.points[name][point.id] = kept
        self.sequence += 1

    def _resolve(self, request: Any, context: grpc.ServicerContext) -> str:
        name = self.aliases.get(request.collection, request.collection)
        if name not in self.collections:
            metadata = {"collection": name}
            error = errors.NotFound(f"no collection {name}", reason="COLLECTION_NOT_FOUND", metadata=metadata)
            self._abort(context, error)
        return str(name)

    def _stats(self, name: str) -> vector_pb2.CollectionStats:
        return vector_pb2.CollectionStats(
            num_points=len(self.points[name]),
            index_kind=vector_pb2.INDEX_KIND_FLAT,
            sequence=self.sequence,
            disk_bytes=4_200_000,
            memory_bytes=1_500,
        )


def embedding(place: int, text: str, options: Any) -> embedding_pb2.Embedding:
    """The scripted embedding as the options want it; with pooling of tokens, one vector for each word."""
    words = text.split() if options.pooling == embedding_pb2.POOLING_TOKEN else [text]
    if options.encoding == embedding_pb2.VECTOR_ENCODING_PACKED:
        packed = b"".join(packed_of(word) for word in words)
        return embedding_pb2.Embedding(index=place, packed=packed, num_tokens=len(text.split()), num_truncated_tokens=1)
    values = [number for word in words for number in vector_of(word)]
    return embedding_pb2.Embedding(index=place, values=values, num_tokens=len(text.split()))


def ranking(request: Any) -> embedding_pb2.RerankResponse:
    """The longest document first."""
    order = sorted(enumerate(request.documents), key=lambda entry: -len(entry[1]))[: request.top_n or None]
    response = embedding_pb2.RerankResponse(model=request.model or "ranker")
    for place, text in order:
        result = response.results.add(index=place, relevance_score=len(text))
        if request.return_documents:
            result.document.text = text
    return response


def shown(point: vector_pb2.Point, request: Any) -> vector_pb2.Point:
    """A point as a read asks for it."""
    got = vector_pb2.Point(id=point.id)
    if request.with_vector:
        got.vector_packed = point.vector_packed
    if request.with_payload or not request.HasField("with_payload"):
        got.payload_json = point.payload_json
    return got


def passes(point: vector_pb2.Point, filter: vector_pb2.Filter) -> bool:
    """Whether a point passes a filter of the kinds that the module names."""
    payload = json.loads(point.payload_json or "{}")

    def holds(condition: vector_pb2.Condition) -> bool:
        if condition.WhichOneof("test") == "has_id":
            return point.id in condition.has_id.ids
        if condition.WhichOneof("test") == "match":
            return bool(payload.get(condition.field) == getattr(condition.match, condition.match.WhichOneof("kind")))
        assert condition.WhichOneof("test") == "any_of", condition
        return payload.get(condition.field) in list(condition.any_of)

    return all(map(holds, filter.must)) and not any(map(holds, filter.must_not))


def answer_events(request: Any, hits: list[vector_pb2.Hit]) -> list[inference_pb2.StreamAnswerResponse]:
    """A grounded answer: the question's words, citing the first hit."""
    events = [
        inference_pb2.StreamAnswerResponse(hits=inference_pb2.AnswerHits(hits=hits)),
        inference_pb2.StreamAnswerResponse(
            started=common_pb2.StreamStarted(request_id=request.request_id, model="tiny", prompt_tokens=9)
        ),
    ]
    events += [
        inference_pb2.StreamAnswerResponse(delta=common_pb2.StreamDelta(text=f"{word} ", token_ids=[place]))
        for place, word in enumerate(request.question.split())
    ]
    result = common_pb2.StreamFinished(finish_reason=common_pb2.FINISH_REASON_STOP)
    finished = inference_pb2.AnswerFinished(result=result, cited_ids=[hit.id for hit in hits[:1]])
    events.append(inference_pb2.StreamAnswerResponse(finished=finished))
    for index, event in enumerate(events):
        event.index = index
    return events
