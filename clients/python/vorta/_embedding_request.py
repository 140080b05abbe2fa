"""From a client's arguments to EmbeddingService's requests; shared by the sync and the async client."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message

from vorta import _request
from vorta._batches import async_batches_of, batches_of
from vorta.errors import InvalidArgument
from vorta.v1 import embedding_pb2

Texts = Iterable[str]
AsyncTexts = Iterable[str] | AsyncIterable[str]

MAX_INPUTS = 2048
"""Most texts of one message."""

_EMBED_KEYWORDS = tuple(
    field.name for field in embedding_pb2.EmbedOptions.DESCRIPTOR.fields if field.name != "encoding"
)
_RERANK_KEYWORDS = ("top_n", "return_documents", "max_tokens_per_doc", "raw_scores")

_M = TypeVar("_M", bound=Message)


def texts_of(inputs: str | Sequence[str]) -> Sequence[str]:
    """One text or several, as a sequence."""
    return [inputs] if isinstance(inputs, str) else list(inputs)


def embed_request(texts: Sequence[str], model: str | None, options: Mapping[str, Any]) -> embedding_pb2.EmbedRequest:
    """An EmbedRequest for packed vectors; raises as `_request.generate_request`."""
    request = _request.simple_request(embedding_pb2.EmbedRequest, model=model, inputs=texts)
    _request.set_options(request, options, _EMBED_KEYWORDS, "embed")
    request.encoding = embedding_pb2.VECTOR_ENCODING_PACKED
    return request


def check_stream_options(batch_size: int, max_in_flight: int) -> None:
    """Refuses a batch size or a bound that makes no sense."""
    if not 1 <= batch_size <= MAX_INPUTS:
        raise InvalidArgument(f"batch_size must be between 1 and {MAX_INPUTS}, not {batch_size}", field="batch_size")
    if max_in_flight < 1:
        raise InvalidArgument(f"max_in_flight must be at least 1, not {max_in_flight}", field="max_in_flight")


def stream_embed_requests(
    texts: Iterable[str], model: str | None, options: Mapping[str, Any], batch_size: int, function: str
) -> Iterator[tuple[embedding_pb2.StreamEmbedRequest, int]]:
    """A stream's requests, made as they are needed, each with the number of its texts.

    Options are checked at once. Raises as `_request.generate_request`.
    """
    first = _first_request(model, options, function)

    def requests() -> Iterator[tuple[embedding_pb2.StreamEmbedRequest, int]]:
        request = first
        is_sent = False
        for batch in batches_of(texts, batch_size):
            yield _with_inputs(request, batch)
            request, is_sent = embedding_pb2.StreamEmbedRequest(), True
        if not is_sent:  # no texts: the server still says who would have computed them
            yield first, 0

    return requests()


def async_stream_embed_requests(
    texts: AsyncTexts, model: str | None, options: Mapping[str, Any], batch_size: int, function: str
) -> AsyncIterator[tuple[embedding_pb2.StreamEmbedRequest, int]]:
    """As `stream_embed_requests`, of texts that may come asynchronously."""
    first = _first_request(model, options, function)

    async def requests() -> AsyncIterator[tuple[embedding_pb2.StreamEmbedRequest, int]]:
        request = first
        is_sent = False
        async for batch in async_batches_of(texts, batch_size):
            yield _with_inputs(request, batch)
            request, is_sent = embedding_pb2.StreamEmbedRequest(), True
        if not is_sent:
            yield first, 0

    return requests()


def rerank_request(
    request_type: type[_M],
    query: str,
    documents: Sequence[str],
    model: str | None,
    options: Mapping[str, Any],
    function: str,
) -> _M:
    """A RerankRequest or StreamRerankRequest; raises as `_request.generate_request`."""
    if isinstance(documents, str):
        raise TypeError("documents must be a sequence of strings, not a string")
    request = _request.simple_request(request_type, model=model, query=query, documents=documents)
    _request.set_options(request, options, _RERANK_KEYWORDS, function)
    return request


def _first_request(model: str | None, options: Mapping[str, Any], function: str) -> embedding_pb2.StreamEmbedRequest:
    request = _request.simple_request(embedding_pb2.StreamEmbedRequest, model=model)
    _request.set_options(request.options, options, _EMBED_KEYWORDS, function)
    request.options.encoding = embedding_pb2.VECTOR_ENCODING_PACKED
    return request


def _with_inputs(
    request: embedding_pb2.StreamEmbedRequest, texts: list[str]
) -> tuple[embedding_pb2.StreamEmbedRequest, int]:
    request.MergeFrom(_request.simple_request(embedding_pb2.StreamEmbedRequest, inputs=texts))
    return request, len(texts)
