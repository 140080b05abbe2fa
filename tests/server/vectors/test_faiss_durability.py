"""What was answered is there after a kill, a damaged file or a restart; what is damaged is told or made again."""

from __future__ import annotations

import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.vectors.driver import Driver
from tests.server.vectors.kill_target import CONFIG, DIMENSION, vector_of
from vorta.errors import FailedPrecondition
from vorta_server.vectors import operation as op
from vorta_server.vectors.faiss_backend import FaissBackend

ROOT = Path(__file__).resolve().parents[3]


def kill_cycle(folder: Path, log: Path, seed: int) -> None:
    """Lets a process write for a moment, then kills it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.server.vectors.kill_target", str(folder), str(seed), str(log)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    time.sleep(random.Random(seed).uniform(0.02, 0.3))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def check_log(folder: Path, log: Path) -> int:
    """Compares the store with the log; how many points there are.

    Writes of the store are in order of their sequence. One that was not answered may have been done or not, as a whole:
    each of its points has then the state that it or an answered later one left.
    """
    tried: dict[int, tuple[str, list[str]]] = {}
    sequences: dict[int, int] = {}
    for line in log.read_text().splitlines():
        entry = json.loads(line)
        if entry[0] == "try":
            tried[entry[1]] = (entry[2], entry[3])
        else:
            sequences[entry[1]] = entry[2]
    backend = FaissBackend(folder, CONFIG)
    try:
        driver = Driver(backend)
        points = driver.ask(op.ScrollPoints(collection="c", limit=10_000, with_vector=True)).points
        found = {point.id: json.loads(point.payload)["version"] for point in points}
        for point in points:
            version = found[point.id]
            assert version in tried, f"{point.id} was never written"
            assert tried[version][0] == "upsert"
            assert point.id in tried[version][1]
            np.testing.assert_array_equal(np.frombuffer(point.vector, "<f4"), vector_of(point.id, version))
        touched: dict[str, list[int]] = {}
        for number, (_, ids) in tried.items():
            for point_id in ids:
                touched.setdefault(point_id, []).append(number)
        for point_id, numbers in touched.items():
            answered = [number for number in numbers if number in sequences]
            last = max(answered, key=lambda number: sequences[number], default=None)
            # Later ones without an answer are those of the process that the last answered one was of, or of later ones.
            open_ones = [n for n in numbers if n not in sequences and (last is None or n > last)]
            allowed: set[int | None] = {n if tried[n][0] == "upsert" else None for n in open_ones}
            allowed.add(None if last is None or tried[last][0] == "delete" else last)
            assert found.get(point_id) in allowed, (point_id, found.get(point_id), allowed)
        if points:
            query = np.random.default_rng(1).normal(size=DIMENSION).astype("<f4")
            exact = sorted(
                (float(((np.frombuffer(p.vector, "<f4").astype(float) - query) ** 2).sum()), p.id) for p in points
            )
            for exactly in (True, False):
                search = op.Search(collection="c", vectors=query.tobytes(), limit=10, exact=exactly)
                hits = driver.ask(search).results[0].hits
                assert [hit.id for hit in hits] == [point_id for _, point_id in exact[:10]]
        assert driver.ask(op.CountPoints(collection="c")).count == len(points)
        return len(points)
    finally:
        backend.close()


def run_cycles(folder: Path, count: int) -> None:
    log = folder / "log"
    for seed in range(1, count + 1):
        kill_cycle(folder / "store", log, seed)
        num_points = check_log(folder / "store", log)
    assert num_points > 50
    assert log.read_text().count("done") > 10 * count


def test_kills_lose_and_revive_nothing(tmp_path: Path) -> None:
    run_cycles(tmp_path, 6)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_hundred_kills(tmp_path: Path) -> None:
    run_cycles(tmp_path, 200)


def definition(name: str = "c", **changes: Any) -> op.Collection:
    values: dict[str, Any] = {"name": name, "dimension": DIMENSION, "distance": "l2", "text_fields": ["text"]}
    return op.Collection(**(values | changes))


def fill(driver: Driver, name: str = "c", count: int = 400) -> None:
    driver.ask(op.CreateCollection(collection=definition(name)))
    for start in range(0, count, 100):
        ids = [f"p{index}" for index in range(start, start + 100)]
        vectors = np.stack([vector_of(point_id, 1) for point_id in ids])
        payloads = [json.dumps({"n": index, "text": f"word{index % 7}"}) for index in range(start, start + 100)]
        driver.ask(op.UpsertPoints(collection=name, ids=ids, vectors=vectors.tobytes(), payloads=payloads))


def wait_until_built(driver: Driver, name: str = "c") -> op.CollectionStats:
    end = time.monotonic() + 30
    while True:
        stats = driver.ask(op.GetCollection(collection=name)).stats
        if not stats.is_building and stats.num_segments:
            return stats
        assert time.monotonic() < end
        time.sleep(0.02)


def nearest(driver: Driver, index: int, name: str = "c") -> str:
    search = op.Search(collection=name, vectors=vector_of(f"p{index}", 1).tobytes(), limit=1)
    return driver.ask(search).results[0].hits[0].id


def test_a_restart_reads_segments_and_only_what_they_lack(tmp_path: Path) -> None:
    backend = FaissBackend(tmp_path, CONFIG)
    driver = Driver(backend)
    fill(driver)
    wait_until_built(driver)
    driver.ask(op.UpsertPoints(collection="c", ids=["p5", "new"], vectors=vector_of("p900", 1).tobytes() * 2))
    driver.ask(op.DeletePoints(collection="c", ids=["p6"]))
    backend.close()
    backend = FaissBackend(tmp_path, CONFIG)
    try:
        driver = Driver(backend)
        info = driver.ask(op.GetCollection(collection="c"))
        assert (info.stats.num_points, info.stats.sequence) == (400, 6)
        assert info.stats.num_segments
        assert info.stats.num_unindexed <= 200
        assert nearest(driver, 7) == "p7"
        assert nearest(driver, 900) in ("p5", "new")
        assert driver.ask(op.GetPoints(collection="c", ids=["p6"])).points == []
    finally:
        backend.close()


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
@pytest.mark.parametrize("file", ["index.faiss", "rows.npy", "ids.bin", "ids.npy", "manifest.json"])
def test_a_damaged_segment_is_made_again(tmp_path: Path, file: str, damage: str) -> None:
    backend = FaissBackend(tmp_path, CONFIG)
    driver = Driver(backend)
    fill(driver)
    wait_until_built(driver)
    backend.close()
    paths = sorted(tmp_path.glob(f"collections/*/segments/*/{file}"))
    assert paths
    for path in paths:
        data = bytearray(path.read_bytes())
        if damage == "flip":
            data[len(data) // 2] ^= 0x41
            path.write_bytes(data)
        elif damage == "cut":
            path.write_bytes(data[: len(data) // 2])
        else:
            path.unlink()
    backend = FaissBackend(tmp_path, CONFIG)
    try:
        driver = Driver(backend)
        assert driver.ask(op.CountPoints(collection="c")).count == 400
        assert [nearest(driver, index) for index in range(0, 400, 37)] == [f"p{index}" for index in range(0, 400, 37)]
        assert wait_until_built(driver).num_segments  # built anew beside searches
        assert [nearest(driver, index) for index in range(0, 400, 41)] == [f"p{index}" for index in range(0, 400, 41)]
    finally:
        backend.close()


def test_a_damaged_database_is_refused_and_the_others_serve(tmp_path: Path) -> None:
    backend = FaissBackend(tmp_path, CONFIG)
    driver = Driver(backend)
    fill(driver, "good", 100)
    fill(driver, "bad", 100)
    backend.close()
    (path,) = tmp_path.glob("collections/bad-*/data.sqlite")
    for extra in path.parent.glob("data.sqlite-*"):
        extra.unlink()
    path.write_bytes(b"no database at all" * 1000)
    backend = FaissBackend(tmp_path, CONFIG)
    try:
        driver = Driver(backend)
        for operation in (
            op.CountPoints(collection="bad"),
            op.UpsertPoints(collection="bad", ids=["a"], vectors=vector_of("p1", 1).tobytes()),
            op.Search(collection="bad", vectors=vector_of("p1", 1).tobytes()),
        ):
            with pytest.raises(FailedPrecondition) as caught:
                driver.ask(operation)
            assert caught.value.reason == "STORE_CORRUPT"
            assert "bad" in caught.value.message
        assert driver.ask(op.CountPoints(collection="good")).count == 100
        driver.ask(op.DeleteCollection(collection="bad"))
        assert not list(tmp_path.glob("collections/bad-*"))
    finally:
        backend.close()


def test_damage_that_shows_while_reading_is_told(tmp_path: Path) -> None:
    backend = FaissBackend(tmp_path, CONFIG)
    driver = Driver(backend)
    fill(driver)
    wait_until_built(driver)
    backend.close()
    (path,) = tmp_path.glob("collections/*/data.sqlite")
    data = bytearray(path.read_bytes())
    for start in range(8192 * 4, len(data), 8192):  # every page but the first ones
        data[start : start + 64] = b"\xff" * 64
    path.write_bytes(data)

    def read_all() -> None:
        backend = FaissBackend(tmp_path, CONFIG)
        try:
            driver = Driver(backend)
            for point in range(400):
                driver.ask(op.GetPoints(collection="c", ids=[f"p{point}"], with_vector=True))
        finally:
            backend.close()

    with pytest.raises(FailedPrecondition) as caught:
        read_all()
    assert caught.value.reason == "STORE_CORRUPT"


def test_a_damaged_catalog_is_refused(tmp_path: Path) -> None:
    FaissBackend(tmp_path, CONFIG).close()
    (tmp_path / "catalog.sqlite").write_bytes(b"x" * 5000)
    for _ in range(2):  # and leaves the folder free
        with pytest.raises(FailedPrecondition) as caught:
            FaissBackend(tmp_path, CONFIG)
        assert caught.value.reason == "STORE_CORRUPT"


def test_a_folder_is_one_process_s(tmp_path: Path) -> None:
    backend = FaissBackend(tmp_path, CONFIG)
    code = (
        "import sys; from pathlib import Path; from vorta_server.vectors.faiss_backend import FaissBackend;"
        "from vorta.errors import FailedPrecondition\n"
        "try: FaissBackend(Path(sys.argv[1]))\n"
        "except FailedPrecondition as error: print(error.reason, sys.argv[1] in error.message)"
    )
    try:
        found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
        assert found.stdout.split() == ["STORE_LOCKED", "True"]
    finally:
        backend.close()
    FaissBackend(tmp_path, CONFIG).close()


def test_leftovers_are_cleaned(tmp_path: Path) -> None:
    backend = FaissBackend(tmp_path, CONFIG)
    driver = Driver(backend)
    fill(driver, count=200)
    wait_until_built(driver)
    backend.close()
    (segments,) = tmp_path.glob("collections/c-*/segments")
    shutil.copytree(next(segments.iterdir()), segments / "tmp-half")
    (tmp_path / "collections" / "gone-1234").mkdir()
    half = tmp_path / "snapshots" / "c" / "tmp-half"
    half.mkdir(parents=True)
    backend = FaissBackend(tmp_path, CONFIG)
    try:
        assert not (segments / "tmp-half").exists()
        assert not (tmp_path / "collections" / "gone-1234").exists()
        assert not half.exists()
        assert Driver(backend).ask(op.CountPoints(collection="c")).count == 200
    finally:
        backend.close()


def test_commits_are_synced_to_the_disk(tmp_path: Path) -> None:
    backend = FaissBackend(tmp_path, CONFIG)
    fill(Driver(backend), count=100)
    (path,) = tmp_path.glob("collections/*/data.sqlite")
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    (store,) = backend._writer._stores.values()
    backend.close()
    assert store is not None
