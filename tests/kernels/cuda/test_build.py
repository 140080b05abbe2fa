"""The library for GPUs: that it builds, what its kernels take, and what their machine code holds."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from vorta_kernels import cuda

ARCHS = {"sm_80", "sm_89", "sm_90a"}
needs_nvcc = pytest.mark.skipif(cuda.find_tool("nvcc") is None, reason="nvcc is not installed: no CUDA kernel is built")


@pytest.fixture(scope="module")
def uses() -> list[cuda.KernelUse]:
    return cuda.resource_use()


@needs_nvcc
@pytest.mark.timeout(900)
def test_no_kernel_passes_its_limits(uses: list[cuda.KernelUse]) -> None:
    assert cuda.broken_limits(uses) == []
    by_kernel: dict[str, set[str]] = {}
    for use in uses:
        by_kernel.setdefault(use.kernel, set()).add(use.arch)
    assert all(archs == ARCHS for archs in by_kernel.values()), by_kernel


@needs_nvcc
@pytest.mark.timeout(900)
@pytest.mark.skipif(cuda.find_tool("cuobjdump") is None, reason="cuobjdump is not installed to read machine code")
def test_machine_code_is_what_is_meant() -> None:
    code = cuda.sass(cuda.library())
    assert code
    for (kernel, arch), text in code.items():
        limit = cuda.limit_of(kernel)
        assert limit is not None, kernel
        assert not [name for name in limit.instructions if name not in text], f"{kernel} on {arch}"
        assert not [name for name in ("LDL", "STL") if f" {name}" in text], f"{kernel} on {arch} uses local memory"


@needs_nvcc
@pytest.mark.timeout(900)
def test_loads_and_says_what_fails() -> None:
    library = cuda.load("cuda")
    assert library.vorta_error_string(0) == b"no error"
    # Sizes are looked at before the device is.
    null = ctypes.c_void_p(None)
    assert library.vorta_batch_pack(null, null, null, -1, 1, 1, 1, null, null, null, null, null) == 1
    assert library.vorta_error_string(1) == b"invalid argument"


@needs_nvcc
@pytest.mark.timeout(900)
def test_prints_its_table() -> None:
    done = subprocess.run([sys.executable, "-m", "vorta_kernels.cuda"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert Path(lines[0]) == cuda.library()
    assert any(line.split()[:2] == ["batch_compact_kernel<uint4>", "sm_90a"] for line in lines)


def test_says_when_there_is_no_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "find_tool", lambda name: None)
    with pytest.raises(cuda.BuildError, match="no nvcc"):
        cuda.library.__wrapped__()
    with pytest.raises(cuda.BuildError, match="no cuobjdump"):
        cuda.sass(Path("none.so"))
    with pytest.raises(ValueError, match="not on meta"):
        cuda.load("meta")


def test_says_what_the_compiler_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cuda.build, "compiler", lambda: sys.executable)
    with pytest.raises(cuda.BuildError, match="failed: "):
        cuda.emulation.__wrapped__()
    assert list((tmp_path / "vorta" / "kernels").iterdir()) == []


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"registers": 1000}, "uses 1000 registers, more than"),
        ({"spill_bytes": 4}, "spills 4 bytes"),
        ({"stack_bytes": 8}, "8 bytes of local memory"),
        ({"kernel": "other_kernel"}, "has no limit"),
    ],
)
def test_names_what_passes_a_limit(broken: dict[str, object], message: str) -> None:
    good = {
        "kernel": "batch_compact_kernel<int>",
        "arch": "sm_80",
        "registers": 8,
        "spill_bytes": 0,
        "stack_bytes": 0,
        "shared_bytes": 0,
    }
    assert cuda.broken_limits([cuda.KernelUse(**good)]) == []
    (line,) = cuda.broken_limits([cuda.KernelUse(**{**good, **broken})])
    assert message in line


def test_names_kernels() -> None:
    names = {
        "_ZN5vorta40_GLOBAL__N__f_13_batch_pack_cu_bb37a30317batch_pack_kernelEPKi": "batch_pack_kernel",
        "_ZN5vorta1_20batch_compact_kernelI5uint4EEvPKT_": "batch_compact_kernel<uint4>",
        "_ZN5vorta1_20batch_compact_kernelIiEEvPKT_": "batch_compact_kernel<int>",
        "_ZN5vorta1_17fp8_linear_kernelI13__nv_bfloat16Li1ELi2EEEvPK": "fp8_linear_kernel<bf16,1,2>",
        "cudaMalloc": "cudaMalloc",
    }
    assert {symbol: cuda.kernel_name(symbol) for symbol in names} == names
