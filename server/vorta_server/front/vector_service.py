"""VectorService: collections, points and searches, answered by the vector worker. Knows no gRPC.

What comes as text is embedded here first, by the collection's embedding model. Methods take (request message,
CallContext); streaming ones return async generators.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import msgspec

from vorta.errors import InvalidArgument
from vorta.v1 import vector_pb2
from vorta_server.front import vector_conversion as conversion
from vorta_server.front.call import CallContext
from vorta_server.front.concurrent import concurrently
from vorta_server.front.embedder import Embedder
from vorta_server.front.vector_conversion import required
from vorta_server.front.vector_store import VectorStore
from vorta_server.vectors import operation as op

__all__ = ["VectorService", "text_field"]

MAX_QUERIES = 1024
MAX_QUERY_CHARACTERS = 65_536

# Batches of a stream that are on their way to the disk at once: they share transactions.
_UPSERT_WINDOW = 4

# Texts that are embedded in one call to the model's worker.
_EMBED_PIECE = 512

SearchForm = vector_pb2.SearchRequest | vector_pb2.SearchQuery
_FORMS = {"vector": "vector", "vector_packed": "vector", "text": "text", "id": "id"}
_FUSIONS = {
    vector_pb2.FUSION_UNSPECIFIED: "rrf",
    vector_pb2.FUSION_RRF: "rrf",
    vector_pb2.FUSION_WEIGHTED: "weighted",
}


class VectorService:
    """The handlers of `vorta.v1.VectorService`.

    Args:
        store: The vector worker.
        embedder: Embeds texts.
    """

    def __init__(self, store: VectorStore, embedder: Embedder) -> None:
        self._store = store
        self._embedder = embedder

    async def create_collection(
        self, request: vector_pb2.CreateCollectionRequest, call: CallContext
    ) -> vector_pb2.CreateCollectionResponse:
        """Makes a collection."""
        if request.HasField("dimension"):
            dimension = request.dimension
            if dimension < 1:
                raise InvalidArgument(f"dimension must be at least 1, got {dimension}", field="dimension")
        else:
            required(request, "collection")
            dimension = self._embedder.target(request.embedding_model).card.dimension
        definition = conversion.collection_definition(request, dimension)
        info = await self._store.ask(op.CreateCollection(collection=definition), op.CollectionInfo, call)
        return vector_pb2.CreateCollectionResponse(collection=conversion.collection_message(info))

    async def get_collection(
        self, request: vector_pb2.GetCollectionRequest, call: CallContext
    ) -> vector_pb2.GetCollectionResponse:
        """A collection's definition and state."""
        info = await self._store.collection(required(request, "collection"), call)
        return vector_pb2.GetCollectionResponse(collection=conversion.collection_message(info))

    async def list_collections(
        self, request: vector_pb2.ListCollectionsRequest, call: CallContext
    ) -> vector_pb2.ListCollectionsResponse:
        """All collections."""
        found = await self._store.ask(op.ListCollections(), op.Collections, call)
        return vector_pb2.ListCollectionsResponse(collections=map(conversion.collection_message, found.collections))

    async def delete_collection(
        self, request: vector_pb2.DeleteCollectionRequest, call: CallContext
    ) -> vector_pb2.DeleteCollectionResponse:
        """Deletes a collection."""
        await self._store.ask(op.DeleteCollection(collection=required(request, "collection")), op.Done, call)
        return vector_pb2.DeleteCollectionResponse()

    async def get_collection_stats(
        self, request: vector_pb2.GetCollectionStatsRequest, call: CallContext
    ) -> vector_pb2.GetCollectionStatsResponse:
        """A collection's state."""
        info = await self._store.collection(required(request, "collection"), call)
        return vector_pb2.GetCollectionStatsResponse(stats=conversion.stats_message(info.stats))

    async def swap_alias(self, request: vector_pb2.SwapAliasRequest, call: CallContext) -> vector_pb2.SwapAliasResponse:
        """Points an alias to a collection."""
        swap = op.SwapAlias(alias=required(request, "alias"), collection=required(request, "collection"))
        info = await self._store.ask(swap, op.AliasInfo, call)
        return vector_pb2.SwapAliasResponse(
            alias=vector_pb2.Alias(alias=info.alias, collection=info.collection), previous_collection=info.previous
        )

    async def delete_alias(
        self, request: vector_pb2.DeleteAliasRequest, call: CallContext
    ) -> vector_pb2.DeleteAliasResponse:
        """Deletes an alias."""
        await self._store.ask(op.DeleteAlias(alias=required(request, "alias")), op.Done, call)
        return vector_pb2.DeleteAliasResponse()

    async def list_aliases(
        self, request: vector_pb2.ListAliasesRequest, call: CallContext
    ) -> vector_pb2.ListAliasesResponse:
        """All aliases."""
        found = await self._store.ask(op.ListAliases(), op.Aliases, call)
        return vector_pb2.ListAliasesResponse(
            aliases=[vector_pb2.Alias(alias=alias.alias, collection=alias.collection) for alias in found.aliases]
        )

    async def create_snapshot(
        self, request: vector_pb2.CreateSnapshotRequest, call: CallContext
    ) -> vector_pb2.CreateSnapshotResponse:
        """Keeps a collection's state."""
        create = op.CreateSnapshot(collection=required(request, "collection"))
        info = await self._store.ask(create, op.SnapshotInfo, call)
        return vector_pb2.CreateSnapshotResponse(snapshot=conversion.snapshot_message(info))

    async def list_snapshots(
        self, request: vector_pb2.ListSnapshotsRequest, call: CallContext
    ) -> vector_pb2.ListSnapshotsResponse:
        """A collection's snapshots."""
        listed = op.ListSnapshots(collection=required(request, "collection"))
        found = await self._store.ask(listed, op.Snapshots, call)
        return vector_pb2.ListSnapshotsResponse(snapshots=map(conversion.snapshot_message, found.snapshots))

    async def delete_snapshot(
        self, request: vector_pb2.DeleteSnapshotRequest, call: CallContext
    ) -> vector_pb2.DeleteSnapshotResponse:
        """Deletes a snapshot."""
        delete = op.DeleteSnapshot(collection=required(request, "collection"), snapshot=required(request, "snapshot"))
        await self._store.ask(delete, op.Done, call)
        return vector_pb2.DeleteSnapshotResponse()

    async def restore_snapshot(
        self, request: vector_pb2.RestoreSnapshotRequest, call: CallContext
    ) -> vector_pb2.RestoreSnapshotResponse:
        """Makes a collection what a snapshot holds."""
        restore = op.RestoreSnapshot(
            collection=required(request, "collection"),
            snapshot=required(request, "snapshot"),
            target=request.target,
            replace=request.replace,
        )
        info = await self._store.ask(restore, op.CollectionInfo, call)
        return vector_pb2.RestoreSnapshotResponse(collection=conversion.collection_message(info))

    async def upsert(self, request: vector_pb2.UpsertRequest, call: CallContext) -> vector_pb2.UpsertResponse:
        """Inserts points."""
        wait = request.wait if request.HasField("wait") else True
        write = await self._upsert_operation(required(request, "collection"), request.points, call, wait=wait)
        written = await self._store.ask(write, op.Written, call)
        return vector_pb2.UpsertResponse(count=written.count, sequence=written.sequence)

    async def stream_upsert(
        self, requests: AsyncIterator[vector_pb2.StreamUpsertRequest], call: CallContext
    ) -> AsyncGenerator[vector_pb2.StreamUpsertResponse, None]:
        """Inserts batches of points, each answered when it is on disk."""
        collection = ""

        async def batches() -> AsyncIterator[tuple[int, Sequence[vector_pb2.Point]]]:
            nonlocal collection
            index = 0
            async for request in requests:
                if not collection:
                    collection = required(request, "collection")
                elif request.collection not in ("", collection):
                    raise InvalidArgument("collection must be the same in the whole stream", field="collection")
                yield index, request.points
                index += 1

        async def write(batch: tuple[int, Sequence[vector_pb2.Point]]) -> tuple[int, op.Written]:
            index, points = batch
            operation = await self._upsert_operation(collection, points, call, wait=True)
            return index, await self._store.ask(operation, op.Written, call)

        async with aclosing(concurrently(batches(), write, window=_UPSERT_WINDOW, ordered=True)) as done:
            async for index, written in done:
                yield vector_pb2.StreamUpsertResponse(index=index, count=written.count, sequence=written.sequence)

    async def get_points(self, request: vector_pb2.GetPointsRequest, call: CallContext) -> vector_pb2.GetPointsResponse:
        """Points by id."""
        get = op.GetPoints(
            collection=required(request, "collection"),
            ids=list(request.ids),
            with_payload=request.with_payload if request.HasField("with_payload") else True,
            with_vector=request.with_vector,
        )
        found = await self._store.ask(get, op.Points, call)
        response = vector_pb2.GetPointsResponse()
        for point in found.points:
            conversion.fill_point(response.points.add(), point, is_compact=request.compact)
        return response

    async def delete_points(
        self, request: vector_pb2.DeletePointsRequest, call: CallContext
    ) -> vector_pb2.DeletePointsResponse:
        """Deletes points by ids or by a filter."""
        delete = op.DeletePoints(
            collection=required(request, "collection"),
            ids=list(request.ids),
            filter=_filter(request),
            wait=request.wait if request.HasField("wait") else True,
        )
        written = await self._store.ask(delete, op.Written, call)
        return vector_pb2.DeletePointsResponse(count=written.count, sequence=written.sequence)

    async def scroll_points(
        self, request: vector_pb2.ScrollPointsRequest, call: CallContext
    ) -> vector_pb2.ScrollPointsResponse:
        """A page of points."""
        scroll = op.ScrollPoints(
            collection=required(request, "collection"),
            filter=_filter(request),
            after=request.page_token,
            with_payload=request.with_payload if request.HasField("with_payload") else True,
            with_vector=request.with_vector,
        )
        if request.HasField("limit"):
            scroll.limit = request.limit
        page = await self._store.ask(scroll, op.Page, call)
        response = vector_pb2.ScrollPointsResponse(next_page_token=page.next_after)
        for point in page.points:
            conversion.fill_point(response.points.add(), point, is_compact=request.compact)
        return response

    async def count_points(
        self, request: vector_pb2.CountPointsRequest, call: CallContext
    ) -> vector_pb2.CountPointsResponse:
        """Counts points."""
        count = op.CountPoints(collection=required(request, "collection"), filter=_filter(request))
        counted = await self._store.ask(count, op.Counted, call)
        return vector_pb2.CountPointsResponse(count=counted.count)

    async def search(self, request: vector_pb2.SearchRequest, call: CallContext) -> vector_pb2.SearchResponse:
        """The points most like a query."""
        options = conversion.search_options(request)
        query = op.Search(**options)
        form = _form(request, "")
        if form == "text":
            query.vectors = await self._embed_queries([request.text], options["collection"], "text", call)
        elif form == "id":
            query.ids = [request.id]
        else:
            query.vectors = conversion.query_vector(request)
        found = await self._store.ask(query, op.SearchResults, call)
        (result,) = found.results
        response = vector_pb2.SearchResponse(strategy=result.strategy)
        conversion.fill_search(response, result, is_compact=request.compact)
        return response

    async def batch_search(
        self, request: vector_pb2.BatchSearchRequest, call: CallContext
    ) -> vector_pb2.BatchSearchResponse:
        """Several searches with the same options."""
        options = conversion.search_options(request)
        queries = request.queries
        if not 1 <= len(queries) <= MAX_QUERIES:
            raise InvalidArgument(f"queries must have 1 to {MAX_QUERIES} entries, got {len(queries)}", field="queries")
        forms = [_form(query, f"queries[{index}].") for index, query in enumerate(queries)]
        for index, form in enumerate(forms):
            if form != forms[0]:
                raise InvalidArgument(f"queries[{index}] is of another form than queries[0]", field=f"queries[{index}]")
        search = op.Search(**options)
        if forms[0] == "text":
            texts = [query.text for query in queries]
            search.vectors = await self._embed_queries(texts, options["collection"], "queries", call)
        elif forms[0] == "id":
            search.ids = [query.id for query in queries]
        else:
            search.vectors = _joined(
                [conversion.query_vector(query, f"queries[{index}].") for index, query in enumerate(queries)]
            )
        found = await self._store.ask(search, op.SearchResults, call)
        response = vector_pb2.BatchSearchResponse()
        for result in found.results:
            entry = response.results.add(strategy=result.strategy)
            conversion.fill_search(entry, result, is_compact=request.compact)
        return response

    async def hybrid_search(
        self, request: vector_pb2.HybridSearchRequest, call: CallContext
    ) -> vector_pb2.HybridSearchResponse:
        """Search by vector and by words at once."""
        options = conversion.search_options(request)
        text = required(request, "text")
        if request.fusion not in _FUSIONS:
            raise InvalidArgument(f"fusion is {request.fusion}, which this server does not know", field="fusion")
        query = op.Search(**options, texts=[text], fusion=_FUSIONS[request.fusion])
        for name in ("dense_weight", "rrf_k", "num_candidates"):
            if request.HasField(name):
                setattr(query, name, getattr(request, name))
        query.vectors = conversion.query_vector(request)
        if not query.vectors:
            query.vectors = await self._embed_queries([text], options["collection"], "text", call)
        found = await self._store.ask(query, op.SearchResults, call)
        (result,) = found.results
        response = vector_pb2.HybridSearchResponse()
        conversion.fill_search(response, result, is_compact=request.compact)
        return response

    async def _embed_queries(self, texts: list[str], collection: str, field: str, call: CallContext) -> bytes:
        for index, text in enumerate(texts):
            if len(text) > MAX_QUERY_CHARACTERS:
                name = field if field == "text" else f"{field}[{index}].text"
                raise InvalidArgument(
                    f"{name} has {len(text)} characters; at most {MAX_QUERY_CHARACTERS} are taken",
                    reason="INPUT_TOO_LONG",
                    field=name,
                )
        info = await self._store.collection(collection, call)
        return await self._embedder.queries(texts, model=info.collection.embedding_model, call=call)

    async def _upsert_operation(
        self, collection: str, points: Sequence[vector_pb2.Point], call: CallContext, *, wait: bool
    ) -> op.UpsertPoints:
        """The write of these points; texts are embedded and put into payloads."""
        vectors: list[bytes] = []
        payloads: list[str] = []
        has_payload = False
        texts: list[int] = []
        for index, point in enumerate(points):
            prefix = f"points[{index}]."
            vector = conversion.query_vector(point, prefix)
            if point.text:
                if vector:
                    raise InvalidArgument(
                        f"{prefix}text excludes a vector", reason="CONFLICTING_FIELDS", field=f"{prefix}text"
                    )
                texts.append(index)
            elif not vector:
                raise InvalidArgument(
                    f"{prefix}vector is required (or vector_packed, or text)",
                    reason="MISSING_FIELD",
                    field=f"{prefix}vector",
                )
            payload = conversion.payload_json(point, prefix)
            has_payload = has_payload or bool(payload)
            vectors.append(vector)
            payloads.append(payload)
        if texts:
            info = await self._store.collection(collection, call)
            field = text_field(info.collection)
            embedded = await self._embed_points([points[index].text for index in texts], info.collection, call)
            size = len(embedded) // len(texts)
            for position, index in enumerate(texts):
                vectors[index] = embedded[position * size : (position + 1) * size]
                payloads[index] = _with_text(payloads[index], field, points[index].text, index)
            has_payload = True
        return op.UpsertPoints(
            collection=collection,
            ids=[point.id for point in points],
            vectors=_joined(vectors, "points"),
            payloads=payloads if has_payload else [],
            wait=wait,
        )

    async def _embed_points(self, texts: list[str], definition: op.Collection, call: CallContext) -> bytes:
        pieces = [
            await self._embedder.documents(
                texts[start : start + _EMBED_PIECE], model=definition.embedding_model, call=call
            )
            for start in range(0, len(texts), _EMBED_PIECE)
        ]
        return b"".join(pieces)


def text_field(definition: op.Collection) -> str:
    """The payload field that holds a point's text."""
    return definition.text_fields[0] if definition.text_fields else "text"


def _with_text(payload: str, field: str, text: str, index: int) -> str:
    """The payload with the text in it, unless it has that field."""
    try:
        values: Any = msgspec.json.decode(payload) if payload else {}
    except (msgspec.DecodeError, RecursionError) as error:
        name = f"points[{index}].payload_json"
        raise InvalidArgument(f"{name} is not JSON: {error}", field=name) from None
    if not isinstance(values, dict):
        name = f"points[{index}].payload_json"
        raise InvalidArgument(f"{name} must be a JSON object", field=name)
    *parents, last = field.split(".")
    inner = values
    for part in parents:
        inner = inner.setdefault(part, {})
        if not isinstance(inner, dict):
            return payload
    if last in inner:
        return payload
    inner[last] = text
    return msgspec.json.encode(values).decode()


def _form(query: SearchForm, prefix: str) -> str:
    """What a query is: "vector", "text" or "id". Raises InvalidArgument for none and for several."""
    forms = [name for name in _FORMS if getattr(query, name)]
    if not forms:
        raise InvalidArgument(
            f"one of {prefix}vector, vector_packed, text and id is required",
            reason="MISSING_FIELD",
            field=f"{prefix}vector",
        )
    if len(forms) > 1:
        raise InvalidArgument(
            f"{prefix}{forms[0]} and {prefix}{forms[1]} exclude each other",
            reason="CONFLICTING_FIELDS",
            field=f"{prefix}{forms[1]}",
        )
    return _FORMS[forms[0]]


def _joined(vectors: list[bytes], field: str = "queries") -> bytes:
    """The vectors behind each other. Raises InvalidArgument (DIMENSION_MISMATCH) when they differ in length."""
    for index, vector in enumerate(vectors):
        if len(vector) != len(vectors[0]):
            raise InvalidArgument(
                f"{field}[{index}].vector has {len(vector) // 4} numbers, {field}[0].vector {len(vectors[0]) // 4}",
                reason="DIMENSION_MISMATCH",
                field=f"{field}[{index}].vector",
            )
    return b"".join(vectors)


def _filter(request: Any) -> op.Filter | None:
    return conversion.operation_filter(request.filter, "filter") if request.HasField("filter") else None
