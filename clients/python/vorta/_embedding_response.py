"""From EmbeddingService's messages to the values that clients return; shared by the sync and the async client."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vorta import _response
from vorta._packed import pack_vector
from vorta.embedding_result import (
    Embedding,
    EmbeddingFailure,
    Embeddings,
    EmbeddingSummary,
    Reranking,
    RerankResult,
)
from vorta.errors import Internal
from vorta.v1 import embedding_pb2
from vorta.wire import error_from_reason


def embeddings(response: embedding_pb2.EmbedResponse) -> Embeddings:
    """Of an EmbedResponse."""
    return Embeddings(
        model=response.model,
        embeddings=tuple(_embedding(message) for message in response.embeddings),
        dimensions=response.dimensions,
        usage=_response.usage(response.usage),
    )


def stream_embed_event(
    response: embedding_pb2.StreamEmbedResponse,
) -> tuple[list[Embedding | EmbeddingFailure], EmbeddingSummary | None]:
    """Of a StreamEmbedResponse: results, and the summary when it is the end."""
    if response.WhichOneof("event") == "finished":
        finished = response.finished
        summary = EmbeddingSummary(
            model=finished.model,
            num_inputs=finished.num_inputs,
            num_failures=finished.num_failures,
            dimensions=finished.dimensions,
            usage=_response.usage(finished.usage),
        )
        return [], summary
    results: list[Embedding | EmbeddingFailure] = [_embedding(message) for message in response.batch.embeddings]
    results += [_failure(message) for message in response.batch.failures]
    return results, None


def count_embedded(response: embedding_pb2.StreamEmbedResponse) -> int:
    """How many inputs a StreamEmbedResponse settles."""
    return len(response.batch.embeddings) + len(response.batch.failures)


def collect_embeddings(results: Iterable[Embedding | EmbeddingFailure], summary: EmbeddingSummary) -> Embeddings:
    """A whole stream's results in the order of the inputs.

    Raises the first failure's error, naming the input, and Internal when one has no result or two.
    """
    ordered = sorted(results, key=lambda result: result.index)
    for result in ordered:
        if isinstance(result, EmbeddingFailure):
            error = result.error
            error.metadata["field"] = f"inputs[{result.index}]"
            raise error
    if [result.index for result in ordered] != list(range(summary.num_inputs)):
        raise Internal(f"the server sent {len(ordered)} results for {summary.num_inputs} inputs")
    return Embeddings(
        model=summary.model,
        embeddings=tuple(result for result in ordered if isinstance(result, Embedding)),
        dimensions=summary.dimensions,
        usage=summary.usage,
    )


def reranking(response: embedding_pb2.RerankResponse) -> Reranking:
    """Of a RerankResponse."""
    return Reranking(
        model=response.model,
        results=tuple(_rerank_result(message) for message in response.results),
        usage=_response.usage(response.usage),
    )


def stream_rerank_event(
    response: embedding_pb2.StreamRerankResponse,
) -> tuple[list[RerankResult], Reranking | None]:
    """Of a StreamRerankResponse: scores, and the ranking when it is the end."""
    if response.WhichOneof("event") == "finished":
        return [], reranking(response.finished)
    return [_rerank_result(message) for message in response.batch.results], None


def _embedding(message: embedding_pb2.Embedding) -> Embedding:
    packed = message.packed or (pack_vector(message.values, "values") if message.values else b"")
    return Embedding(
        index=message.index,
        packed=packed,
        num_tokens=message.num_tokens,
        num_truncated_tokens=message.num_truncated_tokens,
    )


def _failure(message: embedding_pb2.InputFailure) -> EmbeddingFailure:
    error = message.error
    return EmbeddingFailure(
        index=message.index, error=error_from_reason(error.reason, error.message, retryable=error.retryable)
    )


def _rerank_result(message: Any) -> RerankResult:
    return RerankResult(
        index=message.index,
        relevance_score=message.relevance_score,
        text=message.document.text if message.HasField("document") else None,
    )
