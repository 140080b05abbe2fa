"""StreamAnswer: hits, tokens and cited ids from one call. The default models must really answer from what was found."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.integration.served import Served, error_of, serving
from vorta.errors import InvalidArgument
from vorta.v1 import common_pb2, inference_pb2
from vorta.v1 import vector_pb2 as pb
from vorta_bench.tasks import generate
from vorta_bench.tasks.scoring import score

Request = inference_pb2.StreamAnswerRequest
NUM_CASES = 50


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("answers")
    with serving(folder, "--runner", "fake", "--model", "m=fake", "--model", "e=fake-embedding") as served:
        served.vectors.CreateCollection(
            pb.CreateCollectionRequest(collection="notes", text_fields=["text"]), timeout=20
        )
        texts = ["the red house is old", "the green house is new", "a car of no colour"]
        points = [pb.Point(id=f"n{i}", text=text, payload_json=f'{{"n": {i}}}') for i, text in enumerate(texts)]
        served.vectors.Upsert(pb.UpsertRequest(collection="notes", points=points), timeout=20)
        yield served


def events(server: Served, request: inference_pb2.StreamAnswerRequest) -> list[inference_pb2.StreamAnswerResponse]:
    return list(server.inference.StreamAnswer(request, timeout=60))


def test_hits_come_first_then_tokens_then_one_end(server: Served) -> None:
    request = Request(question="the green house", collection="notes", limit=2, max_tokens=12)
    got = events(server, request)
    kinds = [message.WhichOneof("event") for message in got]
    assert kinds[:2] == ["hits", "started"]
    assert kinds[-1] == "finished"
    assert set(kinds[2:-1]) == {"delta"}
    assert [message.index for message in got] == sorted({message.index for message in got})
    hits = got[0].hits.hits
    assert hits[0].id == "n1"
    assert len(hits) == 2
    assert hits[0].payload["text"] == "the green house is new"
    end = got[-1].finished
    assert end.result.finish_reason == common_pb2.FINISH_REASON_LENGTH
    assert end.result.usage.completion_tokens == 12
    assert got[1].started.prompt_tokens > len("the green house is new")


def test_filters_thresholds_and_dense_search_alone(server: Served) -> None:
    only = pb.Filter(must=[pb.Condition(field="n", range=pb.NumberRange(gte=2))])
    got = events(server, Request(question="house", collection="notes", filter=only, max_tokens=2))
    assert [hit.id for hit in got[0].hits.hits] == ["n2"]
    got = events(server, Request(question="house", collection="notes", score_threshold=2.0, hybrid=False, max_tokens=2))
    assert not got[0].hits.hits
    assert got[-1].WhichOneof("event") == "finished"
    assert not got[-1].finished.cited_ids
    got = events(server, Request(question="house", collection="notes", hybrid=False, max_tokens=2))
    assert not any(hit.HasField("text_score") for hit in got[0].hits.hits)


def test_passages_that_the_context_has_no_room_for_are_left_out(server: Served) -> None:
    server.vectors.CreateCollection(pb.CreateCollectionRequest(collection="long", text_fields=["text"]), timeout=20)
    points = [pb.Point(id=f"l{i}", text=f"long text {i} " + "y" * 470, payload_json="{}") for i in range(12)]
    server.vectors.Upsert(pb.UpsertRequest(collection="long", points=points), timeout=20)
    got = events(server, Request(question="long text 3", collection="long", limit=12, max_tokens=100))
    assert len(got[0].hits.hits) == 12
    assert 3000 < got[1].started.prompt_tokens <= 4096 - 100
    assert got[-1].finished.result.usage.completion_tokens == 100


@pytest.mark.parametrize(
    ("request_", "field", "reason"),
    [
        (Request(collection="notes"), "question", "MISSING_FIELD"),
        (Request(question="q"), "collection", "MISSING_FIELD"),
        (Request(question="q", collection="notes", limit=0), "limit", "INVALID_FIELD"),
        (Request(question="q", collection="notes", limit=65), "limit", "INVALID_FIELD"),
        (Request(question="q", collection="notes", temperature=-1), "temperature", "INVALID_FIELD"),
        (Request(question="q", collection="notes", max_tokens=0), "max_tokens", "INVALID_FIELD"),
        (Request(question="q" * 70_000, collection="notes"), "question", "INPUT_TOO_LONG"),
        (
            Request(question="q", collection="notes", filter=pb.Filter(must=[pb.Condition(field="x", exists=True)])),
            "filter.must[0].field",
            "FILTER_FIELD_UNKNOWN",
        ),
    ],
)
def test_bad_requests_name_the_field(server: Served, request_: Request, field: str, reason: str) -> None:
    error = error_of(server.inference.StreamAnswer, request_)
    assert isinstance(error, InvalidArgument)
    assert (error.field, error.reason) == (field, reason)


def test_what_is_not_there(server: Served) -> None:
    for request, reason in (
        (Request(question="q", collection="nobody"), "COLLECTION_NOT_FOUND"),
        (Request(question="q", collection="notes", model="nobody"), "MODEL_NOT_FOUND"),
        (Request(question="q", collection="notes", model="e"), "MODEL_KIND_MISMATCH"),
    ):
        assert error_of(server.inference.StreamAnswer, request).reason == reason


def test_a_cancelled_answer_frees_its_model(server: Served) -> None:
    call = server.inference.StreamAnswer(Request(question="house", collection="notes", ignore_eos=True), timeout=60)
    assert next(call).WhichOneof("event") == "hits"
    assert next(call).WhichOneof("event") == "started"
    call.cancel()
    end = time.monotonic() + 20
    while server.model("m").load.running_requests:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_default_models_answer_held_out_questions_from_a_collection(tmp_path: Path) -> None:
    """50 questions about things that exist in the collection alone, whose names no model has seen."""
    cases = []
    for case in generate("lookup", "heldout", 600, 11):
        asked = case.messages[-1].content if case.messages else case.prompt
        found = re.fullmatch(r"Context:\n(\[1\] .+)\n\nQuestion: (.+)", asked, re.DOTALL)
        if found:
            cases.append((re.split(r"\n\[\d+\] ", found[1].removeprefix("[1] ")), found[2], case))
    cases = cases[:NUM_CASES]
    assert len(cases) == NUM_CASES
    with serving(tmp_path) as server:
        server.vectors.CreateCollection(
            pb.CreateCollectionRequest(collection="facts", text_fields=["text"]), timeout=20
        )
        points = [
            pb.Point(id=f"{number}-{index}", text=passage)
            for number, (passages, _, _) in enumerate(cases)
            for index, passage in enumerate(passages)
        ]
        server.vectors.Upsert(pb.UpsertRequest(collection="facts", points=points), timeout=60)
        num_found = num_right = num_cited = 0
        for number, (_, question, case) in enumerate(cases):
            request = Request(question=question, collection="facts", limit=3, temperature=0, max_tokens=40)
            first, *rest = events(server, request)
            ids = [hit.id for hit in first.hits.hits]
            answer = "".join(message.delta.text for message in rest)
            num_found += any(point_id.startswith(f"{number}-") for point_id in ids)
            num_right += score(case, answer)
            cited = list(rest[-1].finished.cited_ids)
            assert set(cited) <= set(ids)
            num_cited += any(point_id.startswith(f"{number}-") for point_id in cited)
    print(f"of {NUM_CASES}: found {num_found}, right {num_right}, cited the source {num_cited}")  # noqa: T201
    assert num_found >= 0.9 * NUM_CASES
    assert num_right >= 0.8 * NUM_CASES
    assert num_cited >= 0.8 * NUM_CASES


def test_without_the_context_the_model_does_not_know(tmp_path: Path) -> None:
    """The same model, asked about the same thing, says that it does not know when the collection lacks it."""
    with serving(tmp_path) as server:
        server.vectors.CreateCollection(
            pb.CreateCollectionRequest(collection="facts", text_fields=["text"]), timeout=20
        )
        point = pb.Point(id="a", text="The company Vornesta was founded by Mira Kalden.")
        server.vectors.Upsert(pb.UpsertRequest(collection="facts", points=[point]), timeout=60)

        def answer(question: str) -> str:
            request = Request(question=question, collection="facts", temperature=0, max_tokens=30)
            return "".join(message.delta.text for message in events(server, request))

        assert "Mira Kalden" in answer("Who founded Vornesta?")
        server.vectors.DeletePoints(pb.DeletePointsRequest(collection="facts", ids=["a"]), timeout=20)
        point.text = "The company Vornesta was founded by Tobin Ashel."
        server.vectors.Upsert(pb.UpsertRequest(collection="facts", points=[point]), timeout=60)
        assert "Tobin Ashel" in answer("Who founded Vornesta?")


def test_deadlines_hold_over_all_parts(server: Served) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(server.inference.StreamAnswer(Request(question="house", collection="notes"), timeout=0.0001))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]
