"""embed, rerank, search, answer and collections against the scripted server."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import pytest

import vorta
from tests.clients.cli.conftest import Run
from tests.clients.fake_server import FakeServer
from tests.clients.fake_vectors import vector_of
from vorta import errors
from vorta.cli import main
from vorta.v1 import embedding_pb2, vector_pb2


@pytest.fixture
def docs(server: FakeServer, client: vorta.Client) -> vorta.Collection:
    server.vectors.add("docs")
    collection = client.collection("docs")
    collection.upsert(
        [
            vorta.Point("a", text="the sun\n gives " + "light " * 40, payload={"lang": "en"}),
            vorta.Point("long-id", [1.0], payload={"title": "short", "body": "the longer one", "lang": "de"}),
        ]
    )
    return collection


def test_embed(run: Run, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = run("embed", "one", "two words", "--no-normalize", "--dimensions", "3", "--pooling", "cls")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "[3.0000, 1.0000, 111.0000, … 3]  1 tokens, 1 cut  one",
        "[9.0000, 2.0000, 116.0000, … 3]  2 tokens, 1 cut  two words",
    ]
    assert server.calls["Embed"][0].pooling == embedding_pb2.POOLING_CLS
    assert server.calls["Embed"][0].HasField("normalize")
    assert not server.calls["Embed"][0].HasField("truncate")
    for words in ([], ["-"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\ntwo words\n"))
        got = json.loads(run("embed", *words, "--json")[1])
        assert [entry["vector"] for entry in got["embeddings"]] == [vector_of("one"), vector_of("two words")]
        assert (got["model"], got["dimensions"], got["usage"]["prompt_tokens"]) == ("embedder", 3, 2)
    tokens = json.loads(run("embed", "two words", "--pooling", "token", "--json")[1])
    assert tokens["embeddings"][0]["vectors"] == [vector_of("two"), vector_of("words")]
    assert run("embed", "bad")[::2] == (2, "error: too long (INPUT_TOO_LONG, field inputs[0])\n")


def test_rerank(run: Run, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run("rerank", "q", "short", "longer text", "--top-n", "1", "--raw-scores")
    assert (code, out) == (0, " 11.0000     1  longer text\n")
    assert server.calls["Rerank"][0].raw_scores
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\nbb\n"))
    got = json.loads(run("rerank", "q", "-", "--json")[1])
    assert [(entry["index"], entry["text"]) for entry in got["results"]] == [(1, "bb"), (0, "a")]


def test_search(run: Run, docs: vorta.Collection, server: FakeServer) -> None:
    code, out, err = run("search", "docs", "sun", "--limit", "5", "--exact")
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert first.startswith("  1.0000  a        the sun gives light light")
    assert first.endswith("light…")
    assert second == "  0.5000  long-id  the longer one"
    english = '{"must": [{"field": "lang", "match": "en"}]}'
    got = json.loads(run("search", "docs", "sun", "--filter", english, "--json")[1])
    assert [(hit["id"], hit["payload"]["lang"]) for hit in got["hits"]] == [("a", "en")]
    assert got["strategy"] == "exact"
    assert run("search", "docs", "--id", "a")[0] == 0
    assert run("search", "docs", "--vector", "[1, 2, 3]")[0] == 0
    assert [(entry.text, entry.id, len(entry.vector_packed)) for entry in server.calls["Search"]] == [
        ("sun", "", 0),
        ("sun", "", 0),
        ("", "a", 0),
        ("", "", 12),
    ]
    assert "long-id" in run("search", "docs", "sun", "--hybrid")[1]
    assert server.calls["HybridSearch"][0].text == "sun"
    assert run("search", "docs", "sun", "--group-by", "year")[1].startswith("year = 7\n  1.0000  a")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["docs"], "one of vector, text and id"),
        (["docs", "sun", "--id", "a"], "one of vector, text and id"),
        (["docs", "--hybrid"], "--hybrid needs a text"),
        (["docs", "sun", "--filter", "{"], "argument --filter: not JSON"),
        (["docs", "sun", "--filter", "[]"], "must be a JSON object"),
        (["docs", "sun", "--filter", '{"x": 1}'], "field filter"),
        (["docs", "--vector", "[1, null]"], "must be a JSON list of numbers"),
    ],
)
def test_wrong_searches(run: Run, docs: vorta.Collection, words: list[str], message: str) -> None:
    code, out, err = run("search", *words)
    assert (code, out) == (2, "")
    assert message in err


def test_search_of_no_collection(run: Run) -> None:
    assert run("search", "none", "sun")[::2] == (1, "error: no collection none (COLLECTION_NOT_FOUND)\n")


def test_answer(run: Run, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = run("answer", "docs", "why is it", "--limit", "3", "--temperature", "0", "--no-hybrid")
    assert (code, err) == (0, "")
    assert out == "  0.5000  p1  the sun\n\nwhy is it \n\ncited: p1\n"
    (request,) = server.calls["StreamAnswer"]
    assert (request.question, request.limit, request.hybrid) == ("why is it", 3, False)
    assert request.HasField("temperature")
    monkeypatch.setattr(sys, "stdin", io.StringIO("piped"))
    events = [json.loads(line) for line in run("answer", "docs", "--json")[1].splitlines()]
    assert [event["event"] for event in events] == ["hits", "started", "delta", "finished"]
    assert events[0]["hits"][0]["payload"] == {"text": "the sun", "year": 2020}
    assert (events[-1]["cited_ids"], events[-1]["result"]["finish_reason"]) == (["p1"], "stop")


def test_an_answer_cut_off(run: Run, server: FakeServer) -> None:
    server.answer_length = 3
    code, out, err = run("answer", "docs", "why is it")
    assert (code, out) == (1, "  0.5000  p1  the sun\n\nwhy \n")
    assert "without a finished event" in err


def test_collections(run: Run, docs: vorta.Collection, server: FakeServer) -> None:
    definition = "--dimension 3 --distance dot --index hnsw --m 8 --text-field text --schema year=integer"
    words = f"collections create new {definition} --schema a=b=geo --embedding-model e --description d"
    created = run(*words.split())
    assert created[0] == 0
    assert "index            hnsw, m 8" in created[1]
    request = server.calls["CreateCollection"][0]
    assert dict(request.schema) == {"year": vector_pb2.FIELD_TYPE_INTEGER, "a=b": vector_pb2.FIELD_TYPE_GEO}
    assert run("collections", "create", "new")[0] == 1
    for words in (["collections"], ["collections", "list"]):
        header, first, second = run(*words)[1].splitlines()
        assert header.split()[0] == "COLLECTION"
        assert [first.split()[0], second.split()[0]] == ["docs", "new"]
    assert len(json.loads(run("collections", "--json")[1])["collections"]) == 2
    assert "points           2 (0 deleted" in run("collections", "show", "docs")[1]
    assert json.loads(run("collections", "show", "docs", "--json")[1])["created_time"].startswith("2023-11-14")
    assert "4.2 MB" in run("collections", "stats", "docs")[1]
    assert json.loads(run("collections", "stats", "docs", "--json")[1])["num_points"] == 2
    assert run("collections", "delete", "new") == (0, "deleted new\n", "")
    assert run("collections", "delete", "new")[0] == 1


def test_aliases_and_snapshots(run: Run, docs: vorta.Collection) -> None:
    assert run("collections", "alias", "live", "docs")[1] == "live -> docs\n"
    assert run("collections", "alias", "live", "docs")[1] == "live -> docs (before: docs)\n"
    assert run("collections", "alias")[1].splitlines()[1].split() == ["live", "docs"]
    assert json.loads(run("collections", "alias", "--json")[1])["aliases"][0]["alias"] == "live"
    assert json.loads(run("collections", "alias", "live", "docs", "--json")[1])["collection"] == "docs"
    assert json.loads(run("collections", "alias", "live", "--delete", "--json")[1]) == {}
    assert run("collections", "alias", "live", "--delete")[0] == 1
    assert run("collections", "alias", "live")[0] == 2
    assert run("collections", "alias", "live", "docs", "--delete")[0] == 2
    assert run("collections", "snapshot", "docs")[1] == "s0: 2 points, 2.0 MB\n"
    assert json.loads(run("collections", "snapshot", "docs", "--json")[1])["snapshot"] == "s1"
    assert [line.split()[0] for line in run("collections", "snapshots", "docs")[1].splitlines()] == [
        "SNAPSHOT",
        "s1",
        "s0",
    ]
    assert len(json.loads(run("collections", "snapshots", "docs", "--json")[1])["snapshots"]) == 2
    assert "collection       copy" in run("collections", "restore", "docs", "s0", "--target", "copy", "--replace")[1]
    assert run("collections", "snapshot", "docs", "--delete", "s0")[1] == "deleted s0\n"
    assert run("collections", "restore", "docs", "s0")[::2] == (1, "error: no such snapshot (SNAPSHOT_NOT_FOUND)\n")


@pytest.mark.parametrize("schema", ["year", "year=number", "=geo"])
def test_wrong_schema(run: Run, schema: str) -> None:
    code, _, err = run("collections", "create", "new", "--schema", schema)
    assert (code, "FIELD=TYPE" in err) == (2, True)


def test_no_server(run: Run) -> None:
    for words in (["embed", "x"], ["search", "docs", "x"], ["answer", "docs", "x"], ["collections"]):
        assert run(*words, target="localhost:1")[0] == 3


def test_server_errors_as_json(run: Run, server: FakeServer) -> None:
    server.fail_next("ListCollections", errors.Unimplemented("no vectors here", reason="VECTORS_DISABLED"))
    code, out, _ = run("collections", "--json")
    assert (code, json.loads(out)["error"]["reason"]) == (1, "VECTORS_DISABLED")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_the_commands(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("collections", "snapshots", "restore", "ingest", "chunk-tokens", "rerank", "answer", "embed"):
        assert word in script


def test_help_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    words: Any
    for words in ("embed", "rerank", "search", "answer", "collections", "ingest", "collections create"):
        with pytest.raises(SystemExit) as caught:
            main([*words.split(), "--help"])
        assert caught.value.code == 0
        assert "--server" in capsys.readouterr().out


def test_control_characters_of_a_point_do_not_reach_a_terminal(run: Run, docs: vorta.Collection) -> None:
    from tests.clients.cli.test_main import Terminal

    docs.upsert(vorta.Point("a", text="x\033[2J"))
    terminal = Terminal("search", "docs", "sun", "--server", docs._transport.config.target)
    terminal.wait_for("x\ufffd[2J")
    assert terminal.close() == 0
