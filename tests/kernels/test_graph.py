"""The graph search against a walk in Python, as built for this machine and for older ones; and its memory."""

from __future__ import annotations

import bisect
import math
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vorta_kernels import cpu, graph
from vorta_kernels.graph import CodedGraph

pytestmark = pytest.mark.skipif(cpu.compiler() is None, reason="no C++ compiler is installed to build the kernels")

SOURCE = Path(graph.__file__).parent / "csrc" / "cpu" / "graph_search.cpp"
TARGETS = ["native", *(["haswell", "x86-64"] if platform.machine() == "x86_64" else [])]


@pytest.fixture(scope="module", params=TARGETS)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, or this source alone built for a processor without VNNI, or without AVX2."""
    if request.param == "native":
        return cpu.library()
    if request.param == "haswell" and " avx2 " not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        pytest.skip("no AVX2")
    path = tmp_path_factory.mktemp("graph") / f"{request.param}.so"
    flags = [flag for flag in cpu._FLAGS if not flag.startswith("-march")]
    subprocess.run([cpu.compiler(), *flags, f"-march={request.param}", "-o", str(path), str(SOURCE)], check=True)
    return path


@dataclass
class Case:
    """A graph of random links: not navigable, so that what a walk reaches depends on every step of it."""

    vectors: npt.NDArray[np.float32]
    neighbours: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.uint64]
    levels: npt.NDArray[np.int32]
    entry: int
    top_level: int

    def coded(self, library: Path, *, is_distance: bool) -> CodedGraph:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu, "library", lambda: library)
            return CodedGraph(
                self.vectors,
                neighbours=self.neighbours,
                offsets=self.offsets,
                levels=self.levels,
                entry=self.entry,
                top_level=self.top_level,
                is_distance=is_distance,
            )

    def list(self, vertex: int, level: int) -> list[int]:
        begin = int(self.offsets[vertex]) + int(self.levels[level])
        found = self.neighbours[begin : begin + int(self.levels[level + 1] - self.levels[level])].tolist()
        return found[: found.index(-1)] if -1 in found else found


def make_case(rng: np.random.Generator, rows: int, dimension: int, top_level: int) -> Case:
    links = [6, *([3] * top_level)]
    levels = np.cumsum([0, *links]).astype(np.int32)
    heights = np.minimum(rng.geometric(0.6, rows) - 1, top_level)
    entry = int(rng.integers(rows))
    heights[entry] = top_level
    sizes = levels[heights + 1]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.uint64)
    neighbours = np.full(int(offsets[-1]), -1, np.int32)
    for vertex in range(rows):
        for level in range(heights[vertex] + 1):
            others = np.flatnonzero(heights >= level)
            chosen = rng.choice(others, min(len(others), int(rng.integers(links[level] + 1))), replace=False)
            begin = int(offsets[vertex]) + int(levels[level])
            neighbours[begin : begin + len(chosen)] = chosen
    # Whole numbers, so that there are equal distances.
    vectors = rng.integers(-3, 4, (rows, dimension)).astype(np.float32) * rng.choice([1, 0.25], (rows, 1))
    return Case(vectors.astype(np.float32), neighbours, offsets, levels, entry, top_level)


def walk(
    case: Case,
    coded: CodedGraph,
    query: npt.NDArray[np.float32],
    width: int,
    depth: int,
    takes: npt.NDArray[np.bool_] | None,
) -> set[int]:
    """The vertices that are compared exactly: the rules of graph_search.cpp in Python. Of vertices at the same distance
    the first that were met stay, but with bits, even where these leave nothing out, those of the least numbers."""
    largest = np.abs(query).max(initial=0)
    scale = np.float32(largest) / np.float32(127)
    inverse = np.float32(127) / np.float32(largest) if largest > 1e-30 else np.float32(0)
    codes = np.zeros(coded.codes.shape[1], np.int64)
    codes[: len(query)] = np.rint(query * inverse)

    def distance(vertex: int) -> float:
        dot = np.float32((coded.codes[vertex].astype(np.int64) - 128) @ codes)
        scaled = dot * coded.scales[vertex]
        if coded.norms is None:
            return float(-scaled)
        return float(np.float32(float(np.float32(-2) * scale) * float(scaled) + float(coded.norms[vertex])))

    best = distance(case.entry), case.entry
    for level in range(case.top_level, 0, -1):
        start = -1
        while start != best[1]:
            start = best[1]
            best = min([best, *((distance(other), other) for other in case.list(start, level))])
    seen = {best[1]}
    pool = [best]
    done: set[int] = set()
    passed = [best]
    while (following := next((near for near in pool if near[1] not in done), None)) is not None:
        done.add(following[1])
        for other in case.list(following[1], 0):
            if other in seen:
                continue
            seen.add(other)
            near = distance(other), other
            passed.append(near)
            if len(pool) < width or near[0] < pool[-1][0]:
                pool.insert(bisect.bisect_right(pool, near[0], key=lambda entry: entry[0]), near)
                del pool[width:]
    if takes is None:
        return {vertex for _, vertex in pool[:depth]}
    return {vertex for _, vertex in sorted(near for near in passed if takes[near[1]])[:depth]}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    rows=st.integers(1, 120),
    dimension=st.sampled_from([1, 3, 16, 63, 64, 65, 100, 200]),
    top_level=st.integers(0, 3),
    width=st.sampled_from([1, 2, 5, 20, 150]),
    is_distance=st.booleans(),
    share=st.sampled_from([0.0, 0.2, 0.9, 1.0]),
)
def test_it_walks_as_the_rules_say(
    library: Path, seed: int, rows: int, dimension: int, top_level: int, width: int, is_distance: bool, share: float
) -> None:
    rng = np.random.default_rng(seed)
    case = make_case(rng, rows, dimension, top_level)
    coded = case.coded(library, is_distance=is_distance)
    queries = rng.integers(-5, 6, (9, dimension)).astype(np.float32)
    takes = None if share == 1.0 else rng.random(rows) < share
    bits = None if takes is None else np.packbits(takes, bitorder="little")
    products = case.vectors.astype(np.float64) @ queries.T.astype(np.float64)
    if is_distance:
        products = ((case.vectors[:, None, :].astype(np.float64) - queries[None]) ** 2).sum(axis=2)
    for k, depth in ((width, width), (max(1, width // 2), width)):
        scores, positions = coded.search(queries, k, width=width, depth=depth, bits=bits, num_threads=2)
        for number, query in enumerate(queries):
            chosen = walk(case, coded, query, width, depth, takes)
            found = positions[number][positions[number] >= 0]
            assert len(found) == len(set(found.tolist())) == min(k, len(chosen))
            assert set(found.tolist()) <= chosen
            assert (positions[number][len(found) :] == -1).all()
            assert np.isinf(scores[number][len(found) :]).all()
            wanted = sorted(products[sorted(chosen), number], reverse=not is_distance)[:k]
            np.testing.assert_allclose(scores[number][: len(found)], wanted, rtol=1e-5, atol=1e-4)
            np.testing.assert_allclose(products[found, number], wanted, rtol=1e-5, atol=1e-4)


def test_a_query_gets_the_same_whatever_is_beside_it(library: Path) -> None:
    rng = np.random.default_rng(5)
    case = make_case(rng, 500, 96, 2)
    coded = case.coded(library, is_distance=False)
    queries = rng.standard_normal((40, 96)).astype(np.float32)
    together = coded.search(queries, 5, width=16, depth=16, num_threads=4)
    for number in range(len(queries)):
        alone = coded.search(queries[number : number + 1], 5, width=16, depth=16)
        np.testing.assert_array_equal(alone[0][0], together[0][number])
        np.testing.assert_array_equal(alone[1][0], together[1][number])


def test_codes(library: Path) -> None:
    rng = np.random.default_rng(6)
    case = make_case(rng, 50, 70, 0)
    case.vectors[:] = rng.standard_normal((50, 70)) * np.logspace(-20, 15, 50)[:, None]
    case.vectors[3] = 0
    case.vectors[4] *= np.float32(1e-25)
    coded = case.coded(library, is_distance=True)
    assert coded.norms is not None
    restored = (coded.codes[:, :70].astype(np.float64) - 128) * coded.scales[:, None]
    largest = np.abs(case.vectors.astype(np.float64)).max(axis=1, keepdims=True)
    assert (np.abs(restored - case.vectors) <= largest / 127 * 0.501 + 1e-30).all()
    assert (coded.codes[:, 70:] == 128).all()
    assert coded.codes.ctypes.data % 64 == 0
    exact = (case.vectors.astype(np.float64) ** 2).sum(axis=1)
    np.testing.assert_allclose(coded.norms, exact, rtol=1e-5, atol=math.ulp(0) + 1e-37)
    assert coded.num_bytes == 50 * (128 + 4 + 4)
    with pytest.raises(ValueError, match="shape"):
        coded.search(np.zeros((1, 71), np.float32), 1, width=1, depth=1)


@pytest.mark.slow
def test_it_stays_within_its_memory(tmp_path: Path) -> None:
    """The test above under the compiler's sanitizers, in a process that loads them first."""
    runtime = subprocess.run(
        [cpu.compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not os.path.isabs(runtime):
        pytest.skip("the compiler has no sanitizers")
    path = tmp_path / "checked.so"
    flags = [flag for flag in cpu._FLAGS if flag != "-O3"]
    checks = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run([cpu.compiler(), *flags, *checks, "-o", str(path), str(SOURCE)], check=True)
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import test_graph as t;"
        "library = Path(sys.argv[2]);"
        "t.test_it_walks_as_the_rules_say(library);"
        "t.test_a_query_gets_the_same_whatever_is_beside_it(library); t.test_codes(library)"
    )
    environment = os.environ | {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
