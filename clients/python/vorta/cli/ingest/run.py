"""Sends files to a collection, notes what it acknowledges, and deletes what files no longer hold."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vorta.cli.ingest.chunking import Chunker
from vorta.cli.ingest.journal import Journal, Progress
from vorta.cli.ingest.readers import Fault, read
from vorta.cli.ingest.sources import Source
from vorta.errors import InvalidArgument, VortaError
from vorta.filters import AnyOf, Filter
from vorta.vector_result import Point

if TYPE_CHECKING:
    from vorta.collection import Collection

_DELETE_SOURCES = 256
_STREAMED = ("jsonl", "csv")
_LONGEST_NAME = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How files become points."""

    text_field: str = "text"
    text_column: str = "text"
    source_field: str = "source"
    """Payload field of the file's name; two more begin with it."""
    skip_errors: bool = False
    """Take what can be read of a file with faults, instead of nothing."""
    batch_size: int = 64
    max_in_flight: int = 4

    @property
    def own_fields(self) -> tuple[str, str, str]:
        """Payload fields of the file's name, of its content's hash, and of the chunk's number."""
        return self.source_field, f"{self.source_field}_hash", f"{self.source_field}_chunk"


@dataclass(slots=True, kw_only=True)
class Report:
    """What a run has done so far."""

    num_files: int = 0
    num_unchanged: int = 0
    """Files that the collection had already."""
    num_chunks: int = 0
    """Chunks that were sent and acknowledged."""
    num_resumed: int = 0
    """Chunks that an earlier run had sent."""
    num_deleted: int = 0
    """Stale chunks."""
    failures: list[dict[str, str]] = field(default_factory=list)


@dataclass(slots=True)
class _File:
    source: Source
    fingerprint: str
    num_acknowledged: int
    num_total: int | None = None
    """None until the last chunk was made."""
    has_faults: bool = False


class Ingestion:
    """One run.

    Args:
        on_file: Called when a file is done with, whatever came of it.
        on_fault: Called with each fault's file and place, and the reason.
    """

    def __init__(
        self,
        collection: Collection,
        chunker: Chunker,
        journal: Journal,
        options: Options,
        *,
        on_file: Callable[[], object] = lambda: None,
        on_fault: Callable[[str, str], object] = lambda place, reason: None,
    ) -> None:
        self.report = Report()
        self._collection = collection
        self._chunker = chunker
        self._journal = journal
        self._options = options
        self._on_file = on_file
        self._on_fault = on_fault
        self._sent: deque[_File] = deque()
        """The file of each chunk that is not acknowledged yet, in order."""
        self._written: list[_File] = []
        """Files whose chunks are all there, and whose stale ones are still to delete."""

    def run(self, sources: Sequence[Source]) -> Report:
        """Ingests the files. Raises the server's error; what was acknowledged before is in the journal."""
        options = self._options
        self.report.num_files = len(sources)
        acks = self._collection.stream_upsert(
            self._points(sources), batch_size=options.batch_size, max_in_flight=options.max_in_flight
        )
        try:
            for ack in acks:
                self._acknowledge(ack.count)
        except VortaError as error:
            if self._sent:
                file = self._sent[0]
                error.message = f"at chunk {file.num_acknowledged} of {file.source.name} or later: {error.message}"
            raise
        finally:
            acks.close()
        self._delete_stale()
        return self.report

    def _points(self, sources: Sequence[Source]) -> Iterator[Point]:
        """The chunks to send, made as they are asked for."""
        for source in sources:
            try:
                fingerprint = source.fingerprint(self._description(source))
            except OSError as exc:
                self._fail(source, Fault(place="", reason=exc.strerror or str(exc)))
                self._on_file()
                continue
            progress = self._journal.progress(source.name, fingerprint)
            if progress.is_done:
                self.report.num_unchanged += 1
                self._on_file()
                continue
            file = _File(source, fingerprint, progress.num_chunks)
            number = 0
            is_whole = True
            for item in self._chunks(source):
                if isinstance(item, Fault):
                    is_whole = is_whole and self._options.skip_errors and not item.is_whole
                    file.has_faults = True
                    self._fail(source, item)
                    continue
                text, payload = item
                number += 1
                if number <= progress.num_chunks:
                    self.report.num_resumed += 1
                    continue
                self._sent.append(file)
                yield self._point(file, number - 1, text, payload)
            if is_whole:
                file.num_total = number
                self._settle(file)
            else:
                self._on_file()

    def _chunks(self, source: Source) -> Iterator[Fault | tuple[str, dict[str, Any]]]:
        """The file's chunks and faults; of a file with faults nothing else, unless faults of its parts are skipped."""
        options = self._options
        items = read(source, options.text_field, options.text_column)
        if source.kind in _STREAMED and not options.skip_errors:
            # May be larger than memory: read twice instead of kept.
            faults = [item for item in items if isinstance(item, Fault) or self._clash(item.payload)]
            items = iter(faults) if faults else read(source, options.text_field, options.text_column)
        elif source.kind not in _STREAMED:
            kept = list(items)
            faults = [item for item in kept if isinstance(item, Fault)]
            items = iter(faults if faults else kept)
        for item in items:
            if isinstance(item, Fault):
                yield item
            elif clash := self._clash(item.payload):
                reason = f"a record has the field {clash!r}, which ingest writes; --source-field names another"
                yield Fault(place="", reason=reason)
            else:
                for chunk in self._chunker.chunks(item.text, is_markdown=source.kind == "markdown"):
                    yield chunk, dict(item.payload)

    def _clash(self, payload: Any) -> str | None:
        return next((name for name in self._options.own_fields if name in payload), None)

    def _point(self, file: _File, number: int, text: str, payload: dict[str, Any]) -> Point:
        name = file.source.name
        if len(name.encode()) > _LONGEST_NAME:  # an id has 256 bytes
            name = hashlib.sha256(name.encode()).hexdigest()
        own = zip(self._options.own_fields, (file.source.name, file.fingerprint, number), strict=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return Point(f"{name}#{number}-{digest}", text=text, payload={**payload, **dict(own)})

    def _acknowledge(self, count: int) -> None:
        files: list[_File] = []
        for _ in range(count):
            file = self._sent.popleft()
            file.num_acknowledged += 1
            self.report.num_chunks += 1
            if not files or files[-1] is not file:
                files.append(file)
        for file in files:
            progress = Progress(fingerprint=file.fingerprint, num_chunks=file.num_acknowledged)
            self._journal.record(file.source.name, progress)
            self._settle(file)

    def _settle(self, file: _File) -> None:
        """When all of the file is acknowledged: its stale chunks may go."""
        if file.num_total is None or file.num_acknowledged < file.num_total:
            return
        self._written.append(file)
        self._on_file()
        if len(self._written) >= _DELETE_SOURCES:
            self._delete_stale()

    def _delete_stale(self) -> None:
        """Deletes what the collection has of the written files but of another content, then notes them as done."""
        files, self._written = self._written, []
        if not files:
            return
        source, content, _ = self._options.own_fields
        stale = Filter(
            must=[AnyOf(source, [file.source.name for file in files])],
            must_not=[AnyOf(content, [file.fingerprint for file in files])],
        )
        try:
            self.report.num_deleted += self._collection.delete(filter=stale).count
        except InvalidArgument as error:
            if error.reason != "FILTER_FIELD_UNKNOWN":  # no point has such fields: nothing is stale
                raise
        for file in files:
            # One with faults is read again by the next run, to tell of them again; its chunks are not sent again.
            progress = Progress(
                fingerprint=file.fingerprint, num_chunks=file.num_acknowledged, is_done=not file.has_faults
            )
            self._journal.record(file.source.name, progress)

    def _fail(self, source: Source, fault: Fault) -> None:
        place = f"{source.name}, {fault.place}" if fault.place else source.name
        self.report.failures.append({"source": source.name, "place": fault.place, "reason": fault.reason})
        self._on_fault(place, fault.reason)

    def _description(self, source: Source) -> str:
        """What decides, beside the content, which points are made of a file."""
        options = self._options
        column = {"jsonl": options.text_field, "csv": options.text_column}.get(source.kind, "")
        return f"1 {self._chunker.description} {column} {options.source_field}"
