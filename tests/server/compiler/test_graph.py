"""The weight file and the graph builder keep their contracts."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vorta_server.compiler.graph import GraphBuilder, WeightFile
from vorta_server.compiler.weight import Matrix, stack_rows, take_columns, take_rows


@settings(deadline=None)
@given(st.lists(st.integers(0, 6000), max_size=8))
def test_weight_file(sizes: list[int]) -> None:
    """Each tensor's bytes lie where its entry says, aligned, and the digest is the file's."""
    stream = io.BytesIO()
    file = WeightFile(stream, "weights.bin")
    values = [np.full(size, index, np.uint8) for index, size in enumerate(sizes)]
    for index, value in enumerate(values):
        file.add(f"w{index}", np.uint8, value.shape, [value[:7], value[7:]])
    data = stream.getvalue()
    assert file.num_bytes == len(data)
    assert file.hexdigest() == hashlib.sha256(data).hexdigest()
    for index, value in enumerate(values):
        entry = file.entry(f"w{index}")
        assert data[entry.offset_bytes : entry.offset_bytes + entry.num_bytes] == value.tobytes()
        assert entry.offset_bytes % (4096 if entry.num_bytes >= 4096 else 64) == 0


def test_chunks_must_fit() -> None:
    file = WeightFile(io.BytesIO(), "weights.bin")
    with pytest.raises(ValueError, match="8 bytes, expected 12"):
        file.add("short", np.float32, (3,), [np.zeros(2, np.float32)])
    with pytest.raises(ValueError, match="chunk of float64"):
        file.add("wide", np.float32, (3,), [np.zeros(3, np.float64)])
    file.add("twice", np.float32, (3,), [np.zeros(3, np.float32)])
    with pytest.raises(ValueError, match="written twice"):
        file.add("twice", np.float32, (3,), [np.zeros(3, np.float32)])


def test_graphs_share_stored_weights() -> None:
    file = WeightFile(io.BytesIO(), "weights.bin")
    value = np.arange(4096, dtype=np.float32)

    def explode() -> Any:
        raise AssertionError("read again")
        yield

    first, second = GraphBuilder(file), GraphBuilder(file)
    first.weight(first.store("w", np.float32, (4096,), [value]))
    size = file.num_bytes
    second.weight_view("w2", second.store("w", np.float32, (4096,), explode()), (64, 64))
    assert file.num_bytes == size
    tensors = [graph.model("g").graph.initializer[0] for graph in (first, second)]
    assert [tensor.name for tensor in tensors] == ["w", "w2"]
    assert tensors[0].external_data == tensors[1].external_data
    with pytest.raises(ValueError, match="does not fit"):
        second.weight_view("w3", "w", (64, 63))


def matrix(name: str, values: npt.NDArray[np.float32]) -> Matrix:
    num_rows, num_columns = values.shape
    return Matrix(name=name, num_rows=num_rows, num_columns=num_columns, read=lambda a, b: values[a:b].copy())


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_lazy_matrices(heights: list[int], data: st.DataObject) -> None:
    """Stacking and taking, read in any slices, is what numpy does on whole arrays."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((height, 3)).astype(np.float32) for height in heights]
    whole = np.concatenate(arrays)
    stacked = stack_rows("s", [matrix(str(i), array) for i, array in enumerate(arrays)])
    rows = np.array(data.draw(st.lists(st.integers(-1, len(whole) - 1), min_size=1, max_size=9)))
    columns = np.array(data.draw(st.lists(st.integers(-1, 2), min_size=1, max_size=6)))
    taken = take_columns(take_rows(stacked, rows), columns)
    picked = np.where(rows[:, None] < 0, np.float32(0), whole[rows])
    expected = np.where(columns < 0, np.float32(0), picked[:, columns])
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.integers(start, len(rows)))
    assert (taken.num_rows, taken.num_columns) == expected.shape
    assert np.array_equal(taken.read(start, stop), expected[start:stop])
    low = data.draw(st.integers(0, len(whole) - 1))
    high = data.draw(st.integers(low + 1, len(whole)))
    assert np.array_equal(stacked.read(low, high), whole[low:high])
