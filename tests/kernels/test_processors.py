"""The CPU's kernels as they are built for lesser processors than this one: each takes other ways in the sources."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parent
NEEDS = {
    "x86-64-v3": {"avx2", "fma"},
    "icelake-server": {"avx512f", "avx512_vnni", "avx512_vbmi2"},
    "cooperlake": {"avx512f", "avx512_vnni", "avx512_bf16"},
}
"""What a processor must have to run what is built for another one: without AVX-512, without bfloat16, without tiles."""

RUN = """
import sys, pytest
from vorta_kernels import cpu
cpu._FLAGS = tuple(f"-march={sys.argv[1]}" if flag == "-march=native" else flag for flag in cpu._FLAGS)
sys.exit(pytest.main(["-q", "-n0", "--no-cov", "-p", "no:cacheprovider", *sys.argv[2:]]))
"""


def features() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


@pytest.mark.parametrize("processor", sorted(NEEDS))
def test_kernels_are_right_there(processor: str, tmp_path: Path) -> None:
    missing = NEEDS[processor] - features()
    if missing:
        pytest.skip(f"this processor lacks {', '.join(sorted(missing))}")
    files = [FOLDER / "test_cpu.py", FOLDER / "test_graph.py", FOLDER.parent / "server" / "engine" / "test_sampler.py"]
    done = subprocess.run(
        [sys.executable, "-c", RUN, processor, *map(str, files)],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert len(list((tmp_path / "vorta" / "kernels").glob("*.so"))) == 1
