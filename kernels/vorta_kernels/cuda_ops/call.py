"""Checks of tensors, and calls of the library."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from vorta_kernels import cuda

__all__ = ["call", "check", "pointers"]


def check(name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: Sequence[int], device: torch.device) -> None:
    """Raises ValueError unless the tensor is contiguous and of that type, shape and device."""
    if tensor.dtype != dtype:
        raise ValueError(f"{name} must be {dtype}, not {tensor.dtype}")
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} must be of shape {tuple(shape)}, not {tuple(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device}, not on {tensor.device}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous")


def pointers(tensors: Sequence[torch.Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    """Their addresses, as an array of C."""
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def call(function: str, device: torch.device, *arguments: object) -> None:
    """Calls `function` of the device's library with arguments of ctypes, tensors (their addresses; None is null) and
    ints (of 32 bits), on the device's current stream.

    Raises:
        BuildError: As `vorta_kernels.cuda.load`.
        RuntimeError: The launch failed; the message is the driver's.
    """
    library = cuda.load(device.type)
    passed = [_argument(argument) for argument in arguments]
    if device.type == "cuda":
        with torch.cuda.device(device):
            stream = torch.cuda.current_stream(device)
            error = library.vorta_set_device(stream.device_index)
            error = error or getattr(library, function)(*passed, ctypes.c_void_p(stream.cuda_stream))
    else:
        error = getattr(library, function)(*passed, ctypes.c_void_p(None))
    if error:
        raise RuntimeError(f"{function} failed: {library.vorta_error_string(error).decode()}")


def _argument(value: object) -> object:
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, torch.Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_int(value) if isinstance(value, int) else value
