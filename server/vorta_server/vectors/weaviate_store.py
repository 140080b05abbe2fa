"""Vector operations as calls of a Weaviate: collections, aliases and points; blocking, for any thread.

Imports the weaviate package: import this module only where that is installed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from weaviate.classes.data import DataObject, GeoCoordinate
from weaviate.classes.query import Filter as Where
from weaviate.classes.query import FilterReturn, Sort
from weaviate.exceptions import WeaviateInsertManyAllFailedError

from vorta.errors import InvalidArgument, Unavailable, VortaError
from vorta_server.vectors.operation import (
    Counted,
    CountPoints,
    CreateCollection,
    CreateSnapshot,
    DeleteAlias,
    DeleteCollection,
    DeletePoints,
    DeleteSnapshot,
    GetCollection,
    GetPoints,
    ListAliases,
    ListCollections,
    ListSnapshots,
    Operation,
    Page,
    Point,
    Points,
    RestoreSnapshot,
    Result,
    ScrollPoints,
    Search,
    SwapAlias,
    UpsertPoints,
    Written,
)
from vorta_server.vectors.weaviate_catalog import Catalog, Known
from vorta_server.vectors.weaviate_checks import (
    MAX_LIMIT,
    check_ids,
    check_limit,
    check_upsert,
    check_vectors,
)
from vorta_server.vectors.weaviate_client import call_deadline, remaining_s, to_vorta_error
from vorta_server.vectors.weaviate_config import WeaviateConfig
from vorta_server.vectors.weaviate_filter import NOTHING, translate
from vorta_server.vectors.weaviate_schema import (
    ID,
    ORDER,
    PAYLOAD,
    PREFIXES,
    UnorderedScroll,
    object_uuid,
    order_key,
    properties_of,
)
from vorta_server.vectors.weaviate_search import Searcher, found_vector
from vorta_server.vectors.weaviate_snapshots import Backups

__all__ = ["WeaviateStore"]

_MAX_BATCH_POINTS = 2000
_MAX_IDS_A_CALL = 2000
_RETRY_DELAY_S = 1.0
_EVERYTHING = Where.by_id().not_equal("00000000-0000-0000-0000-000000000000")

# It logs whole objects, payloads included, when some of a batch fail; what failed is in our errors.
logging.getLogger("weaviate-client").setLevel(logging.CRITICAL)


class WeaviateStore:
    """Executes operations.

    Weaviate writes objects one by one: an upsert is checked as a whole before anything is sent, but when Weaviate
    itself fails in the middle some points are written and others not. Such an upsert is answered by a retryable error,
    and sending it again ends in the state that all-or-nothing would have given.
    """

    def __init__(self, config: WeaviateConfig) -> None:
        self._config = config
        self._catalog = Catalog(config)
        self._searcher = Searcher(config.num_threads)
        backups = Backups(self._catalog, config.backup_storage)
        self._handlers: dict[type, Callable[[Any], Result]] = {
            CreateCollection: self._catalog.create,
            GetCollection: self._catalog.get_collection,
            ListCollections: self._catalog.list_collections,
            DeleteCollection: self._catalog.delete_collection,
            SwapAlias: self._catalog.swap_alias,
            DeleteAlias: self._catalog.delete_alias,
            ListAliases: self._catalog.list_aliases,
            GetPoints: self._get_points,
            ScrollPoints: self._scroll,
            UnorderedScroll: self._scroll_unordered,
            CountPoints: self._count,
            Search: self._search,
            CreateSnapshot: backups.create,
            ListSnapshots: backups.list_all,
            DeleteSnapshot: backups.delete,
            RestoreSnapshot: backups.restore,
        }

    def execute(
        self, operation: Operation, *, on_accepted: Callable[[], None], deadline_s: float | None = None
    ) -> Result:
        """Does the operation.

        Args:
            operation: What is asked.
            on_accepted: Called when a write of points is checked and about to be sent.
            deadline_s: `time.monotonic()` by which calls end; a write that is not waited for has none.

        Raises:
            VortaError: As the operation promises; Unavailable (retryable) when Weaviate cannot be reached.
        """
        try:
            with call_deadline(deadline_s):
                remaining_s()
                return self._do(operation, on_accepted)
        except Exception as error:
            converted = to_vorta_error(error)
            name = getattr(operation, "collection", None)
            if converted.reason == "COLLECTION_NOT_FOUND" and isinstance(name, str):
                self._catalog.forget(name)
                converted.metadata.setdefault("collection", name)
            if converted is error:
                raise
            raise converted from error

    def _do(self, operation: Operation, on_accepted: Callable[[], None]) -> Result:
        if isinstance(operation, UpsertPoints):
            return self._upsert(operation, on_accepted)
        if isinstance(operation, DeletePoints):
            return self._delete_points(operation, on_accepted)
        return self._handlers[type(operation)](operation)

    def close(self) -> None:
        """Closes the connections. Idempotent."""
        self._searcher.close()
        self._catalog.close()

    # Points

    def _upsert(self, operation: UpsertPoints, on_accepted: Callable[[], None]) -> Written:
        known = self._catalog.resolve(operation.collection)
        check_upsert(operation)
        vectors = check_vectors(operation.vectors, known.collection, "vectors", count=len(operation.ids))
        payloads = operation.payloads or [""] * len(operation.ids)
        types = known.types
        rows = [
            properties_of(point_id, payload, types, field=f"payloads[{index}]")
            for index, (point_id, payload) in enumerate(zip(operation.ids, payloads, strict=True))
        ]
        on_accepted()
        self._catalog.add_properties(known, {name for row in rows for name in row})
        written = 0
        for start, stop in self._batches(operation, known.collection.dimension):
            batch = [
                DataObject(
                    properties=_with_places(rows[index]),
                    uuid=object_uuid(operation.ids[index]),
                    vector={"default": vectors[index].tolist()},
                )
                for index in range(start, stop)
            ]
            try:
                errors = known.objects.data.insert_many(batch).errors
                failed, first = len(errors), next((error.message for error in errors.values()), "")
            except WeaviateInsertManyAllFailedError as error:
                failed, first = len(batch), str(error)
            except VortaError as error:
                if not written or error.retry_delay_s is None:
                    raise
                failed, first = len(batch), error.message
            written += len(batch) - failed
            if failed:
                raise _partly_written(written, len(operation.ids), first)
        return Written(count=len(operation.ids), sequence=0)

    def _batches(self, operation: UpsertPoints, dimension: int) -> Iterator[tuple[int, int]]:
        """Ranges of points that go into one message each."""
        start, size = 0, 0
        for index in range(len(operation.ids)):
            # A payload travels as it is and as typed values.
            more = 4 * dimension + 2 * (len(operation.payloads[index]) if operation.payloads else 0) + 512
            if index > start and (size + more > self._config.batch_bytes or index - start >= _MAX_BATCH_POINTS):
                yield start, index
                start, size = index, 0
            size += more
        yield start, len(operation.ids)

    def _delete_points(self, operation: DeletePoints, on_accepted: Callable[[], None]) -> Written:
        known = self._catalog.resolve(operation.collection)
        if bool(operation.ids) is (operation.filter is not None):
            raise InvalidArgument(
                "Exactly one of ids and filter is required.", reason="CONFLICTING_FIELDS", field="filter"
            )
        check_ids(operation.ids, "ids")
        where = None if operation.filter is None else self._where(known, operation) or _EVERYTHING
        on_accepted()
        if where is not None:
            count, deleted = 0, self._delete(known, where)
            # One call deletes a bounded number.
            while deleted:
                count, deleted = count + deleted, self._delete(known, where)
        else:
            ids = list(dict.fromkeys(operation.ids))
            count = sum(
                self._delete(known, _by_ids(ids[start : start + _MAX_IDS_A_CALL]))
                for start in range(0, len(ids), _MAX_IDS_A_CALL)
            )
        return Written(count=count if operation.wait else 0, sequence=0)

    def _delete(self, known: Known, where: FilterReturn) -> int:
        result = known.objects.data.delete_many(where=where)
        if result.failed:
            raise _partly_written(result.successful, result.matches, "some points could not be deleted")
        return int(result.successful)

    def _get_points(self, operation: GetPoints) -> Points:
        known = self._catalog.resolve(operation.collection)
        check_ids(operation.ids, "ids")
        found: dict[str, Point] = {}
        ids = list(dict.fromkeys(operation.ids))
        for start in range(0, len(ids), _MAX_IDS_A_CALL):
            some = ids[start : start + _MAX_IDS_A_CALL]
            for point in self._fetch(known, _by_ids(some), len(some), operation):
                found[point.id] = point
        return Points(points=[found[point_id] for point_id in operation.ids if point_id in found])

    def _scroll(self, operation: ScrollPoints) -> Page:
        known = self._catalog.resolve(operation.collection)
        check_limit(operation.limit)
        where = self._where(known, operation)
        if operation.after:
            check_ids([operation.after], "after")
            beyond = Where.by_property(ORDER).greater_than(order_key(operation.after))
            where = beyond if where is None else Where.all_of([beyond, where])
        # One more tells whether there is a next page; Weaviate gives 10,000 at most, so then the last may be empty.
        limit = min(operation.limit + 1, MAX_LIMIT)
        points = self._fetch(known, where, limit, operation, is_ordered=True)
        is_last = len(points) < limit if limit == operation.limit else len(points) <= operation.limit
        page = points[: operation.limit]
        return Page(points=page, next_after="" if is_last else page[-1].id)

    def _scroll_unordered(self, operation: UnorderedScroll) -> Page:
        known = self._catalog.resolve(operation.collection)
        check_limit(operation.limit)
        reply = known.objects.query.fetch_objects(
            limit=operation.limit,
            after=operation.after or None,
            return_properties=[ID, PAYLOAD] if operation.with_payload else [ID],
            include_vector=operation.with_vector,
        )
        is_last = len(reply.objects) < operation.limit
        return Page(
            points=[_point(item, operation) for item in reply.objects],
            next_after="" if is_last else str(reply.objects[-1].uuid),
        )

    def _fetch(
        self,
        known: Known,
        where: FilterReturn | None,
        limit: int,
        operation: GetPoints | ScrollPoints,
        *,
        is_ordered: bool = False,
    ) -> list[Point]:
        reply = known.objects.query.fetch_objects(
            filters=where,
            limit=limit,
            sort=Sort.by_property(ORDER) if is_ordered else None,
            return_properties=[ID, PAYLOAD] if operation.with_payload else [ID],
            include_vector=operation.with_vector,
        )
        return [_point(item, operation) for item in reply.objects]

    def _count(self, operation: CountPoints) -> Counted:
        known = self._catalog.resolve(operation.collection)
        return Counted(count=self._catalog.number(known, self._where(known, operation)))

    def _search(self, operation: Search) -> Result:
        where = self._where(self._catalog.resolve(operation.collection), operation)
        known = self._catalog.resolve(operation.collection)  # the filter may have made it read anew
        if operation.group_by and operation.group_by not in known.fields:
            # A definition that was read while the field was written lacks it, and groups would stay short.
            known = self._catalog.resolve(operation.collection, max_age_s=0.0)
        return self._searcher.search(operation, known.collection, known.objects, where, known.fields)

    def _where(
        self, known: Known, operation: ScrollPoints | CountPoints | DeletePoints | Search
    ) -> FilterReturn | None:
        try:
            return translate(operation.filter, known.fields)
        except InvalidArgument as error:
            if error.reason not in ("FILTER_FIELD_UNKNOWN", "FIELD_TYPE_MISMATCH"):
                raise
        # Another process may have written the field meanwhile.
        return translate(operation.filter, self._catalog.resolve(operation.collection, max_age_s=0.0).fields)


def _point(item: Any, operation: GetPoints | ScrollPoints) -> Point:
    return Point(
        id=str(item.properties[ID]),
        vector=found_vector(item) if operation.with_vector else b"",
        payload=str(item.properties.get(PAYLOAD) or "") if operation.with_payload else "",
    )


def _by_ids(ids: list[str]) -> FilterReturn:
    return Where.by_id().contains_any([object_uuid(point_id) for point_id in ids]) if ids else NOTHING


def _with_places(row: dict[str, Any]) -> dict[str, Any]:
    prefix = PREFIXES["geo"] + "_"
    return {
        name: GeoCoordinate(latitude=value[0], longitude=value[1]) if name.startswith(prefix) else value
        for name, value in row.items()
    }


def _partly_written(written: int, wanted: int, why: str) -> Unavailable:
    return Unavailable(
        f"Weaviate wrote {written} of {wanted} points; send all of them again: {why}",
        reason="CONNECTION_FAILED",
        metadata={"backend": "weaviate", "written": written, "wanted": wanted},
        retry_delay_s=_RETRY_DELAY_S,
    )
