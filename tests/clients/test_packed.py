"""Vectors to bytes and back, from every kind of container."""

from __future__ import annotations

import struct
from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vorta._packed import pack_vector, unpack_vector
from vorta.errors import InvalidArgument

NUMBERS = [1.0, -2.5, 0.0]
PACKED = struct.pack("<3f", *NUMBERS)


@pytest.mark.parametrize(
    "vector",
    [
        NUMBERS,
        tuple(NUMBERS),
        iter(NUMBERS),
        array("f", NUMBERS),
        array("d", NUMBERS),
        PACKED,
        bytearray(PACKED),
        memoryview(PACKED),
        memoryview(array("f", NUMBERS)),
        np.array(NUMBERS, dtype=np.float32),
        np.array(NUMBERS, dtype=np.float64),
        np.array(NUMBERS, dtype=np.float16),
        np.array(NUMBERS, dtype=">f4"),
        np.array([1.0, 9.0, -2.5, 9.0, 0.0], dtype=np.float32)[::2],
    ],
    ids=lambda vector: type(vector).__name__ + str(getattr(vector, "dtype", getattr(vector, "typecode", ""))),
)
def test_every_container_gives_the_same_bytes(vector: object) -> None:
    assert pack_vector(vector, "vector") == PACKED  # type: ignore[arg-type]


def test_whole_numbers() -> None:
    assert pack_vector([1, 2], "v") == pack_vector(np.array([1, 2], dtype=np.uint8), "v") == struct.pack("<2f", 1, 2)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1))
def test_round_trip(numbers: list[float]) -> None:
    assert unpack_vector(pack_vector(numbers, "vector")) == numbers


@pytest.mark.parametrize("vector", ["text", [1.0, "x"], 3, np.ones((2, 2), dtype=np.float32), [[1.0]]])
def test_what_is_no_vector_is_named(vector: object) -> None:
    with pytest.raises(TypeError, match="here must"):
        pack_vector(vector, "here")  # type: ignore[arg-type]


@pytest.mark.parametrize("vector", [b"123", [], b"", np.array([], dtype=np.float32)])
def test_bytes_that_are_no_numbers(vector: object) -> None:
    with pytest.raises(InvalidArgument) as caught:
        pack_vector(vector, "here")  # type: ignore[arg-type]
    assert caught.value.field == "here"
