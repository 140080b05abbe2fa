"""Vectors as the wire has them: float32, little-endian. Takes numpy's arrays without loading numpy."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from typing import Any

from vorta.errors import InvalidArgument

Vector = Iterable[float] | bytes | bytearray | memoryview
"""Numbers, in any container that has them in a row (a list, an array of numpy or of `array`), or bytes that are
float32, little-endian, already."""

_IS_LITTLE_ENDIAN = sys.byteorder == "little"


def pack_vector(vector: Vector, place: str) -> bytes:
    """A vector's bytes.

    Raises TypeError for what is no vector, InvalidArgument for bytes that are no whole numbers or a vector without
    numbers; both name `place`.
    """
    if isinstance(vector, (bytes, bytearray)) or (isinstance(vector, memoryview) and vector.format in ("B", "c")):
        packed = bytes(vector)
        if len(packed) % 4:
            raise InvalidArgument(f"{place}: {len(packed)} bytes are no float32 numbers", field=place)
    else:
        packed = _pack_buffer(vector, place) or _pack_numbers(vector, place)
    if not packed:
        raise InvalidArgument(f"{place} has no numbers", field=place)
    return packed


def unpack_vector(packed: bytes) -> list[float]:
    """The numbers of packed bytes."""
    numbers = array("f")
    numbers.frombytes(packed)
    if not _IS_LITTLE_ENDIAN:
        numbers.byteswap()
    return numbers.tolist()


def _pack_buffer(vector: Any, place: str) -> bytes | None:
    """The bytes of an object whose buffer is what the wire wants; None for others."""
    try:
        view = memoryview(vector)
    except (TypeError, ValueError):  # no buffer, or one of a kind that memoryview does not know (float16)
        return None
    if view.ndim != 1:
        raise TypeError(f"{place} must have one dimension, not {view.ndim}")
    return view.tobytes() if view.format == "f" and _IS_LITTLE_ENDIAN else None


def _pack_numbers(vector: Any, place: str) -> bytes:
    if isinstance(vector, str):
        raise TypeError(f"{place} must be numbers, not a string; a text goes by the name `text`")
    try:
        # Arrays of numpy and tensors of torch give Python's numbers by tolist.
        numbers = array("f", vector.tolist() if hasattr(vector, "tolist") else vector)
    except TypeError as exc:
        raise TypeError(f"{place} must be numbers, not {vector!r:.100}: {exc}") from None
    if not _IS_LITTLE_ENDIAN:
        numbers.byteswap()
    return numbers.tobytes()
