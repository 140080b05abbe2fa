"""Memory for K and V where ONNX Runtime computes: slots of fixed capacity, all of it taken at the start.

One block [slots, heads, capacity, head_dim] for each layer's K and V; any run of consecutive slots of it is a batch.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnxruntime as ort

__all__ = ["DevicePool"]

# By the name in manifests: ONNX's number of the element type, and a type of numpy of that size.
_TYPES: dict[str, tuple[int, type[np.generic]]] = {
    "float32": (1, np.float32),
    "float16": (10, np.float16),
    "bfloat16": (16, np.float16),
}
_ALIGNMENT = 64


class DevicePool:
    """K and V of all layers.

    Args:
        capacity: Positions per slot; rounded up to a multiple of 64.
        dtype: As manifests name it.
        device: "cpu" or "cuda".
        copier: The artifact's copy_slot.onnx, which copies one slot of one block on the device.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_slots: int,
        num_heads: int,
        capacity: int,
        head_dim: int,
        dtype: str,
        device: str,
        copier: ort.InferenceSession,
    ) -> None:
        self.capacity = aligned(capacity)
        self.element, storage = _TYPES[dtype]
        self._device = device
        self._copier = copier
        self._slot_shape = (num_heads, self.capacity, head_dim)
        element_bytes = np.dtype(storage).itemsize
        self._slot_bytes = int(np.prod(self._slot_shape)) * element_bytes
        self.bytes_per_token = 2 * num_layers * num_heads * head_dim * element_bytes
        # Zeros, not whatever was there: what is masked is multiplied by zero, and a NaN would survive that.
        zeros = np.zeros((num_slots, *self._slot_shape), storage)
        self._blocks = [ort.OrtValue.ortvalue_from_numpy(zeros.copy(), device, 0) for _ in range(2 * num_layers)]

    def bind(self, io: ort.IOBinding, slot: int, num_slots: int) -> None:
        """Binds past and present of all layers to slots slot to slot + num_slots - 1, in place."""
        shape = (num_slots, *self._slot_shape)
        for name, address in self._addresses(slot):
            io.bind_input(f"past_{name}", self._device, 0, self.element, shape, address)
            io.bind_output(f"present_{name}", self._device, 0, self.element, shape, address)

    def copy(self, source: int, target: int) -> None:
        """Copies one slot to another, on the device."""
        shape = (1, *self._slot_shape)
        for (_, here), (_, there) in zip(self._addresses(source), self._addresses(target), strict=True):
            io = self._copier.io_binding()
            io.bind_input("source", self._device, 0, self.element, shape, here)
            io.bind_output("target", self._device, 0, self.element, shape, there)
            self._copier.run_with_iobinding(io)

    def close(self) -> None:
        """Frees the memory once nothing refers to it. Idempotent."""
        self._blocks.clear()

    def _addresses(self, slot: int) -> Iterator[tuple[str, int]]:
        """Names (key_0, value_0, key_1, …) and addresses of every layer's K and V from this slot on."""
        for index, block in enumerate(self._blocks):
            yield f"{('key', 'value')[index % 2]}_{index // 2}", block.data_ptr() + slot * self._slot_bytes


def aligned(capacity: int) -> int:
    """The capacity, rounded up as the pool does it."""
    return -(-capacity // _ALIGNMENT) * _ALIGNMENT
