"""Vorta's CUDA C++ kernels: one library, built from `csrc/cuda` on first use and loaded by ctypes.

It holds machine code for compute capability 8.0, 8.9 and 9.0 (and PTX for later ones) and the CUDA runtime, so that it
needs a driver and nothing else. It is kept by `build`. `python -m vorta_kernels.cuda` builds it and prints what each
kernel takes of a GPU beside its limits.

From compute capability 9.0 on a kernel starts while the one in front of it in the stream ends; VORTA_CUDA_OVERLAP=0 in
the environment turns that off.

The same sources also build for a CPU (`csrc/cuda/simt.h`), where every thread of a launch runs in turn: that is how the
kernels are tested without a GPU.
"""

from __future__ import annotations

import ctypes
import fnmatch
import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vorta_kernels import build
from vorta_kernels.build import BuildError

__all__ = [
    "BuildError",
    "KernelUse",
    "Limit",
    "broken_limits",
    "emulation",
    "find_tool",
    "library",
    "limit_of",
    "load",
    "resource_use",
    "sass",
]

_SOURCES = Path(__file__).parent / "csrc" / "cuda"
_NVCC_FLAGS = (
    "-std=c++17",
    "-O3",
    "-shared",
    "-cudart=static",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    "-Xptxas=-v",
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_89,code=[sm_89,compute_89]",
    "-gencode=arch=compute_90a,code=sm_90a",
)
_EMULATION_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas")
_BUILD_TIMEOUT_S = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelUse:
    """What one kernel takes on one architecture, as the assembler says.

    Attributes:
        kernel: its name with its template arguments, as in `fp8_linear_kernel<1,2>`.
        arch: such as sm_90a.
        registers: of a thread.
        spill_bytes: stored or loaded by a thread because registers ran out.
        stack_bytes: local memory of a thread.
        shared_bytes: static shared memory of a block.
    """

    kernel: str
    arch: str
    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int


def find_tool(name: str) -> Path | None:
    """A program of the CUDA toolkit (nvcc, cuobjdump): in CUDA_HOME, on the path, or in the pip packages of NVIDIA or
    Triton; None where there is none."""
    home = os.environ.get("CUDA_HOME")
    if home and (Path(home) / "bin" / name).is_file():
        return Path(home) / "bin" / name
    if found := shutil.which(name):
        return Path(found)
    for package, pattern in (("nvidia", f"cu*/bin/{name}"), ("triton", f"backends/nvidia/bin/{name}")):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for path in sorted(Path(folder).glob(pattern), reverse=True):
                return path
    return None


@functools.cache
def library() -> Path:
    """The path of the library for GPUs, built if need be (about a minute).

    Raises:
        BuildError: There is no nvcc or no C++ compiler, it failed, or the cache folder cannot be written.
    """
    nvcc = find_tool("nvcc")
    if nvcc is None:
        raise BuildError("no nvcc in CUDA_HOME, on the path or in the package nvidia-cuda-nvcc")
    host_compiler = build.compiler()
    if host_compiler is None:
        raise BuildError("nvcc needs a C++ compiler, and none is installed")
    top = nvcc.resolve().parents[1]
    # The pip package keeps its libraries where its own profile does not look for them.
    folders = [folder for name in ("lib64", "lib") if (folder := top / name).is_dir()]
    # Nothing here needs the device runtime, which not every package has; a static cudart needs these three.
    links = ["-cudadevrt=none", *(f"-L{folder}" for folder in folders), "-lrt", "-lpthread", "-ldl"]
    command = [str(nvcc), *_NVCC_FLAGS, f"--threads={min(4, os.cpu_count() or 1)}", *map(str, _cu_sources()), *links]
    return _built(
        "vorta_cuda", command, (*_NVCC_FLAGS, str(nvcc), build.version(str(nvcc)), build.version(host_compiler))
    )


@functools.cache
def emulation() -> Path:
    """The path of the library for a CPU, for tests alone, built if need be (a few seconds).

    Raises:
        BuildError: There is no C++ compiler, it failed, or the cache folder cannot be written.
    """
    compiler = build.compiler()
    if compiler is None:
        raise BuildError("no C++ compiler is installed")
    command = [compiler, *_EMULATION_FLAGS, "-x", "c++", *map(str, _cu_sources())]
    return _built("vorta_simt", command, (*_EMULATION_FLAGS, compiler, build.version(compiler)))


@functools.cache
def load(device_type: str) -> ctypes.CDLL:
    """The library whose functions take pointers of a torch device: "cuda", or "cpu" for the emulation.

    Raises:
        BuildError: As `library` and `emulation`, or what was built cannot be loaded.
        ValueError: Another device.
    """
    if device_type not in ("cuda", "cpu"):
        raise ValueError(f"the CUDA kernels run on cuda, and emulated on cpu, not on {device_type}")
    path = library() if device_type == "cuda" else emulation()
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"{path.name} cannot be loaded: {error}") from error
    loaded.vorta_error_string.restype = ctypes.c_char_p
    return loaded


def resource_use() -> list[KernelUse]:
    """What every kernel takes on every architecture, by kernel; builds the library if need be.

    Raises:
        BuildError: As `library`.
    """
    log = library().with_suffix(".log").read_text(encoding="utf-8")
    uses = []
    for entry in re.split(r"Compiling entry function ", log)[1:]:
        head = re.match(r"'(\w+)' for '(\w+)'", entry)
        stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", entry)
        registers = re.search(r"Used (\d+) registers", entry)
        shared = re.search(r"(\d+) bytes smem", entry)
        if head is None or stack is None or registers is None:
            raise BuildError(f"the assembler's report is not understood: {entry[:300]}")
        uses.append(
            KernelUse(
                kernel=kernel_name(head[1]),
                arch=head[2],
                registers=int(registers[1]),
                spill_bytes=int(stack[2]) + int(stack[3]),
                stack_bytes=int(stack[1]),
                shared_bytes=int(shared[1]) if shared else 0,
            )
        )
    return sorted(uses, key=lambda use: (use.kernel, use.arch))


def kernel_name(symbol: str) -> str:
    """A kernel's name and template arguments out of its mangled name: `fp8_linear_kernel<1,2>`."""
    # A mangled name is its length and itself; what is in front of the length can end in digits too.
    found = next(
        (
            match
            for match in re.finditer(r"(?=(\d\d)([a-z][a-z0-9_]*?_kernel)(?:I(.*?)EE?v)?)", symbol)
            if int(match[1]) == len(match[2])
        ),
        None,
    )
    if found is None:
        return symbol
    simple = {"j": "uint32", "h": "uint8", "i": "int", "t": "uint16"}
    arguments = [
        number or {"__nv_bfloat16": "bf16", "__half": "fp16"}.get(name, name) or simple[code]
        for number, name, code in re.findall(r"L[ib](\d+)E|\d+([A-Za-z_]\w*?)(?=E|L|$)|([jhit])", found[3] or "")
    ]
    return f"{found[2]}<{','.join(arguments)}>" if arguments else found[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What a kernel may take and must hold (`csrc/cuda/limits.json`, by patterns of kernels' names).

    Attributes:
        registers: the most that a thread may use.
        instructions: what the machine code must hold on every architecture.
    """

    registers: int
    instructions: tuple[str, ...]


def limit_of(kernel: str) -> Limit | None:
    """The limit of the first pattern that the kernel's name fits; None where no pattern does."""
    table = json.loads((_SOURCES / "limits.json").read_text(encoding="utf-8"))
    for pattern, entry in table.items():
        if fnmatch.fnmatchcase(kernel, pattern):
            return Limit(registers=entry["registers"], instructions=tuple(entry["instructions"]))
    return None


def broken_limits(uses: Sequence[KernelUse]) -> list[str]:
    """One line for each kernel that spills, uses local memory, has no limit or passes its limit."""
    lines = []
    for use in uses:
        where = f"{use.kernel} on {use.arch}"
        if use.spill_bytes or use.stack_bytes:
            lines.append(f"{where} spills {use.spill_bytes} bytes and has {use.stack_bytes} bytes of local memory")
        limit = limit_of(use.kernel)
        if limit is None:
            lines.append(f"{where} has no limit in limits.json")
        elif use.registers > limit.registers:
            lines.append(f"{where} uses {use.registers} registers, more than {limit.registers}")
    return lines


def sass(path: Path) -> dict[tuple[str, str], str]:
    """The machine code of a library by kernel, as in `KernelUse`, and architecture.

    Raises:
        BuildError: There is no cuobjdump, or it failed.
    """
    tool = find_tool("cuobjdump")
    if tool is None:
        raise BuildError("no cuobjdump in CUDA_HOME, on the path or in the package triton")
    done = subprocess.run([str(tool), "--dump-sass", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"cuobjdump failed: {done.stderr.strip()[-2000:]}")
    code: dict[tuple[str, str], str] = {}
    arch = ""
    for part in re.split(r"(?=arch = sm_|Function : )", done.stdout):
        if found := re.match(r"arch = (\w+)", part):
            arch = found[1]
        elif found := re.match(r"Function : (\w+)", part):
            code[kernel_name(found[1]), arch] = part
    return code


def _cu_sources() -> list[Path]:
    return sorted(_SOURCES.glob("*.cu"))


def _built(name: str, command: list[str], parts: Sequence[str]) -> Path:
    path = build.kept(
        "kernels", name, parts, [file for file in sorted(_SOURCES.iterdir()) if file.suffix in (".cu", ".h")]
    )
    build.run_compiler(command, path, timeout_s=_BUILD_TIMEOUT_S)
    return path


def _main() -> int:
    try:
        uses = resource_use()
    except BuildError as error:
        print(f"vorta_kernels.cuda: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(library())  # noqa: T201
    print(f"{'kernel':44} {'arch':7} {'registers':>9} {'limit':>5} {'spills':>6} {'local':>5} {'shared':>6}")  # noqa: T201
    for use in uses:
        limit = limit_of(use.kernel)
        print(  # noqa: T201
            f"{use.kernel:44} {use.arch:7} {use.registers:9} {limit.registers if limit else '-':>5} "
            f"{use.spill_bytes:6} {use.stack_bytes:5} {use.shared_bytes:6}"
        )
    broken = broken_limits(uses)
    for line in broken:
        print(line, file=sys.stderr)  # noqa: T201
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(_main())
