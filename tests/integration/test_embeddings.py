"""EmbeddingService against a real server: front, worker process, batching, with encoders that are quick and exact."""

from __future__ import annotations

import math
import os
import signal
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from tests.integration.served import Served, error_of, serving, wait_for
from vorta.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from vorta.v1 import embedding_pb2, inference_pb2
from vorta.wire import error_from_rpc

EmbedRequest = embedding_pb2.EmbedRequest
MODELS = ("--runner", "fake", "--model", "m=fake", "--model", "e=fake-embedding", "--model", "r=fake-rerank")
TEXTS = ["one", "a longer text of some words", "ä 日本", "x" * 400, " spaces "]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("embeddings")
    with serving(folder, *MODELS, "--set", "vector.backend=none") as served:
        yield served


def vectors(server: Served, texts: list[str], **options: object) -> list[list[float]]:
    reply = server.embedding.Embed(EmbedRequest(inputs=texts, **options), timeout=30)  # type: ignore[arg-type]
    return [list(entry.values) for entry in reply.embeddings]


def test_vectors_come_in_order_of_length_one_and_with_their_counts(server: Served) -> None:
    reply = server.embedding.Embed(EmbedRequest(inputs=TEXTS), timeout=30)
    assert (reply.model, reply.dimensions) == ("e", 64)
    assert [entry.index for entry in reply.embeddings] == list(range(len(TEXTS)))
    assert [entry.num_tokens for entry in reply.embeddings] == [len(text.encode()) for text in TEXTS]
    assert reply.usage.prompt_tokens == reply.usage.total_tokens == sum(len(text.encode()) for text in TEXTS)
    for entry in reply.embeddings:
        assert math.sqrt(sum(value**2 for value in entry.values)) == pytest.approx(1.0, abs=1e-5)
        assert not entry.packed
    alone = [vectors(server, [text])[0] for text in TEXTS]
    for entry, single in zip(reply.embeddings, alone, strict=True):
        assert list(entry.values) == pytest.approx(single, abs=1e-6)


def test_packed_vectors_are_the_same_numbers(server: Served) -> None:
    packed = server.embedding.Embed(EmbedRequest(inputs=TEXTS, encoding=embedding_pb2.VECTOR_ENCODING_PACKED))
    for entry, values in zip(packed.embeddings, vectors(server, TEXTS), strict=True):
        assert not entry.values
        assert list(struct.unpack(f"<{len(values)}f", entry.packed)) == values


def test_options(server: Served) -> None:
    (whole,) = vectors(server, ["some text"], normalize=False)
    (cut,) = vectors(server, ["some text"], normalize=False, dimensions=8)
    assert cut == whole[:8]
    length = math.sqrt(sum(value**2 for value in whole[:8]))
    assert vectors(server, ["some text"], dimensions=8)[0] == pytest.approx([v / length for v in whole[:8]], abs=1e-6)
    named = vectors(server, ["some text"], prompt_name="query", normalize=False)
    told = vectors(server, ["some text"], instruction="query: ", normalize=False)
    assert named == told == vectors(server, ["query: some text"], normalize=False)
    per_token = vectors(server, ["abc"], pooling=embedding_pb2.POOLING_TOKEN, normalize=False)[0]
    assert len(per_token) == 3 * 64
    first, last = per_token[:64], per_token[-64:]
    assert vectors(server, ["abc"], pooling=embedding_pb2.POOLING_CLS, normalize=False)[0] == first
    assert vectors(server, ["abc"], pooling=embedding_pb2.POOLING_LAST, normalize=False)[0] == last


def test_long_texts_are_refused_with_their_counts_or_cut_at_a_side(server: Served) -> None:
    long = "".join(chr(97 + index % 26) for index in range(700))
    error = error_of(server.embedding.Embed, EmbedRequest(inputs=["fine", long]))
    assert isinstance(error, InvalidArgument)
    assert (error.reason, error.field) == ("INPUT_TOO_LONG", "inputs[1]")
    assert (error.metadata["num_tokens"], error.metadata["max_tokens"]) == ("700", "512")
    reply = server.embedding.Embed(EmbedRequest(inputs=[long], truncate=True), timeout=30)
    assert (reply.embeddings[0].num_tokens, reply.embeddings[0].num_truncated_tokens) == (512, 188)
    assert list(reply.embeddings[0].values) == vectors(server, [long[:512]])[0]
    left = vectors(server, [long], truncate=True, truncation_side=embedding_pb2.TRUNCATION_SIDE_LEFT)
    assert left == vectors(server, [long[-512:]])


@pytest.mark.parametrize(
    ("request_", "field", "reason"),
    [
        (EmbedRequest(), "inputs", "MISSING_FIELD"),
        (EmbedRequest(inputs=["a", ""]), "inputs[1]", "MISSING_FIELD"),
        (EmbedRequest(inputs=["a"] * 2049), "inputs", "INVALID_FIELD"),
        (EmbedRequest(inputs=["a"], dimensions=0), "dimensions", "INVALID_FIELD"),
        (EmbedRequest(inputs=["a"], dimensions=65), "dimensions", "INVALID_FIELD"),
        (EmbedRequest(inputs=["a"], prompt_name="nobody"), "prompt_name", "INVALID_FIELD"),
        (EmbedRequest(inputs=["a"], prompt_name="query", instruction="x"), "instruction", "CONFLICTING_FIELDS"),
        (EmbedRequest(inputs=["a"], pooling=99), "pooling", "INVALID_FIELD"),  # type: ignore[arg-type]
        (EmbedRequest(inputs=["a"], encoding=99), "encoding", "INVALID_FIELD"),  # type: ignore[arg-type]
        (EmbedRequest(inputs=["a" * 5_000_000]), "inputs[0]", "INPUT_TOO_LONG"),
    ],
)
def test_bad_requests_name_the_field(server: Served, request_: EmbedRequest, field: str, reason: str) -> None:
    error = error_of(server.embedding.Embed, request_)
    assert isinstance(error, InvalidArgument)
    assert (error.field, error.reason) == (field, reason)


def test_models_of_other_kinds_are_refused(server: Served) -> None:
    for model in ("m", "r"):
        error = error_of(server.embedding.Embed, EmbedRequest(model=model, inputs=["a"]))
        assert isinstance(error, FailedPrecondition)
        assert (error.reason, error.metadata["model"]) == ("MODEL_KIND_MISMATCH", model)
    for model in ("e", "r"):
        error = error_of(server.inference.Generate, inference_pb2.GenerateRequest(model=model, prompt="a"))
        assert error.reason == "MODEL_KIND_MISMATCH"
    assert error_of(server.embedding.Rerank, embedding_pb2.RerankRequest(model="m", query="q", documents=["d"])).reason
    error = error_of(server.embedding.Embed, EmbedRequest(model="nobody", inputs=["a"]))
    assert isinstance(error, NotFound)
    assert error.reason == "MODEL_NOT_FOUND"


def test_a_stream_keeps_indices_and_goes_on_after_bad_texts(server: Served) -> None:
    texts = [f"text number {index}" for index in range(300)]
    texts[7], texts[205] = "", "y" * 600

    def messages() -> Iterator[embedding_pb2.StreamEmbedRequest]:
        options = embedding_pb2.EmbedOptions(encoding=embedding_pb2.VECTOR_ENCODING_PACKED, dimensions=16)
        yield embedding_pb2.StreamEmbedRequest(model="e", options=options, inputs=texts[:3])
        yield embedding_pb2.StreamEmbedRequest()
        for start in range(3, 300, 50):
            yield embedding_pb2.StreamEmbedRequest(inputs=texts[start : min(300, start + 50)])

    found: dict[int, bytes] = {}
    failed: dict[int, str] = {}
    *batches, last = list(server.embedding.StreamEmbed(messages(), timeout=60))
    for message in batches:
        found |= {entry.index: entry.packed for entry in message.batch.embeddings}
        failed |= {entry.index: entry.error.reason for entry in message.batch.failures}
    assert failed == {7: "MISSING_FIELD", 205: "INPUT_TOO_LONG"}
    assert sorted(found) == [index for index in range(300) if index not in failed]
    end = last.finished
    assert (end.model, end.num_inputs, end.num_failures, end.dimensions) == ("e", 300, 2, 16)
    assert end.usage.total_tokens == sum(len(text) for index, text in enumerate(texts) if index not in failed)
    (again,) = vectors(server, [texts[100]], dimensions=16)
    assert struct.unpack("<16f", found[100]) == pytest.approx(again, abs=1e-6)


def test_bad_streams(server: Served) -> None:
    stream = embedding_pb2.StreamEmbedRequest
    for messages, field in (
        ([], "inputs"),
        ([stream(inputs=["a"]), stream(model="e", inputs=["b"])], "model"),
        ([stream(inputs=["a"]), stream(options=embedding_pb2.EmbedOptions(), inputs=["b"])], "options"),
        ([stream(inputs=["a"] * 2049)], "inputs"),
        ([stream(options=embedding_pb2.EmbedOptions(dimensions=-1), inputs=["a"])], "options.dimensions"),
    ):
        error = error_of(server.embedding.StreamEmbed, iter(messages))
        assert isinstance(error, InvalidArgument)
        assert error.field == field


@pytest.mark.parametrize("model", ["", "r", "e"])
def test_rerank_puts_the_best_first(server: Served, model: str) -> None:
    documents = ["nothing alike: zzzz", "red apples and pears", "red apples", "apples"]
    request = embedding_pb2.RerankRequest(
        model=model, query="red apples", documents=documents, top_n=2, return_documents=True
    )
    reply = server.embedding.Rerank(request, timeout=30)
    assert reply.model == (model or "r")
    assert len(reply.results) == 2
    assert {result.index for result in reply.results} >= ({2} if model == "e" else {1, 2})
    assert [result.document.text for result in reply.results] == [documents[r.index] for r in reply.results]
    scores = [result.relevance_score for result in reply.results]
    assert scores == sorted(scores, reverse=True)
    if model != "e":
        raw = server.embedding.Rerank(
            embedding_pb2.RerankRequest(model="r", query="red apples", documents=documents, raw_scores=True)
        )
        assert 1 / (1 + math.exp(-raw.results[0].relevance_score)) == pytest.approx(scores[0], abs=1e-6)
    assert reply.usage.total_tokens > 0


def test_a_streamed_ranking_is_the_same(server: Served) -> None:
    documents = [f"document {index} of {'red' if index % 7 == 0 else 'green'} things" for index in range(200)]
    whole = server.embedding.Rerank(embedding_pb2.RerankRequest(query="red", documents=documents))
    request = embedding_pb2.StreamRerankRequest(query="red", documents=documents, top_n=5)
    *batches, last = list(server.embedding.StreamRerank(request, timeout=30))
    scores = {result.index: result.relevance_score for message in batches for result in message.batch.results}
    assert scores == {result.index: result.relevance_score for result in whole.results}
    assert list(last.finished.results) == list(whole.results[:5])


def test_bad_rankings(server: Served) -> None:
    request = embedding_pb2.RerankRequest
    for bad, field in (
        (request(documents=["a"]), "query"),
        (request(query="q"), "documents"),
        (request(query="q", documents=["a", ""]), "documents[1]"),
        (request(query="q", documents=["a"] * 2049), "documents"),
        (request(query="q", documents=["a"], top_n=0), "top_n"),
        (request(query="q", documents=["a"], max_tokens_per_doc=0), "max_tokens_per_doc"),
    ):
        error = error_of(server.embedding.Rerank, bad)
        assert isinstance(error, InvalidArgument)
        assert error.field == field


def test_many_callers_at_once_get_what_each_would_get_alone(server: Served) -> None:
    calls = [
        [f"caller {caller} text {index} " * (1 + index % 5) for index in range(caller % 9 + 1)] for caller in range(64)
    ]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda texts: vectors(server, texts), calls))
    for texts, found in zip(calls[::9], together[::9], strict=True):
        for text, vector in zip(texts, found, strict=True):
            assert vector == pytest.approx(vectors(server, [text])[0], abs=1e-5)


def test_a_worker_that_dies_ends_its_calls_and_comes_back(tmp_path: Path) -> None:
    slow = ("--set", "worker.fake_prefill_token_s=0.01", "--set", "worker.restart_delay_s=0.2")
    models = ("--runner", "fake", "--model", "e=fake-embedding", "--set", "vector.backend=none")
    with serving(tmp_path, *models, *slow, "--set", "embedding.max_batch_tokens=64") as server:
        call = server.embedding.Embed.future(EmbedRequest(inputs=["x" * 50] * 200), timeout=60)
        wait_for(server.process, server.log, lambda: server.model("e").load.running_requests)
        os.kill(server.model("e").load.worker_pid, signal.SIGKILL)
        with pytest.raises(grpc.RpcError) as caught:
            call.result()
        error = error_from_rpc(caught.value)
        assert isinstance(error, Unavailable)
        assert (error.reason, error.is_retryable) == ("WORKER_DIED", True)
        server.wait_until_serving()
        assert vectors(server, ["hello"])


def test_deadlines_and_cancelled_calls_leave_the_queue(tmp_path: Path) -> None:
    models = ("--runner", "fake", "--model", "e=fake-embedding", "--set", "vector.backend=none")
    with serving(tmp_path, *models, "--set", "worker.fake_prefill_token_s=0.002") as server:
        long = EmbedRequest(inputs=["x" * 500] * 40)  # 40 s
        cancelled = server.embedding.Embed.future(long, timeout=60)
        with pytest.raises(grpc.RpcError) as caught:
            server.embedding.Embed(long, timeout=1.0)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]
        cancelled.cancel()
        # Fair queueing lets a short call pass anyway; with the others gone the queue is empty soon.
        assert vectors(server, ["short"])
        end = time.monotonic() + 20
        while server.model("e").load.waiting_requests or server.model("e").load.running_requests:
            assert time.monotonic() < end
            time.sleep(0.1)


def test_a_full_queue_refuses(tmp_path: Path) -> None:
    models = ("--runner", "fake", "--model", "e=fake-embedding", "--set", "vector.backend=none")
    limits = ("--set", "worker.fake_prefill_token_s=0.005", "--set", "embedding.max_waiting_texts=4")
    with serving(tmp_path, *models, *limits) as server:
        calls = [server.embedding.Embed.future(EmbedRequest(inputs=["x" * 200] * 3), timeout=60) for _ in range(8)]
        codes = []
        for call in calls:
            error = call.exception()
            codes.append(error.code() if error is not None else grpc.StatusCode.OK)
        assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes
        assert grpc.StatusCode.OK in codes
        assert set(codes) == {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.OK}
