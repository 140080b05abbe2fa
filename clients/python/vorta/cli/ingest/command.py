"""The command `vorta ingest`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vorta.cli.connection import add_connection, connect
from vorta.cli.output import EXIT_OK, EXIT_SERVER, EXIT_USAGE, print_json
from vorta.errors import AlreadyExists, NotFound

if TYPE_CHECKING:
    from vorta.cli.ingest.run import Report
    from vorta.client import Client
    from vorta.vector_result import CollectionInfo

__all__ = ["add_command"]

_DESCRIPTION = """Cut files into chunks and put them into a collection, where the server embeds them. Folders are
searched in depth for .txt, .md, .jsonl (an object a line), .csv (with a header) and .pdf. Run it again after an
interruption and it goes on where it was, or after files changed and their chunks are replaced."""


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("ingest", help="put files into a collection", description=_DESCRIPTION)
    parser.add_argument("path", nargs="+", type=Path, help="a file or folder")
    parser.add_argument("--collection", required=True, metavar="NAME", help="its name or an alias")
    parser.add_argument("--create", action="store_true", help="make the collection where there is none")
    parser.add_argument("--embedding-model", metavar="ID", help="with --create: default: the server's")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--chunk-tokens", type=_positive, metavar="N", help="most tokens of a chunk (default: 200), estimated"
    )
    size.add_argument("--chunk-chars", type=_positive, metavar="N", help="most characters of a chunk instead")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="count tokens by this tokenizer.json")
    parser.add_argument("--overlap", type=int, default=0, metavar="N", help="repeated from chunk to chunk (default: 0)")
    parser.add_argument(
        "--text-field",
        default="text",
        metavar="FIELD",
        help="field of the text in .jsonl, searched by words after --create (default: text)",
    )
    parser.add_argument("--text-column", metavar="NAME", help="column of the text in .csv (default: the text field)")
    parser.add_argument(
        "--source-field", default="source", metavar="FIELD", help="payload field of the file's name (default: source)"
    )
    parser.add_argument("--root", type=Path, metavar="DIR", help="files are named relative to it (default: here)")
    parser.add_argument("--batch-size", type=_positive, default=64, metavar="N", help="chunks sent at once")
    parser.add_argument(
        "--skip-errors", action="store_true", help="leave out what cannot be read, and end with exit code 0"
    )
    parser.add_argument(
        "--state", type=Path, metavar="FILE", help="what is done already (default: in the user's cache)"
    )
    add_connection(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns 1 when something could not be read, unless that is skipped."""
    from vorta.cli.ingest.chunking import Chunker
    from vorta.cli.ingest.journal import Journal, default_path
    from vorta.cli.ingest.missing import MissingPackage
    from vorta.cli.ingest.run import Ingestion, Options
    from vorta.cli.ingest.sources import find_sources

    sources = find_sources(arguments.path, arguments.root)
    options = Options(
        text_field=arguments.text_field,
        text_column=arguments.text_column or arguments.text_field,
        source_field=arguments.source_field,
        skip_errors=arguments.skip_errors,
        batch_size=arguments.batch_size,
    )
    state = arguments.state or default_path(arguments.server, arguments.collection)
    try:
        chunker = Chunker(
            max_tokens=arguments.chunk_tokens,
            max_chars=arguments.chunk_chars,
            overlap=arguments.overlap,
            tokenizer=arguments.tokenizer,
        )
        with connect(arguments) as client:
            info = _collection(client, arguments, options.own_fields)
            identity = f"{info.name} {info.created_time.isoformat()}"
            with (
                Journal(state, identity) as journal,
                _Bar(len(sources), is_shown=sys.stderr.isatty() and not arguments.json) as bar,
            ):
                ingestion = Ingestion(
                    client.collection(arguments.collection),
                    chunker,
                    journal,
                    options,
                    on_file=bar.advance,
                    on_fault=bar.tell,
                )
                try:
                    report = ingestion.run(sources)
                except BaseException:
                    if ingestion.report.num_chunks:
                        bar.say(f"{ingestion.report.num_chunks} chunks are in; the same command goes on from there")
                    raise
    except MissingPackage as exc:
        sys.stderr.write(f"error: {exc}\n")
        return EXIT_USAGE
    _print_report(arguments, report)
    return EXIT_SERVER if report.failures and not options.skip_errors else EXIT_OK


class _Bar:
    """Files done, on stderr, for a person who looks. Without tqdm, or unseen, only what is said is shown."""

    def __init__(self, num_files: int, *, is_shown: bool) -> None:
        self._bar: Any = None
        if is_shown:
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=num_files, unit="file", leave=False)

    def advance(self) -> None:
        """One more file."""
        if self._bar is not None:
            self._bar.update()

    def tell(self, place: str, reason: str) -> None:
        """A fault, on a line of its own."""
        self.say(f"error: {place}: {reason}")

    def say(self, text: str) -> None:
        """A line that the bar does not run into."""
        if self._bar is not None:
            self._bar.clear()
        sys.stderr.write(" ".join(text.split()) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def _collection(client: Client, arguments: argparse.Namespace, own_fields: tuple[str, str, str]) -> CollectionInfo:
    try:
        return client.get_collection(arguments.collection)
    except NotFound:
        if not arguments.create:
            raise
    source, content, number = own_fields
    try:
        return client.create_collection(
            arguments.collection,
            text_fields=[arguments.text_field],
            schema={source: "keyword", content: "keyword", number: "integer"},
            embedding_model=arguments.embedding_model,
        )
    except AlreadyExists:  # another run was quicker
        return client.get_collection(arguments.collection)


def _print_report(arguments: argparse.Namespace, report: Report) -> None:
    if arguments.json:
        print_json(
            {
                "collection": arguments.collection,
                "files": report.num_files,
                "unchanged": report.num_unchanged,
                "chunks": report.num_chunks,
                "resumed_chunks": report.num_resumed,
                "deleted_chunks": report.num_deleted,
                "failures": report.failures,
            }
        )
        return
    parts = [f"{report.num_files} files ({report.num_unchanged} unchanged)", f"{report.num_chunks} chunks sent"]
    if report.num_resumed:
        parts.append(f"{report.num_resumed} were there")
    if report.num_deleted:
        parts.append(f"{report.num_deleted} stale ones deleted")
    if report.failures:
        parts.append(f"{len(report.failures)} faults")
    print(f"{arguments.collection}: {', '.join(parts)}")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return value
