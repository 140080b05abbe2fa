"""EmbeddingService: texts to vectors, documents to rankings. Knows no gRPC.

Methods take (request message, CallContext); streaming ones return async generators.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

from vorta.errors import InvalidArgument
from vorta.v1 import common_pb2, embedding_pb2
from vorta_server.front.call import CallContext
from vorta_server.front.concurrent import concurrently
from vorta_server.front.deadline import unary_deadline
from vorta_server.front.embedder import floats
from vorta_server.registry.registry import ModelRegistry, ServingModel
from vorta_server.workers.protocol import Embed, EmbedReply, Score

__all__ = ["EmbeddingService"]

MAX_INPUTS = 2048
MAX_STREAMED_DOCUMENTS = 65_536
MAX_TEXT_CHARACTERS = 4 * 1024 * 1024

# Documents of one piece of a streamed ranking: enough to fill batches, few enough that scores come early.
_RERANK_PIECE = 64

# Messages of a stream that are computed at once. Later ones wait in the client.
_STREAM_WINDOW = 8

_POOLINGS = {
    embedding_pb2.POOLING_UNSPECIFIED: "",
    embedding_pb2.POOLING_MEAN: "mean",
    embedding_pb2.POOLING_CLS: "cls",
    embedding_pb2.POOLING_LAST: "last",
    embedding_pb2.POOLING_TOKEN: "token",
}
_SIDES = {
    embedding_pb2.TRUNCATION_SIDE_UNSPECIFIED: "right",
    embedding_pb2.TRUNCATION_SIDE_RIGHT: "right",
    embedding_pb2.TRUNCATION_SIDE_LEFT: "left",
}
_ENCODINGS = {
    embedding_pb2.VECTOR_ENCODING_UNSPECIFIED: False,
    embedding_pb2.VECTOR_ENCODING_FLOAT: False,
    embedding_pb2.VECTOR_ENCODING_PACKED: True,
}

RerankMessage = embedding_pb2.RerankRequest | embedding_pb2.StreamRerankRequest


class EmbeddingService:
    """The handlers of `vorta.v1.EmbeddingService`.

    Args:
        registry: Finds models.
    """

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry

    async def embed(self, request: embedding_pb2.EmbedRequest, call: CallContext) -> embedding_pb2.EmbedResponse:
        """Embeds texts and replies once."""
        _check_inputs(request.inputs, is_whole=True)
        message = _embed_message(request, call)
        is_packed = _choice(request, "encoding", _ENCODINGS)
        target = self._registry.resolve(request.model, "embedding")
        call.report.model = target.card.model
        message.texts = list(request.inputs)
        async with unary_deadline(call):
            reply = await target.channel.embed(message)
        response = embedding_pb2.EmbedResponse(model=target.card.model, dimensions=reply.dimension)
        _add_embeddings(response.embeddings, reply, 0, message.pooling == "token", is_packed)
        _count(response.usage, call, sum(reply.token_counts))
        return response

    async def stream_embed(
        self, requests: AsyncIterator[embedding_pb2.StreamEmbedRequest], call: CallContext
    ) -> AsyncGenerator[embedding_pb2.StreamEmbedResponse, None]:
        """Embeds texts as they come."""
        first = await anext(requests, None)
        if first is None:
            raise InvalidArgument("the stream has no message", reason="MISSING_FIELD", field="inputs")
        options = first.options
        template = _embed_message(options, call, prefix="options.")
        is_packed = _choice(options, "encoding", _ENCODINGS, prefix="options.")
        target = self._registry.resolve(first.model, "embedding")
        call.report.model = target.card.model
        num_inputs = 0

        async def messages() -> AsyncIterator[tuple[int, list[str]]]:
            nonlocal num_inputs
            request: embedding_pb2.StreamEmbedRequest | None = first
            while request is not None:
                if request is not first and (request.model or request.HasField("options")):
                    raise InvalidArgument(
                        "model and options belong into the stream's first message",
                        field="model" if request.model else "options",
                    )
                _check_inputs(request.inputs, is_whole=False)
                start, num_inputs = num_inputs, num_inputs + len(request.inputs)
                if request.inputs:
                    yield start, list(request.inputs)
                request = await anext(requests, None)

        async def compute(piece: tuple[int, list[str]]) -> tuple[int, EmbedReply]:
            start, texts = piece
            message = _embed_message(options, call, prefix="options.")
            message.texts, message.keep_going = texts, True
            return start, await target.channel.embed(message)

        finished = embedding_pb2.EmbeddingFinished(
            model=target.card.model, dimensions=template.dimensions or target.card.dimension
        )
        num_tokens = 0
        async with aclosing(concurrently(messages(), compute, window=_STREAM_WINDOW)) as replies:
            async for start, reply in replies:
                response = embedding_pb2.StreamEmbedResponse()
                batch = response.batch
                _add_embeddings(batch.embeddings, reply, start, template.pooling == "token", is_packed)
                for offset, failure in sorted(reply.failures.items()):
                    entry = batch.failures.add(index=start + offset)
                    entry.error.reason = failure.reason
                    entry.error.message = failure.message
                    entry.error.retryable = failure.retry_delay_s is not None
                finished.num_failures += len(reply.failures)
                num_tokens += sum(reply.token_counts)
                yield response
        finished.num_inputs = num_inputs
        _count(finished.usage, call, num_tokens)
        yield embedding_pb2.StreamEmbedResponse(finished=finished)

    async def rerank(self, request: embedding_pb2.RerankRequest, call: CallContext) -> embedding_pb2.RerankResponse:
        """Ranks documents and replies once."""
        target = self._rerank_target(request, call, MAX_INPUTS)
        async with unary_deadline(call):
            reply = await target.channel.score(_score_message(request, list(request.documents), call))
        return _ranking(request, target, reply.scores, reply.token_count, call)

    async def stream_rerank(
        self, request: embedding_pb2.StreamRerankRequest, call: CallContext
    ) -> AsyncGenerator[embedding_pb2.StreamRerankResponse, None]:
        """Streams scores as they are computed, then the ranking."""
        target = self._rerank_target(request, call, MAX_STREAMED_DOCUMENTS)
        scores = [0.0] * len(request.documents)
        num_tokens = 0

        async def pieces() -> AsyncIterator[int]:
            for start in range(0, len(scores), _RERANK_PIECE):
                yield start

        async def compute(start: int) -> tuple[int, list[float], int]:
            documents = list(request.documents[start : start + _RERANK_PIECE])
            reply = await target.channel.score(_score_message(request, documents, call))
            return start, reply.scores, reply.token_count

        async with aclosing(concurrently(pieces(), compute, window=_STREAM_WINDOW)) as done:
            async for start, found, count in done:
                scores[start : start + len(found)] = found
                num_tokens += count
                response = embedding_pb2.StreamRerankResponse()
                for offset, score in enumerate(found):
                    response.batch.results.add(index=start + offset, relevance_score=score)
                yield response
        yield embedding_pb2.StreamRerankResponse(finished=_ranking(request, target, scores, num_tokens, call))

    def _rerank_target(self, request: RerankMessage, call: CallContext, max_documents: int) -> ServingModel:
        if not request.query:
            raise InvalidArgument("query is required", reason="MISSING_FIELD", field="query")
        _check_length("query", request.query)
        _check_texts("documents", request.documents, max_documents)
        if request.HasField("top_n") and request.top_n < 1:
            raise InvalidArgument(f"top_n must be at least 1, got {request.top_n}", field="top_n")
        if request.HasField("max_tokens_per_doc") and request.max_tokens_per_doc < 1:
            raise InvalidArgument(
                f"max_tokens_per_doc must be at least 1, got {request.max_tokens_per_doc}", field="max_tokens_per_doc"
            )
        target = self._registry.resolve(request.model, "rerank")
        call.report.model = target.card.model
        return target


def _check_inputs(inputs: Sequence[str], *, is_whole: bool) -> None:
    """Refuses what no stream goes on after; in a stream an empty text fails alone."""
    if is_whole:
        _check_texts("inputs", inputs, MAX_INPUTS)
    elif len(inputs) > MAX_INPUTS:
        raise InvalidArgument(f"inputs must have at most {MAX_INPUTS} entries, got {len(inputs)}", field="inputs")


def _check_texts(field: str, texts: Sequence[str], limit: int) -> None:
    if not texts:
        raise InvalidArgument(f"{field} must not be empty", reason="MISSING_FIELD", field=field)
    if len(texts) > limit:
        raise InvalidArgument(f"{field} must have at most {limit} entries, got {len(texts)}", field=field)
    for index, text in enumerate(texts):
        if not text:
            name = f"{field}[{index}]"
            raise InvalidArgument(f"{name} must not be empty", reason="MISSING_FIELD", field=name)
        _check_length(f"{field}[{index}]", text)


def _check_length(field: str, text: str) -> None:
    if len(text) > MAX_TEXT_CHARACTERS:
        raise InvalidArgument(
            f"{field} has {len(text)} characters; at most {MAX_TEXT_CHARACTERS} are taken",
            reason="INPUT_TOO_LONG",
            field=field,
            metadata={"num_characters": len(text), "max_characters": MAX_TEXT_CHARACTERS},
        )


def _embed_message(
    options: embedding_pb2.EmbedRequest | embedding_pb2.EmbedOptions, call: CallContext, *, prefix: str = ""
) -> Embed:
    """The options as the worker takes them, without texts. Raises InvalidArgument naming the field."""
    if options.HasField("prompt_name") and options.HasField("instruction"):
        raise InvalidArgument(
            "prompt_name and instruction exclude each other",
            reason="CONFLICTING_FIELDS",
            field=f"{prefix}instruction",
        )
    if options.HasField("dimensions") and options.dimensions < 1:
        raise InvalidArgument(f"dimensions must be at least 1, got {options.dimensions}", field=f"{prefix}dimensions")
    side = _choice(options, "truncation_side", _SIDES, prefix=prefix)
    return Embed(
        call_id=0,
        texts=[],
        prompt=options.instruction if options.HasField("instruction") else None,
        prompt_name=options.prompt_name,
        pooling=_choice(options, "pooling", _POOLINGS, prefix=prefix),
        normalize=options.normalize if options.HasField("normalize") else None,
        dimensions=options.dimensions,
        truncate=side if options.truncate else "",
        deadline_s=call.deadline_s,
    )


def _choice(message: Any, field: str, choices: dict[Any, Any], *, prefix: str = "") -> Any:
    value = getattr(message, field)
    if value not in choices:
        raise InvalidArgument(f"{prefix}{field} is {value}, which this server does not know", field=f"{prefix}{field}")
    return choices[value]


def _score_message(request: RerankMessage, documents: list[str], call: CallContext) -> Score:
    return Score(
        call_id=0,
        query=request.query,
        documents=documents,
        max_tokens_per_doc=request.max_tokens_per_doc,
        raw=request.raw_scores,
        deadline_s=call.deadline_s,
    )


def _add_embeddings(embeddings: Any, reply: EmbedReply, start: int, per_token: bool, is_packed: bool) -> None:
    """Appends the texts that have vectors."""
    row_bytes = 4 * reply.dimension
    position = 0
    for offset, num_tokens in enumerate(reply.token_counts):
        if offset in reply.failures:
            continue
        end = position + row_bytes * (num_tokens if per_token else 1)
        entry = embeddings.add(
            index=start + offset, num_tokens=num_tokens, num_truncated_tokens=reply.cut_counts[offset]
        )
        if is_packed:
            entry.packed = reply.vectors[position:end]
        else:
            entry.values.extend(floats(reply.vectors[position:end]))
        position = end


def _ranking(
    request: RerankMessage, target: ServingModel, scores: Sequence[float], num_tokens: int, call: CallContext
) -> embedding_pb2.RerankResponse:
    """The best documents; among equal scores the earlier one is first."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    if request.HasField("top_n"):
        order = order[: request.top_n]
    response = embedding_pb2.RerankResponse(model=target.card.model)
    for index in order:
        result = response.results.add(index=index, relevance_score=scores[index])
        if request.return_documents:
            result.document.text = request.documents[index]
    _count(response.usage, call, num_tokens)
    return response


def _count(usage: common_pb2.Usage, call: CallContext, num_tokens: int) -> None:
    usage.prompt_tokens = usage.total_tokens = num_tokens
    call.report.prompt_tokens = num_tokens
