"""Every kernel under the address and undefined-behaviour sanitizers of the C++ compiler, on the emulation."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from vorta_kernels import cuda  # noqa: E402

SOURCES = Path(cuda.__file__).parent / "csrc" / "cuda"
CHECK = """
import sys
from pathlib import Path
from vorta_kernels import cuda
cuda.emulation = lambda: Path(sys.argv[1])
from vorta_kernels import cuda_check
sys.exit(cuda_check.main(["--device", "cpu"]))
"""


def runtime(name: str) -> str | None:
    """The path of a sanitizer's library of g++; None where there is none."""
    if shutil.which("g++") is None:
        return None
    path = subprocess.run(
        ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return path if os.path.isabs(path) else None


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(runtime("libasan.so") is None, reason="g++ with its address sanitizer is not installed")
def test_no_kernel_leaves_its_memory(tmp_path: Path) -> None:
    library = tmp_path / "sanitised.so"
    flags = ["-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-fvisibility=hidden", "-Wno-unknown-pragmas"]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
    sources = map(str, sorted(SOURCES.glob("*.cu")))
    subprocess.run(["g++", *flags, *sanitizers, "-x", "c++", *sources, "-o", str(library)], check=True)
    preloaded = ":".join(filter(None, map(runtime, ("libasan.so", "libubsan.so"))))
    options = "detect_leaks=0:detect_stack_use_after_return=0"
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(library)],
        env={**os.environ, "LD_PRELOAD": preloaded, "ASAN_OPTIONS": options, "PYTHONPATH": str(SOURCES.parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    assert not [name for name, kernel in json.loads(done.stdout)["kernels"].items() if kernel["failed"]]
