"""One collection's copy in a fast backend: how it is filled, and which writes it must not lose meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import msgspec

from vorta.errors import NotFound, VortaError
from vorta_server.vectors.operation import (
    Collection,
    CollectionInfo,
    CreateCollection,
    DeleteCollection,
    DeletePoints,
    GetCollection,
    Operation,
    Page,
    Point,
    Result,
    ScrollPoints,
    UpsertPoints,
)

__all__ = ["Answer", "Ask", "HotCopy", "upsert_of"]

Answer: TypeAlias = Result | VortaError
Ask: TypeAlias = Callable[[Operation, Callable[[Answer], None]], None]
"""Submits an operation; the function gets its answer later, on the worker's thread."""


class HotCopy:
    """A copy, and its filling: an old one away, the definition, then page by page.

    Once `is_receiving`, every write that the truth acknowledges must be noted by `touch` and then written to the copy,
    in the order of the acknowledgements. A page that the truth read before such a write may come after it, so points
    touched since the page was asked for are left out of it; and a page is read again when points were deleted by a
    filter meanwhile, since nobody knows which.

    Attributes:
        name: The collection's.
        is_ready: Whether it is complete.
        is_receiving: Whether it gets writes.
        is_dropped: Whether nobody needs it any more; answers that still come are left out.
        retry_at_s: `time.monotonic()` at which a failed one is filled again; None while it has not failed.
        num_failures: In a row.
    """

    def __init__(
        self,
        name: str,
        *,
        ask_truth: Ask,
        ask_hot: Ask,
        scroll: type[ScrollPoints],
        page_points: int,
        on_end: Callable[[HotCopy, str, VortaError | None], None],
    ) -> None:
        """Fills nothing yet.

        Args:
            name: The collection's.
            ask_truth: Asks the backend that has everything.
            ask_hot: Asks the backend that has copies.
            scroll: What the truth is read with.
            page_points: Points a page.
            on_end: Called with the copy when a filling ends: "" when it is complete, "gone" when the truth has no
                such collection, or which side failed ("truth", "hot") and how.
        """
        self.name = name
        self.is_ready = False
        self.is_receiving = False
        self.is_dropped = False
        self.retry_at_s: float | None = None
        self.num_failures = 0
        self._ask_truth = ask_truth
        self._ask_hot = ask_hot
        self._scroll = scroll
        self._page_points = page_points
        self._on_end = on_end
        self._attempt = 0
        self._after = ""
        self._touched: set[str] = set()
        self._must_reread = False

    def fill(self) -> None:
        """Begins a filling, from the beginning."""
        self.give_up()
        self.retry_at_s = None
        self._ask_hot(DeleteCollection(collection=self.name), self._current(self._deleted))

    def give_up(self) -> None:
        """The copy is not used until it is filled; a filling under way ends."""
        self.is_ready = self.is_receiving = self._must_reread = False
        self._after = ""
        self._touched = set()
        self._attempt += 1

    def touch(self, write: UpsertPoints | DeletePoints) -> None:
        """Notes a write that goes to the copy now."""
        if self.is_ready:
            return
        if isinstance(write, DeletePoints) and write.filter is not None:
            self._must_reread = True
        else:
            self._touched.update(write.ids)

    def _current(self, handle: Callable[[Answer], None]) -> Callable[[Answer], None]:
        """Leaves out answers to a filling that was given up."""
        attempt = self._attempt

        def handled(answer: Answer) -> None:
            if self._attempt == attempt and not self.is_dropped:
                handle(answer)

        return handled

    def _deleted(self, answer: Answer) -> None:
        if isinstance(answer, VortaError) and not isinstance(answer, NotFound):
            self._on_end(self, "hot", answer)
        else:
            self._ask_truth(GetCollection(collection=self.name), self._current(self._described))

    def _described(self, answer: Answer) -> None:
        if isinstance(answer, CollectionInfo):
            create = CreateCollection(collection=_definition(answer.collection))
            self._ask_hot(create, self._current(self._created))
        elif isinstance(answer, VortaError):
            self._on_end(self, "gone" if isinstance(answer, NotFound) else "truth", answer)

    def _created(self, answer: Answer) -> None:
        if isinstance(answer, VortaError):
            self._on_end(self, "hot", answer)
        else:
            self.is_receiving = True
            self._next_page()

    def _next_page(self) -> None:
        self._touched, self._must_reread = set(), False
        scroll = self._scroll(
            collection=self.name, after=self._after, limit=self._page_points, with_payload=True, with_vector=True
        )
        self._ask_truth(scroll, self._current(self._scrolled))

    def _scrolled(self, answer: Answer) -> None:
        if isinstance(answer, VortaError):
            self._on_end(self, "truth", answer)
        elif self._must_reread:
            self._next_page()
        elif isinstance(answer, Page):
            next_after = answer.next_after
            points = [point for point in answer.points if point.id not in self._touched]
            if points:
                self._ask_hot(upsert_of(self.name, points), self._current(lambda done: self._stored(done, next_after)))
            else:
                self._page_done(next_after)

    def _stored(self, answer: Answer, next_after: str) -> None:
        if isinstance(answer, VortaError):
            self._on_end(self, "hot", answer)
        else:
            self._page_done(next_after)

    def _page_done(self, next_after: str) -> None:
        if next_after:
            self._after = next_after
            self._next_page()
        else:
            self.is_ready, self.num_failures = True, 0
            self._on_end(self, "", None)


def upsert_of(name: str, points: list[Point]) -> UpsertPoints:
    """Writes points that were read with everything."""
    return UpsertPoints(
        collection=name,
        ids=[point.id for point in points],
        vectors=b"".join(point.vector for point in points),
        payloads=[point.payload or "{}" for point in points],
    )


def _definition(collection: Collection) -> Collection:
    """What the copy is made with. Text fields are shown in the schema too, which definitions need not repeat."""
    schema = {path: kind for path, kind in collection.schema.items() if path not in collection.text_fields}
    return msgspec.structs.replace(collection, schema=schema)
