"""Embedding and reranking, sync and async, against the scripted server."""

from __future__ import annotations

import struct
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import vorta
from tests.clients.conftest import FAST
from tests.clients.fake_server import FakeServer
from tests.clients.fake_vectors import packed_of, vector_of
from vorta import errors
from vorta.v1 import embedding_pb2

TEXTS = ["one", "two words", "three more words"]


@pytest.fixture
async def aclient(server: FakeServer) -> AsyncIterator[vorta.AsyncClient]:
    async with vorta.AsyncClient(server.target, retry=FAST, timeout_s=20) as client:
        yield client


def test_embed(client: vorta.Client, server: FakeServer) -> None:
    got = client.embed(
        TEXTS,
        model="m",
        normalize=False,
        truncate=True,
        truncation_side="left",
        dimensions=3,
        instruction="",
        pooling="cls",
    )
    assert got.vectors == [vector_of(text) for text in TEXTS]
    assert [entry.packed for entry in got] == [packed_of(text) for text in TEXTS]
    assert [(entry.index, entry.num_tokens, entry.num_truncated_tokens) for entry in got] == [
        (0, 1, 1),
        (1, 2, 1),
        (2, 3, 1),
    ]
    assert (got.model, got.dimensions, got.usage.prompt_tokens, len(got)) == ("m", 3, 3, 3)
    (request,) = server.calls["Embed"]
    assert request.encoding == embedding_pb2.VECTOR_ENCODING_PACKED
    assert (request.truncation_side, request.pooling) == (
        embedding_pb2.TRUNCATION_SIDE_LEFT,
        embedding_pb2.POOLING_CLS,
    )
    assert request.HasField("instruction")
    assert not request.normalize
    assert not request.HasField("prompt_name")


def test_embed_one_text(client: vorta.Client, server: FakeServer) -> None:
    got = client.embed("a text")
    assert got.vector == got[0].vector == vector_of("a text")
    assert list(server.calls["Embed"][0].inputs) == ["a text"]


def test_embed_tokens(client: vorta.Client) -> None:
    got = client.embed("two words", pooling="token")
    assert got[0].token_vectors == [vector_of("two"), vector_of("words")]
    assert len(got[0].vector) == 6


def test_vectors_as_lists_of_numbers_are_taken_too() -> None:
    from vorta._embedding_response import embeddings

    message = embedding_pb2.EmbedResponse(embeddings=[embedding_pb2.Embedding(values=[1, 2], num_tokens=1)])
    assert embeddings(message).vectors == [[1.0, 2.0]]
    assert embeddings(message)[0].packed == struct.pack("<2f", 1, 2)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"poling": "mean"}, TypeError, r"embed\(\) got an unknown keyword 'poling'; it takes .*pooling"),
        ({"pooling": "max"}, errors.InvalidArgument, "pooling must be one of mean, cls, last, token, not 'max'"),
        ({"pooling": 1}, TypeError, "pooling cannot be 1"),
        ({"dimensions": 2**40}, errors.InvalidArgument, "dimensions"),
        ({"encoding": "float"}, TypeError, "encoding"),
    ],
)
def test_bad_options_are_named(client: vorta.Client, options: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        client.embed("x", **options)
    with pytest.raises(error, match=match.removeprefix(r"embed\(\)")):
        client.stream_embed(["x"], **options)


def test_embed_retries_and_names_the_bad_input(client: vorta.Client, server: FakeServer) -> None:
    server.fail_next("Embed", *[errors.Unavailable("loading")] * 3)
    assert client.embed("x").vector == vector_of("x")
    assert len(server.calls["Embed"]) == 4
    with pytest.raises(errors.InvalidArgument) as caught:
        client.embed(["x", "bad"])
    assert (caught.value.reason, caught.value.field) == ("INPUT_TOO_LONG", "inputs[1]")


def test_many_texts_go_over_a_stream(client: vorta.Client, server: FakeServer) -> None:
    texts = [f"t{number}" for number in range(2049)]
    got = client.embed(texts, model="m", pooling="mean")
    assert [entry.index for entry in got] == list(range(2049))
    assert [entry.packed for entry in got] == [packed_of(text) for text in texts]
    assert (got.model, got.dimensions) == ("m", 3)
    assert not server.calls["Embed"]
    first, *rest = server.calls["StreamEmbed"]
    assert first.options.pooling == embedding_pb2.POOLING_MEAN
    assert not any(request.HasField("options") or request.model for request in rest)
    client.embed(texts[:2048])
    assert len(server.calls["Embed"]) == 1
    with pytest.raises(errors.InvalidArgument, match="bad one is too long") as caught:
        client.embed([*texts, "bad one"])
    assert (caught.value.reason, caught.value.field) == ("INPUT_TOO_LONG", "inputs[2049]")


def test_stream_embed(client: vorta.Client) -> None:
    with client.stream_embed(iter(["one", "bad", "two words"]), batch_size=2) as stream:
        assert stream.summary is None
        got = list(stream)
    assert [type(entry) for entry in got] == [vorta.Embedding, vorta.EmbeddingFailure, vorta.Embedding]
    assert [entry.index for entry in got] == [0, 1, 2]
    failure = got[1]
    assert isinstance(failure, vorta.EmbeddingFailure)
    assert (type(failure.error), failure.error.reason) == (errors.InvalidArgument, "INPUT_TOO_LONG")
    assert stream.summary == stream.result()
    assert (stream.summary.num_inputs, stream.summary.num_failures, stream.summary.dimensions) == (3, 1, 3)


def test_results_come_in_computed_order(client: vorta.Client) -> None:
    indexes = [entry.index for entry in client.stream_embed(["a", "b", "c", "d", "e"], batch_size=2)]
    assert indexes == [1, 0, 3, 2, 4]


def test_stream_embed_of_nothing(client: vorta.Client) -> None:
    assert client.stream_embed([]).result().num_inputs == 0


def test_stream_embed_takes_texts_in_this_thread_and_not_too_many(client: vorta.Client) -> None:
    taken: list[int] = []
    threads = set()

    def texts() -> Iterator[str]:
        for number in range(100):
            taken.append(number)
            threads.add(threading.get_ident())
            yield f"t{number}"

    ahead = []
    for place, _ in enumerate(client.stream_embed(texts(), batch_size=2, max_in_flight=3)):
        ahead.append(len(taken) - place)
    assert max(ahead) <= 6
    assert len(ahead) == 100
    assert threads == {threading.get_ident()}


def test_an_error_of_the_source_reaches_the_reader(client: vorta.Client) -> None:
    def texts() -> Iterator[str]:
        yield "one"
        raise KeyError("source")

    with pytest.raises(KeyError, match="source"):
        list(client.stream_embed(texts(), batch_size=1, max_in_flight=4))
    with pytest.raises(TypeError, match="inputs cannot be"):
        list(client.stream_embed(["a", 3]))  # type: ignore[list-item]


def test_a_stream_without_an_end_is_an_error(client: vorta.Client, server: FakeServer) -> None:
    server.embeddings.is_cut_short = True
    with pytest.raises(errors.Internal, match="without a finished event"):
        list(client.stream_embed(["a"]))
    with pytest.raises(errors.Internal, match="without a finished event"):
        client.stream_rerank("q", ["a"]).result()


def test_stream_embed_fails_in_the_middle(client: vorta.Client, server: FakeServer) -> None:
    def fail(count: int) -> None:
        if count == 2:
            server.fail_next("StreamEmbed", errors.Unavailable("gone"))

    server.embeddings.on_inputs = fail
    got = []
    with pytest.raises(errors.Unavailable, match="gone"):
        got.extend(client.stream_embed(["a", "b", "c", "d"], batch_size=1, max_in_flight=1))
    assert len(server.calls["StreamEmbed"]) == 3


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 2049}, {"max_in_flight": 0}])
def test_bad_bounds_are_named(client: vorta.Client, options: Any) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        client.stream_embed(["x"], **options)
    assert caught.value.field in options
    with pytest.raises(errors.InvalidArgument):
        client.collection("docs").stream_upsert([], **options | {"batch_size": options.get("batch_size", 1) * 5})


def test_closing_a_stream_early(client: vorta.Client) -> None:
    stream = client.stream_embed(["a", "b"], batch_size=1, max_in_flight=1)
    next(stream)
    stream.close()
    assert list(stream) == []
    with pytest.raises(errors.Internal, match="closed"):
        stream.result()


def test_rerank(client: vorta.Client, server: FakeServer) -> None:
    got = client.rerank("q", TEXTS, top_n=2, return_documents=True, max_tokens_per_doc=9, raw_scores=True)
    assert [(entry.index, entry.relevance_score, entry.text) for entry in got] == [(2, 16, TEXTS[2]), (1, 9, TEXTS[1])]
    assert (got.model, len(got), got[0].index) == ("ranker", 2, 2)
    (request,) = server.calls["Rerank"]
    assert (request.query, request.max_tokens_per_doc, request.raw_scores) == ("q", 9, True)
    assert client.rerank("q", TEXTS, model="m")[0].text is None
    with pytest.raises(TypeError, match="documents"):
        client.rerank("q", "one text")


def test_stream_rerank(client: vorta.Client) -> None:
    stream = client.stream_rerank("q", TEXTS, top_n=1)
    assert [entry.index for entry in stream] == [0, 1, 2]
    assert [entry.index for entry in stream.result()] == [2]


def test_a_closed_client(server: FakeServer) -> None:
    client = vorta.Client(server.target)
    client.close()
    for call in (
        lambda: client.embed("x"),
        lambda: list(client.stream_embed(["x"])),
        lambda: list(client.stream_rerank("q", ["x"])),
        lambda: client.answer("q", "docs"),
        lambda: list(client.collection("docs").stream_upsert([vorta.Point("a")])),
    ):
        with pytest.raises(errors.Cancelled, match="closed"):
            call()


async def test_async_embed_and_rerank(aclient: vorta.AsyncClient, server: FakeServer) -> None:
    assert (await aclient.embed(TEXTS)).vectors == [vector_of(text) for text in TEXTS]
    texts = [f"t{number}" for number in range(2049)]
    assert [entry.packed for entry in await aclient.embed(texts)] == [packed_of(text) for text in texts]
    assert [entry.index for entry in await aclient.rerank("q", TEXTS, top_n=1)] == [2]
    async with aclient.stream_rerank("q", TEXTS) as scores:
        assert [entry.index async for entry in scores] == [0, 1, 2]
        assert len(await scores.result()) == 3
    server.fail_next("Rerank", errors.Unavailable("loading"))
    assert len(await aclient.rerank("q", TEXTS)) == 3
    server.fail_next("Embed", errors.Internal("broken"))
    with pytest.raises(errors.Internal, match="broken"):
        await aclient.embed("x")


async def test_async_stream_embed(aclient: vorta.AsyncClient, server: FakeServer) -> None:
    taken = 0

    async def texts() -> AsyncIterator[str]:
        nonlocal taken
        for number in range(20):
            taken += 1
            yield "bad" if number == 7 else f"t{number}"

    ahead = []
    stream = aclient.stream_embed(texts(), batch_size=2, max_in_flight=2)
    seen = []
    async for entry in stream:
        ahead.append(taken - len(seen))
        seen.append(entry)
    assert max(ahead) <= 4
    assert sorted(entry.index for entry in seen) == list(range(20))
    assert stream.summary is not None
    assert stream.summary.num_failures == 1
    assert (await aclient.stream_embed(["a"]).result()).num_inputs == 1
    assert (await aclient.stream_embed([]).result()).num_inputs == 0


async def test_async_streams_that_fail(aclient: vorta.AsyncClient, server: FakeServer) -> None:
    async def texts() -> AsyncIterator[str]:
        yield "one"
        raise KeyError("source")

    with pytest.raises(KeyError, match="source"):
        await aclient.stream_embed(texts(), batch_size=1).result()
    server.fail_next("StreamEmbed", errors.Unavailable("gone"))
    with pytest.raises(errors.Unavailable, match="gone"):
        await aclient.stream_embed(["a"]).result()
    stream = aclient.stream_embed(["a", "b"], batch_size=1, max_in_flight=1)
    await anext(stream)
    await stream.aclose()
    assert [entry async for entry in stream] == []
    with pytest.raises(errors.Internal, match="closed"):
        await stream.result()
    server.embeddings.is_cut_short = True
    with pytest.raises(errors.Internal, match="without a finished event"):
        await aclient.stream_embed(["a"]).result()


async def test_a_closed_async_client(server: FakeServer) -> None:
    client = vorta.AsyncClient(server.target)
    unread = client.answer("q", "docs")
    await client.aclose()
    with pytest.raises(errors.Cancelled, match="closed"):
        await client.embed("x")
    with pytest.raises(errors.Cancelled, match="closed"):
        await client.stream_embed(["x"]).result()
    with pytest.raises(errors.Cancelled, match="closed"):
        await client.stream_rerank("q", ["x"]).result()
    with pytest.raises(errors.Cancelled, match="closed"):
        client.answer("q", "docs")
    with pytest.raises(errors.Cancelled, match="closed"):
        await unread.result()
