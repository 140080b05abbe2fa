"""Every kernel compiles ahead of time, as it would be launched, for three architectures; what the machine code says.

Kernels of this process are interpreted ones, so another process compiles.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vorta_kernels import grid
from vorta_kernels.triton_ops.ahead import Compiled

pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("triton_compile")]

CAPABILITIES = (80, 89, 90)
SHARED_LIMIT = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10}
"""Shared memory that a program can have, as of the CUDA programming guide."""

QUICK = ("fp8", "rms_norm", "silu_mul", "verify")
SLOW = [pytest.param(stem, marks=pytest.mark.slow) for stem in grid.AHEAD if stem not in QUICK]


@functools.cache
def compiled(stem: str, cache: Path) -> list[Compiled]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "vorta_kernels.triton_ops.ahead", *map(str, CAPABILITIES), stem]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment | {"TRITON_CACHE_DIR": str(cache)}
    )
    assert ended.returncode == 0, ended.stderr
    return [Compiled(**json.loads(line)) for line in ended.stdout.splitlines()]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("triton")


@pytest.mark.parametrize("stem", [*QUICK, *SLOW])
def test_kernels_compile_without_spills_and_fit_the_device(stem: str, cache: Path) -> None:
    kernels = compiled(stem, cache)
    assert {kernel.capability for kernel in kernels} == set(CAPABILITIES)
    for kernel in kernels:
        assert kernel.local_bytes == 0, kernel
        assert kernel.shared_bytes <= SHARED_LIMIT[kernel.capability], kernel
        assert kernel.registers * kernel.num_warps * 32 <= 65536, kernel


@pytest.mark.parametrize("stem", ["rms_norm", "silu_mul", pytest.param("rope_kv", marks=pytest.mark.slow)])
def test_rows_are_read_and_written_16_bytes_at_a_time(stem: str, cache: Path) -> None:
    for kernel in compiled(stem, cache):
        if "rotary_dim=72" not in kernel.case:  # whose halves are 72 bytes
            assert "LDG.128" in kernel.instructions, kernel
            assert "STG.128" in kernel.instructions, kernel
            assert not kernel.instructions.keys() & {"LDG.U16", "LDG.U8", "LDG.64"}, kernel


@pytest.mark.slow
def test_decode_reads_the_cache_with_wide_asynchronous_loads(cache: Path) -> None:
    kernels = [kernel for kernel in compiled("paged_attention", cache) if kernel.kernel == "decode_kernel"]
    assert kernels
    for kernel in kernels:
        assert "LDGSTS.128" in kernel.instructions, kernel
        # Nothing of the cache comes in single elements; a float8 tile of V comes in 8 bytes a thread.
        assert not kernel.instructions.keys() & {"LDG.U16", "LDG.U8", "LDGSTS.U16", "LDGSTS.U8"}, kernel
        assert "float8" in kernel.case or "LDGSTS.64" not in kernel.instructions, kernel


@pytest.mark.slow
def test_products_run_on_the_tensor_cores(cache: Path) -> None:
    for kernel in compiled("paged_attention", cache):
        if kernel.kernel != "combine_kernel":
            is_wide = kernel.kernel == "prefill_kernel" and kernel.capability == 90
            assert ("HGMMA" if is_wide else "HMMA") in kernel.instructions, kernel
    for kernel in compiled("linear", cache):
        if kernel.kernel == "fp8_linear_kernel" and "num_rows=16," not in kernel.case:
            expected = {80: "HMMA", 89: "QMMA", 90: "QGMMA"}[kernel.capability]
            assert expected in kernel.instructions, kernel
