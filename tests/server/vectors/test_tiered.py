from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from vorta.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    VortaError,
)
from vorta_server.vectors import operation as ops
from vorta_server.vectors.operation import Collection, Condition, Filter, Operation, Search, Ticket
from vorta_server.vectors.tiered_backend import TieredBackend, TieredConfig


class FakeBackend:
    """Points in dictionaries; answers at the next `step`, or when a held operation is let go."""

    def __init__(self) -> None:
        self.collections: dict[str, Collection] = {}
        self.points: dict[str, dict[str, bytes]] = {}
        self.aliases: dict[str, str] = {}
        self.seen: list[Operation] = []
        self.failures: list[tuple[type[Operation], VortaError, bool]] = []
        self.held: list[tuple[Ticket, Any]] = []
        self.hold: Callable[[Operation], bool] = lambda operation: False
        self.is_broken = False
        self.is_closed = False
        self._waiting: list[Ticket] = []

    @property
    def has_work(self) -> bool:
        return bool(self._waiting)

    @property
    def num_pending(self) -> int:
        return len(self._waiting) + len(self.held)

    def submit(self, ticket: Ticket) -> None:
        if self.is_broken:
            raise RuntimeError("broken")
        self._waiting.append(ticket)

    def step(self) -> None:
        waiting, self._waiting = self._waiting, []
        for ticket in waiting:
            if self.is_broken:
                raise RuntimeError("broken")
            self.seen.append(ticket.operation)
            answer = self._answer(ticket.operation)
            if self.hold(ticket.operation):
                self.held.append((ticket, answer))
            else:
                _give(ticket, answer)

    def let_go(self, chooses: Callable[[], bool] = lambda: True) -> None:
        """Delivers what was held, or some of it: what was true when it was done, not now."""
        held, self.held = self.held, []
        for ticket, answer in held:
            if chooses():
                _give(ticket, answer)
            else:
                self.held.append((ticket, answer))

    def close(self) -> None:
        self.is_closed = True

    def fail_next(self, kind: type[Any], error: VortaError, *, is_done: bool = False) -> None:
        """The next operation of a kind fails, although it was done where `is_done`."""
        self.failures.append((kind, error, is_done))

    def _answer(self, operation: Operation) -> Any:
        for failure in self.failures:
            if isinstance(operation, failure[0]):
                self.failures.remove(failure)
                if failure[2]:
                    self._do(operation)
                return failure[1]
        try:
            return self._do(operation)
        except VortaError as error:
            return error

    def _of(self, name: str) -> dict[str, bytes]:
        name = self.aliases.get(name, name)
        if name not in self.points:
            raise NotFound(name, reason="COLLECTION_NOT_FOUND")
        return self.points[name]

    def _info(self, name: str) -> ops.CollectionInfo:
        self._of(name)
        return ops.CollectionInfo(
            collection=self.collections[self.aliases.get(name, name)], stats=ops.CollectionStats()
        )

    def _do(self, operation: Operation) -> Any:
        match operation:
            case ops.CreateCollection(collection=collection):
                if collection.name in self.points:
                    raise AlreadyExists(collection.name)
                self.collections[collection.name], self.points[collection.name] = collection, {}
                return self._info(collection.name)
            case ops.GetCollection(collection=name):
                return self._info(name)
            case ops.ListCollections():
                return ops.Collections(collections=[self._info(name) for name in sorted(self.collections)])
            case ops.DeleteCollection(collection=name):
                self._of(name)
                del self.points[name], self.collections[name]
                self.aliases = {alias: target for alias, target in self.aliases.items() if target != name}
                return ops.Done()
            case ops.SwapAlias(alias=alias, collection=name):
                previous, self.aliases[alias] = self.aliases.get(alias, ""), name
                return ops.AliasInfo(alias=alias, collection=name, previous=previous)
            case ops.DeleteAlias(alias=alias):
                self.aliases.pop(alias)
                return ops.Done()
            case ops.ListAliases():
                return ops.Aliases(aliases=[ops.AliasInfo(alias=a, collection=c) for a, c in self.aliases.items()])
            case ops.UpsertPoints(collection=name, ids=ids, vectors=vectors):
                points = self._of(name)
                size = len(vectors) // len(ids)
                for index, point_id in enumerate(ids):
                    points[point_id] = vectors[index * size : (index + 1) * size]
                return ops.Written(count=len(ids), sequence=len(self.seen))
            case ops.DeletePoints(collection=name, ids=ids, filter=filter_):
                points = self._of(name)
                if filter_ is not None:
                    ids = filter_.must[0].has_id or []
                return ops.Written(count=sum(points.pop(i, None) is not None for i in ids), sequence=len(self.seen))
            case ops.GetPoints(collection=name, ids=ids):
                points = self._of(name)
                return ops.Points(points=[ops.Point(id=i, vector=points[i]) for i in ids if i in points])
            case ops.ScrollPoints(collection=name, after=after, limit=limit):
                points = self._of(name)
                found = [i for i in sorted(points) if i > after]
                page = [ops.Point(id=i, vector=points[i]) for i in found[:limit]]
                return ops.Page(points=page, next_after=page[-1].id if len(found) > limit else "")
            case Search(collection=name):
                hits = [ops.Hit(id=i, score=1.0, vector=v) for i, v in sorted(self._of(name).items())]
                return ops.SearchResults(results=[ops.SearchResult(hits=hits)])
        raise AssertionError(operation)


def _give(ticket: Ticket, answer: Any) -> None:
    if isinstance(answer, VortaError):
        ticket.fail(answer)
    else:
        ticket.finish(answer)


class Rig:
    """A tiered backend over two fakes."""

    def __init__(self, **config: Any) -> None:
        self.truth, self.hot = FakeBackend(), FakeBackend()
        self.backend = TieredBackend(
            self.truth, self.hot, TieredConfig(**({"retry_s": 0.01, "page_points": 3} | config))
        )

    def submit(self, operation: Operation) -> list[Any]:
        """A list that gets the answer."""
        answers: list[Any] = []
        self.backend.submit(Ticket(operation, answers.append))
        return answers

    def settle(self, until: Callable[[], bool] = lambda: False) -> None:
        """Steps until that holds, or there is nothing to do."""
        end_s = time.monotonic() + 60
        while not until() and self.backend.has_work:
            self.backend.step()
            assert time.monotonic() < end_s

    def wait(self, until: Callable[[], bool]) -> None:
        end_s = time.monotonic() + 60
        while not until():
            self.backend.step()
            time.sleep(0.001)
            assert time.monotonic() < end_s

    def ask(self, operation: Operation) -> Any:
        answers = self.submit(operation)
        self.wait(lambda: bool(answers))
        if isinstance(answers[0], VortaError):
            raise answers[0]
        return answers[0]

    def search(self, name: str = "c") -> dict[str, bytes]:
        hits = self.ask(Search(collection=name, vectors=b"1234")).results[0].hits
        return {hit.id: hit.vector for hit in hits}

    def check_equal(self, name: str = "c") -> None:
        """The copy is complete and has what the truth has."""
        self.wait(lambda: name in self.backend.ready_collections)
        assert self.hot.points[name] == self.truth.points[name]


def make(name: str = "c") -> ops.CreateCollection:
    return ops.CreateCollection(collection=Collection(name=name, dimension=1))


def put(ids: str, value: str, name: str = "c", **options: Any) -> ops.UpsertPoints:
    """Points whose ids are the letters and whose vectors are the value."""
    return ops.UpsertPoints(collection=name, ids=list(ids), vectors=value.ljust(4).encode() * len(ids), **options)


def prefilled(**config: Any) -> Rig:
    rig = Rig(**config)
    for operation in (make(), put("abcdefgh", "old")):
        rig.truth.submit(Ticket(operation, lambda answer: None))
        rig.truth.step()
    rig.truth.seen.clear()
    return rig


def test_writes_go_to_both_before_the_answer() -> None:
    rig = Rig()
    rig.ask(make())
    rig.check_equal()
    rig.hot.hold = lambda operation: isinstance(operation, ops.UpsertPoints)
    answers = rig.submit(put("ab", "1"))
    rig.settle()
    assert rig.truth.points["c"].keys() == {"a", "b"}
    assert answers == []  # the copy has not acknowledged
    rig.hot.let_go()
    rig.settle()
    assert answers[0].count == 2
    rig.hot.hold = lambda operation: False
    before = rig.backend.counters.hot_answers
    assert rig.search() == rig.truth.points["c"]
    assert rig.backend.counters.hot_answers == before + 1
    rig.ask(ops.DeletePoints(collection="c", ids=["a"]))
    rig.check_equal()


def test_a_refused_write_reaches_no_copy() -> None:
    rig = Rig()
    rig.ask(make())
    rig.check_equal()
    rig.truth.fail_next(ops.UpsertPoints, InvalidArgument("no"))
    with pytest.raises(InvalidArgument):
        rig.ask(put("a", "1"))
    rig.check_equal()
    assert rig.hot.points["c"] == {}


def test_old_data_is_copied_page_by_page() -> None:
    rig = prefilled()
    assert rig.backend.has_work
    rig.check_equal()
    pages = [operation for operation in rig.truth.seen if isinstance(operation, ops.ScrollPoints)]
    assert [page.after for page in pages] == ["", "c", "f"]
    assert rig.backend.counters.fills == 1


def test_the_truth_answers_until_a_copy_is_complete() -> None:
    rig = prefilled()
    rig.truth.hold = lambda operation: isinstance(operation, ops.ScrollPoints)
    rig.settle()
    assert rig.search() == rig.truth.points["c"]
    assert rig.backend.counters.truth_answers == 1
    rig.truth.hold = lambda operation: False
    rig.truth.let_go()
    rig.check_equal()
    rig.search()
    assert rig.backend.counters.hot_answers == 1


def test_an_old_copy_is_replaced() -> None:
    rig = prefilled()
    for operation in (make(), put("z", "stale")):
        rig.hot.submit(Ticket(operation, lambda answer: None))
        rig.hot.step()
    rig.check_equal()


@pytest.mark.parametrize("is_before", [True, False])
def test_a_write_while_a_page_is_under_way_is_not_lost(is_before: bool) -> None:
    """The page was read before the write and arrives after it; or the write was under way when the page was read."""
    rig = prefilled()
    kind = ops.ScrollPoints if is_before else ops.UpsertPoints
    rig.truth.hold = lambda operation: isinstance(operation, kind)
    if is_before:
        rig.settle()
        assert rig.truth.held
        rig.truth.hold = lambda operation: False
        rig.ask(put("ax", "new"))
        rig.ask(ops.DeletePoints(collection="c", ids=["b"]))
        assert rig.hot.points["c"].keys() == {"a", "x"}
    else:
        answers = rig.submit(put("ax", "new"))
        rig.wait(lambda: "c" in rig.backend.ready_collections)
        assert answers == []
    rig.truth.let_go()
    rig.check_equal()
    assert rig.hot.points["c"]["a"] == b"new "
    assert ("b" in rig.hot.points["c"]) is not is_before


def test_a_deletion_by_filter_while_a_page_is_under_way_rereads_it() -> None:
    rig = prefilled()
    rig.truth.hold = lambda operation: isinstance(operation, ops.ScrollPoints)
    rig.settle()
    rig.truth.hold = lambda operation: False
    rig.ask(ops.DeletePoints(collection="c", filter=Filter(must=[Condition(has_id=["a", "b"])])))
    rig.truth.let_go()
    rig.check_equal()
    assert rig.hot.points["c"].keys() == set("cdefgh")
    assert [o.after for o in rig.truth.seen if isinstance(o, ops.ScrollPoints)][:2] == ["", ""]


def test_random_interleavings_end_equal() -> None:
    for seed in range(200):  # short ones: later writes would hide what earlier ones lost
        rng = np.random.default_rng(seed)
        rig = prefilled()
        rig.truth.hold = lambda operation, rng=rng: bool(rng.random() < 0.5)
        rig.hot.hold = lambda operation, rng=rng: bool(rng.random() < 0.2)
        answers = []
        for number in range(12):
            ids = "".join(rng.choice(list("abcdefghij"), size=2, replace=False))
            dice = rng.random()
            if dice < 0.4:
                answers.append(rig.submit(put(ids, str(number))))
            elif dice < 0.6:
                answers.append(rig.submit(ops.DeletePoints(collection="c", ids=list(ids))))
            elif dice < 0.65:
                only = Filter(must=[Condition(has_id=list(ids))])
                answers.append(rig.submit(ops.DeletePoints(collection="c", filter=only)))
            elif dice < 0.7 and seed % 2:  # not always: each failure ends in a new filling, which heals everything
                rig.hot.fail_next(ops.UpsertPoints, Internal("disk"))
            elif dice < 0.75:
                rig.truth.fail_next(ops.UpsertPoints, DeadlineExceeded("late"), is_done=bool(rng.random() < 0.5))
            rig.backend.step()
            rig.backend.step()
            for backend in (rig.truth, rig.hot):
                backend.let_go(lambda rng=rng: bool(rng.random() < 0.3))
        rig.truth.failures.clear()
        rig.hot.failures.clear()
        rig.truth.hold = rig.hot.hold = lambda operation: False

        def is_done(rig: Rig = rig, answers: list[list[Any]] = answers) -> bool:
            rig.truth.let_go()
            rig.hot.let_go()
            return all(answers) and "c" in rig.backend.ready_collections

        rig.wait(is_done)
        rig.settle()
        rig.check_equal()
        assert all(len(answer) == 1 for answer in answers), seed


def test_a_write_of_unknown_outcome_is_looked_up() -> None:
    rig = Rig()
    rig.ask(make())
    rig.ask(put("ab", "1"))
    rig.check_equal()
    rig.truth.fail_next(ops.UpsertPoints, DeadlineExceeded("late"), is_done=True)
    late = rig.submit(put("ax", "2"))
    after = rig.submit(put("x", "3"))
    rig.settle()
    assert isinstance(late[0], DeadlineExceeded)
    assert after[0].count == 1
    rig.check_equal()
    assert rig.hot.points["c"] == {"a": b"2   ", "b": b"1   ", "x": b"3   "}
    rig.truth.fail_next(ops.DeletePoints, Unavailable("gone"), is_done=True)
    with pytest.raises(Unavailable):
        rig.ask(ops.DeletePoints(collection="c", ids=["a"]))
    rig.settle()
    rig.check_equal()
    assert rig.backend.counters.fills == 1  # looked up, not filled again


def test_a_deletion_by_filter_of_unknown_outcome_fills_the_copy_again() -> None:
    rig = prefilled()
    rig.check_equal()
    rig.truth.fail_next(ops.DeletePoints, Unavailable("gone"), is_done=True)
    with pytest.raises(Unavailable):
        rig.ask(ops.DeletePoints(collection="c", filter=Filter(must=[Condition(has_id=["a"])])))
    assert rig.search().keys() == set("bcdefgh")
    rig.check_equal()
    assert rig.backend.counters.fills == 2


@pytest.mark.parametrize("error", [Internal("bug"), NotFound("c", reason="COLLECTION_NOT_FOUND"), Unavailable("x")])
def test_a_failed_hot_read_is_answered_by_the_truth(error: VortaError, caplog: pytest.LogCaptureFixture) -> None:
    rig = prefilled()
    rig.check_equal()
    rig.hot.fail_next(Search, error)
    assert rig.search() == rig.truth.points["c"]
    assert rig.backend.counters.hot_failures == 1
    assert "the copy of c is not used" in caplog.text
    rig.wait(lambda: rig.backend.counters.fills == 2)
    rig.check_equal()


@pytest.mark.parametrize(
    ("error", "is_passed_on"),
    [
        (InvalidArgument("bad filter"), True),
        (NotFound("p", reason="POINT_NOT_FOUND"), True),
        (DeadlineExceeded("late"), True),
        (ResourceExhausted("busy"), False),
    ],
)
def test_some_hot_errors_say_nothing_about_the_copy(error: VortaError, is_passed_on: bool) -> None:
    rig = prefilled()
    rig.check_equal()
    rig.hot.fail_next(Search, error)
    if is_passed_on:
        with pytest.raises(type(error)):
            rig.search()
    else:
        assert rig.search() == rig.truth.points["c"]
    assert rig.backend.ready_collections == ["c"]
    assert rig.backend.counters.hot_failures == 0


def test_a_failed_hot_write_is_still_acknowledged() -> None:
    rig = prefilled()
    rig.check_equal()
    rig.hot.fail_next(ops.UpsertPoints, ResourceExhausted("disk full", reason="DISK_FULL"))
    assert rig.ask(put("a", "new")).count == 1
    assert rig.search()["a"] == b"new "
    rig.check_equal()


def test_a_broken_hot_backend_harms_nobody() -> None:
    rig = prefilled()
    rig.check_equal()
    rig.hot.is_broken = True
    assert rig.search() == rig.truth.points["c"]
    assert rig.ask(put("a", "new")).count == 1
    assert rig.search()["a"] == b"new "
    assert rig.backend.ready_collections == []
    rig.hot.is_broken = False
    rig.check_equal()


def test_a_truth_that_is_away_at_the_start_is_asked_again() -> None:
    rig = prefilled()
    rig.truth.fail_next(ops.ListCollections, Unavailable("starting"))
    rig.truth.fail_next(ops.ScrollPoints, Unavailable("starting"))
    rig.check_equal()


def test_collections_and_aliases_follow() -> None:
    rig = Rig()
    for name in ("one", "two"):
        rig.ask(make(name))
        rig.ask(put(name[0], name, name=name))
    rig.wait(lambda: rig.backend.ready_collections == ["one", "two"])
    rig.ask(ops.SwapAlias(alias="now", collection="one"))
    assert rig.search("now") == {"o": b"one "}
    assert rig.ask(ops.SwapAlias(alias="now", collection="two")).previous == "one"
    assert rig.search("now") == {"t": b"two "}
    assert rig.backend.counters.hot_answers == 2
    rig.ask(put("x", "x", name="now"))
    assert rig.hot.points["two"].keys() == {"t", "x"}
    rig.ask(ops.DeleteCollection(collection="two"))
    assert "two" not in rig.hot.points
    with pytest.raises(NotFound):
        rig.search("now")
    rig.ask(make("two"))
    rig.check_equal("two")
    assert rig.hot.points["two"] == {}
    rig.ask(ops.SwapAlias(alias="now", collection="one"))
    rig.ask(ops.DeleteAlias(alias="now"))
    with pytest.raises(NotFound):
        rig.search("now")


def test_aliases_are_learned_at_the_start() -> None:
    rig = prefilled()
    rig.truth.aliases["now"] = "c"
    rig.check_equal()
    assert rig.search("now") == rig.truth.points["c"]
    assert rig.backend.counters.hot_answers == 1


def test_only_hot_collections_are_copied() -> None:
    rig = Rig(hot=("warm",))
    for name in ("warm", "cold"):
        rig.ask(make(name))
    rig.check_equal("warm")
    rig.ask(put("a", "1", name="cold"))
    assert rig.search("cold") == {"a": b"1   "}
    assert rig.hot.points.keys() == {"warm"}


def test_writes_that_nobody_waits_for_are_answered_by_the_truth() -> None:
    rig = Rig()
    rig.ask(make())
    rig.check_equal()
    rig.hot.hold = lambda operation: isinstance(operation, ops.UpsertPoints)
    answer = rig.ask(put("ab", "1", wait=False))
    assert (answer.count, answer.sequence) == (2, 0)
    rig.settle()
    rig.hot.let_go()
    rig.check_equal()


def test_what_is_too_much_is_refused() -> None:
    rig = Rig(max_pending=2)
    rig.settle()
    answers = [rig.submit(Search(collection="c", vectors=b"1234")) for _ in range(3)]
    assert isinstance(answers[2][0], ResourceExhausted)
    assert rig.backend.num_pending == 2
    rig.settle()
    assert rig.backend.num_pending == 0


def test_closing_finishes_writes_and_is_idempotent() -> None:
    rig = Rig(close_timeout_s=5.0)
    rig.ask(make())
    rig.check_equal()
    answers = [rig.submit(put("a", str(number))) for number in range(5)]
    rig.backend.close()
    rig.backend.close()
    assert all(answer[0].count == 1 for answer in answers)
    assert rig.hot.points["c"] == rig.truth.points["c"] == {"a": b"4   "}
    assert rig.truth.is_closed
    assert rig.hot.is_closed
    assert isinstance(rig.submit(make("late"))[0], Unavailable)


def test_closing_does_not_wait_for_ever() -> None:
    rig = Rig(close_timeout_s=0.05)
    rig.truth.hold = lambda operation: isinstance(operation, ops.UpsertPoints)
    rig.ask(make())
    answers = rig.submit(put("a", "1"))
    rig.backend.close()
    assert isinstance(answers[0], Unavailable)


def test_abandoned_and_late_reach_the_backend() -> None:
    rig = Rig()
    rig.settle()
    seen: list[Ticket] = []
    rig.truth.submit = seen.append  # type: ignore[method-assign]
    ticket = Ticket(Search(collection="c", vectors=b"1234"), lambda answer: None, deadline_s=12.5)
    rig.backend.submit(ticket)
    assert seen[0].deadline_s == 12.5
    assert not seen[0].is_abandoned
    ticket.is_abandoned = True
    assert seen[0].is_abandoned


def test_an_answer_from_another_thread_wakes_the_worker() -> None:
    woken = threading.Event()
    truth, hot = FakeBackend(), FakeBackend()
    backend = TieredBackend(truth, hot, TieredConfig(hot=()), wake=woken.set)
    truth.hold = lambda operation: True
    answers: list[Any] = []
    backend.submit(Ticket(make(), answers.append))
    while truth.has_work or not truth.held:
        backend.step()
    woken.clear()
    thread = threading.Thread(target=truth.let_go)
    thread.start()
    assert woken.wait(60)
    thread.join()
    assert answers == []  # only the worker's thread goes on
    backend.step()
    assert answers[0].collection.name == "c"


def test_a_copy_is_made_with_the_whole_definition() -> None:
    rig = Rig()
    collection = Collection(
        name="c", dimension=3, distance="l2", text_fields=["t"], schema={"t": "text", "n": "integer"}, description="d"
    )
    rig.ask(ops.CreateCollection(collection=collection))
    rig.check_equal()
    assert rig.hot.collections["c"] == msgspec.structs.replace(collection, schema={"n": "integer"})
