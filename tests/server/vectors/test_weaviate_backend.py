"""The adapter beyond the contract: failures, deadlines, bounds, other writers. Over the fake."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from vorta.errors import (
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
    VortaError,
)
from vorta_server.vectors import operation as ops
from vorta_server.vectors.operation import Collection, Condition, Filter, IndexConfig, Operation, Range, Search, Ticket

pytest.importorskip("weaviate", reason='needs the extra "weaviate"')

from tests.server.vectors.driver import DIMENSION, IDS, QUERIES, VECTORS, Driver, collection, filled
from tests.server.vectors.fake_weaviate.server import FakeWeaviate
from vorta_server.vectors.weaviate_backend import WeaviateBackend
from vorta_server.vectors.weaviate_config import WeaviateConfig, parse_weaviate_url
from vorta_server.vectors.weaviate_schema import class_name, object_uuid

Start = Callable[..., WeaviateBackend]


@pytest.fixture
def fake() -> Iterator[FakeWeaviate]:
    with FakeWeaviate() as server:
        yield server


@pytest.fixture
def start(fake: FakeWeaviate) -> Iterator[Start]:
    """Starts backends of the fake; options as in the URL."""
    started: list[WeaviateBackend] = []

    def start(*, api_key: str = "", **options: Any) -> WeaviateBackend:
        query = "&".join(f"{name}={value}" for name, value in options.items())
        started.append(WeaviateBackend(parse_weaviate_url(f"{fake.url}?{query}", api_key=api_key)))
        return started[-1]

    yield start
    if fake.faults.gate is not None:
        fake.faults.gate.set()
    for backend in started:
        backend.close()


@pytest.fixture
def driver(start: Start) -> Driver:
    return Driver(start())


def submit(backend: WeaviateBackend, operation: Operation, **options: Any) -> tuple[Ticket, list[Any], threading.Event]:
    answers: list[Any] = []
    done = threading.Event()

    def deliver(answer: Any) -> None:
        answers.append(answer)
        done.set()

    ticket = Ticket(operation, deliver, **options)
    backend.submit(ticket)
    return ticket, answers, done


def wait(until: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 60
    while not until():
        time.sleep(0.002)
        assert time.monotonic() < end_s


SEARCH = Search(collection="c", vectors=QUERIES[:1].tobytes())
UPSERT = ops.UpsertPoints(collection="c", ids=["a"], vectors=VECTORS[:1].tobytes())


# What is in Weaviate


def test_what_weaviate_holds(fake: FakeWeaviate, driver: Driver) -> None:
    definition = collection("My-C_1", index=IndexConfig(kind="sq8", m=16, ef_search=77), distance="l2")
    driver.ask(ops.CreateCollection(collection=definition))
    payload = '{"number":  7, "tags": ["x", "y"], "new": 1.5}'
    driver.ask(ops.UpsertPoints(collection="My-C_1", ids=["a"], vectors=VECTORS[:1].tobytes(), payloads=[payload]))
    held = fake.state.classes[class_name("My-C_1")]
    assert json.loads(held.schema["description"])["collection"]["index"]["kind"] == "sq8"
    config = held.schema["vectorConfig"]["default"]
    assert config["vectorizer"] == {"none": {}}
    index = config["vectorIndexConfig"]
    assert (index["distance"], index["maxConnections"], index["ef"]) == ("l2-squared", 16, 77)
    assert index["sq"]["enabled"]
    assert held.schema["invertedIndexConfig"]["stopwords"]["preset"] == "none"
    stored = held.objects[str(object_uuid("a"))]
    assert stored.properties["vortaPayload"] == payload  # to the byte
    assert stored.properties["i_number"] == [7]
    assert stored.properties["k_tags"] == ['"x"', '"y"']
    assert stored.properties["n_new"] == [1.5]  # a field nobody declared
    assert stored.vectors == {"default": VECTORS[0].tobytes()}


def test_inferred_fields_are_shown_and_filterable(driver: Driver) -> None:
    driver.ask(ops.CreateCollection(collection=collection("c", schema={})))
    payload = '{"a": 1, "b": {"c": "x"}, "when": "2026-01-01T00:00:00Z", "mixed": [1, 2.5, "x"]}'
    driver.ask(ops.UpsertPoints(collection="c", ids=["a"], vectors=VECTORS[:1].tobytes(), payloads=[payload]))
    schema = driver.ask(ops.GetCollection(collection="c")).collection.schema
    assert schema == {"a": "integer", "b.c": "keyword", "when": "datetime", "mixed": "float", "title": "text"}
    for condition in (
        Condition(field="when", datetime_range=Range(gte=1_767_225_600.0)),
        Condition(field="when", match="2026-01-01T00:00:00Z"),
        Condition(field="mixed", match="x"),
        Condition(field="mixed", match=1),
        Condition(field="mixed", range=Range(gt=2, lt=3)),
    ):
        count = driver.ask(ops.CountPoints(collection="c", filter=Filter(must=[condition]))).count
        assert count == 1, condition


def test_classes_of_others_are_left_alone(fake: FakeWeaviate, driver: Driver) -> None:
    for name in ("Article", "Vorta_odd"):  # the second one has our prefix and not our description
        fake.state.create({"class": name, "properties": [], "vectorizer": "none"})
    driver.ask(ops.CreateCollection(collection=collection("c")))
    assert [info.collection.name for info in driver.ask(ops.ListCollections()).collections] == ["c"]
    with pytest.raises(NotFound):
        driver.ask(ops.GetCollection(collection="odd"))


@pytest.mark.parametrize("knows", [True, False])
def test_aliases_whether_or_not_the_schema_knows_them(fake: FakeWeaviate, driver: Driver, knows: bool) -> None:
    fake.faults.does_schema_know_aliases = knows
    filled(driver, "c")
    driver.ask(ops.SwapAlias(alias="now", collection="c"))
    assert driver.ask(ops.CountPoints(collection="now")).count == len(IDS)
    with pytest.raises(NotFound):  # an alias of an alias
        driver.ask(ops.SwapAlias(alias="later", collection="now"))
    with pytest.raises(InvalidArgument):
        driver.ask(ops.DeleteCollection(collection="now"))
    driver.ask(ops.CreateCollection(collection=collection("d")))
    assert driver.ask(ops.SwapAlias(alias="now", collection="d")).previous == "c"
    assert driver.ask(ops.CountPoints(collection="now")).count == 0


def test_other_processes_are_noticed(fake: FakeWeaviate, start: Start) -> None:
    one, other = Driver(start(definition_ttl_s=0.05)), Driver(start(definition_ttl_s=0.05))
    filled(one, "c")
    assert other.ask(ops.CountPoints(collection="c")).count == len(IDS)
    for index, writer in enumerate((one, other)):  # both make the same property
        writer.ask(
            ops.UpsertPoints(
                collection="c", ids=[f"n{index}"], vectors=VECTORS[:1].tobytes(), payloads=['{"fresh": "x"}']
            )
        )
    fresh = Filter(must=[Condition(field="fresh", match="x")])
    assert other.ask(ops.CountPoints(collection="c", filter=fresh)).count == 2
    one.ask(ops.DeleteCollection(collection="c"))
    one.ask(ops.CreateCollection(collection=Collection(name="c", dimension=2)))
    time.sleep(0.06)
    other.ask(ops.UpsertPoints(collection="c", ids=["a"], vectors=np.ones(2, "<f4").tobytes()))


def test_a_collection_that_another_process_deleted_is_forgotten(fake: FakeWeaviate, start: Start) -> None:
    driver = Driver(start(definition_ttl_s=60))
    filled(driver, "c")
    fake.state.delete(class_name("c"))
    with pytest.raises(NotFound) as caught:
        driver.ask(SEARCH)
    assert caught.value.reason == "COLLECTION_NOT_FOUND"
    assert caught.value.metadata["collection"] == "c"
    driver.ask(ops.CreateCollection(collection=collection("c")))
    assert driver.ids(SEARCH) == []


def test_deletion_goes_on_until_nothing_matches(fake: FakeWeaviate, driver: Driver) -> None:
    filled(driver, "c")
    fake.faults.max_deleted = 7
    assert driver.ask(ops.DeletePoints(collection="c", filter=Filter())).count == len(IDS)
    assert driver.ask(ops.CountPoints(collection="c")).count == 0


def test_large_upserts_go_in_several_messages(fake: FakeWeaviate) -> None:
    config = parse_weaviate_url(fake.url)
    backend = WeaviateBackend(
        WeaviateConfig(host=config.host, http_port=config.http_port, grpc_port=config.grpc_port, batch_bytes=4000)
    )
    filled(Driver(backend), "c")
    assert fake.faults.calls.count("BatchObjects") > 5
    assert Driver(backend).ask(ops.CountPoints(collection="c")).count == len(IDS)
    backend.close()


def test_approximate_collections_are_not_searched_exactly(driver: Driver) -> None:
    driver.ask(ops.CreateCollection(collection=collection("c", index=IndexConfig(kind="hnsw"))))
    with pytest.raises(Unimplemented, match="flat"):
        driver.ask(Search(collection="c", vectors=QUERIES[:1].tobytes(), exact=True))
    assert driver.ask(SEARCH).results[0].strategy == "index"
    only = Filter(must=[Condition(has_id=["a"])])
    assert (
        driver.ask(Search(collection="c", vectors=SEARCH.vectors, filter=only)).results[0].strategy == "filtered_index"
    )


def test_every_index_kind_can_be_made(driver: Driver) -> None:
    for kind in ("auto", "flat", "hnsw", "sq8", "ivf_pq"):
        info = driver.ask(ops.CreateCollection(collection=collection(f"c-{kind}", index=IndexConfig(kind=kind))))
        assert info.collection.index.kind == kind
        assert info.stats.index_kind == ("flat" if kind == "flat" else "hnsw")


def test_everything_can_be_read_in_weaviates_order(fake: FakeWeaviate, driver: Driver) -> None:
    filled(driver, "c")
    found: list[str] = []
    after, num_pages = "", 0
    while True:
        page = driver.ask(WeaviateBackend.bulk_scroll(collection="c", after=after, limit=20, with_vector=True))
        num_pages += 1
        for point in page.points:
            assert point.vector == VECTORS[IDS.index(point.id)].tobytes()
            assert point.payload
        found += [point.id for point in page.points]
        after = page.next_after
        if not after:
            break
    assert sorted(found) == IDS
    assert found == sorted(IDS, key=lambda point_id: str(object_uuid(point_id)))
    assert num_pages == 4  # the last one is empty


# Snapshots


def test_snapshots_are_backups(fake: FakeWeaviate, start: Start) -> None:
    driver = Driver(start(backups="filesystem"))
    filled(driver, "c")
    made = driver.ask(ops.CreateSnapshot(collection="c"))
    assert (made.collection, made.num_points, made.bytes) == ("c", len(IDS), 1 << 29)
    fake.state.backups["theirs"] = fake.state.backups[made.snapshot]
    listed = driver.ask(ops.ListSnapshots())
    assert listed.snapshots == [made]
    assert driver.ask(ops.ListSnapshots(collection="d")).snapshots == []
    restore = ops.RestoreSnapshot(collection="c", snapshot=made.snapshot)
    with pytest.raises(AlreadyExists):
        driver.ask(restore)
    driver.ask(ops.DeleteCollection(collection="c"))
    fake.state.damaged.add(f"{made.snapshot}/restore")
    with pytest.raises(FailedPrecondition) as caught:
        driver.ask(restore)
    assert caught.value.reason == "SNAPSHOT_INVALID"
    fake.state.damaged.clear()
    assert driver.ask(restore).stats.num_points == len(IDS)
    assert driver.ids(SEARCH)
    for operation, error in (
        (ops.RestoreSnapshot(collection="c", snapshot="nothing"), NotFound),
        (ops.RestoreSnapshot(collection="c", snapshot=made.snapshot, replace=True), Unimplemented),
        (ops.RestoreSnapshot(collection="c", snapshot=made.snapshot, target="d"), Unimplemented),
        (ops.DeleteSnapshot(collection="c", snapshot=made.snapshot), Unimplemented),
        (ops.CreateSnapshot(collection="nothing"), NotFound),
    ):
        with pytest.raises(error):
            driver.ask(operation)


def test_a_backup_that_fails_or_takes_too_long(
    fake: FakeWeaviate, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(start(backups="filesystem"))
    filled(driver, "c")
    # The clock of this one module: gRPC counts deadlines by the real one.
    clock = types.SimpleNamespace(time=lambda: 1.0, sleep=time.sleep)
    monkeypatch.setattr("vorta_server.vectors.weaviate_snapshots.time", clock)
    fake.state.damaged.add(f"vorta-1000-{len(IDS)}")
    with pytest.raises(Internal, match="FAILED"):
        driver.ask(ops.CreateSnapshot(collection="c"))
    fake.state.polls[f"vorta-1000-{len(IDS)}"] = -100
    _, answers, done = submit(driver.backend, ops.CreateSnapshot(collection="c"), deadline_s=time.monotonic() + 0.1)
    assert done.wait(60)
    assert isinstance(answers[0], DeadlineExceeded)


# Failures


def test_nothing_listens() -> None:
    with socket.socket() as http, socket.socket() as rpc:
        for taken in (http, rpc):
            taken.bind(("127.0.0.1", 0))
        backend = WeaviateBackend(
            WeaviateConfig(host="127.0.0.1", http_port=http.getsockname()[1], grpc_port=rpc.getsockname()[1])
        )
        for _ in range(2):
            with pytest.raises(Unavailable) as caught:
                Driver(backend).ask(SEARCH)
            assert caught.value.is_retryable
        backend.close()


def test_a_weaviate_that_comes_later_is_found(fake: FakeWeaviate, driver: Driver) -> None:
    fake.faults.api_key = "k"
    with pytest.raises(FailedPrecondition):
        driver.ask(SEARCH)
    fake.faults.api_key = ""
    filled(driver, "c")


def test_grpc_may_be_away_while_rest_is_there(fake: FakeWeaviate) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        backend = WeaviateBackend(
            WeaviateConfig(host="127.0.0.1", http_port=fake.http_port, grpc_port=taken.getsockname()[1])
        )
        with pytest.raises(Unavailable):
            Driver(backend).ask(ops.CreateCollection(collection=collection("c")))
        backend.close()


def test_an_old_weaviate_is_refused(start: Start, fake: FakeWeaviate) -> None:
    fake.version = "1.20.0"
    with pytest.raises(FailedPrecondition, match=r"1\.27"):
        Driver(start()).ask(SEARCH)
    fake.version = "1.28.0"  # without aliases
    with pytest.raises(Unimplemented, match=r"1\.32"):
        Driver(start()).ask(ops.ListAliases())


def test_api_keys_are_sent_both_ways(start: Start, fake: FakeWeaviate) -> None:
    fake.faults.api_key = "secret"
    driver = Driver(start(api_key="secret"))
    filled(driver, "c")
    assert driver.ids(SEARCH)
    with pytest.raises(FailedPrecondition) as caught:
        Driver(start(api_key="wrong")).ask(SEARCH)
    assert "secret" not in caught.value.message
    assert "wrong" not in caught.value.message


@pytest.mark.parametrize(
    ("code", "error", "is_retryable"),
    [
        (grpc.StatusCode.UNAVAILABLE, Unavailable, True),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded, False),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ResourceExhausted, True),
        (grpc.StatusCode.PERMISSION_DENIED, FailedPrecondition, False),
        (grpc.StatusCode.UNIMPLEMENTED, Unimplemented, False),
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidArgument, False),
        (grpc.StatusCode.UNKNOWN, Internal, False),
        (grpc.StatusCode.INTERNAL, Internal, False),
    ],
)
def test_status_codes_become_our_errors_without_retries(
    fake: FakeWeaviate, driver: Driver, code: grpc.StatusCode, error: type[VortaError], is_retryable: bool
) -> None:
    filled(driver, "c")
    for operation, method in (
        (SEARCH, "Search"),
        (UPSERT, "BatchObjects"),
        (ops.DeletePoints(collection="c", ids=["a"]), "BatchDelete"),
        (ops.CountPoints(collection="c"), "Aggregate"),
    ):
        fake.faults.codes[method] = [code]
        with pytest.raises(error) as caught:
            driver.ask(operation)
        assert caught.value.is_retryable is is_retryable
        # The client alone would have slept and tried again, with success.
        assert fake.faults.codes[method] == []


def test_a_partly_failed_upsert_says_so_and_can_be_sent_again(
    fake: FakeWeaviate, driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    driver.ask(ops.CreateCollection(collection=collection("c")))
    upsert = ops.UpsertPoints(
        collection="c", ids=["a", "b", "c"], vectors=VECTORS[:3].tobytes(), payloads=['{"x": "private"}'] * 3
    )
    fake.faults.refused_uuids = {str(object_uuid("b"))}
    with caplog.at_level(logging.DEBUG), pytest.raises(Unavailable) as caught:
        driver.ask(upsert)
    assert caught.value.is_retryable
    assert (caught.value.metadata["written"], caught.value.metadata["wanted"]) == ("2", "3")
    assert "private" not in caplog.text
    fake.faults.refused_uuids = {str(object_uuid(point_id)) for point_id in "abc"}
    with pytest.raises(Unavailable, match="0 of 3"):
        driver.ask(upsert)
    fake.faults.refused_uuids = set()
    assert driver.ask(upsert).count == 3
    assert driver.ask(ops.CountPoints(collection="c")).count == 3


def test_accepted_writes_that_fail_are_logged(
    fake: FakeWeaviate, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    backend = start()
    driver = Driver(backend)
    driver.ask(ops.CreateCollection(collection=collection("c")))
    fake.faults.codes["BatchObjects"] = [grpc.StatusCode.INTERNAL]
    upsert = ops.UpsertPoints(collection="c", ids=["a"], vectors=VECTORS[:1].tobytes(), wait=False)
    assert driver.ask(upsert).sequence == 0
    wait(lambda: backend.num_pending == 0)
    assert "an accepted write failed" in caplog.text
    with pytest.raises(InvalidArgument):  # what is wrong with the write itself is said before
        driver.ask(ops.UpsertPoints(collection="c", ids=["a"], vectors=b"1", wait=False))


# Deadlines, bounds, order


def test_deadlines_become_timeouts(fake: FakeWeaviate, start: Start) -> None:
    backend = start()
    filled(Driver(backend), "c")
    fake.faults.gate = threading.Event()  # that nobody opens meanwhile
    for operation in (SEARCH, Search(collection="c", vectors=QUERIES.tobytes())):
        _, answers, done = submit(backend, operation, deadline_s=time.monotonic() + 0.1)
        assert done.wait(60)
        assert isinstance(answers[0], DeadlineExceeded)


def test_configured_timeouts_hold_without_deadlines(fake: FakeWeaviate, start: Start) -> None:
    backend = start(query_timeout_s=0.1)
    filled(Driver(backend), "c")
    fake.faults.delay_s = 1.0
    _, answers, done = submit(backend, SEARCH)
    assert done.wait(60)
    assert isinstance(answers[0], DeadlineExceeded)


def test_what_is_too_much_is_refused_and_what_waits_expires(fake: FakeWeaviate, start: Start) -> None:
    backend = start(threads=1, queue=2)
    filled(Driver(backend), "c")
    fake.faults.gate = threading.Event()
    _, running, ran = submit(backend, SEARCH)
    wait(lambda: fake.faults.calls[-1] == "Search")
    _, late, _ = submit(backend, SEARCH, deadline_s=time.monotonic() + 0.05)
    abandoned_ticket, abandoned, was_abandoned = submit(backend, SEARCH)
    _, refused, _ = submit(backend, SEARCH)
    assert isinstance(refused[0], ResourceExhausted)
    assert refused[0].metadata["limit"] == "3"
    assert backend.num_pending == 3
    abandoned_ticket.is_abandoned = True
    wait(lambda: backend.has_work)
    backend.step()
    assert isinstance(late[0], DeadlineExceeded)
    assert not backend.has_work
    assert backend.num_pending == 2
    fake.faults.gate.set()
    assert ran.wait(60)
    assert was_abandoned.wait(60)
    assert running[0].results[0].hits
    assert isinstance(abandoned[0], Cancelled)
    wait(lambda: backend.num_pending == 0)
    assert len(late) == 1


def test_writes_of_a_collection_keep_their_order(start: Start) -> None:
    driver = Driver(start(threads=8))
    driver.ask(ops.CreateCollection(collection=collection("c")))
    writes: list[Operation] = [
        ops.UpsertPoints(
            collection="c", ids=["a"], vectors=VECTORS[number % 50].tobytes(), payloads=[f'{{"n": {number}}}']
        )
        for number in range(40)
    ]
    driver.ask_all(writes)
    assert driver.ask(ops.GetPoints(collection="c", ids=["a"])).points[0].payload == '{"n": 39}'


def test_closing_finishes_writes_and_refuses_reads(fake: FakeWeaviate, start: Start) -> None:
    backend = start(threads=1)
    filled(Driver(backend), "c")
    fake.faults.gate = threading.Event()
    running = submit(backend, UPSERT)
    waiting = submit(backend, ops.UpsertPoints(collection="c", ids=["z"], vectors=VECTORS[:1].tobytes()))
    read = submit(backend, SEARCH)
    closing = threading.Thread(target=backend.close)
    closing.start()
    wait(lambda: isinstance((submit(backend, SEARCH)[1] or [None])[0], Unavailable))
    fake.faults.gate.set()
    closing.join(60)
    assert not closing.is_alive()
    assert running[1][0].count == waiting[1][0].count == 1
    assert isinstance(read[1][0], Unavailable)
    backend.close()
    assert str(object_uuid("z")) in fake.state.classes[class_name("c")].objects


def test_a_bug_still_answers(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = start()

    def broken(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(backend._store, "execute", broken)
    _, answers, done = submit(backend, SEARCH)
    assert done.wait(60)
    assert isinstance(answers[0], Internal)


def test_a_taker_that_fails_harms_nobody_else(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    backend = start(threads=1)
    filled(Driver(backend), "c")

    def broken(answer: Any) -> None:
        raise ZeroDivisionError

    backend.submit(Ticket(UPSERT, broken))
    assert Driver(backend).ask(UPSERT).count == 1
    wait(lambda: backend.num_pending == 0)
    assert "could not be delivered" in caplog.text


def test_a_finished_operation_is_not_kept_until_its_deadline(start: Start) -> None:
    backend = start()
    filled(Driver(backend), "c")
    for _ in range(5):
        Driver(backend).ask(SEARCH, timeout_s=60)
    wait(lambda: backend.num_pending == 0)
    assert len(backend._deadlines) <= 1


def test_ipv6() -> None:
    from vorta_server.vectors.weaviate_client import _in_url

    assert (_in_url("::1"), _in_url("db")) == ("[::1]", "db")


def test_dimension_and_vectors_are_kept_to(driver: Driver) -> None:
    filled(driver, "c")
    with pytest.raises(InvalidArgument) as caught:
        driver.ask(Search(collection="c", vectors=np.ones(DIMENSION + 1, "<f4").tobytes()))
    assert caught.value.metadata["dimension"] == str(DIMENSION)


# Packaging


def test_without_the_package_the_error_names_the_extra() -> None:
    code = """
import sys
sys.modules["weaviate"] = None
from vorta.errors import FailedPrecondition
from vorta_server.vectors.weaviate_backend import WeaviateBackend
from vorta_server.vectors.weaviate_config import WeaviateConfig
try:
    WeaviateBackend(WeaviateConfig(host="x"))
except FailedPrecondition as error:
    print(error.message)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "vorta[weaviate]" in ended.stdout


def test_the_package_is_imported_only_when_a_backend_is_made() -> None:
    code = (
        "import sys, vorta_server.vectors.weaviate_backend, vorta_server.vectors.tiered_backend;"
        "print(*[name for name in ('weaviate', 'grpc', 'httpx', 'numpy') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == []


def test_no_thread_is_left(fake: FakeWeaviate) -> None:
    before = set(threading.enumerate())
    backend = WeaviateBackend(parse_weaviate_url(fake.url))
    driver = Driver(backend)
    filled(driver, "c")
    driver.ask(Search(collection="c", vectors=QUERIES.tobytes()))
    backend.close()
    left = {thread for thread in set(threading.enumerate()) - before if thread.name.startswith("weaviate")}
    assert left == set()
