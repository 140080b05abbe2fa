"""A collection of points, for threads; its asyncio twin is `vorta.async_collection`."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Unpack

from vorta import _request, _vector_request, _vector_response
from vorta._batches import batches_of
from vorta._method import VECTOR
from vorta._packed import Vector
from vorta._transport import Transport
from vorta._vector_request import FilterLike, PointLike
from vorta.answer_stream import AnswerStream
from vorta.errors import Internal
from vorta.options import AnswerOptions, HybridSearchOptions, SearchOptions
from vorta.v1 import vector_pb2
from vorta.vector_result import Point, SearchResult, UpsertAck, WriteResult

__all__ = ["Collection"]

Points = Iterable[PointLike]


class Collection:
    """Reads and writes the points of one collection; `Client.collection` makes it. Thread-safe.

    It is a name and no more: nothing is asked of the server before the first call, and an alias does as well. Every
    method raises errors of `vorta.errors`, NotFound (COLLECTION_NOT_FOUND) where there is no such collection, and
    TypeError for a keyword that does not exist.
    """

    def __init__(self, transport: Transport, name: str) -> None:
        self._transport = transport
        self._name = name

    @property
    def name(self) -> str:
        """The collection's name or alias."""
        return self._name

    def upsert(
        self, points: PointLike | Iterable[PointLike], *, wait: bool | None = None, timeout_s: float | None = None
    ) -> WriteResult:
        """Inserts points, replacing those whose ids exist: all or nothing, at most 10,000; more with `stream_upsert`.

        Args:
            points: `Point`s or mappings with their keys; or one of them.
            wait: Return only when the points are on disk and visible. Default: yes.
        """
        request = _vector_request.upsert_request(self._name, points, wait)
        return _vector_response.written(self._transport.call(VECTOR["Upsert"], request, timeout_s))

    def stream_upsert(
        self,
        points: Points,
        *,
        batch_size: int = 500,
        max_in_flight: int = 4,
        timeout_s: float | None = None,
    ) -> Generator[UpsertAck, None, None]:
        """Inserts any number of points in batches and yields an answer for each batch that is on disk, in order.

        Points are taken, in this thread, while answers are read; they may come from a generator. The first batch that
        fails ends the stream with its error, after the answers of those before it: what was answered stays. Closing the
        generator ends the stream; batches on their way may still be written.

        Args:
            batch_size: Points of a batch, 1 to 10,000. Each batch is all or nothing.
            max_in_flight: Batches that may wait for their answers.
        """
        _vector_request.check_stream_options(batch_size, max_in_flight)
        return self._stream_upsert(points, batch_size, max_in_flight, timeout_s)

    def get(
        self,
        ids: str | Sequence[str],
        *,
        with_payload: bool | None = None,
        with_vector: bool | None = None,
        timeout_s: float | None = None,
    ) -> list[Point]:
        """Points by id, in that order, at most 10,000; unknown ids are left out.

        Args:
            with_payload: Default: yes.
            with_vector: Default: no.
        """
        request = _request.simple_request(
            vector_pb2.GetPointsRequest,
            collection=self._name,
            ids=ids,
            with_payload=with_payload,
            with_vector=with_vector,
            compact=True,
        )
        response = self._transport.call(VECTOR["GetPoints"], request, timeout_s)
        return [_vector_response.point(message) for message in response.points]

    def delete(
        self,
        *,
        ids: Sequence[str] | None = None,
        filter: FilterLike | None = None,
        wait: bool | None = None,
        timeout_s: float | None = None,
    ) -> WriteResult:
        """Deletes points by ids (at most 10,000; unknown ones are ignored) or by a filter; the count is of those there.

        Args:
            wait: Return only when it is on disk and visible. Default: yes.
        """
        request = _vector_request.delete_request(self._name, ids, filter, wait)
        return _vector_response.written(self._transport.call(VECTOR["DeletePoints"], request, timeout_s))

    def scroll(
        self,
        *,
        filter: FilterLike | None = None,
        page_size: int = 100,
        with_payload: bool | None = None,
        with_vector: bool | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[Point]:
        """All points that pass, ordered by id, fetched page by page as they are read.

        Args:
            page_size: Points of a page, 1 to 10,000.
            with_payload: Default: yes.
            with_vector: Default: no.
            timeout_s: Deadline of each page's call.
        """
        request = _vector_request.filtered_request(
            vector_pb2.ScrollPointsRequest,
            filter,
            collection=self._name,
            limit=page_size,
            with_payload=with_payload,
            with_vector=with_vector,
            compact=True,
        )
        return self._scroll(request, timeout_s)

    def count(self, *, filter: FilterLike | None = None, timeout_s: float | None = None) -> int:
        """Counts points, exactly."""
        request = _vector_request.filtered_request(vector_pb2.CountPointsRequest, filter, collection=self._name)
        count: int = self._transport.call(VECTOR["CountPoints"], request, timeout_s).count
        return count

    def search(
        self,
        vector: Vector | None = None,
        *,
        text: str | None = None,
        id: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[SearchOptions],
    ) -> SearchResult:
        """The points most like a query: a vector, a text (embedded by the server) or a point's id; one of them."""
        request = _vector_request.search_request(self._name, vector, text, id, options)
        return _vector_response.search_result(self._transport.call(VECTOR["Search"], request, timeout_s))

    def batch_search(
        self,
        vectors: Iterable[Vector] | None = None,
        *,
        texts: Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
        timeout_s: float | None = None,
        **options: Unpack[SearchOptions],
    ) -> list[SearchResult]:
        """Up to 1,024 searches with the same options, computed together: by vectors, by texts or by points' ids.

        Args:
            vectors: The rows of an array of numpy, or any vectors.
        """
        request = _vector_request.batch_search_request(self._name, vectors, texts, ids, options)
        response = self._transport.call(VECTOR["BatchSearch"], request, timeout_s)
        return [_vector_response.search_result(result) for result in response.results]

    def hybrid_search(
        self,
        text: str,
        *,
        vector: Vector | None = None,
        timeout_s: float | None = None,
        **options: Unpack[HybridSearchOptions],
    ) -> SearchResult:
        """Searches by vector and by words (BM25) at once, both lists fused. The collection must have text fields.

        Args:
            vector: Default: the text, embedded by the server.
        """
        request = _vector_request.hybrid_search_request(self._name, text, vector, options)
        return _vector_response.search_result(self._transport.call(VECTOR["HybridSearch"], request, timeout_s))

    def answer(
        self,
        question: str,
        *,
        model: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[AnswerOptions],
    ) -> AnswerStream:
        """Answers a question from this collection; as `Client.answer`."""
        request = _vector_request.answer_request(question, self._name, model, options)
        return AnswerStream(self._transport, request, timeout_s)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name!r})"

    def _stream_upsert(
        self, points: Points, batch_size: int, max_in_flight: int, timeout_s: float | None
    ) -> Generator[UpsertAck, None, None]:
        num_batches = num_acks = 0

        def requests() -> Iterator[tuple[vector_pb2.StreamUpsertRequest, int]]:
            nonlocal num_batches
            for batch in batches_of(points, batch_size):
                request = _vector_request.stream_upsert_request(self._name, batch, num_batches * batch_size)
                num_batches += 1
                yield request, 1

        messages = self._transport.exchange(VECTOR["StreamUpsert"], requests(), lambda _: 1, max_in_flight, timeout_s)
        with contextlib.closing(messages):
            for message in messages:
                num_acks += 1
                yield _vector_response.upsert_ack(message)
        if num_acks < num_batches:
            raise Internal(f"the server ended the stream after {num_acks} of {num_batches} batches")

    def _scroll(self, request: vector_pb2.ScrollPointsRequest, timeout_s: float | None) -> Iterator[Point]:
        while True:
            page = self._transport.call(VECTOR["ScrollPoints"], request, timeout_s)
            for message in page.points:
                yield _vector_response.point(message)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
