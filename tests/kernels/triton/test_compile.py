"""Every kernel compiles ahead of time, as it would be launched, for three architectures; what the machine code says.

Kernels of this process are interpreted ones, so another process compiles.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vorta_kernels import grid
from vorta_kernels.triton_ops.ahead import Compiled

pytestmark = pytest.mark.timeout(900)

CAPABILITIES = (80, 89, 90)
SHARED_LIMIT = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10}
"""Shared memory that a program can have, as of the CUDA programming guide."""

STEMS = [pytest.param(stem, marks=[] if stem in ("fp8", "verify") else pytest.mark.slow) for stem in grid.AHEAD]


def compiled(stem: str, cache: Path) -> list[Compiled]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "vorta_kernels.triton_ops.ahead", *map(str, CAPABILITIES), stem]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment | {"TRITON_CACHE_DIR": str(cache)}
    )
    assert ended.returncode == 0, ended.stderr
    return [Compiled(**json.loads(line)) for line in ended.stdout.splitlines()]


@pytest.mark.parametrize("stem", STEMS)
def test_kernels_compile_without_spills_and_fit_the_device(stem: str, tmp_path: Path) -> None:
    kernels = compiled(stem, tmp_path)
    assert {kernel.capability for kernel in kernels} == set(CAPABILITIES)
    for kernel in kernels:
        assert kernel.local_bytes == 0, kernel
        assert kernel.shared_bytes <= SHARED_LIMIT[kernel.capability], kernel
        assert kernel.registers * kernel.num_warps * 32 <= 65536, kernel
        MEMORY_AND_PRODUCTS.get(stem, lambda _: None)(kernel)


def moves_rows_16_bytes_at_a_time(kernel: Compiled) -> None:
    if "rotary_dim=72" not in kernel.case:  # whose halves are 72 bytes
        assert {"LDG.128", "STG.128"} <= kernel.instructions.keys(), kernel
        assert not kernel.instructions.keys() & {"LDG.U16", "LDG.U8", "LDG.64"}, kernel


def attends(kernel: Compiled) -> None:
    """The cache is read in wide asynchronous loads, never in single elements (a float8 tile of V comes in 8 bytes a
    thread, or 4 in prefill); products run on the tensor cores."""
    if kernel.kernel == "combine_kernel":
        return
    assert "LDGSTS.128" in kernel.instructions, kernel
    assert not kernel.instructions.keys() & {"LDG.U16", "LDG.U8", "LDGSTS.U16", "LDGSTS.U8"}, kernel
    assert "float8" in kernel.case or "LDGSTS.64" not in kernel.instructions, kernel
    is_wide = kernel.kernel == "prefill_kernel" and kernel.capability == 90
    assert ("HGMMA" if is_wide else "HMMA") in kernel.instructions, kernel


def multiplies_on_tensor_cores(kernel: Compiled) -> None:
    assert "LDGSTS.128" in kernel.instructions, kernel
    expected = "HGMMA" if kernel.capability == 90 else "HMMA"
    if kernel.kernel == "fp8_linear_kernel":
        expected = {80: "HMMA", 89: "QMMA", 90: "QGMMA"}[kernel.capability]
    if kernel.capability == 90 and "num_rows=16," in kernel.case:
        expected = "HMMA"
    assert expected in kernel.instructions, kernel


MEMORY_AND_PRODUCTS: dict[str, Callable[[Compiled], None]] = {
    "fp8": moves_rows_16_bytes_at_a_time,
    "rms_norm": moves_rows_16_bytes_at_a_time,
    "silu_mul": moves_rows_16_bytes_at_a_time,
    "rope_kv": moves_rows_16_bytes_at_a_time,
    "paged_attention": attends,
    "linear": multiplies_on_tensor_cores,
}
