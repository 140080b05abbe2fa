"""Vorta's client: text generation, embeddings and vector search over gRPC, for threads and for asyncio.

    import vorta

    with vorta.Client("localhost:50051") as client:
        print(client.generate("What is machine learning?", max_tokens=100).text)
        with client.stream_chat("Tell me a story.") as stream:
            for event in stream:
                print(event.text, end="")

        docs = client.collection("docs")
        docs.upsert(vorta.Point("a", text="Solar power turns light into current."))
        for hit in docs.search(text="energy from the sun", limit=3):
            print(hit.score, hit.payload["text"])

Errors are those of `vorta.errors`. Each public name is loaded on its first use, and loads grpc and protobuf and
nothing heavier: the server's engine imports `vorta.errors` and stays free of grpc.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from vorta import errors, filters
from vorta.errors import VortaError

if TYPE_CHECKING:
    from vorta.answer_result import Answer, AnswerEvent, AnswerFinished, AnswerHits
    from vorta.answer_stream import AnswerStream
    from vorta.async_answer_stream import AsyncAnswerStream
    from vorta.async_client import AsyncClient
    from vorta.async_collection import AsyncCollection
    from vorta.async_result_stream import AsyncResultStream
    from vorta.async_stream import AsyncStream
    from vorta.client import Client
    from vorta.collection import Collection
    from vorta.embedding_result import (
        Embedding,
        EmbeddingFailure,
        Embeddings,
        EmbeddingSummary,
        Reranking,
        RerankResult,
    )
    from vorta.filters import Filter
    from vorta.inference_client import InferenceClient
    from vorta.options import AnswerOptions, EmbedOptions, HybridSearchOptions, RerankOptions, SearchOptions
    from vorta.result import (
        ChatMessage,
        Delta,
        Event,
        Finished,
        FinishReason,
        Generation,
        HealthStatus,
        Model,
        ModelKind,
        ModelLoad,
        ModelState,
        RequestError,
        SequenceOutput,
        ServerInfo,
        Started,
        StopMatch,
        Timings,
        TokenAlternative,
        Tokenization,
        TokenLogprob,
        Tool,
        ToolCall,
        Usage,
    )
    from vorta.result_stream import ResultStream
    from vorta.retry import RetryPolicy
    from vorta.sampling import Sampling
    from vorta.stream import Stream
    from vorta.vector_result import (
        Alias,
        CollectionInfo,
        CollectionStats,
        Distance,
        FieldType,
        Fusion,
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

__version__ = "0.1.0"

__all__ = [
    "Alias",
    "Answer",
    "AnswerEvent",
    "AnswerFinished",
    "AnswerHits",
    "AnswerOptions",
    "AnswerStream",
    "AsyncAnswerStream",
    "AsyncClient",
    "AsyncCollection",
    "AsyncResultStream",
    "AsyncStream",
    "ChatMessage",
    "Client",
    "Collection",
    "CollectionInfo",
    "CollectionStats",
    "Delta",
    "Distance",
    "EmbedOptions",
    "Embedding",
    "EmbeddingFailure",
    "EmbeddingSummary",
    "Embeddings",
    "Event",
    "FieldType",
    "Filter",
    "FinishReason",
    "Finished",
    "Fusion",
    "Generation",
    "HealthStatus",
    "Hit",
    "HitGroup",
    "HybridSearchOptions",
    "IndexKind",
    "IndexOptions",
    "InferenceClient",
    "Model",
    "ModelKind",
    "ModelLoad",
    "ModelState",
    "Point",
    "RequestError",
    "RerankOptions",
    "RerankResult",
    "Reranking",
    "ResultStream",
    "RetryPolicy",
    "Sampling",
    "SearchOptions",
    "SearchResult",
    "SequenceOutput",
    "ServerInfo",
    "Snapshot",
    "Started",
    "StopMatch",
    "Stream",
    "Timings",
    "TokenAlternative",
    "TokenLogprob",
    "Tokenization",
    "Tool",
    "ToolCall",
    "UpsertAck",
    "Usage",
    "VortaError",
    "WriteResult",
    "__version__",
    "errors",
    "filters",
]

_HOMES = {
    "Alias": "vector_result",
    "Answer": "answer_result",
    "AnswerEvent": "answer_result",
    "AnswerFinished": "answer_result",
    "AnswerHits": "answer_result",
    "AnswerOptions": "options",
    "AnswerStream": "answer_stream",
    "AsyncAnswerStream": "async_answer_stream",
    "AsyncClient": "async_client",
    "AsyncCollection": "async_collection",
    "AsyncResultStream": "async_result_stream",
    "AsyncStream": "async_stream",
    "Client": "client",
    "Collection": "collection",
    "CollectionInfo": "vector_result",
    "CollectionStats": "vector_result",
    "Distance": "vector_result",
    "EmbedOptions": "options",
    "Embedding": "embedding_result",
    "EmbeddingFailure": "embedding_result",
    "EmbeddingSummary": "embedding_result",
    "Embeddings": "embedding_result",
    "FieldType": "vector_result",
    "Filter": "filters",
    "Fusion": "vector_result",
    "Hit": "vector_result",
    "HitGroup": "vector_result",
    "HybridSearchOptions": "options",
    "IndexKind": "vector_result",
    "IndexOptions": "vector_result",
    "InferenceClient": "inference_client",
    "Point": "vector_result",
    "RerankOptions": "options",
    "RerankResult": "embedding_result",
    "Reranking": "embedding_result",
    "ResultStream": "result_stream",
    "RetryPolicy": "retry",
    "Sampling": "sampling",
    "SearchOptions": "options",
    "SearchResult": "vector_result",
    "Snapshot": "vector_result",
    "Stream": "stream",
    "UpsertAck": "vector_result",
    "WriteResult": "vector_result",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"vorta.{_HOMES.get(name, 'result')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
