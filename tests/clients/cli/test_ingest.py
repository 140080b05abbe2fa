"""`vorta ingest` over real small files, against the scripted server."""

from __future__ import annotations

import builtins
import json
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clients.cli.conftest import Run, spawn
from tests.clients.cli.test_main import Terminal
from tests.clients.fake_server import FakeServer
from vorta import errors
from vorta.cli.ingest.chunking import Chunker, estimate_tokens
from vorta.cli.ingest.journal import Journal, Progress, default_path
from vorta.cli.ingest.sources import find_sources

Ingest = Callable[..., tuple[int, Any, str]]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder named docs."""
    folder = tmp_path / "docs"
    folder.mkdir()
    return folder


@pytest.fixture
def ingest(run: Run, folder: Path) -> Ingest:
    """Ingests the folder: exit code, report, stderr."""

    def ingest(*words: str, path: Path = folder) -> tuple[int, Any, str]:
        code, out, err = run("ingest", str(path), "--collection", "docs", "--create", "--json", *words)
        return code, json.loads(out), err

    return ingest


def kept(server: FakeServer) -> list[dict[str, Any]]:
    """The payloads of the points that the server has, by source and chunk."""
    payloads = [json.loads(point.payload_json) for point in server.vectors.points["docs"].values()]
    return sorted(payloads, key=lambda payload: (payload["source"], payload["source_chunk"]))


def texts(server: FakeServer) -> list[str]:
    return [payload["text"] for payload in kept(server)]


def pdf_of(*pages: str) -> bytes:
    """A PDF with these texts, written by hand."""
    count = len(pages)
    kids = " ".join(f"{4 + 2 * place} 0 R" for place in range(count))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {count} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for place, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * place} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    data = "%PDF-1.4\n"
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(data))
        data += f"{number} 0 obj\n{body}\nendobj\n"
    begin = len(data)
    entries = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    data += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{entries}"
    data += f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{begin}\n%%EOF\n"
    return data.encode()


def test_every_kind_of_file(ingest: Ingest, folder: Path, server: FakeServer) -> None:
    (folder / "sub").mkdir()
    (folder / "a.txt").write_text("Plain text.\n")
    (folder / "b.md").write_text("# Head\n\n" + "word " * 60 + "\n\n# Next\n\n" + "next " * 60)
    (folder / "c.jsonl").write_text('{"text": "first", "year": 2020}\n\n{"text": "second", "tags": ["x"]}\n')
    (folder / "sub" / "d.csv").write_text('\ufefftext,lang\n"with\nbreak",en\nzwei,de\n', "utf-8")
    (folder / "e.pdf").write_bytes(pdf_of("Page one.", "Page two."))
    (folder / "f.bin").write_text("no kind")
    (folder / ".hidden.txt").write_text("hidden")
    (folder / "link.txt").symlink_to(folder / "a.txt")
    code, report, err = ingest("--chunk-tokens", "70")
    assert (code, err) == (0, "")
    assert report == {
        "collection": "docs", "files": 5, "unchanged": 0, "chunks": 9, "resumed_chunks": 0, "deleted_chunks": 0,
        "failures": [],
    }  # fmt: skip
    got = kept(server)
    assert [(entry["source"], entry["source_chunk"]) for entry in got] == [
        ("docs/a.txt", 0), ("docs/b.md", 0), ("docs/b.md", 1), ("docs/c.jsonl", 0), ("docs/c.jsonl", 1),
        ("docs/e.pdf", 0), ("docs/e.pdf", 1), ("docs/sub/d.csv", 0), ("docs/sub/d.csv", 1),
    ]  # fmt: skip
    assert texts(server)[0] == "Plain text."
    assert texts(server)[1].startswith("# Head")
    assert texts(server)[2].startswith("# Next")
    assert (got[3]["text"], got[3]["year"], got[4]["tags"]) == ("first", 2020, ["x"])
    assert [(entry["text"].strip(), entry["page"]) for entry in got[5:7]] == [("Page one.", 1), ("Page two.", 2)]
    assert [(entry["text"], entry["lang"]) for entry in got[7:]] == [("with\nbreak", "en"), ("zwei", "de")]
    request = server.calls["CreateCollection"][0]
    assert (list(request.text_fields), set(request.schema)) == (["text"], {"source", "source_hash", "source_chunk"})
    assert not any(point.vector_packed for entry in server.calls["StreamUpsert"] for point in entry.points)


def test_again_changes_nothing(ingest: Ingest, folder: Path, server: FakeServer, cache: Path) -> None:
    (folder / "a.txt").write_text("one")
    (folder / "b.jsonl").write_text('{"text": "two"}\n')
    ingest()
    before = dict(server.vectors.points["docs"])
    code, report, _ = ingest()
    assert (code, report["unchanged"], report["chunks"]) == (0, 2, 0)
    assert len(server.calls["StreamUpsert"]) == 1
    for path in cache.rglob("*.jsonl"):
        path.unlink()
    assert ingest()[1]["chunks"] == 2
    assert server.vectors.points["docs"].keys() == before.keys()


def test_changed_files_replace_their_chunks(ingest: Ingest, folder: Path, server: FakeServer) -> None:
    (folder / "a.txt").write_text("one. " * 100)
    (folder / "b.txt").write_text("stays")
    assert ingest("--chunk-chars", "100")[1]["chunks"] > 4
    (folder / "a.txt").write_text("new")
    code, report, _ = ingest("--chunk-chars", "100")
    assert (code, report["unchanged"], report["chunks"]) == (0, 1, 1)
    assert report["deleted_chunks"] > 3
    assert texts(server) == ["new", "stays"]
    (folder / "a.txt").write_text("")
    assert ingest("--chunk-chars", "100")[1]["deleted_chunks"] == 1
    assert texts(server) == ["stays"]
    # Other options make other chunks of the same content.
    (folder / "b.txt").write_text("stays " * 30)
    ingest("--chunk-chars", "100")
    ingest("--chunk-chars", "50")
    assert max(map(len, texts(server))) <= 50


def test_a_collection_made_anew_is_filled_again(ingest: Ingest, folder: Path, server: FakeServer) -> None:
    (folder / "a.txt").write_text("one")
    ingest()
    server.vectors.points["docs"].clear()
    server.vectors.collections["docs"].created_time_s += 1
    assert ingest()[1]["chunks"] == 1


def test_goes_on_after_the_server_was_gone(ingest: Ingest, folder: Path, server: FakeServer) -> None:
    (folder / "a.jsonl").write_text("".join(f'{{"text": "t{number}"}}\n' for number in range(10)))
    (folder / "b.txt").write_text("last")

    def fail(index: int) -> None:
        if index == 3:
            server.vectors.on_batch = lambda index: None
            server.fail_next("StreamUpsert", errors.Unavailable("gone"))

    server.vectors.on_batch = fail
    code, report, err = ingest("--batch-size", "2")
    assert code == 3
    assert report["error"]["reason"] == "MODEL_NOT_READY"
    assert "at chunk 8 of docs/a.jsonl or later: gone" in err
    assert "8 chunks are in; the same command goes on from there" in err
    code, report, _ = ingest("--batch-size", "2")
    assert (code, report["resumed_chunks"], report["chunks"]) == (0, 8, 3)
    assert texts(server) == [*(f"t{number}" for number in range(10)), "last"]
    sent = [point.id for request in server.calls["StreamUpsert"] for point in request.points]
    assert len(sent) - len(set(sent)) <= 2 * 2  # at most what was in flight


def test_goes_on_after_an_interrupt(
    ingest: Ingest, folder: Path, server: FakeServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a.jsonl").write_text("".join(f'{{"text": "t{number}"}}\n' for number in range(10)))
    reached = threading.Event()

    def block(index: int) -> None:
        if index == 5:
            reached.set()
            server.block.wait(30)

    server.vectors.on_batch = block
    words = ["ingest", str(folder), "--collection", "docs", "--create", "--batch-size", "1", "--server", server.target]
    process = spawn(*words, env={"XDG_CACHE_HOME": str(cache)})
    assert reached.wait(30)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    server.block.set()
    server.vectors.on_batch = lambda index: None
    code, report, _ = ingest("--batch-size", "1")
    assert code == 0
    assert report["resumed_chunks"] + report["chunks"] == 10
    assert report["resumed_chunks"] > 0
    assert texts(server) == [f"t{number}" for number in range(10)]


def test_faults_are_named(ingest: Ingest, folder: Path, server: FakeServer) -> None:
    (folder / "a.txt").write_bytes(b"fine\nbut \xff not\n")
    (folder / "b.jsonl").write_text('{"text": "good"}\n{"text": \n[1]\n{"txt": "x"}\n{"text": "x", "n": NaN}\n')
    (folder / "c.csv").write_text("text,lang\ngood,en\ntoo,many,cells\n")
    (folder / "d.csv").write_text("body\nx\n")
    (folder / "e.pdf").write_bytes(b"%PDF-1.4 broken")
    (folder / "f.txt").write_text("good")
    (folder / "g.jsonl").write_text('{"text": "x", "source": "mine"}\n')
    (folder / "h.csv").write_bytes(b"text\nok\n\xff\n")
    (folder / "i.jsonl").write_bytes(b'{"text": "\xff"}\n{"text": "\\ud800"}\n')
    code, report, err = ingest()
    assert code == 1
    assert texts(server) == ["good"]
    assert [(entry["source"], entry["place"]) for entry in report["failures"]] == [
        ("docs/a.txt", "line 2"), ("docs/b.jsonl", "line 2"), ("docs/b.jsonl", "line 3"), ("docs/b.jsonl", "line 4"),
        ("docs/b.jsonl", "line 5"), ("docs/c.csv", "line 3"), ("docs/d.csv", "line 1"), ("docs/e.pdf", ""),
        ("docs/g.jsonl", ""), ("docs/h.csv", "line 3"), ("docs/i.jsonl", "line 1"), ("docs/i.jsonl", "line 2"),
    ]  # fmt: skip
    lines = err.splitlines()
    assert lines[0] == "error: docs/a.txt, line 2: not UTF-8: invalid start byte"
    assert lines[1].startswith("error: docs/b.jsonl, line 2: not JSON: ")
    assert "no column 'text' among body; --text-column names it" in err
    assert "--source-field names another" in err

    code, report, err = ingest("--skip-errors")
    assert (code, len(report["failures"])) == (0, 12)
    assert texts(server) == ["good", "good", "good", "ok"]
    # They are told of again, and not sent again.
    code, report, _ = ingest("--skip-errors")
    assert (code, report["chunks"], len(report["failures"])) == (0, 0, 12)
    assert ingest()[0] == 1


def test_fields_and_columns(ingest: Ingest, folder: Path, server: FakeServer) -> None:
    (folder / "a.jsonl").write_text('{"body": "x", "source": "mine"}\n')
    (folder / "b.csv").write_text("row\ny\n")
    code, _, err = ingest("--text-field", "body", "--text-column", "row", "--source-field", "file")
    assert (code, err) == (0, "")
    payloads = [json.loads(point.payload_json) for point in server.vectors.points["docs"].values()]
    assert [(entry["text"], entry["file"]) for entry in payloads] == [("x", "docs/a.jsonl"), ("y", "docs/b.csv")]
    assert payloads[0]["source"] == "mine"
    assert list(server.calls["CreateCollection"][0].text_fields) == ["body"]


def test_a_broken_file_keeps_its_old_chunks(ingest: Ingest, folder: Path, server: FakeServer) -> None:
    (folder / "a.txt").write_text("old")
    ingest()
    (folder / "a.txt").write_bytes(b"\xff")
    assert ingest()[0] == 1
    assert ingest("--skip-errors")[0] == 0
    assert texts(server) == ["old"]


def test_no_points_have_the_fields_yet(ingest: Ingest, folder: Path, server: FakeServer) -> None:
    (folder / "a.txt").write_text("")
    server.fail_next("DeletePoints", errors.InvalidArgument("unknown", reason="FILTER_FIELD_UNKNOWN"))
    assert ingest()[0] == 0
    assert ingest()[1]["unchanged"] == 1


def test_many_files_and_long_names(
    ingest: Ingest, folder: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vorta.cli.ingest.run._DELETE_SOURCES", 2)
    deep = folder / ("x" * 150) / ("y" * 150)
    deep.mkdir(parents=True)
    for name in ("a.txt", "b.txt", "c.txt"):
        (deep / name).write_text(name)
    assert ingest("--batch-size", "1")[1]["chunks"] == 3
    assert [len(request.filter.must[0].any_of) for request in server.calls["DeletePoints"]] == [2, 1]
    assert len(server.vectors.points["docs"]) == 3
    assert max(map(len, server.vectors.points["docs"])) < 256
    assert kept(server)[0]["source"] == f"docs/{'x' * 150}/{'y' * 150}/a.txt"


def test_a_file_that_vanishes(ingest: Ingest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "a.txt").write_text("one")
    (folder / "b.txt").write_text("two")

    def vanish(self: Any, options: str) -> str:
        if self.name.endswith("a.txt"):
            raise FileNotFoundError(2, "No such file or directory")
        return "f"

    monkeypatch.setattr("vorta.cli.ingest.sources.Source.fingerprint", vanish)
    code, report, err = ingest()
    assert (code, report["chunks"], err) == (1, 1, "error: docs/a.txt: No such file or directory\n")


def test_human_output(run: Run, folder: Path, server: FakeServer) -> None:
    (folder / "a.txt").write_text("one")
    server.vectors.add("docs")
    words = ["ingest", str(folder / "a.txt"), "--collection", "docs", "--state", str(folder / "state")]
    assert run(*words) == (0, "docs: 1 files (0 unchanged), 1 chunks sent\n", "")
    assert run(*words) == (0, "docs: 1 files (1 unchanged), 0 chunks sent\n", "")
    assert kept(server)[0]["source"] == "a.txt"
    (folder / "a.txt").write_bytes(b"\xff")
    assert run(*words)[:2] == (1, "docs: 1 files (0 unchanged), 0 chunks sent, 1 faults\n")


def test_progress_on_a_terminal(folder: Path, server: FakeServer, cache: Path) -> None:
    (folder / "a.txt").write_bytes(b"\xff")
    (folder / "b.txt").write_text("one")
    terminal = Terminal("ingest", str(folder), "--collection", "docs", "--create", "--server", server.target)
    terminal.wait_for("0/2")
    terminal.wait_for("error: docs/a.txt, line 1: not UTF-8: invalid start byte")
    terminal.wait_for("docs: 2 files")
    assert terminal.close() == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.txt"], "missing.txt does not exist (INVALID_FIELD, field path)"),
        ([__file__], "is of no known kind: .txt"),
        (["{docs}", "--overlap", "200"], "overlap must be at least 0 and less than 200"),
        (["{docs}", "--chunk-tokens", "5", "--chunk-chars", "5"], "not allowed with"),
        (["{docs}", "--chunk-chars", "0"], "must be at least 1"),
        (["{docs}", "--tokenizer", "{docs}/a.txt"], "is no tokenizer"),
        (["{docs}", "--tokenizer", "none.json"], "cannot read the tokenizer"),
        (["{docs}", "--root", "{docs}/sub"], "is not below the root"),
        (["{docs}/a.txt", "{docs}/sub/a.txt"], "would both be named a.txt; give --root"),
    ],
)
def test_wrong_usage(run: Run, folder: Path, server: FakeServer, words: list[str], message: str) -> None:
    (folder / "sub").mkdir()
    (folder / "a.txt").write_text("one")
    (folder / "sub" / "a.txt").write_text("two")
    code, out, err = run("ingest", *(word.format(docs=folder) for word in words), "--collection", "docs")
    assert (code, out) == (2, "")
    assert message in err
    assert not server.calls


def test_no_collection(run: Run, folder: Path) -> None:
    code, _, err = run("ingest", str(folder), "--collection", "docs")
    assert (code, err) == (1, "error: no collection docs (COLLECTION_NOT_FOUND)\n")


@pytest.mark.parametrize("package", ["semantic_text_splitter", "pypdf"])
def test_a_missing_package_is_named(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    (folder / "a.pdf").write_bytes(pdf_of("x"))
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = run("ingest", str(folder), "--collection", "docs", "--create")
    assert code == 2
    assert f'needs {package.replace("_", "-")} for this: pip install "vorta[ingest]"' in err


def test_without_tqdm_there_is_no_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from vorta.cli.ingest.command import _Bar

    real = builtins.__import__

    def without_tqdm(name: str, *rest: Any) -> Any:
        if name == "tqdm":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_tqdm)
    with _Bar(3, is_shown=True) as bar:
        bar.advance()
        bar.tell("a.txt", "bad")
    assert capsys.readouterr().err == "error: a.txt: bad\n"


def test_names_of_sources(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "sub").mkdir()
    for name in ("b.txt", "a.txt", "sub/c.md"):
        (folder / name).write_text("x")

    def names(*paths: str | Path, root: Path | None = None) -> list[str]:
        return [source.name for source in find_sources(map(Path, paths), root)]

    assert names(folder) == ["docs/a.txt", "docs/b.txt", "docs/sub/c.md"]
    assert names(folder, root=folder) == ["a.txt", "b.txt", "sub/c.md"]
    assert names(folder, folder / "a.txt", root=folder.parent) == names(folder)
    monkeypatch.chdir(folder.parent)
    assert names("docs") == names("./docs", "docs/a.txt") == names(folder)
    assert names("docs/sub/c.md") == ["docs/sub/c.md"]
    monkeypatch.chdir(folder)
    assert names(".") == names(folder, root=folder)


def test_chunks_fit_and_lose_nothing() -> None:
    text = " ".join(f"word{number}." for number in range(200))
    for options in ({"max_tokens": 20, "max_chars": None}, {"max_tokens": None, "max_chars": 90}):
        chunker = Chunker(**options, overlap=0)  # type: ignore[arg-type]
        chunks = chunker.chunks(text, is_markdown=False)
        assert "".join(chunks).replace(" ", "") == text.replace(" ", "")
        sizes = [estimate_tokens(chunk) if options["max_tokens"] else len(chunk) for chunk in chunks]
        assert max(sizes) <= (options["max_tokens"] or options["max_chars"] or 0)
    overlapping = Chunker(max_tokens=None, max_chars=90, overlap=30).chunks(text, is_markdown=False)
    assert len(overlapping) > len(chunks)


def test_a_tokenizer_counts(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    chunks = Chunker(max_tokens=3, max_chars=None, overlap=0, tokenizer=path).chunks("a " * 7, is_markdown=False)
    assert chunks == ["a a a", "a a a", "a"]


def test_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "state"
    done = Progress(fingerprint="f", num_chunks=3, is_done=True)
    with Journal(path, "docs 1") as journal:
        journal.record("a", Progress(fingerprint="f", num_chunks=1))
        journal.record("a", done)
        with pytest.raises(errors.FailedPrecondition, match="another run"):
            Journal(path, "docs 1")
    with path.open("a") as file:
        file.write('{"source": "b", "finge')
    with Journal(path, "docs 1") as journal:
        assert journal.progress("a", "f") == done
        assert journal.progress("a", "other").num_chunks == journal.progress("b", "x").num_chunks == 0
    assert path.read_text().endswith("}\n")
    with Journal(path, "docs 2") as journal:
        assert not journal.progress("a", "f").is_done
    with pytest.raises(errors.FailedPrecondition, match="cannot open the state file"):
        Journal(tmp_path, "docs 1")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_path("a:1", "docs").parent == tmp_path / ".cache/vorta/ingest"
    assert default_path("a:1", "docs") != default_path("a:1", "other")
