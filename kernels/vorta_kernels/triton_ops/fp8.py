"""float8_e4m3fn inside kernels, as bytes, and rows quantised to it on their own.

Tensors of float8 go in and out as uint8 views and are reinterpreted here, so that the same kernels run on the
interpreter, on devices whose instructions convert float8 (compute capability 8.9 on: HARDWARE, one instruction for two
elements), and on those below, where a few integer instructions do it. Both round to nearest, ties to even.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl

from vorta_kernels.kv_cache import FP8
from vorta_kernels.triton_ops.tuning import row_warps

__all__ = ["as_bytes", "capability", "from_e4m3", "has_fp8", "quantise", "quantise_rows", "to_e4m3"]


assumed_capability: tuple[int, int] | None = None
"""What `ahead` compiles for, on a host without such a device."""


def capability(device: torch.device) -> tuple[int, int]:
    """The device's compute capability; 0.0 on the interpreter."""
    if assumed_capability is not None:
        return assumed_capability
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def has_fp8(device: torch.device) -> bool:
    """Whether the device's instructions convert float8_e4m3fn."""
    return capability(device) >= (8, 9)


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """A float8 tensor as uint8, any other as it is."""
    return tensor.view(torch.uint8) if tensor.dtype == torch.float8_e4m3fn else tensor


@triton.jit
def to_e4m3(values, HARDWARE: tl.constexpr):
    """float32 within +-448 to bytes."""
    if HARDWARE:
        return values.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    bits = values.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    # From float32's 23 bits of mantissa to 3, and from its bias of 127 to 7.
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6 steps are of 2^-9: the last bit of 2^14 in float32, so adding that rounds.
    tiny = (magnitude.to(tl.float32, bitcast=True) + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    return (((bits >> 24) & 0x80) | tl.where(magnitude < 0x3C800000, tiny, normal)).to(tl.uint8)


@triton.jit
def from_e4m3(values, DTYPE: tl.constexpr, HARDWARE: tl.constexpr):
    """Bytes to float16, bfloat16 or float32; exact."""
    if HARDWARE:
        return values.to(tl.float8e4nv, bitcast=True).to(DTYPE)
    wide = values.to(tl.uint16)
    # In float16's fields: the exponent's bias is 15, not 7.
    half = (((wide & 0x80) << 8) | ((wide & 0x7F) << 7)).to(tl.float16, bitcast=True) * 256.0
    return half.to(DTYPE)


@triton.jit
def quantise(values, largest, HARDWARE: tl.constexpr):
    """float32 values to bytes and their scale, as `reference.fp8.quantise_rows` does; `largest` is the largest
    magnitude, of a shape that broadcasts. The reciprocal may round a value to the neighbouring step at a border."""
    scale = tl.maximum(largest / 448.0, 1e-12)
    scaled = tl.minimum(tl.maximum(values * (1.0 / scale), -448.0), 448.0)
    return to_e4m3(scaled, HARDWARE), scale


@triton.jit
def quantise_rows_kernel(rows, result, scales, WIDTH: tl.constexpr, BLOCK: tl.constexpr, HARDWARE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    values = tl.load(rows + row * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    quantised, scale = quantise(values, tl.max(tl.abs(values), 0), HARDWARE)
    tl.store(result + row * WIDTH + column, quantised, mask=inside)
    tl.store(scales + row, scale)


def quantise_rows(rows: torch.Tensor, *, num_warps: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """See `reference.fp8.quantise_rows`; One program a row, the row in registers, so that it is read once:
    num_columns elements in, num_columns + 4 bytes out."""
    width = rows.shape[-1]
    rows = rows.contiguous()
    result = torch.empty(rows.shape, dtype=torch.uint8, device=rows.device)
    scales = torch.empty(rows.shape[:-1], dtype=torch.float32, device=rows.device)
    block = triton.next_power_of_2(width)
    quantise_rows_kernel[(scales.numel(),)](
        rows,
        result,
        scales,
        WIDTH=width,
        BLOCK=block,
        HARDWARE=has_fp8(rows.device),
        num_warps=num_warps or row_warps(block),
    )
    return result.view(FP8), scales
